package wcce

import "encoding/asn1"

// Object identifiers in dotted form. Names are those of [MS-WCCE] 1.9 and 2.2.2.7, RFC 5272 and RFC 5652.
const (
	OIDData          = "1.2.840.113549.1.7.1"
	OIDSignedData    = "1.2.840.113549.1.7.2"
	OIDEnvelopedData = "1.2.840.113549.1.7.3"

	OIDContentType   = "1.2.840.113549.1.9.3"
	OIDMessageDigest = "1.2.840.113549.1.9.4"

	OIDPKIData        = "1.3.6.1.5.5.7.12.2" // CMC full PKIRequest
	OIDPKIResponse    = "1.3.6.1.5.5.7.12.3" // CMC full PKIResponse
	OIDCMCStatusInfo  = "1.3.6.1.5.5.7.7.1"
	OIDCMCAddExt      = "1.3.6.1.5.5.7.7.8"
	OIDCMCRegInfo     = "1.3.6.1.5.5.7.7.18"
	OIDNoSignature    = "1.3.6.1.5.5.7.6.2" // RFC 2797 3.3.3.1
	OIDCMCAddAttrs    = "1.3.6.1.4.1.311.10.10.1"
	OIDExtensions     = "1.2.840.113549.1.9.14"
	OIDMSExtensions   = "1.3.6.1.4.1.311.2.1.14"
	OIDOSVersion      = "1.3.6.1.4.1.311.13.2.3"
	OIDNameValuePair  = "1.3.6.1.4.1.311.13.2.1"
	OIDCSP            = "1.3.6.1.4.1.311.13.2.2"
	OIDRenewalCert    = "1.3.6.1.4.1.311.13.1"
	OIDClientInfo     = "1.3.6.1.4.1.311.21.20"
	OIDArchivedKey    = "1.3.6.1.4.1.311.21.13"
	OIDArchivedHash   = "1.3.6.1.4.1.311.21.21" // szOID_ENCRYPTED_KEY_HASH
	OIDIssuedCertHash = "1.3.6.1.4.1.311.21.17"
	OIDArchivedCert   = "1.3.6.1.4.1.311.21.16" // szOID_ARCHIVED_KEY_CERT_HASH, in a recovery blob
	OIDAttestation    = "1.3.6.1.4.1.311.21.24"
	OIDAttestation2   = "1.3.6.1.4.1.311.21.33"
	OIDAIKInfo        = "1.3.6.1.4.1.311.21.39"
	OIDEKInfo         = "1.3.6.1.4.1.311.21.23"
	OIDKSPName        = "1.3.6.1.4.1.311.21.25"

	OIDTemplateName = "1.3.6.1.4.1.311.20.2"
	OIDTemplateInfo = "1.3.6.1.4.1.311.21.7"
	OIDCAExchange   = "1.3.6.1.4.1.311.21.5" // extended key usage of exchange certificates
	OIDKeyRecovery  = "1.3.6.1.4.1.311.21.6" // extended key usage of key recovery agents
	OIDAppPolicies  = "1.3.6.1.4.1.311.21.10"
	OIDSKI          = "2.5.29.14"
	OIDKeyUsage     = "2.5.29.15"
	OIDEKU          = "2.5.29.37"
	OIDSAN          = "2.5.29.17"
	OIDSID          = "1.3.6.1.4.1.311.25.2" // [MS-WCCE] 2.2.2.7.7.4

	OIDRSAEncryption = "1.2.840.113549.1.1.1"
	OIDRSAESOAEP     = "1.2.840.113549.1.1.7"
	OIDMGF1          = "1.2.840.113549.1.1.8"
	OIDRSASSAPSS     = "1.2.840.113549.1.1.10"
	OIDECPublicKey   = "1.2.840.10045.2.1"
	OIDDESEDE3CBC    = "1.2.840.113549.3.7"
	OIDAES128CBC     = "2.16.840.1.101.3.4.1.2"
	OIDAES192CBC     = "2.16.840.1.101.3.4.1.22"
	OIDAES256CBC     = "2.16.840.1.101.3.4.1.42"
	OIDSHA1          = "1.3.14.3.2.26"
	OIDSHA256        = "2.16.840.1.101.3.4.2.1"
	OIDSHA384        = "2.16.840.1.101.3.4.2.2"
	OIDSHA512        = "2.16.840.1.101.3.4.2.3"
)

// oidNames are for people; inspect prints them beside the numbers.
var oidNames = map[string]string{
	OIDData: "data", OIDSignedData: "signedData", OIDEnvelopedData: "envelopedData", OIDContentType: "contentType",
	OIDMessageDigest: "messageDigest", OIDPKIData: "CMC PKIData", OIDPKIResponse: "CMC PKIResponse",
	OIDCMCStatusInfo: "CMC status info", OIDCMCAddExt: "CMC add extensions", OIDCMCRegInfo: "CMC registration info",
	OIDCMCAddAttrs: "CMC add attributes", OIDExtensions: "extension request", OIDMSExtensions: "extension request (Microsoft)",
	OIDOSVersion: "OS version", OIDNameValuePair: "name/value pair", OIDCSP: "cryptographic provider",
	OIDRenewalCert: "renewal certificate", OIDClientInfo: "client information", OIDArchivedKey: "archived key",
	OIDArchivedHash: "encrypted key hash", OIDIssuedCertHash: "issued certificate hash", OIDArchivedCert: "archived key certificate hash",
	OIDAttestation: "attestation statement", OIDAttestation2: "attestation statement", OIDAIKInfo: "AIK information",
	OIDEKInfo: "EK information", OIDKSPName: "key storage provider", OIDTemplateName: "certificate template name",
	OIDTemplateInfo: "certificate template information", OIDCAExchange: "CA exchange", OIDKeyRecovery: "key recovery agent",
	OIDAppPolicies: "application policies", OIDSKI: "subject key identifier", OIDKeyUsage: "key usage", OIDEKU: "extended key usage",
	"2.5.29.17": "subject alternative name", "2.5.29.19": "basic constraints", "2.5.29.31": "CRL distribution points",
	"2.5.29.32": "certificate policies", "2.5.29.35": "authority key identifier", "1.2.840.113549.1.9.15": "S/MIME capabilities",
	"1.3.6.1.4.1.311.25.2": "account SID", "1.3.6.1.5.5.7.1.1": "authority information access",
	"1.2.840.113549.1.9.20": "friendly name", OIDRSAEncryption: "rsaEncryption", OIDRSAESOAEP: "RSAES-OAEP",
	OIDDESEDE3CBC: "3DES-CBC", OIDAES128CBC: "AES-128-CBC", OIDAES192CBC: "AES-192-CBC", OIDAES256CBC: "AES-256-CBC",
	OIDSHA1: "SHA-1", OIDSHA256: "SHA-256", OIDSHA384: "SHA-384", OIDSHA512: "SHA-512",
}

// OIDName returns what an object identifier stands for, or "".
func OIDName(oid string) string { return oidNames[oid] }

// parsedOID converts one of the constants above.
func parsedOID(dotted string) asn1.ObjectIdentifier {
	var oid asn1.ObjectIdentifier
	n := 0
	for i := 0; i <= len(dotted); i++ {
		if i == len(dotted) || dotted[i] == '.' {
			oid, n = append(oid, n), 0
			continue
		}
		n = n*10 + int(dotted[i]-'0')
	}
	return oid
}
