package templates

import (
	"fmt"
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

// flagName is one bit of a flag attribute.
type flagName struct {
	bit  uint32
	name string
}

var generalFlagNames = []flagName{
	{flagEnrolleeSupplied, "ENROLLEE_SUPPLIED (reserved)"}, {flagAddEmail, "ADD_EMAIL (reserved)"},
	{flagAddObjID, "ADD_OBJ_GUID (reserved)"}, {flagPublishDS, "PUBLISH (reserved)"}, {flagExportable, "EXPORTABLE_KEY (reserved)"},
	{FlagAutoEnrollment, "AUTO_ENROLLMENT"}, {FlagMachineType, "MACHINE_TYPE"}, {FlagIsCA, "IS_CA"},
	{FlagAddTemplateName, "ADD_TEMPLATE_NAME"}, {FlagIsCrossCA, "IS_CROSS_CA"}, {FlagDoNotPersistInDB, "DONOTPERSISTINDB"},
	{FlagIsDefault, "IS_DEFAULT"}, {FlagIsModified, "IS_MODIFIED"}, {flagDoNotDeleteOnPoll, "0x80000 (no meaning)"},
}

var enrollmentFlagNames = []flagName{
	{EnrollIncludeSymmetricAlgorithms, "INCLUDE_SYMMETRIC_ALGORITHMS"}, {EnrollPendAllRequests, "PEND_ALL_REQUESTS"},
	{EnrollPublishToKRAContainer, "PUBLISH_TO_KRA_CONTAINER"}, {EnrollPublishToDS, "PUBLISH_TO_DS"},
	{EnrollCheckUserDSCertificate, "AUTO_ENROLLMENT_CHECK_USER_DS_CERTIFICATE"}, {EnrollAutoEnrollment, "AUTO_ENROLLMENT"},
	{EnrollPreviousApprovalValidate, "PREVIOUS_APPROVAL_VALIDATE_REENROLLMENT"},
	{EnrollUserInteractionRequired, "USER_INTERACTION_REQUIRED"},
	{EnrollRemoveInvalidFromPersonalStore, "REMOVE_INVALID_CERTIFICATE_FROM_PERSONAL_STORE"},
	{EnrollAllowOnBehalfOf, "ALLOW_ENROLL_ON_BEHALF_OF"}, {EnrollAddOCSPNoCheck, "ADD_OCSP_NOCHECK"},
	{EnrollKeyReuseOnTokenFull, "ENABLE_KEY_REUSE_ON_NT_TOKEN_KEYSET_STORAGE_FULL"},
	{EnrollNoRevocationInfo, "NOREVOCATIONINFOINISSUEDCERTS"}, {EnrollIncludeBasicConstraints, "INCLUDE_BASIC_CONSTRAINTS_FOR_EE_CERTS"},
	{EnrollPreviousApprovalKeyBasedRenewal, "ALLOW_PREVIOUS_APPROVAL_KEYBASEDRENEWAL_VALIDATE_REENROLLMENT"},
	{EnrollIssuancePoliciesFromRequest, "ISSUANCE_POLICIES_FROM_REQUEST"}, {EnrollSkipAutoRenewal, "SKIP_AUTO_RENEWAL"},
	{EnrollNoSecurityExtension, "NO_SECURITY_EXTENSION"},
}

var privateKeyFlagNames = []flagName{
	{KeyRequireArchival, "REQUIRE_PRIVATE_KEY_ARCHIVAL"}, {KeyExportable, "EXPORTABLE_KEY"},
	{KeyStrongProtection, "STRONG_KEY_PROTECTION_REQUIRED"}, {KeyAlternateSignature, "REQUIRE_ALTERNATE_SIGNATURE_ALGORITHM"},
	{KeyRequireSameKeyRenewal, "REQUIRE_SAME_KEY_RENEWAL"}, {KeyUseLegacyProvider, "USE_LEGACY_PROVIDER"},
	{KeyTrustOnUse, "EK_TRUST_ON_USE"}, {KeyTrustEKCertificate, "EK_VALIDATE_CERT"}, {KeyTrustEKKey, "EK_VALIDATE_KEY"},
	{KeyAttestPreferred, "ATTEST_PREFERRED"}, {KeyAttestRequired, "ATTEST_REQUIRED"},
	{KeyAttestWithoutPolicy, "ATTESTATION_WITHOUT_POLICY"}, {keyHelloKSPKey, "HELLO_KSP_KEY (reserved)"},
	{KeyHelloLogon, "HELLO_LOGON_KEY"},
}

var nameFlagNames = []flagName{
	{NameEnrolleeSuppliesSubject, "ENROLLEE_SUPPLIES_SUBJECT"}, {NameOldCertSuppliesSubject, "OLD_CERT_SUPPLIES_SUBJECT_AND_ALT_NAME"},
	{NameEnrolleeSuppliesSAN, "ENROLLEE_SUPPLIES_SUBJECT_ALT_NAME"}, {NameSANRequireDomainDNS, "SUBJECT_ALT_REQUIRE_DOMAIN_DNS"},
	{NameSANRequireSPN, "SUBJECT_ALT_REQUIRE_SPN"}, {NameSANRequireDirectoryGUID, "SUBJECT_ALT_REQUIRE_DIRECTORY_GUID"},
	{NameSANRequireUPN, "SUBJECT_ALT_REQUIRE_UPN"}, {NameSANRequireEmail, "SUBJECT_ALT_REQUIRE_EMAIL"},
	{NameSANRequireDNS, "SUBJECT_ALT_REQUIRE_DNS"}, {NameSubjectRequireDNSAsCN, "SUBJECT_REQUIRE_DNS_AS_CN"},
	{NameSubjectRequireEmail, "SUBJECT_REQUIRE_EMAIL"}, {NameSubjectRequireCommonName, "SUBJECT_REQUIRE_COMMON_NAME"},
	{NameSubjectRequireDirectoryPath, "SUBJECT_REQUIRE_DIRECTORY_PATH"},
}

// describeFlags names the bits that are set, in ascending order, and returns the bits without a name.
func describeFlags(value uint32, names []flagName) (set []string, unknown uint32) {
	unknown = value
	for _, f := range names {
		if value&f.bit != 0 {
			set = append(set, f.name)
			unknown &^= f.bit
		}
	}
	return set, unknown
}

// FlagText describes a template's four flag attributes for people.
type FlagText struct{ Attribute, Value, Meaning string }

// Flags returns the flag attributes with every bit that is set named.
func (t *Template) Flags() []FlagText {
	rows := []struct {
		attribute string
		value     uint32
		names     []flagName
		ignore    uint32
	}{
		{"flags", t.GeneralFlags, generalFlagNames, 0},
		{"msPKI-Enrollment-Flag", t.EnrollmentFlags, enrollmentFlagNames, 0},
		{"msPKI-Private-Key-Flag", t.PrivateKeyFlags, privateKeyFlagNames, keyServerVersionMask | keyClientVersionMask},
		{"msPKI-Certificate-Name-Flag", t.NameFlags, nameFlagNames, 0},
	}
	out := make([]FlagText, len(rows))
	for i, r := range rows {
		set, unknown := describeFlags(r.value&^r.ignore, r.names)
		if unknown != 0 {
			set = append(set, fmt.Sprintf("unknown bits 0x%08X", unknown))
		}
		out[i] = FlagText{r.attribute, fmt.Sprintf("0x%08X", r.value), strings.Join(set, " | ")}
	}
	return out
}
