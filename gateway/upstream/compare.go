package upstream

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ownedByCA are extensions that only the CA can know. None of them gives the holder a name or a right.
var ownedByCA = []string{
	"2.5.29.14",                   // subject key identifier
	"2.5.29.35",                   // authority key identifier
	"2.5.29.31",                   // CRL distribution points
	"2.5.29.19",                   // basic constraints; a CA certificate is refused
	"1.3.6.1.5.5.7.1.1",           // authority information access
	"1.3.6.1.4.1.11129.2.4.2",     // signed certificate timestamps
	"1.3.6.1.4.1.37476.9000.64.1", // step-ca: which provisioner let the certificate be issued
}

// Tolerance are extensions, by OID, in which the administrator lets a CA follow its own profile.
type Tolerance struct {
	Missing []string // decided, and the CA leaves them out
	Added   []string // not decided, and the CA adds them
	Changed []string // decided, and the CA has its own value
}

// vital are extensions that say who the holder is and what the key is for: no tolerance covers them.
var vital = map[string]string{
	wcce.OIDSAN: "the alternative names", wcce.OIDEKU: "the extended key usage", wcce.OIDKeyUsage: "the key usage", wcce.OIDSID: "the account's SID",
}

// Check refuses a tolerance for what a certificate is trusted for. The SID may be missing: Windows then maps the certificate
// by its names, or not at all.
func (t Tolerance) Check() error {
	for _, list := range [][]string{t.Added, t.Changed, t.Missing} {
		for _, oid := range list {
			if what, ok := vital[oid]; ok && (oid != wcce.OIDSID || !slices.Contains(t.Missing, oid) || slices.Contains(t.Added, oid) || slices.Contains(t.Changed, oid)) {
				return fmt.Errorf("extension %s is %s: no CA may differ from the decision in it", oid, what)
			}
		}
	}
	return nil
}

// Compare checks a certificate against the decision: the requested key, the decided names and extensions, no others, and
// a validity within the decided one. A CA may order extensions as it likes and choose another string type for a name.
func Compare(order Order, cert *x509.Certificate, t Tolerance) error {
	if cert == nil {
		return errors.New("there is no certificate")
	}
	p := order.Profile
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !key.Equal(order.PublicKey):
		return errors.New("the public key is not that of the request")
	case !SameName(cert.RawSubject, p.Subject):
		return fmt.Errorf("the subject is %q, decided was %q", dn.Show(cert.RawSubject), p.SubjectText)
	case cert.NotAfter.After(p.NotAfter.Add(time.Minute)):
		return fmt.Errorf("it ends at %s, decided was %s", cert.NotAfter.UTC().Format(time.RFC3339), p.NotAfter.UTC().Format(time.RFC3339))
	case cert.IsCA:
		return errors.New("it is a CA certificate")
	}
	found := map[string]bool{}
	for _, e := range cert.Extensions {
		oid := e.Id.String()
		i := slices.IndexFunc(p.Extensions, func(d templates.Extension) bool { return d.OID == oid })
		switch {
		case i >= 0 && !SameExtension(p.Extensions[i], e) && !slices.Contains(t.Changed, oid):
			return fmt.Errorf("extension %s differs", extensionName(oid))
		case i < 0 && !OwnedByCA(oid) && !slices.Contains(t.Added, oid):
			return fmt.Errorf("extension %s was not decided", extensionName(oid))
		}
		found[oid] = true
	}
	for _, d := range p.Extensions {
		if !found[d.OID] && !slices.Contains(t.Missing, d.OID) {
			return fmt.Errorf("extension %s is missing", extensionName(d.OID))
		}
	}
	return nil
}

// SameExtension tells whether a certificate's extension is as decided.
func SameExtension(decided templates.Extension, e pkix.Extension) bool {
	return (decided.Critical == e.Critical || tightened(decided.OID, e.Critical)) && sameExtension(decided.OID, decided.Value, e.Value)
}

// OwnedByCA tells whether an extension is the CA's to choose.
func OwnedByCA(oid string) bool { return slices.Contains(ownedByCA, oid) }

// tightened tells whether criticality is only more than was decided, in an extension that every verifier knows.
func tightened(oid string, critical bool) bool { return critical && oid == wcce.OIDKeyUsage }

// sameExtension tells whether two values mean the same. Purposes and alternative names have no order.
func sameExtension(oid string, a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if oid != wcce.OIDEKU && oid != wcce.OIDSAN {
		return false
	}
	x, okX := sortedParts(a)
	y, okY := sortedParts(b)
	return okX && okY && slices.EqualFunc(x, y, bytes.Equal)
}

// sortedParts are the elements of a sequence, in the order of their octets.
func sortedParts(der []byte) (out [][]byte, ok bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, false
	}
	for !list.Empty() {
		var part cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1Element(&part, &tag) {
			return nil, false
		}
		out = append(out, part)
	}
	slices.SortFunc(out, bytes.Compare)
	return out, true
}

// extensionName is an OID with its name where there is one.
func extensionName(oid string) string {
	if name, ok := extensionNames[oid]; ok {
		return oid + " (" + name + ")"
	}
	return oid
}

var extensionNames = map[string]string{
	wcce.OIDSAN: "alternative names", wcce.OIDEKU: "extended key usage", wcce.OIDKeyUsage: "key usage", wcce.OIDSID: "account's SID",
	wcce.OIDTemplateName: "template name", "1.3.6.1.4.1.311.21.7": "template information", "1.3.6.1.4.1.311.21.10": "application policies",
	"1.2.840.113549.1.9.15": "S/MIME capabilities", "2.5.29.32": "certificate policies", "2.5.29.19": "basic constraints",
}

// attribute is one part of a name; text tells whether value is decoded text, in which case its string type is forgotten.
type attribute struct {
	oid   string
	text  bool
	value string
}

// SameName tells whether two Names have the same attributes with the same text in the same order. Case and spaces count:
// what Windows and its administrators compare is the text.
func SameName(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, errX := parseName(a)
	y, errY := parseName(b)
	return errX == nil && errY == nil && slices.EqualFunc(x, y, slices.Equal)
}

// parseName reads the RDNs of a Name; no octets at all are the empty Name.
func parseName(der []byte) ([][]attribute, error) {
	s := cryptobyte.String(der)
	var name cryptobyte.String
	if s.Empty() {
		return nil, nil
	}
	if !s.ReadASN1(&name, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("not a Name")
	}
	var out [][]attribute
	for !name.Empty() {
		var set cryptobyte.String
		if !name.ReadASN1(&set, cbasn1.SET) || set.Empty() {
			return nil, errors.New("an RDN is not a set")
		}
		var rdn []attribute
		for !set.Empty() {
			var seq, value, raw cryptobyte.String
			var oid asn1.ObjectIdentifier
			var tag cbasn1.Tag
			if !set.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadAnyASN1Element(&raw, &tag) || !seq.Empty() {
				return nil, errors.New("an RDN is malformed")
			}
			whole := raw
			raw.ReadAnyASN1(&value, &tag)
			a := attribute{oid: oid.String()}
			if a.value, a.text = decodeText(tag, value); !a.text {
				a.value = string(whole)
			}
			rdn = append(rdn, a)
		}
		// A set has no order; DER sorts it by encoding, which depends on the string type.
		slices.SortFunc(rdn, func(x, y attribute) int { return bytes.Compare([]byte(x.oid+"="+x.value), []byte(y.oid+"="+y.value)) })
		out = append(out, rdn)
	}
	return out, nil
}

func decodeText(tag cbasn1.Tag, value []byte) (string, bool) {
	switch tag {
	case cbasn1.UTF8String:
		return string(value), utf8.Valid(value)
	case cbasn1.PrintableString, cbasn1.IA5String:
		return string(value), !slices.ContainsFunc(value, func(c byte) bool { return c >= 0x80 })
	case cbasn1.Tag(30): // BMPString
		if len(value)%2 != 0 {
			return "", false
		}
		units := make([]uint16, 0, len(value)/2)
		for i := 0; i < len(value); i += 2 {
			units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
		}
		return string(utf16.Decode(units)), true
	}
	return "", false
}
