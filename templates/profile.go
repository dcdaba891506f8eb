package templates

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers of extensions and purposes ([MS-WCCE] 2.2.2.7.7, RFC 5280, RFC 8551).
const (
	oidSAN              = "2.5.29.17"
	oidKeyUsage         = "2.5.29.15"
	oidBasicConstraints = "2.5.29.19"
	oidCertPolicies     = "2.5.29.32"
	oidEKU              = "2.5.29.37"
	oidTemplateInfo     = "1.3.6.1.4.1.311.21.7"
	oidTemplateName     = "1.3.6.1.4.1.311.20.2"
	oidAppPolicies      = "1.3.6.1.4.1.311.21.10"
	oidSMIMECaps        = "1.2.840.113549.1.9.15"
	oidSIDExtension     = "1.3.6.1.4.1.311.25.2"
	oidOCSPNoCheck      = "1.3.6.1.5.5.7.48.1.5"

	oidClientAuth     = "1.3.6.1.5.5.7.3.2"
	oidSmartCardLogon = "1.3.6.1.4.1.311.20.2.2"
	oidPKINITClient   = "1.3.6.1.5.2.3.4"
	oidAnyPurpose     = "2.5.29.37.0"
	oidOCSPSigning    = "1.3.6.1.5.5.7.3.9"
)

// buildProfile fills in what the certificate will say. Where a required datum is missing it adds a failed check.
func buildProfile(in Input, t *Template, c *checks) CertificateProfile {
	p := CertificateProfile{Template: t.Name, TemplateOID: t.OID, EnrolleeSubject: t.EnrolleeSuppliesSubject(), Extensions: make([]Extension, 0, 10)}
	addNames(in, t, c, &p)
	addSID(in, t, c, &p)
	addTemplateExtension(t, &p)
	p.EKUs = t.Policies()
	if len(t.EKUs) > 0 || len(t.AppPolicies) > 0 {
		p.add(t, oidEKU, oidSequence(t.Policies(), false))
	}
	addKeyUsage(in, t, &p)
	if t.Schema > 1 && len(t.AppPolicies) > 0 {
		p.add(t, oidAppPolicies, oidSequence(t.AppPolicies, true))
	}
	addPolicies(in, t, c, &p)
	if t.EnrollmentFlags&EnrollIncludeBasicConstraints != 0 {
		p.add(t, oidBasicConstraints, []byte{0x30, 0x00})
	}
	if t.EnrollmentFlags&EnrollIncludeSymmetricAlgorithms != 0 {
		p.add(t, oidSMIMECaps, smimeCapabilities(in.Request))
	}
	p.NoRevocationInfo = t.EnrollmentFlags&EnrollNoRevocationInfo != 0
	if t.EnrollmentFlags&EnrollAddOCSPNoCheck != 0 && slices.Contains(t.Policies(), oidOCSPSigning) {
		p.add(t, oidOCSPNoCheck, []byte{0x05, 0x00})
		p.NoRevocationInfo = true
	}
	addValidity(in, t, c, &p)
	return p
}

// add appends an extension, critical if the template lists it so.
func (p *CertificateProfile) add(t *Template, oid string, value []byte) {
	p.Extensions = append(p.Extensions, Extension{OID: oid, Critical: slices.Contains(t.CriticalExtensions, oid), Value: value})
}

func addValidity(in Input, t *Template, c *checks, p *CertificateProfile) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.4.2"
	now := in.Now.UTC().Truncate(time.Second)
	p.NotBefore, p.NotAfter = now.Add(-clockSkew), now.Add(t.Validity-clockSkew)
	capped := ""
	if end := in.Authority.NotAfter; !end.IsZero() && p.NotAfter.After(end) {
		p.NotAfter, capped = end.UTC(), ", cut to the end of the CA certificate"
	}
	if !p.NotAfter.After(now) {
		c.fail(hresult.InvalidArg, "validity", "renew the CA certificate", "the CA certificate ends at %s", p.NotAfter.Format(time.RFC3339))
		return
	}
	c.pass("validity", "until %s%s", p.NotAfter.Format(time.RFC3339), capped)
}

// Periods are how long certificates of the template are valid, and how long before the end clients renew, under a CA that ends
// at notAfter (zero: never). What the CA cuts off the one is cut off the other in proportion: else a client would be in its time
// of renewal from the first day, and renew every few hours.
func Periods(t *Template, notAfter, now time.Time) (validity, overlap time.Duration) {
	left := notAfter.Sub(now)
	if notAfter.IsZero() || left >= t.Validity || t.Validity <= 0 {
		return t.Validity, t.Overlap
	}
	left = max(left, 0)
	return left, time.Duration(float64(t.Overlap) * (float64(left) / float64(t.Validity)))
}

// addTemplateExtension adds the Certificate Template extension, without which a Windows client ends in
// CERTSRV_E_PROPERTY_EMPTY: OID and version for schema 2 and later, else the name ([MS-WCCE] 2.2.2.7.7).
func addTemplateExtension(t *Template, p *CertificateProfile) {
	if t.Schema < 2 {
		p.add(t, oidTemplateName, bmpString(t.Name))
		return
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(mustOID(t.OID))
		b.AddASN1Int64(int64(t.Major))
		b.AddASN1Int64(int64(t.Minor))
	})
	p.add(t, oidTemplateInfo, b.BytesOrPanic())
}

// addSID adds the extension that binds the certificate to an account ([MS-WCCE] 2.2.2.7.7.4). It is never copied
// from a request.
func addSID(in Input, t *Template, c *checks, p *CertificateProfile) {
	c.spec = "[MS-WCCE] 2.2.2.7.7.4"
	if t.EnrollmentFlags&EnrollNoSecurityExtension != 0 || t.EnrolleeSuppliesSubject() {
		return
	}
	onBehalf := in.Request != nil && in.Request.RequestorName != ""
	if in.Subject.SID == "" || in.Caller.SID != in.Subject.SID && !onBehalf {
		c.fail(hresult.AccessDenied, "sid", "log on again; if that does not help, two domains have an account of this name", "the SID in the ticket (%s) is not that of the directory object (%s)", in.Caller.SID, in.Subject.SID)
		return
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOtherName(b, "1.3.6.1.4.1.311.25.2.1", func(b *cryptobyte.Builder) { b.AddASN1OctetString([]byte(in.Subject.SID)) })
	})
	p.add(t, oidSIDExtension, b.BytesOrPanic())
	c.pass("sid", "bound to the account's SID %s", in.Subject.SID)
}

var keyUsageNames = []string{"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement",
	"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}

const (
	usageKeyEncipherment  uint16 = 0x2000
	usageDataEncipherment uint16 = 0x1000
	usageKeyAgreement     uint16 = 0x0800
)

// addKeyUsage writes the template's bits as they fit the key: an elliptic curve key agrees on keys where an RSA key
// encrypts them ([MS-WCCE] 3.2.2.6.2.1.4.4.4).
func addKeyUsage(in Input, t *Template, p *CertificateProfile) {
	usage := t.KeyUsage
	ec := strings.HasPrefix(t.AsymmetricAlg, "EC")
	if in.Request != nil {
		_, ec = in.Request.PublicKey.(*ecdsa.PublicKey)
	}
	if ec {
		if usage&usageKeyEncipherment != 0 {
			usage |= usageKeyAgreement
		}
		usage &^= usageKeyEncipherment | usageDataEncipherment
	} else {
		usage &^= usageKeyAgreement
	}
	if usage == 0 {
		return
	}
	for i, name := range keyUsageNames {
		if usage&(0x8000>>i) != 0 {
			p.KeyUsage = append(p.KeyUsage, name)
		}
	}
	octets := []byte{byte(usage >> 8), byte(usage)}
	if octets[1] == 0 {
		octets = octets[:1]
	}
	unused := bits.TrailingZeros8(octets[len(octets)-1])
	p.add(t, oidKeyUsage, append([]byte{0x03, byte(len(octets) + 1), byte(unused)}, octets...))
}

// smimeCapabilities copies the client's capabilities, which only it knows; a client that names none gets those that
// every current mail client has (RFC 8551 2.5.2).
func smimeCapabilities(r *Request) []byte {
	if r != nil {
		for _, e := range r.Extensions {
			if e.OID == oidSMIMECaps && len(e.Value) <= 1024 && wellFormedCapabilities(e.Value) {
				return e.Value
			}
		}
	}
	return oidSequence([]string{"2.16.840.1.101.3.4.1.42", "2.16.840.1.101.3.4.1.22", "2.16.840.1.101.3.4.1.2", "1.2.840.113549.3.7"}, true)
}

func wellFormedCapabilities(der []byte) bool {
	_, ok := ReadOIDs(der)
	return ok
}

// oidSequence encodes SEQUENCE OF OID, or SEQUENCE OF SEQUENCE { OID } where wrapped.
func oidSequence(oids []string, wrapped bool) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, oid := range oids {
			if !wrapped {
				b.AddASN1ObjectIdentifier(mustOID(oid))
				continue
			}
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(mustOID(oid)) })
		}
	})
	return b.BytesOrPanic()
}

// EKUValue and KeyUsageValue are the extension values that a policy reply announces for a template.
func EKUValue(t *Template) []byte {
	if len(t.Policies()) == 0 {
		return nil
	}
	return oidSequence(t.Policies(), false)
}

// KeyUsageValue is the DER of the key usage extension, or nil where the template has none.
func KeyUsageValue(t *Template) []byte {
	var p CertificateProfile
	addKeyUsage(Input{}, t, &p)
	if len(p.Extensions) == 0 {
		return nil
	}
	return p.Extensions[0].Value
}

// AppPoliciesValue is the DER of the application policies extension, or nil where the template has none.
func AppPoliciesValue(t *Template) []byte {
	if t.Schema < 2 || len(t.AppPolicies) == 0 {
		return nil
	}
	return oidSequence(t.AppPolicies, true)
}

// TemplateInfoValue is the DER of the extension that names the template in a request: OID and version, or the name.
func TemplateInfoValue(t *Template) (oid string, value []byte) {
	var p CertificateProfile
	addTemplateExtension(t, &p)
	return p.Extensions[0].OID, p.Extensions[0].Value
}

// mustOID converts an OID that Parse has checked.
func mustOID(s string) asn1.ObjectIdentifier {
	oid, err := parseOID(s)
	if err != nil {
		panic("templates: " + err.Error() + ", which was not checked before")
	}
	return oid
}

func parseOID(s string) (asn1.ObjectIdentifier, error) {
	oid := make(asn1.ObjectIdentifier, 0, strings.Count(s, ".")+1)
	for arc := range strings.SplitSeq(s, ".") {
		n, err := strconv.Atoi(arc)
		if err != nil {
			return nil, fmt.Errorf("%q is not an object identifier", s)
		}
		oid = append(oid, n)
	}
	return oid, nil
}

func bmpString(s string) []byte {
	var octets []byte
	for _, u := range utf16.Encode([]rune(s)) {
		octets = append(octets, byte(u>>8), byte(u))
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(30), func(b *cryptobyte.Builder) { b.AddBytes(octets) })
	return b.BytesOrPanic()
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// TemplateOf returns the template that a certificate was made for: the name of its schema 1 extension or the OID of
// its schema 2 extension; both empty where it has neither.
func TemplateOf(cert *x509.Certificate) (name, oid string) {
	for _, e := range cert.Extensions {
		s := cryptobyte.String(e.Value)
		switch e.Id.String() {
		case oidTemplateInfo:
			var seq cryptobyte.String
			var id asn1.ObjectIdentifier
			if s.ReadASN1(&seq, cbasn1.SEQUENCE) && seq.ReadASN1ObjectIdentifier(&id) {
				oid = id.String()
			}
		case oidTemplateName:
			var text cryptobyte.String
			if s.ReadASN1(&text, cbasn1.Tag(30)) {
				var units []uint16
				var u uint16
				for text.ReadUint16(&u) {
					units = append(units, u)
				}
				name = string(utf16.Decode(units))
			}
		}
	}
	return name, oid
}
