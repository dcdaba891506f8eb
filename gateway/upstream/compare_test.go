package upstream_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/templates"
)

var (
	usageOID  = asn1.ObjectIdentifier{2, 5, 29, 15}
	otherOID  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 21, 7}
	stepOID   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 37476, 9000, 64, 1}
	cnOID     = asn1.ObjectIdentifier{2, 5, 4, 3}
	orgOID    = asn1.ObjectIdentifier{2, 5, 4, 10}
	usage     = []byte{0x03, 0x02, 0x05, 0x20}
	otherText = []byte{0x30, 0x00}
)

// name encodes RDNs of type, string tag, text.
func name(t testing.TB, parts ...any) []byte {
	t.Helper()
	var rdns [][]pair
	for i := 0; i < len(parts); i += 3 {
		rdns = append(rdns, []pair{{parts[i].(asn1.ObjectIdentifier), asn1.RawValue{Tag: parts[i+1].(int), Bytes: []byte(parts[i+2].(string))}}})
	}
	var raw []asn1.RawValue
	for _, rdn := range rdns {
		der, err := asn1.MarshalWithParams(rdn, "set")
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, asn1.RawValue{FullBytes: der})
	}
	der, err := asn1.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

type pair struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

func TestACertificateIsComparedWithTheDecision(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	decided := name(t, orgOID, asn1.TagUTF8String, "Lab", cnOID, asn1.TagUTF8String, "alice")
	order := upstream.Order{PublicKey: key.Public(), Profile: templates.CertificateProfile{Subject: decided, NotBefore: now, NotAfter: now.AddDate(1, 0, 0),
		Extensions: []templates.Extension{{OID: usageOID.String(), Critical: true, Value: usage}, {OID: otherOID.String(), Value: otherText}}}}
	good := func() *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), RawSubject: decided, NotBefore: now, NotAfter: order.Profile.NotAfter,
			ExtraExtensions: []pkix.Extension{{Id: usageOID, Critical: true, Value: usage}, {Id: otherOID, Value: otherText}}}
	}
	for title, c := range map[string]struct {
		change func(*x509.Certificate)
		public *ecdsa.PublicKey
		want   string // "" where it is accepted
	}{
		"as decided":    {},
		"another order": {change: func(c *x509.Certificate) { slices.Reverse(c.ExtraExtensions) }},
		"another string type": {change: func(c *x509.Certificate) {
			c.RawSubject = name(t, orgOID, asn1.TagPrintableString, "Lab", cnOID, asn1.TagPrintableString, "alice")
		}},
		"what the CA owns": {change: func(c *x509.Certificate) { c.SubjectKeyId, c.CRLDistributionPoints = []byte{1}, []string{"http://c/"} }},
		"step-ca's provisioner": {change: func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: stepOID, Value: otherText})
		}},
		"a shorter life":       {change: func(c *x509.Certificate) { c.NotAfter = c.NotAfter.AddDate(0, -1, 0) }},
		"half a minute longer": {change: func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(30 * time.Second) }},

		"a longer life":     {change: func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(2 * time.Minute) }, want: "it ends"},
		"another key":       {public: &stranger.PublicKey, want: "public key"},
		"another case":      {change: func(c *x509.Certificate) { c.RawSubject = name(t, orgOID, 12, "Lab", cnOID, 12, "Alice") }, want: "subject"},
		"another RDN order": {change: func(c *x509.Certificate) { c.RawSubject = name(t, cnOID, 12, "alice", orgOID, 12, "Lab") }, want: "subject"},
		"one RDN more": {change: func(c *x509.Certificate) {
			c.RawSubject = name(t, orgOID, 12, "Lab", cnOID, 12, "alice", cnOID, 12, "root")
		}, want: "subject"},
		"no subject":          {change: func(c *x509.Certificate) { c.RawSubject = []byte{0x30, 0} }, want: "subject"},
		"a missing extension": {change: func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[:1] }, want: "missing"},
		"a changed extension": {change: func(c *x509.Certificate) { c.ExtraExtensions[1].Value = []byte{0x30, 2, 5, 0} }, want: "differs"},
		"critical no more":    {change: func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }, want: "differs"},
		"a name in addition":  {change: func(c *x509.Certificate) { c.DNSNames = []string{"dc1"} }, want: "not decided"},
		"a CA certificate":    {change: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, want: "CA certificate"},
	} {
		t.Run(title, func(t *testing.T) {
			template := good()
			if c.change != nil {
				c.change(template)
			}
			public := &key.PublicKey
			if c.public != nil {
				public = c.public
			}
			der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte{9}}, public, stranger)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			err = upstream.Compare(order, cert, upstream.Tolerance{})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if upstream.Compare(order, nil, upstream.Tolerance{}) == nil {
		t.Error("no certificate is as decided")
	}
}
