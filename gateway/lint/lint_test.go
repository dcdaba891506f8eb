package lint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func newLinter(t testing.TB, accept ...string) *Linter {
	t.Helper()
	l, err := New(accept)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// fromCertificate is the profile that would have led to a certificate.
func fromCertificate(c *x509.Certificate) *templates.CertificateProfile {
	p := &templates.CertificateProfile{Subject: c.RawSubject, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	for _, e := range c.Extensions {
		if oid := e.Id.String(); !slices.Contains([]string{"2.5.29.14", "2.5.29.35", "2.5.29.31", "1.3.6.1.5.5.7.1.1"}, oid) {
			p.Extensions = append(p.Extensions, templates.Extension{OID: oid, Critical: e.Critical, Value: e.Value})
		}
	}
	return p
}

func TestCertificatesThatWindowsCAsIssuedHaveNoErrors(t *testing.T) {
	certs := []*x509.Certificate{testpki.Cert(t, vectors.Read(t, "ms-wstep/4.1.1.2-tok1.der")), testpki.Cert(t, vectors.Read(t, "ms-wstep/4.1.2.2-tok0.der"))}
	blob, err := wcce.ParseSignedData(vectors.Read(t, "pkix.net/getkey-recovery-blob.p7.der"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range blob.Certificates {
		if !c.IsCA {
			certs = append(certs, c)
		}
	}
	if len(certs) != 4 {
		t.Fatalf("%d certificates", len(certs))
	}
	l := newLinter(t)
	for _, c := range certs {
		for _, f := range l.Check(fromCertificate(c), c.PublicKey) {
			t.Logf("%s: %+v", c.Subject, f)
			if f.Error {
				t.Errorf("%s: %s", c.Subject, f.Rule)
			}
		}
	}
}

// profile is a flawless certificate for alice.
func profile(t testing.TB) *templates.CertificateProfile {
	t.Helper()
	subject, err := asn1.Marshal(pkix.Name{CommonName: "Alice"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	return &templates.CertificateProfile{Subject: subject, NotBefore: now, NotAfter: now.AddDate(1, 0, 0), Extensions: []templates.Extension{
		{OID: wcce.OIDTemplateInfo, Value: der(t, struct {
			OID          asn1.ObjectIdentifier
			Major, Minor int
		}{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 21, 8, 1, 2}, 100, 4})},
		{OID: oidEKU, Value: der(t, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 4}})},
		{OID: wcce.OIDAppPolicies, Value: der(t, [][]asn1.ObjectIdentifier{{{1, 3, 6, 1, 5, 5, 7, 3, 4}}})},
		{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x03, 0x08}},
		{OID: oidSAN, Value: general(other(oidUPN, cbasn1.UTF8String, "alice@lab.test"), other(oidDirectoryGUID, cbasn1.OCTET_STRING, strings.Repeat("g", 16)))},
		{OID: oidSID, Value: general(other(oidSIDName, cbasn1.OCTET_STRING, "S-1-5-21-1-2-3-1104"))},
		{OID: oidSMIMECaps, Value: der(t, [][]asn1.ObjectIdentifier{{{2, 16, 840, 1, 101, 3, 4, 1, 42}}})},
	}}
}

func der(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func general(names ...cryptobyte.BuilderContinuation) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, n := range names {
			n(b)
		}
	})
	return b.BytesOrPanic()
}

func other(oid string, tag cbasn1.Tag, value string) cryptobyte.BuilderContinuation {
	constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
	return func(b *cryptobyte.Builder) {
		x, _ := templates.Extension{OID: oid}.X509()
		b.AddASN1(constructed, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(x.Id)
			b.AddASN1(constructed, func(b *cryptobyte.Builder) { b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) }) })
		})
	}
}

func TestEachRuleFindsWhatItIsFor(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := newLinter(t)
	if found := l.Check(profile(t), key.Public()); len(found) != 0 {
		t.Fatalf("a flawless certificate: %+v", found)
	}
	set := func(oid string, value []byte) func(*templates.CertificateProfile) {
		return func(p *templates.CertificateProfile) {
			i := slices.IndexFunc(p.Extensions, func(e templates.Extension) bool { return e.OID == oid })
			if i < 0 {
				p.Extensions = append(p.Extensions, templates.Extension{OID: oid, Value: value})
				return
			}
			p.Extensions[i].Value = value
		}
	}
	seen := map[string]bool{}
	for _, c := range []struct {
		rule   string
		change func(*templates.CertificateProfile)
	}{
		{"ms_template_not_named", func(p *templates.CertificateProfile) { p.Extensions = p.Extensions[1:] }},
		{"ms_template_name_malformed", set(wcce.OIDTemplateName, []byte{0x0c, 0x01, 'U'})},
		{"ms_template_information_malformed", set(wcce.OIDTemplateInfo, []byte{0x30, 0x00})},
		{"ms_template_information_malformed", set(wcce.OIDTemplateInfo, der(t, []asn1.ObjectIdentifier{{1, 2}}))},
		{"ms_application_policies_malformed", set(wcce.OIDAppPolicies, []byte{0x30, 0x00})},
		{"ms_application_policies_malformed", set(wcce.OIDAppPolicies, der(t, [][]asn1.ObjectIdentifier{{{1, 2}}, {{1, 2}}}))},
		{"ms_application_policies_differ_from_eku", set(wcce.OIDAppPolicies, der(t, [][]asn1.ObjectIdentifier{{{1, 3, 6, 1, 5, 5, 7, 3, 2}}}))},
		{"ms_security_extension_malformed", set(oidSID, general(other(oidSIDName, cbasn1.OCTET_STRING, "alice")))},
		{"ms_security_extension_malformed", set(oidSID, general(other(oidUPN, cbasn1.OCTET_STRING, "S-1-5-21-1-2-3-1104")))},
		{"ms_security_extension_malformed", set(oidSID, general(other(oidSIDName, cbasn1.UTF8String, "S-1-5-21-1-2-3-1104")))},
		{"ms_private_extension_critical", func(p *templates.CertificateProfile) { p.Extensions[0].Critical = true }},
		{"ms_upn_malformed", set(oidSAN, general(other(oidUPN, cbasn1.UTF8String, "alice")))},
		{"ms_upn_malformed", set(oidSAN, general(other(oidUPN, cbasn1.IA5String, "alice@lab.test")))},
		{"ms_directory_guid_malformed", set(oidSAN, general(other(oidDirectoryGUID, cbasn1.OCTET_STRING, "short")))},
		{"ms_smime_capabilities_malformed", set(oidSMIMECaps, []byte{0x30, 0x02, 0x05, 0x00})},
		{"e_subject_common_name_max_length", func(p *templates.CertificateProfile) {
			p.Subject = der(t, pkix.Name{CommonName: strings.Repeat("a", 65)}.ToRDNSequence())
		}},
		{"e_ext_duplicate_extension", func(p *templates.CertificateProfile) { p.Extensions = append(p.Extensions, p.Extensions[1]) }},
		{"e_ecdsa_allowed_ku", set(wcce.OIDKeyUsage, []byte{0x03, 0x02, 0x05, 0x20})},
		{"e_not_encodable", func(p *templates.CertificateProfile) { p.Extensions[0].OID = "one.two" }},
		{"e_not_parsable", set(oidEKU, []byte{0x30, 0x05})},
	} {
		p := profile(t)
		c.change(p)
		found := l.Check(p, key.Public())
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Rule == c.rule && f.Text != "" }) {
			t.Errorf("%s does not find it, but %+v", c.rule, found)
		}
		seen[c.rule] = true
	}
	for _, r := range microsoft {
		if !seen[r.name] {
			t.Errorf("no test of %s", r.name)
		}
	}
}

func TestWhatWindowsTemplatesUsuallyHaveIsAWarning(t *testing.T) {
	p := profile(t)
	p.Extensions[1].Value = der(t, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}})
	p.Extensions[2].Value = der(t, [][]asn1.ObjectIdentifier{{{1, 3, 6, 1, 5, 5, 7, 3, 2}}})
	p.Extensions[3].Value = []byte{0x03, 0x02, 0x05, 0xa0}
	found := newLinter(t).Check(p, testpki.RSA(t, 2048).Public())
	if len(found) != 1 || found[0].Error || found[0].Rule != usual[0] {
		t.Errorf("%+v", found)
	}
}

func TestAnAcceptedRuleIsAWarning(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := profile(t)
	p.Extensions[0].Critical = true
	if found := newLinter(t).Check(p, key.Public()); len(found) != 1 || !found[0].Error {
		t.Errorf("%+v", found)
	}
	if found := newLinter(t, "ms_private_extension_critical").Check(p, key.Public()); len(found) != 1 || found[0].Error {
		t.Errorf("%+v", found)
	}
	if _, err := New([]string{"e_no_such_rule"}); err == nil {
		t.Error("a rule that does not exist is accepted")
	}
}

func BenchmarkCheck(b *testing.B) {
	l, key := newLinter(b), testpki.RSA(b, 2048)
	p := profile(b)
	for b.Loop() {
		l.Check(p, key.Public())
	}
}

// What the rules see is what the standard library would make of the profile.
func TestThePreviewIsTheCertificate(t *testing.T) {
	p, key := profile(t), testpki.RSA(t, 2048)
	b, err := preview(p, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(b)
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) || !cert.NotAfter.Equal(p.NotAfter) || cert.Subject.CommonName != "Alice" || len(cert.CRLDistributionPoints) != 1 ||
		len(cert.AuthorityKeyId) != 20 || len(cert.SubjectKeyId) != 20 || cert.KeyUsage != x509.KeyUsageKeyAgreement {
		t.Errorf("%+v", cert)
	}
	if got := fromCertificate(cert); !slices.EqualFunc(got.Extensions, p.Extensions, func(a, b templates.Extension) bool {
		return a.OID == b.OID && a.Critical == b.Critical && slices.Equal(a.Value, b.Value)
	}) {
		t.Errorf("%+v", got.Extensions)
	}
}
