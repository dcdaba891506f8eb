package templates

import (
	"fmt"
	"math/bits"
	"strings"
)

// General flags of a template, attribute "flags" ([MS-CRTD] 2.4).
const (
	FlagAutoEnrollment    uint32 = 0x00000020
	FlagMachineType       uint32 = 0x00000040
	FlagIsCA              uint32 = 0x00000080
	FlagAddTemplateName   uint32 = 0x00000200
	FlagIsCrossCA         uint32 = 0x00000800
	FlagDoNotPersistInDB  uint32 = 0x00001000
	FlagIsDefault         uint32 = 0x00010000
	FlagIsModified        uint32 = 0x00020000
	flagEnrolleeSupplied  uint32 = 0x00000001 // reserved, still written by the Windows console
	flagAddEmail          uint32 = 0x00000002
	flagAddObjID          uint32 = 0x00000004
	flagPublishDS         uint32 = 0x00000008
	flagExportable        uint32 = 0x00000010
	flagDoNotDeleteOnPoll uint32 = 0x00080000 // seen in AD, no meaning in the specification
)

// Bits of msPKI-Enrollment-Flag ([MS-CRTD] 2.26).
const (
	EnrollIncludeSymmetricAlgorithms      uint32 = 0x00000001
	EnrollPendAllRequests                 uint32 = 0x00000002
	EnrollPublishToKRAContainer           uint32 = 0x00000004
	EnrollPublishToDS                     uint32 = 0x00000008
	EnrollCheckUserDSCertificate          uint32 = 0x00000010
	EnrollAutoEnrollment                  uint32 = 0x00000020
	EnrollPreviousApprovalValidate        uint32 = 0x00000040
	EnrollUserInteractionRequired         uint32 = 0x00000100
	EnrollRemoveInvalidFromPersonalStore  uint32 = 0x00000400
	EnrollAllowOnBehalfOf                 uint32 = 0x00000800
	EnrollAddOCSPNoCheck                  uint32 = 0x00001000
	EnrollKeyReuseOnTokenFull             uint32 = 0x00002000
	EnrollNoRevocationInfo                uint32 = 0x00004000
	EnrollIncludeBasicConstraints         uint32 = 0x00008000
	EnrollPreviousApprovalKeyBasedRenewal uint32 = 0x00010000
	EnrollIssuancePoliciesFromRequest     uint32 = 0x00020000
	EnrollSkipAutoRenewal                 uint32 = 0x00040000
	EnrollNoSecurityExtension             uint32 = 0x00080000
)

// Bits of msPKI-Private-Key-Flag ([MS-CRTD] 2.27).
const (
	KeyRequireArchival       uint32 = 0x00000001
	KeyExportable            uint32 = 0x00000010
	KeyStrongProtection      uint32 = 0x00000020
	KeyAlternateSignature    uint32 = 0x00000040
	KeyRequireSameKeyRenewal uint32 = 0x00000080
	KeyUseLegacyProvider     uint32 = 0x00000100
	KeyTrustOnUse            uint32 = 0x00000200
	KeyTrustEKCertificate    uint32 = 0x00000400
	KeyTrustEKKey            uint32 = 0x00000800
	KeyAttestPreferred       uint32 = 0x00001000
	KeyAttestRequired        uint32 = 0x00002000
	KeyAttestWithoutPolicy   uint32 = 0x00004000
	KeyHelloLogon            uint32 = 0x00200000
	keyServerVersionMask     uint32 = 0x000F0000
	keyClientVersionMask     uint32 = 0x0F000000
	keyHelloKSPKey           uint32 = 0x00100000 // reserved, seen on Hello templates
)

// Bits of msPKI-Certificate-Name-Flag ([MS-CRTD] 2.28).
const (
	NameEnrolleeSuppliesSubject     uint32 = 0x00000001
	NameOldCertSuppliesSubject      uint32 = 0x00000008
	NameEnrolleeSuppliesSAN         uint32 = 0x00010000
	NameSANRequireDomainDNS         uint32 = 0x00400000
	NameSANRequireSPN               uint32 = 0x00800000
	NameSANRequireDirectoryGUID     uint32 = 0x01000000
	NameSANRequireUPN               uint32 = 0x02000000
	NameSANRequireEmail             uint32 = 0x04000000
	NameSANRequireDNS               uint32 = 0x08000000
	NameSubjectRequireDNSAsCN       uint32 = 0x10000000
	NameSubjectRequireEmail         uint32 = 0x20000000
	NameSubjectRequireCommonName    uint32 = 0x40000000
	NameSubjectRequireDirectoryPath uint32 = 0x80000000
)

// FlagText describes a template's four flag attributes for people.
type FlagText struct{ Attribute, Value, Meaning string }

// Flags returns the flag attributes with every bit that is set named.
func (t *Template) Flags() []FlagText {
	var out []FlagText
	for _, g := range flagGroups {
		value := *t.value(g.attribute)
		unknown := value
		var set []string
		for _, f := range g.flags {
			unknown &^= f.Bit
			if value&f.Bit != 0 && bits.OnesCount32(f.Bit) == 1 {
				set = append(set, f.Name)
			}
		}
		if unknown != 0 {
			set = append(set, fmt.Sprintf("unknown bits 0x%08X", unknown))
		}
		out = append(out, FlagText{g.attribute, fmt.Sprintf("0x%08X", value), strings.Join(set, " | ")})
	}
	return out
}

// unknownBits lists the bits that the table does not have, by attribute.
func (t *Template) unknownBits() (out []string) {
	for _, g := range flagGroups {
		unknown := *t.value(g.attribute)
		for i := range g.flags {
			unknown &^= g.flags[i].Bit
		}
		if unknown != 0 {
			out = append(out, fmt.Sprintf("unknown bits 0x%08X in %s", unknown, g.attribute))
		}
	}
	return out
}
