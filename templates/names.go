package templates

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/dn"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// addNames decides subject and subject alternative name: from the request if the template says so, else from the
// directory ([MS-WCCE] 3.2.2.6.2.1.4.5.9).
func addNames(in Input, t *Template, c *checks, p *CertificateProfile) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.5.9"
	if t.EnrolleeSuppliesSubject() {
		suppliedNames(in, t, c, p)
		return
	}
	var subject [][]RDN
	s := in.Subject
	// The machine rule of 3.2.2.6.2.1.4.4.1: a computer is known by its DNS name.
	if t.Machine() && t.NameFlags&(NameSubjectRequireCommonName|NameSubjectRequireDNSAsCN|NameSANRequireDNS) != 0 && s.DNSHostName == "" {
		missing(c, hresult.SubjectDNSRequired, s, "dNSHostName")
	}
	switch {
	case t.NameFlags&NameSubjectRequireDirectoryPath != 0:
		subject = slices.Clone(s.RDNs)
		slices.Reverse(subject) // a certificate lists the root first, the directory the leaf
	case t.NameFlags&(NameSubjectRequireCommonName|NameSubjectRequireDNSAsCN) != 0:
		cn := s.CN
		if t.Machine() || t.NameFlags&NameSubjectRequireDNSAsCN != 0 {
			cn = s.DNSHostName
		}
		if cn != "" {
			subject = [][]RDN{{{Type: "CN", Value: cn}}}
		} else if !t.Machine() {
			missing(c, hresult.BadRequestSubject, s, "cn")
		}
	}
	if t.NameFlags&NameSubjectRequireEmail != 0 {
		if s.Mail == "" {
			missing(c, hresult.SubjectEmailRequired, s, "mail")
		} else {
			subject = append(subject, []RDN{{Type: "E", Value: s.Mail}})
		}
	}
	der, text, err := encodeName(subject)
	if err != nil {
		c.fail(hresult.BadRequestSubject, "subject", "change the account's name or place, or the template's subject", "%v", err)
		return
	}
	p.Subject, p.SubjectText = der, text
	addDirectorySANs(s, t, c, p)
	if len(subject) == 0 && len(p.SANs) == 0 && !c.failed() {
		c.fail(hresult.BadRequestSubject, "subject", "choose at least one name in the template", "the template puts no name into the certificate")
		return
	}
	if !c.failed() {
		c.pass("subject", "subject %q, alternative names %v, from the directory", text, p.SANs)
	}
}

// missing reports an empty attribute, once even where both subject and alternative name need it.
func missing(c *checks, code hresult.Code, s Subject, attribute string) {
	if slices.ContainsFunc(c.list, func(k Check) bool { return !k.Pass && k.Code == code }) {
		return
	}
	c.fail(code, "subject", fmt.Sprintf("set the attribute %s of %s", attribute, s.SAMAccount),
		"the template needs the account's attribute %s, and it is empty", attribute)
}

// addDirectorySANs builds the alternative names from the directory, in the order of the flags.
func addDirectorySANs(s Subject, t *Template, c *checks, p *CertificateProfile) {
	var b cryptobyte.Builder
	need := func(flag uint32, value, attribute string, code hresult.Code) bool {
		if t.NameFlags&flag == 0 {
			return false
		}
		if value == "" {
			missing(c, code, s, attribute)
		}
		return value != ""
	}
	explicitUPN := s.UPN
	if !s.UPNExplicit {
		explicitUPN = ""
	}
	var err error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		ia5 := func(tag uint8, kind, value string) {
			if !isASCII(value) {
				err = fmt.Errorf("the %s %q is not ASCII", kind, value)
			}
			b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) })
			p.SANs = append(p.SANs, kind+":"+value)
		}
		if need(NameSANRequireUPN|NameSANRequireSPN, explicitUPN, "userPrincipalName", hresult.SubjectUPNRequired) {
			addOtherName(b, "1.3.6.1.4.1.311.20.2.3", func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(explicitUPN)) })
			})
			p.SANs = append(p.SANs, "upn:"+explicitUPN)
		}
		if need(NameSANRequireEmail, s.Mail, "mail", hresult.SubjectEmailRequired) {
			ia5(1, "email", s.Mail)
		}
		if need(NameSANRequireDNS, s.DNSHostName, "dNSHostName", hresult.SubjectDNSRequired) {
			ia5(2, "dns", s.DNSHostName)
		}
		if need(NameSANRequireDomainDNS, s.Domain.DNS, "the domain's DNS name", hresult.SubjectDNSRequired) {
			ia5(2, "dns", s.Domain.DNS)
			if s.Domain.NetBIOS != "" {
				ia5(2, "dns", s.Domain.NetBIOS)
			}
		}
		if t.NameFlags&NameSANRequireDirectoryGUID != 0 {
			addOtherName(b, "1.3.6.1.4.1.311.25.1", func(b *cryptobyte.Builder) { b.AddASN1OctetString(s.GUID[:]) })
			p.SANs = append(p.SANs, "guid:"+s.GUID.String())
		}
	})
	if err != nil {
		c.fail(hresult.BadRequestSubject, "subject", "correct the attribute", "%v", err)
		return
	}
	if len(p.SANs) > 0 {
		p.addSAN(t, b.BytesOrPanic())
	}
}

// addSAN adds the alternative names; without a subject they are critical (RFC 5280 4.2.1.6).
func (p *CertificateProfile) addSAN(t *Template, value []byte) {
	p.add(t, oidSAN, value)
	if len(p.Subject) <= 2 {
		p.Extensions[len(p.Extensions)-1].Critical = true
	}
}

// suppliedNames takes the names of the request, which is what ENROLLEE_SUPPLIES_SUBJECT is for, or of the renewed
// certificate.
func suppliedNames(in Input, t *Template, c *checks, p *CertificateProfile) {
	if in.Request == nil {
		c.pass("subject", "names come from the request")
		return
	}
	subject, names, source := in.Request.Subject, extension(in.Request.Extensions, oidSAN), "request"
	old, err := oldNames(in, t)
	if err != nil {
		c.fail(hresult.BadRenewalSubject, "subject", "renew with the names of the certificate, or enroll anew", "%v", err)
		return
	}
	if old {
		subject, names, source = in.Request.Renewal.Certificate.RawSubject, sanOf(in.Request.Renewal.Certificate), "renewed certificate"
	}
	text, err := dn.Text(subject)
	if err != nil {
		c.fail(hresult.BadRequestSubject, "subject", "correct the request", "the subject in the %s is malformed: %v", source, err)
		return
	}
	p.Subject, p.SubjectText = subject, text
	if names != nil {
		if p.SANs, err = sanText(names); err != nil {
			c.fail(hresult.BadRequestSubject, "subject", "correct the request", "the alternative names in the %s are malformed: %v", source, err)
			return
		}
		p.addSAN(t, names)
	}
	if len(p.Subject) <= 2 && len(p.SANs) == 0 {
		c.fail(hresult.BadRequestSubject, "subject", "name a subject in the request", "the template takes the names from the request, and it has none")
		return
	}
	c.pass("subject", "subject %q, alternative names %v, from the %s", text, p.SANs, source)
}

// encodeName returns the DER of a Name and its text.
func encodeName(rdns [][]RDN) (der []byte, text string, err error) {
	if der, err = dn.Encode(rdns); err != nil {
		return nil, "", err
	}
	text, err = dn.Text(der)
	return der, text, err
}

// isASCII tells whether s can be an IA5String that people can read.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf || s[i] < ' ' {
			return false
		}
	}
	return true
}

// sanText lists general names for people. Names of a kind it does not know are refused.
func sanText(der []byte) ([]string, error) {
	s := cryptobyte.String(der)
	var names cryptobyte.String
	if !s.ReadASN1(&names, cbasn1.SEQUENCE) || !s.Empty() || names.Empty() {
		return nil, fmt.Errorf("not a list of general names")
	}
	var out []string
	for !names.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&value, &tag) {
			return nil, fmt.Errorf("general name %d is malformed", len(out)+1)
		}
		text, err := generalName(tag, value)
		if err != nil {
			return nil, fmt.Errorf("general name %d: %w", len(out)+1, err)
		}
		out = append(out, text)
	}
	return out, nil
}

// knownNames lists the general names that it understands.
func knownNames(der []byte) (out []string) {
	s := cryptobyte.String(der)
	var names, value cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadASN1(&names, cbasn1.SEQUENCE) {
		return nil
	}
	for !names.Empty() && names.ReadAnyASN1(&value, &tag) {
		if text, err := generalName(tag, value); err == nil {
			out = append(out, text)
		}
	}
	return out
}

// UserPrincipalName is the first one among a certificate's alternative names; "" where there is none.
func UserPrincipalName(cert *x509.Certificate) string {
	for _, e := range cert.Extensions {
		if e.Id.String() != "2.5.29.17" {
			continue
		}
		for _, name := range knownNames(e.Value) {
			if upn, ok := strings.CutPrefix(name, "upn:"); ok {
				return upn
			}
		}
	}
	return ""
}

func generalName(tag cbasn1.Tag, value cryptobyte.String) (string, error) {
	ascii := func(kind string) (string, error) {
		if len(value) == 0 || !isASCII(string(value)) {
			return "", fmt.Errorf("%s is empty or not ASCII", kind)
		}
		return kind + ":" + string(value), nil
	}
	switch tag {
	case cbasn1.Tag(1).ContextSpecific():
		return ascii("email")
	case cbasn1.Tag(2).ContextSpecific():
		return ascii("dns")
	case cbasn1.Tag(6).ContextSpecific():
		if _, err := url.Parse(string(value)); err != nil {
			return "", fmt.Errorf("uri: %w", err)
		}
		return ascii("uri")
	case cbasn1.Tag(7).ContextSpecific():
		if len(value) != 4 && len(value) != 16 {
			return "", fmt.Errorf("ip address of %d octets", len(value))
		}
		return fmt.Sprintf("ip:%x", []byte(value)), nil
	case cbasn1.Tag(0).ContextSpecific().Constructed():
		var oid asn1.ObjectIdentifier
		var wrapped, inner cryptobyte.String
		var innerTag cbasn1.Tag
		if !value.ReadASN1ObjectIdentifier(&oid) || !value.ReadASN1(&wrapped, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
			!value.Empty() || !wrapped.ReadAnyASN1(&inner, &innerTag) || !wrapped.Empty() {
			return "", fmt.Errorf("other name is malformed")
		}
		if oid.String() == "1.3.6.1.4.1.311.20.2.3" {
			return "upn:" + dn.Decode(innerTag, inner), nil
		}
		return "", fmt.Errorf("other name of type %s is not supported", oid)
	}
	return "", fmt.Errorf("kind %d is not supported", uint8(tag)&0x1f)
}

// addOtherName writes GeneralName otherName [0] { type, value [0] EXPLICIT } (RFC 5280 4.2.1.6).
func addOtherName(b *cryptobyte.Builder, oid string, value cryptobyte.BuilderContinuation) {
	constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
	b.AddASN1(constructed, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(mustOID(oid))
		b.AddASN1(constructed, value)
	})
}
