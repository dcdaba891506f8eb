// Package names takes decided names apart for CAs that want them as text or JSON in place of DER.
package names

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Kind is the choice of a GeneralName (RFC 5280 4.2.1.6).
type Kind int

// The kinds that CAs take as text.
const (
	Email Kind = iota + 1
	DNS
	URI
	IP
	Other // OID tells which; Text only where the value is a UTF8String
)

// OIDUPN is the kind of the user principal name, an otherName ([MS-WCCE] 2.2.2.7.5).
const OIDUPN = "1.3.6.1.4.1.311.20.2.3"

// Name is one alternative name.
type Name struct {
	Kind Kind
	OID  string // of Other
	Text string
	DER  []byte // of Other: its value, without the explicit tag
}

// Alternative reads the value of a subjectAltName extension. A kind that is none of Kind is an error: no CA here takes it as text.
func Alternative(der []byte) ([]Name, error) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("alternative names: not a DER sequence")
	}
	var out []Name
	for !list.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&value, &tag) {
			return nil, errors.New("alternative names: malformed")
		}
		n, err := general(tag, value)
		if err != nil {
			return nil, fmt.Errorf("alternative names: %w", err)
		}
		out = append(out, n)
	}
	return out, nil
}

func general(tag cbasn1.Tag, value cryptobyte.String) (Name, error) {
	kinds := map[cbasn1.Tag]Kind{cbasn1.Tag(1).ContextSpecific(): Email, cbasn1.Tag(2).ContextSpecific(): DNS, cbasn1.Tag(6).ContextSpecific(): URI}
	if kind, ok := kinds[tag]; ok {
		for _, c := range value {
			if c <= ' ' || c >= 0x7f {
				return Name{}, fmt.Errorf("%q has characters that it cannot have", string(value))
			}
		}
		return Name{Kind: kind, Text: string(value)}, nil
	}
	switch tag {
	case cbasn1.Tag(7).ContextSpecific():
		ip, ok := netip.AddrFromSlice(value)
		if !ok {
			return Name{}, fmt.Errorf("an address of %d octets", len(value))
		}
		return Name{Kind: IP, Text: ip.String()}, nil
	case cbasn1.Tag(0).ContextSpecific().Constructed():
		var oid asn1.ObjectIdentifier
		var wrapped, raw, text cryptobyte.String
		var inner cbasn1.Tag
		if !value.ReadASN1ObjectIdentifier(&oid) || !value.ReadASN1(&wrapped, cbasn1.Tag(0).ContextSpecific().Constructed()) || !value.Empty() ||
			!wrapped.ReadAnyASN1Element(&raw, &inner) || !wrapped.Empty() {
			return Name{}, errors.New("an other name is malformed")
		}
		n := Name{Kind: Other, OID: oid.String(), DER: raw}
		if inner == cbasn1.UTF8String && raw.ReadASN1(&text, inner) && utf8.Valid(text) {
			n.Text = string(text)
		}
		return n, nil
	}
	return Name{}, fmt.Errorf("kind %d has no form as text", tag&0x1f)
}

// Attribute is one attribute of a subject.
type Attribute struct {
	OID  string
	Text string
}

// Subject reads a Name whose RDNs have one attribute of text each, in the order of the DER, as nearly all have.
func Subject(der []byte) ([]Attribute, error) {
	if len(der) == 0 {
		return nil, nil
	}
	var sequence pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &sequence); err != nil || len(rest) > 0 {
		return nil, errors.New("subject: not a Name in DER")
	}
	var out []Attribute
	for _, set := range sequence {
		if len(set) != 1 {
			return nil, fmt.Errorf("subject: an RDN of %d attributes", len(set))
		}
		text, ok := set[0].Value.(string)
		if !ok || !utf8.ValidString(text) {
			return nil, fmt.Errorf("subject: attribute %s is no text", set[0].Type)
		}
		out = append(out, Attribute{set[0].Type.String(), text})
	}
	return out, nil
}
