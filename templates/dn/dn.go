// Package dn converts distinguished names between the parts that a directory knows, the DER that certificates hold, and
// the text of RFC 4514.
package dn

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RDN is one attribute type and value, unescaped.
type RDN struct{ Type, Value string }

// attribute says how an attribute type is encoded (RFC 5280 4.1.2.4, appendix A.1).
type attribute struct {
	name string
	oid  asn1.ObjectIdentifier
	tag  cbasn1.Tag
	max  int // characters
}

// attributes are the types that are written into certificates. Where names share an OID the first is the one shown.
var attributes = []attribute{
	{"CN", asn1.ObjectIdentifier{2, 5, 4, 3}, cbasn1.UTF8String, 64},
	{"SN", asn1.ObjectIdentifier{2, 5, 4, 4}, cbasn1.UTF8String, 64},
	{"SERIALNUMBER", asn1.ObjectIdentifier{2, 5, 4, 5}, cbasn1.PrintableString, 64},
	{"C", asn1.ObjectIdentifier{2, 5, 4, 6}, cbasn1.PrintableString, 2},
	{"L", asn1.ObjectIdentifier{2, 5, 4, 7}, cbasn1.UTF8String, 128},
	{"ST", asn1.ObjectIdentifier{2, 5, 4, 8}, cbasn1.UTF8String, 128},
	{"S", asn1.ObjectIdentifier{2, 5, 4, 8}, cbasn1.UTF8String, 128},
	{"STREET", asn1.ObjectIdentifier{2, 5, 4, 9}, cbasn1.UTF8String, 128},
	{"O", asn1.ObjectIdentifier{2, 5, 4, 10}, cbasn1.UTF8String, 64},
	{"OU", asn1.ObjectIdentifier{2, 5, 4, 11}, cbasn1.UTF8String, 64},
	{"T", asn1.ObjectIdentifier{2, 5, 4, 12}, cbasn1.UTF8String, 64},
	{"TITLE", asn1.ObjectIdentifier{2, 5, 4, 12}, cbasn1.UTF8String, 64},
	{"G", asn1.ObjectIdentifier{2, 5, 4, 42}, cbasn1.UTF8String, 64},
	{"GN", asn1.ObjectIdentifier{2, 5, 4, 42}, cbasn1.UTF8String, 64},
	{"I", asn1.ObjectIdentifier{2, 5, 4, 43}, cbasn1.UTF8String, 64},
	{"DC", asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, cbasn1.IA5String, 63},
	{"UID", asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, cbasn1.UTF8String, 256},
	{"E", asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, cbasn1.IA5String, 255},
	{"EMAIL", asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, cbasn1.IA5String, 255},
}

// Encode returns the DER of a Name. The first element of rdns is the first of the encoding: the root of the directory.
// A part that cannot be written as a certificate needs it, because its type is unknown, or it is empty, too long or of
// the wrong characters, is an error.
func Encode(rdns [][]RDN) ([]byte, error) {
	var b cryptobyte.Builder
	var err error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range rdns {
			var parts [][]byte
			for _, p := range rdn {
				der, partErr := encodePart(p)
				if partErr != nil && err == nil {
					err = partErr
				}
				parts = append(parts, der)
			}
			slices.SortFunc(parts, bytes.Compare) // as DER orders a SET OF
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
		}
	})
	if err != nil {
		return nil, err
	}
	return b.Bytes()
}

func encodePart(p RDN) ([]byte, error) {
	i := slices.IndexFunc(attributes, func(a attribute) bool { return strings.EqualFold(a.name, strings.TrimSpace(p.Type)) })
	if i < 0 {
		return nil, fmt.Errorf("the name attribute %q cannot be put into a certificate", p.Type)
	}
	a := attributes[i]
	switch {
	case p.Value == "" || !utf8.ValidString(p.Value) || strings.ContainsFunc(p.Value, unicode.IsControl):
		return nil, fmt.Errorf("the name attribute %s is empty or holds what is no text", p.Type)
	case utf8.RuneCountInString(p.Value) > a.max:
		return nil, fmt.Errorf("the name attribute %s has more than %d characters", p.Type, a.max)
	case a.tag == cbasn1.IA5String && strings.ContainsFunc(p.Value, notASCII), a.tag == cbasn1.PrintableString && strings.ContainsFunc(p.Value, notPrintable):
		return nil, fmt.Errorf("the name attribute %s=%q holds characters that it cannot have", p.Type, p.Value)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(a.oid)
		b.AddASN1(a.tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(p.Value)) })
	})
	return b.Bytes()
}

func notASCII(r rune) bool { return r >= utf8.RuneSelf }

// notPrintable tells what a PrintableString cannot hold (X.680 41.4).
func notPrintable(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(" '()+,-./:=?", r)
}

// Text renders the DER of a Name as RFC 4514 text, the last part of the encoding first. It is safe to print on a
// terminal: what does not print is replaced.
func Text(der []byte) (string, error) {
	s := cryptobyte.String(der)
	var name cryptobyte.String
	if !s.ReadASN1(&name, cbasn1.SEQUENCE) || !s.Empty() {
		return "", errors.New("not a Name")
	}
	var parts []string
	for !name.Empty() {
		var set cryptobyte.String
		if !name.ReadASN1(&set, cbasn1.SET) || set.Empty() {
			return "", fmt.Errorf("RDN %d is not a set", len(parts)+1)
		}
		var values []string
		for !set.Empty() {
			var seq, value cryptobyte.String
			var oid asn1.ObjectIdentifier
			var tag cbasn1.Tag
			if !set.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadAnyASN1(&value, &tag) || !seq.Empty() {
				return "", fmt.Errorf("RDN %d is malformed", len(parts)+1)
			}
			values = append(values, typeName(oid)+"="+Escape(Decode(tag, value)))
		}
		parts = append(parts, strings.Join(values, "+"))
	}
	slices.Reverse(parts)
	return strings.Join(parts, ","), nil
}

// Show is Text for people: what is not a Name is shown as hexadecimal.
func Show(der []byte) string {
	text, err := Text(der)
	if err != nil {
		return "#" + hex.EncodeToString(der)
	}
	return text
}

func typeName(oid asn1.ObjectIdentifier) string {
	for _, a := range attributes {
		if a.oid.Equal(oid) {
			return a.name
		}
	}
	return oid.String()
}

// Escape escapes a value as RFC 4514 2.4 does.
func Escape(s string) string {
	var b strings.Builder
	for i, r := range s {
		if strings.ContainsRune(`,+"\<>;=`, r) || i == 0 && (r == '#' || r == ' ') || i == len(s)-1 && r == ' ' {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// tagBMP is the string type of UCS-2 text.
const tagBMP = cbasn1.Tag(30)

// Decode returns the text of a string value with the given tag, made safe to print: what others sent must not move the
// cursor.
func Decode(tag cbasn1.Tag, value []byte) string {
	text := string(value)
	if tag == tagBMP {
		units := make([]uint16, 0, len(value)/2)
		for i := 0; i+1 < len(value); i += 2 {
			units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
		}
		text = string(utf16.Decode(units))
	}
	return Clean(text)
}

// Clean replaces what does not print.
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
}
