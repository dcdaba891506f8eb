package templates

import "fmt"

// Effect is what a set bit does here.
type Effect string

// The effects. A test sets and clears every bit of the table and requires the effect that the table claims.
const (
	EffectServer  Effect = "applied"   // it changes the decision
	EffectClient  Effect = "client"    // it is for the client, which reads it from the policy; the decision is the same
	EffectRefused Effect = "refused"   // the template is not served, and the reason names the flag
	EffectNone    Effect = "no effect" // nothing depends on it here; Does says why that is safe
)

// Flag is one bit of a flag attribute of certificate templates, or a field of several bits.
type Flag struct {
	Attribute string `json:"attribute"`
	Name      string `json:"name"`
	Bit       uint32 `json:"bit"`
	Spec      string `json:"spec"` // [MS-CRTD] where the flag is defined, [MS-WCCE] where a CA processes it
	Effect    Effect `json:"effect"`
	Does      string `json:"does"`
	Test      string `json:"test"` // the test that proves it
}

// The names of the flag attributes.
const (
	attrGeneral    = "flags"
	attrEnrollment = "msPKI-Enrollment-Flag"
	attrPrivateKey = "msPKI-Private-Key-Flag"
	attrName       = "msPKI-Certificate-Name-Flag"
)

// flagGroups are the flag attributes with their bits.
var flagGroups = []struct {
	attribute, spec string
	flags           []Flag
}{
	{attrGeneral, "[MS-CRTD] 2.4", generalFlags}, {attrEnrollment, "[MS-CRTD] 2.26", enrollmentFlags},
	{attrPrivateKey, "[MS-CRTD] 2.27", privateKeyFlags}, {attrName, "[MS-CRTD] 2.28", nameFlags},
}

// AllFlags lists every flag that a template can have, in the order of attributes and bits. A bit that is not in it makes a
// template unusable.
func AllFlags() []Flag {
	var out []Flag
	for _, g := range flagGroups {
		for _, f := range g.flags {
			f.Attribute = g.attribute
			if f.Spec != "" {
				f.Spec = "; " + f.Spec
			}
			f.Spec, f.Test = g.spec+f.Spec, testFlags
			out = append(out, f)
		}
	}
	return out
}

// FlagName names a bit of a flag attribute; "" where the table does not have it.
func FlagName(attribute string, bit uint32) string {
	for _, g := range flagGroups {
		for i := range g.flags {
			if g.attribute == attribute && g.flags[i].Bit == bit {
				return g.flags[i].Name
			}
		}
	}
	return ""
}

// value is the attribute of the template that a flag is in.
func (t *Template) value(attribute string) *uint32 {
	switch attribute {
	case attrGeneral:
		return &t.GeneralFlags
	case attrEnrollment:
		return &t.EnrollmentFlags
	case attrPrivateKey:
		return &t.PrivateKeyFlags
	case attrName:
		return &t.NameFlags
	}
	panic("templates: no flag attribute " + attribute)
}

const (
	flagsPart      = "[MS-WCCE] 3.2.2.6.2.1.4.4.1"
	publishPart    = "[MS-WCCE] 3.2.2.6.2.1.4.5.6"
	namesPart      = "[MS-WCCE] 3.2.2.6.2.1.4.5.9"
	privateKeyPart = "[MS-WCCE] 3.2.2.6.2.1.4.5.7"
	reserved       = "reserved; the Windows console still writes it"
)

var generalFlags = []Flag{
	{Name: "ENROLLEE_SUPPLIED", Bit: flagEnrolleeSupplied, Effect: EffectNone, Does: reserved},
	{Name: "ADD_EMAIL", Bit: flagAddEmail, Effect: EffectNone, Does: reserved},
	{Name: "ADD_OBJ_GUID", Bit: flagAddObjID, Effect: EffectNone, Does: reserved},
	{Name: "PUBLISH", Bit: flagPublishDS, Effect: EffectNone, Does: reserved},
	{Name: "EXPORTABLE_KEY", Bit: flagExportable, Effect: EffectNone, Does: reserved},
	{Name: "AUTO_ENROLLMENT", Bit: FlagAutoEnrollment, Effect: EffectClient, Does: "of schema 1; later schemas have it in msPKI-Enrollment-Flag"},
	{Name: "MACHINE_TYPE", Bit: FlagMachineType, Effect: EffectServer, Does: "the template is for computers: users are refused, and the other way round"},
	{Name: "IS_CA", Bit: FlagIsCA, Effect: EffectRefused, Does: "certificates for CAs are not issued"},
	{Name: "ADD_TEMPLATE_NAME", Bit: FlagAddTemplateName, Effect: EffectNone, Does: "every certificate names its template, with or without this flag"},
	{Name: "IS_CROSS_CA", Bit: FlagIsCrossCA, Effect: EffectRefused, Does: "cross certificates are not issued"},
	{Name: "DONOTPERSISTINDB", Bit: FlagDoNotPersistInDB, Effect: EffectNone, Does: "every request is recorded: a crash must lose nothing"},
	{Name: "IS_DEFAULT", Bit: FlagIsDefault, Effect: EffectNone, Does: "only says where the template comes from"},
	{Name: "IS_MODIFIED", Bit: FlagIsModified, Effect: EffectNone, Does: "only says that somebody changed the template"},
	{Name: "0x00080000", Bit: flagDoNotDeleteOnPoll, Effect: EffectNone, Does: "found in real forests; the specification gives it no meaning"},
}

var enrollmentFlags = []Flag{
	{Name: "INCLUDE_SYMMETRIC_ALGORITHMS", Bit: EnrollIncludeSymmetricAlgorithms, Spec: flagsPart, Effect: EffectServer, Does: "adds the S/MIME capabilities"},
	{Name: "PEND_ALL_REQUESTS", Bit: EnrollPendAllRequests, Spec: flagsPart, Effect: EffectServer, Does: "a certificate manager approves each request"},
	{Name: "PUBLISH_TO_KRA_CONTAINER", Bit: EnrollPublishToKRAContainer, Spec: publishPart, Effect: EffectServer, Does: "the certificate is written to the CA's object in the KRA container; agents of this gateway are designated on it all the same"},
	{Name: "PUBLISH_TO_DS", Bit: EnrollPublishToDS, Spec: publishPart, Effect: EffectServer, Does: "the certificate is added to userCertificate of the account that it is for; what it replaces is taken away"},
	{Name: "AUTO_ENROLLMENT_CHECK_USER_DS_CERTIFICATE", Bit: EnrollCheckUserDSCertificate, Effect: EffectClient, Does: "the client does not enroll where the directory has a certificate already"},
	{Name: "AUTO_ENROLLMENT", Bit: EnrollAutoEnrollment, Effect: EffectClient, Does: "the client may enroll by itself"},
	{Name: "PREVIOUS_APPROVAL_VALIDATE_REENROLLMENT", Bit: EnrollPreviousApprovalValidate, Spec: "[MS-WCCE] 3.2.2.6.2.1.4.8", Effect: EffectServer, Does: "a renewal of a certificate that was issued here to the same account needs neither signatures nor approval again"},
	{Name: "USER_INTERACTION_REQUIRED", Bit: EnrollUserInteractionRequired, Effect: EffectClient, Does: "the client asks the user"},
	{Name: "REMOVE_INVALID_CERTIFICATE_FROM_PERSONAL_STORE", Bit: EnrollRemoveInvalidFromPersonalStore, Effect: EffectClient, Does: "the client deletes expired and revoked certificates"},
	{Name: "ALLOW_ENROLL_ON_BEHALF_OF", Bit: EnrollAllowOnBehalfOf, Spec: flagsPart, Effect: EffectServer, Does: "an enrollment agent may enroll for others, within the rules under enrollment_agents; schema 1 templates need no flag"},
	{Name: "ADD_OCSP_NOCHECK", Bit: EnrollAddOCSPNoCheck, Spec: flagsPart, Effect: EffectServer, Does: "adds id-pkix-ocsp-nocheck where the purpose is OCSP signing"},
	{Name: "ENABLE_KEY_REUSE_ON_NT_TOKEN_KEYSET_STORAGE_FULL", Bit: EnrollKeyReuseOnTokenFull, Effect: EffectClient, Does: "the client uses the old key again where a smart card is full"},
	{Name: "NOREVOCATIONINFOINISSUEDCERTS", Bit: EnrollNoRevocationInfo, Spec: flagsPart, Effect: EffectServer, Does: "the certificate says nothing about revocation lists"},
	{Name: "INCLUDE_BASIC_CONSTRAINTS_FOR_EE_CERTS", Bit: EnrollIncludeBasicConstraints, Spec: flagsPart, Effect: EffectServer, Does: "adds basic constraints: no CA"},
	{Name: "ALLOW_PREVIOUS_APPROVAL_KEYBASEDRENEWAL_VALIDATE_REENROLLMENT", Bit: EnrollPreviousApprovalKeyBasedRenewal, Spec: "[MS-WCCE] 3.2.2.6.2.1.4.3", Effect: EffectServer, Does: "with PREVIOUS_APPROVAL_VALIDATE_REENROLLMENT and ENROLLEE_SUPPLIES_SUBJECT a renewal needs no Enroll right: the old key is the proof"},
	{Name: "ISSUANCE_POLICIES_FROM_REQUEST", Bit: EnrollIssuancePoliciesFromRequest, Spec: "[MS-WCCE] 3.2.2.6.2.1.4.5.8", Effect: EffectServer, Does: "of the template's issuance policies the certificate gets those that the request asks for"},
	{Name: "SKIP_AUTO_RENEWAL", Bit: EnrollSkipAutoRenewal, Effect: EffectClient, Does: "the client does not renew by itself"},
	{Name: "NO_SECURITY_EXTENSION", Bit: EnrollNoSecurityExtension, Spec: flagsPart, Effect: EffectServer, Does: "leaves out the extension that binds the certificate to the account's SID; dangerous (ESC9) and not served where the certificate is good for logon"},
}

var privateKeyFlags = []Flag{
	{Name: "REQUIRE_PRIVATE_KEY_ARCHIVAL", Bit: KeyRequireArchival, Spec: privateKeyPart, Effect: EffectServer, Does: "the private key has to be enclosed, and is archived before the certificate is issued"},
	{Name: "EXPORTABLE_KEY", Bit: KeyExportable, Effect: EffectClient, Does: "the client's key may be exported"},
	{Name: "STRONG_KEY_PROTECTION_REQUIRED", Bit: KeyStrongProtection, Effect: EffectClient, Does: "the client asks the user each time that the key is used"},
	{Name: "REQUIRE_ALTERNATE_SIGNATURE_ALGORITHM", Bit: KeyAlternateSignature, Effect: EffectClient, Does: "the client signs its request with RSASSA-PSS"},
	{Name: "REQUIRE_SAME_KEY_RENEWAL", Bit: KeyRequireSameKeyRenewal, Spec: privateKeyPart, Effect: EffectServer, Does: "a renewal has to keep the key; one that is archived need not be enclosed again"},
	{Name: "USE_LEGACY_PROVIDER", Bit: KeyUseLegacyProvider, Effect: EffectClient, Does: "the client uses a CAPI provider; in schema 4 it also says how msPKI-RA-Application-Policies is written"},
	{Name: "EK_TRUST_ON_USE", Bit: KeyTrustOnUse, Spec: privateKeyPart, Effect: EffectNone, Does: "attestation is not evaluated"},
	{Name: "EK_VALIDATE_CERT", Bit: KeyTrustEKCertificate, Spec: privateKeyPart, Effect: EffectNone, Does: "attestation is not evaluated"},
	{Name: "EK_VALIDATE_KEY", Bit: KeyTrustEKKey, Spec: privateKeyPart, Effect: EffectNone, Does: "attestation is not evaluated"},
	{Name: "ATTEST_PREFERRED", Bit: KeyAttestPreferred, Spec: privateKeyPart, Effect: EffectNone, Does: "attestation is not evaluated, and no policy says that a key was attested"},
	{Name: "ATTEST_REQUIRED", Bit: KeyAttestRequired, Spec: privateKeyPart, Effect: EffectRefused, Does: "key attestation is not supported"},
	{Name: "ATTESTATION_WITHOUT_POLICY", Bit: KeyAttestWithoutPolicy, Spec: privateKeyPart, Effect: EffectNone, Does: "attestation is not evaluated, and no policy says that a key was attested"},
	{Name: "minimum CA version", Bit: keyServerVersionMask, Spec: flagsPart, Effect: EffectRefused, Does: fmt.Sprintf("templates for CAs later than generation %d are refused", serverGeneration)},
	{Name: "HELLO_KSP_KEY", Bit: keyHelloKSPKey, Effect: EffectClient, Does: "reserved; seen on templates for Windows Hello"},
	{Name: "HELLO_LOGON_KEY", Bit: KeyHelloLogon, Effect: EffectClient, Does: "the client uses its Windows Hello key"},
	{Name: "minimum client version", Bit: keyClientVersionMask, Effect: EffectClient, Does: "older clients skip the template"},
}

var nameFlags = []Flag{
	{Name: "ENROLLEE_SUPPLIES_SUBJECT", Bit: NameEnrolleeSuppliesSubject, Spec: namesPart, Effect: EffectServer, Does: "subject and alternative names are those of the request; where they would be good for logon and nobody approves, the template is dangerous (ESC1) and not served"},
	{Name: "OLD_CERT_SUPPLIES_SUBJECT_AND_ALT_NAME", Bit: NameOldCertSuppliesSubject, Spec: namesPart, Effect: EffectServer, Does: "where the enrollee supplies the subject, a renewal has the names of the old certificate, which must have been issued here to the same account"},
	{Name: "ENROLLEE_SUPPLIES_SUBJECT_ALT_NAME", Bit: NameEnrolleeSuppliesSAN, Spec: namesPart, Effect: EffectNone, Does: "a CA has to ignore it: names come from the directory"},
	{Name: "SUBJECT_ALT_REQUIRE_DOMAIN_DNS", Bit: NameSANRequireDomainDNS, Spec: namesPart, Effect: EffectServer, Does: "adds the domain's DNS name"},
	{Name: "SUBJECT_ALT_REQUIRE_SPN", Bit: NameSANRequireSPN, Spec: namesPart, Effect: EffectServer, Does: "adds the user principal name"},
	{Name: "SUBJECT_ALT_REQUIRE_DIRECTORY_GUID", Bit: NameSANRequireDirectoryGUID, Spec: namesPart, Effect: EffectServer, Does: "adds objectGUID"},
	{Name: "SUBJECT_ALT_REQUIRE_UPN", Bit: NameSANRequireUPN, Spec: namesPart, Effect: EffectServer, Does: "adds the user principal name"},
	{Name: "SUBJECT_ALT_REQUIRE_EMAIL", Bit: NameSANRequireEmail, Spec: namesPart, Effect: EffectServer, Does: "adds mail"},
	{Name: "SUBJECT_ALT_REQUIRE_DNS", Bit: NameSANRequireDNS, Spec: namesPart, Effect: EffectServer, Does: "adds dNSHostName"},
	{Name: "SUBJECT_REQUIRE_DNS_AS_CN", Bit: NameSubjectRequireDNSAsCN, Spec: namesPart, Effect: EffectServer, Does: "the common name is dNSHostName"},
	{Name: "SUBJECT_REQUIRE_EMAIL", Bit: NameSubjectRequireEmail, Spec: namesPart, Effect: EffectServer, Does: "mail is in the subject"},
	{Name: "SUBJECT_REQUIRE_COMMON_NAME", Bit: NameSubjectRequireCommonName, Spec: namesPart, Effect: EffectServer, Does: "the common name is cn"},
	{Name: "SUBJECT_REQUIRE_DIRECTORY_PATH", Bit: NameSubjectRequireDirectoryPath, Spec: namesPart, Effect: EffectServer, Does: "the subject is the distinguished name"},
}
