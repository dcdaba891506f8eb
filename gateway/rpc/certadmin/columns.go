package certadmin

import (
	"crypto/sha1" //nolint:gosec // what CertificateHash is
	"crypto/x509"
	"encoding/hex"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
)

// none is the value of columns that are there for programs that look them up, and always null.
func none(*Row, *x509.Certificate) []byte { return nil }

var columns = []column{
	{colRequestID, "Request.RequestID", "Request ID", columnLong | columnIndex, 4, rowID},
	{0x1001, "Request.RawRequest", "Binary Request", columnBinary, maxRaw, func(r *Row, _ *x509.Certificate) []byte { return r.Request }},
	{0x1002, "Request.RawArchivedKey", "Archived Key", columnBinary, maxRaw, none}, // GetArchivedKey has it, for whom may
	{0x1003, "Request.KeyRecoveryHashes", "Key Recovery Agent Hashes", columnString, maxDN, none},
	{0x1004, "Request.RawOldCertificate", "Old Certificate", columnBinary, maxRaw, none},
	{0x1005, "Request.RequestAttributes", "Request Attributes", columnString, maxDN, none},
	{0x1006, "Request.RequestType", "Request Type", columnLong, 4, none},
	{0x1007, "Request.RequestFlags", "Request Flags", columnLong, 4, none},
	{0x1008, "Request.StatusCode", "Request Status Code", columnLong, 4, func(r *Row, _ *x509.Certificate) []byte { return long(uint32(r.Status)) }},
	{colDisposition, "Request.Disposition", "Request Disposition", columnLong | columnIndex, 4, func(r *Row, _ *x509.Certificate) []byte { return long(uint32(r.Disposition)) }},
	{0x100a, "Request.DispositionMessage", "Request Disposition Message", columnString, maxDN, func(r *Row, _ *x509.Certificate) []byte { return text(r.Message) }},
	{colSubmitted, "Request.SubmittedWhen", "Request Submission Date", columnDate, 8, func(r *Row, _ *x509.Certificate) []byte { return date(r.Submitted) }},
	{0x100c, "Request.ResolvedWhen", "Request Resolution Date", columnDate, 8, func(r *Row, _ *x509.Certificate) []byte { return date(r.Resolved) }},
	{0x100d, "Request.RevokedWhen", "Revocation Date", columnDate, 8, func(r *Row, _ *x509.Certificate) []byte { return date(r.Revoked) }},
	{0x100e, "Request.RevokedEffectiveWhen", "Effective Revocation Date", columnDate, 8, func(r *Row, _ *x509.Certificate) []byte { return date(r.Revoked) }},
	{0x100f, "Request.RevokedReason", "Revocation Reason", columnLong, 4, none},
	{colRequester, "Request.RequesterName", "Requester Name", columnString | columnIndex, maxWord, func(r *Row, _ *x509.Certificate) []byte { return text(r.Requester) }},
	{colCaller, "Request.CallerName", "Caller Name", columnString | columnIndex, maxWord, func(r *Row, _ *x509.Certificate) []byte { return text(r.Requester) }},
	{0x1012, "Request.SignerPolicies", "Signer Policies", columnString, maxDN, none},
	{0x1013, "Request.SignerApplicationPolicies", "Signer Application Policies", columnString, maxDN, none},
	{0x1014, "Request.Officer", "Officer", columnLong, 4, none},
	{0x1015, "Request.DistinguishedName", "Request Distinguished Name", columnString, maxDN, func(r *Row, _ *x509.Certificate) []byte { return distinguished(r.Subject) }},
	{0x1016, "Request.RawName", "Request Binary Name", columnBinary, maxDN, func(r *Row, _ *x509.Certificate) []byte { return r.Subject }},
	{0x1017, "Request.Country", "Request Country/Region", columnString, maxDN, asked("2.5.4.6")},
	{0x1018, "Request.Organization", "Request Organization", columnString, maxDN, asked("2.5.4.10")},
	{0x1019, "Request.OrgUnit", "Request Organization Unit", columnString, maxDN, asked("2.5.4.11")},
	{0x101a, "Request.CommonName", "Request Common Name", columnString, maxDN, asked("2.5.4.3")},
	{0x101b, "Request.Locality", "Request City", columnString, maxDN, asked("2.5.4.7")},
	{0x101c, "Request.State", "Request State", columnString, maxDN, asked("2.5.4.8")},
	{0x101d, "Request.Title", "Request Title", columnString, maxDN, asked("2.5.4.12")},
	{0x101e, "Request.GivenName", "Request First Name", columnString, maxDN, asked("2.5.4.42")},
	{0x101f, "Request.Initials", "Request Initials", columnString, maxDN, asked("2.5.4.43")},
	{0x1020, "Request.SurName", "Request Last Name", columnString, maxDN, asked("2.5.4.4")},
	{0x1021, "Request.DomainComponent", "Request Domain Component", columnString, maxDN, asked("0.9.2342.19200300.100.1.25")},
	{0x1022, "Request.EMail", "Request Email Address", columnString, maxDN, asked("1.2.840.113549.1.9.1")},
	{colCertID, "RequestID", "Issued Request ID", columnLong | columnIndex, 4, rowID},
	{0x2001, "RawCertificate", "Binary Certificate", columnBinary, maxRaw, func(r *Row, _ *x509.Certificate) []byte { return r.Certificate }},
	{colHash, "CertificateHash", "Certificate Hash", columnString | columnIndex, maxWord, func(_ *Row, c *x509.Certificate) []byte {
		if c == nil {
			return nil
		}
		sum := sha1.Sum(c.Raw) //nolint:gosec // what the column is
		return text(hex.EncodeToString(sum[:]))
	}},
	{colTemplate, "CertificateTemplate", "Certificate Template", columnString | columnIndex, maxWord, func(r *Row, _ *x509.Certificate) []byte {
		if r.TemplateOID != "" { // as clients expect it of templates with an OID
			return text(r.TemplateOID)
		}
		return text(r.Template)
	}},
	{0x2004, "EnrollmentFlags", "Template Enrollment Flags", columnLong, 4, none},
	{0x2005, "GeneralFlags", "Template General Flags", columnLong, 4, none},
	{colSerial, "SerialNumber", "Serial Number", columnString | columnIndex, maxWord, func(r *Row, _ *x509.Certificate) []byte { return text(evenHex(r.Serial)) }},
	{0x2007, "IssuerNameID", "Issuer Name ID", columnLong, 4, none},
	{0x2008, "NotBefore", "Certificate Effective Date", columnDate, 8, issued(func(c *x509.Certificate) []byte { return date(c.NotBefore) })},
	{colNotAfter, "NotAfter", "Certificate Expiration Date", columnDate | columnIndex, 8, issued(func(c *x509.Certificate) []byte { return date(c.NotAfter) })},
	{colKeyID, "SubjectKeyIdentifier", "Issued Subject Key Identifier", columnString | columnIndex, maxWord, issued(func(c *x509.Certificate) []byte { return text(hex.EncodeToString(c.SubjectKeyId)) })},
	{0x200b, "RawPublicKey", "Binary Public Key", columnBinary, maxRaw, none},
	{0x200c, "PublicKeyLength", "Public Key Length", columnLong, 4, none},
	{0x200d, "PublicKeyAlgorithm", "Public Key Algorithm", columnString, maxWord, none},
	{0x200e, "RawPublicKeyAlgorithmParameters", "Public Key Algorithm Parameters", columnBinary, maxRaw, none},
	{0x200f, "PublishExpiredCertInCRL", "Publish Expired Certificate in CRL", columnLong, 4, none},
	{colUPN, "UPN", "User Principal Name", columnString | columnIndex, maxDN, issued(func(c *x509.Certificate) []byte { return text(templates.UserPrincipalName(c)) })},
	{0x2011, "DistinguishedName", "Issued Distinguished Name", columnString, maxDN, issued(func(c *x509.Certificate) []byte { return distinguished(c.RawSubject) })},
	{0x2012, "RawName", "Issued Binary Name", columnBinary, maxDN, issued(func(c *x509.Certificate) []byte { return c.RawSubject })},
	{0x2013, "Country", "Issued Country/Region", columnString, maxDN, named("2.5.4.6")},
	{0x2014, "Organization", "Issued Organization", columnString, maxDN, named("2.5.4.10")},
	{0x2015, "OrgUnit", "Issued Organization Unit", columnString, maxDN, named("2.5.4.11")},
	{colCommonName, "CommonName", "Issued Common Name", columnString | columnIndex, maxDN, named("2.5.4.3")},
	{0x2017, "Locality", "Issued City", columnString, maxDN, named("2.5.4.7")},
	{0x2018, "State", "Issued State", columnString, maxDN, named("2.5.4.8")},
	{0x2019, "Title", "Issued Title", columnString, maxDN, named("2.5.4.12")},
	{0x201a, "GivenName", "Issued First Name", columnString, maxDN, named("2.5.4.42")},
	{0x201b, "Initials", "Issued Initials", columnString, maxDN, named("2.5.4.43")},
	{0x201c, "SurName", "Issued Last Name", columnString, maxDN, named("2.5.4.4")},
	{0x201d, "DomainComponent", "Issued Domain Component", columnString, maxDN, named("0.9.2342.19200300.100.1.25")},
	{0x201e, "EMail", "Issued Email Address", columnString, maxDN, issued(func(c *x509.Certificate) []byte { return text(strings.Join(c.EmailAddresses, "\n")) })},
}
