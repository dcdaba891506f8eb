package vault

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

// decided is an order whose subject and extensions are those of a certificate that crypto/x509 makes.
func decided(t testing.TB, id string, like *x509.Certificate) upstream.Order {
	t.Helper()
	o := contract.WindowsOrder(t, id, testpki.RSA(t, 2048))
	model := testpki.Cert(t, selfSigned(t, like))
	o.Profile.Subject, o.Profile.SubjectText, o.Profile.Extensions = model.RawSubject, model.Subject.String(), nil
	for _, e := range model.Extensions {
		o.Profile.Extensions = append(o.Profile.Extensions, templates.Extension{OID: e.Id.String(), Critical: e.Critical, Value: e.Value})
	}
	return o
}

func otherName(t testing.TB, oid asn1.ObjectIdentifier, text string) asn1.RawValue {
	t.Helper()
	value, err := asn1.MarshalWithParams(text, "utf8,explicit,tag:0")
	if err != nil {
		t.Fatal(err)
	}
	kind, err := asn1.Marshal(oid)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: append(kind, value...)}
}

// What the role and the names beside the request can say together is signed as it was decided; nothing else is sent.
func TestWhatARoleCanSign(t *testing.T) {
	s := start(t)
	ca := s.issuer()
	sans := []asn1.RawValue{otherName(t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, "alice,ä:;@lab.test")}
	for tag, text := range map[int]string{1: "alice@lab.test", 2: "Host.lab.test", 6: "https://lab.test/a%20b,c"} {
		sans = append(sans, asn1.RawValue{Class: 2, Tag: tag, Bytes: []byte(text)})
	}
	sans = append(sans, asn1.RawValue{Class: 2, Tag: 7, Bytes: []byte{192, 0, 2, 1}}, asn1.RawValue{Class: 2, Tag: 7, Bytes: net.ParseIP("2001:db8::1")})
	san, err := asn1.Marshal(sans)
	if err != nil {
		t.Fatal(err)
	}
	link, err := url.Parse("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6")
	if err != nil {
		t.Fatal(err)
	}
	mail := []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
	lab := pkix.Name{CommonName: "Alice Ärcher, Jr.", Organization: []string{"Lab"}}
	for name, c := range map[string]struct {
		role  map[string]any
		like  x509.Certificate
		words string // of the refusal; empty: it is signed
	}{
		"every kind of name": {nil, x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail,
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}}}, ""},
		"no subject, and critical names": {map[string]any{"organization": ""}, x509.Certificate{KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail,
			DNSNames: []string{"a.lab.test", "*.lab.test"}, URIs: []*url.URL{link}}, ""},
		"a whole subject": {map[string]any{"country": "DE", "ou": []string{"R+D, Süd"}, "locality": "Ulm", "province": "BW", "street_address": "1 Road", "postal_code": "89073", "allowed_user_ids": "*",
			"allowed_serial_numbers": "*"},
			x509.Certificate{KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail, Subject: pkix.Name{Country: []string{"DE"}, Organization: []string{"Lab"}, OrganizationalUnit: []string{"R+D, Süd"},
				Locality: []string{"Ulm"}, Province: []string{"BW"}, StreetAddress: []string{"1 Road"}, PostalCode: []string{"89073"}, CommonName: "Alice", SerialNumber: "7",
				ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, Value: "alice"}}}}, ""},
		"usages and policies": {map[string]any{"key_usage": "DigitalSignature,ContentCommitment", "server_flag": true, "ext_key_usage": "TimeStamping", "ext_key_usage_oids": "1.3.6.1.4.1.311.20.2.2",
			"policy_identifiers": "1.3.6.1.4.1.99999.1,2.5.29.32.0"},
			x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 20, 2, 2}},
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageTimeStamping},
				Policies:    policies(t, "1.3.6.1.4.1.99999.1", "2.5.29.32.0")}, ""},
		"a role with other usages":       {map[string]any{"key_usage": "DigitalSignature"}, x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail}, "key usage"},
		"a role with other purposes":     {map[string]any{"client_flag": true}, x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail}, "extended key usage"},
		"a role of another organization": {map[string]any{"organization": "Other"}, x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail}, "subject"},
		"a role with a notice": {map[string]any{"policy_identifiers": `[{"oid":"1.3.6.1.4.1.99999.1","notice":"n"}]`},
			x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail, Policies: policies(t, "1.3.6.1.4.1.99999.1")}, "certificate policies"},
		"a name of the directory": {nil, x509.Certificate{KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail, Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, Value: "test"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "Alice"}}}}, "not one of a role"},
		"a name of no host": {nil, x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail, DNSNames: []string{"under_score.lab.test"}}, "leaves it out"},
		"another extension": {nil, x509.Certificate{Subject: lab, KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: mail,
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 21, 10}, Value: []byte{0x30, 0}}}}, "1.3.6.1.4.1.311.21.10"},
	} {
		t.Run(name, func(t *testing.T) {
			s.Role(c.role)
			ca = s.issuer() // which has not read the role yet
			o := decided(t, "1-aa", &c.like)
			before := len(s.Stored())
			r, err := ca.Submit(background, o)
			switch {
			case err != nil:
				t.Fatal(err)
			case c.words != "":
				if r.State != upstream.Refused || !strings.Contains(r.Reason, c.words) {
					t.Errorf("%+v, want %q", r, c.words)
				}
				if len(s.Stored()) != before {
					t.Error("something was signed")
				}
			case r.State != upstream.Issued:
				t.Fatalf("%+v", r)
			default:
				if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
					t.Error(err)
				}
				if !r.Certificate.NotAfter.Equal(o.Profile.NotAfter) {
					t.Errorf("it ends at %s, decided was %s", r.Certificate.NotAfter, o.Profile.NotAfter)
				}
			}
		})
	}
}

func policies(t testing.TB, list ...string) (out []x509.OID) {
	t.Helper()
	for _, text := range list {
		oid, err := x509.ParseOID(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, oid)
	}
	return out
}

// What a request says where the decision says nothing is no part of the certificate either.
func TestARequestAddsNothingToTheSubject(t *testing.T) {
	s := start(t)
	s.Role(map[string]any{"allowed_serial_numbers": "*", "allowed_user_ids": "*"})
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	o.CSR = request(t, testpki.RSA(t, 2048), pkix.Name{SerialNumber: "S-1-5-21", CommonName: "Administrator"})
	o.PublicKey = publicKey(t, o.CSR)
	if r, err := s.issuer().Submit(background, o); err != nil || r.State != upstream.Refused || len(s.Stored()) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A role that would weaken what the gateway promises is not used, whoever set it up.
func TestARoleThatCannotBeWorkedWith(t *testing.T) {
	s := start(t)
	for name, c := range map[string]struct {
		role  map[string]any
		words string
	}{
		"names of requests":                 {map[string]any{"use_csr_sans": true}, "use_csr_sans=false"},
		"names of requests, in the subject": {map[string]any{"use_csr_common_name": true}, "use_csr_common_name=false"},
		"nothing stored":                    {map[string]any{"no_store": true}, "no_store=false"},
		"an end of its own":                 {map[string]any{"not_after": "2039-01-01T00:00:00Z"}, "not_after="},
		"leases":                            {map[string]any{"generate_lease": true}, "generate_lease=false"},
	} {
		t.Run(name, func(t *testing.T) {
			s.Role(c.role)
			_, err := s.issuer().Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
			if !upstream.IsNotIssued(err) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %q", err, c.words)
			}
		})
	}
	s.Role(nil)
	s.o.Role = "nobody"
	if _, err := s.issuer().Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) || !strings.Contains(err.Error(), `no role "nobody"`) {
		t.Error(err)
	}
	s.o.Role, s.o.Issuer = "mail", "nobody"
	if _, err := s.issuer().Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) {
		t.Errorf("no such issuer: %v", err)
	}
	s.o.Issuer = "default"
	if r, err := s.issuer().Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); err != nil || r.State != upstream.Issued {
		t.Errorf("a named issuer: %+v, %v", r, err)
	}
}

// Windows' own extensions travel where the request has them.
func TestVerbatimCarriesEveryExtension(t *testing.T) {
	s := start(t)
	s.o.Verbatim, s.o.Role, s.o.Tolerance = true, "", upstream.Tolerance{}
	ca := s.issuer()
	key := testpki.RSA(t, 2048)
	p := contract.WindowsOrder(t, "1-aa", key).Profile
	csr := &x509.CertificateRequest{RawSubject: p.Subject}
	for _, e := range p.Extensions {
		x, err := e.X509()
		if err != nil {
			t.Fatal(err)
		}
		csr.ExtraExtensions = append(csr.ExtraExtensions, x)
	}
	o := upstream.Order{ID: "1-aa", CSR: requestOf(t, key, csr), PublicKey: key.Public(), Profile: p}
	r, err := ca.Submit(background, o)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
	windows := contract.WindowsOrder(t, "2-bb", key)
	if err := upstream.Check(ca, windows); err == nil || !strings.Contains(err.Error(), "verbatim") {
		t.Errorf("a request without names: %v", err)
	}
	// A request without key usage is signed without it, although Vault has a default.
	bare := o
	bare.ID, bare.Profile.Extensions = "3-cc", []templates.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("T")}}
	x, err := bare.Profile.Extensions[0].X509()
	if err != nil {
		t.Fatal(err)
	}
	bare.CSR = requestOf(t, key, &x509.CertificateRequest{RawSubject: p.Subject, ExtraExtensions: []pkix.Extension{x}})
	if r, err = ca.Submit(background, bare); err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(bare, r.Certificate, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
}
