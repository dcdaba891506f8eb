package client

import (
	"encoding/asn1"
	"fmt"
	"net/mail"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// nameType is an attribute of names: its OID, its string type and its longest value (RFC 5280 appendix A.1).
type nameType struct {
	oid asn1.ObjectIdentifier
	tag cbasn1.Tag
	max int
}

func nameTypeOf(short string) (nameType, bool) {
	text := func(max int, oid ...int) (nameType, bool) { return nameType{oid, cbasn1.UTF8String, max}, true }
	switch strings.ToUpper(short) {
	case "CN":
		return text(64, 2, 5, 4, 3)
	case "SN":
		return text(64, 2, 5, 4, 4)
	case "L":
		return text(128, 2, 5, 4, 7)
	case "ST", "S":
		return text(128, 2, 5, 4, 8)
	case "STREET":
		return text(128, 2, 5, 4, 9)
	case "O":
		return text(64, 2, 5, 4, 10)
	case "OU":
		return text(64, 2, 5, 4, 11)
	case "T", "TITLE":
		return text(64, 2, 5, 4, 12)
	case "G", "GN", "GIVENNAME":
		return text(64, 2, 5, 4, 42)
	case "I", "INITIALS":
		return text(64, 2, 5, 4, 43)
	case "UID":
		return text(256, 0, 9, 2342, 19200300, 100, 1, 1)
	case "C":
		return nameType{[]int{2, 5, 4, 6}, cbasn1.PrintableString, 2}, true
	case "SERIALNUMBER":
		return nameType{[]int{2, 5, 4, 5}, cbasn1.PrintableString, 64}, true
	case "DC":
		return nameType{[]int{0, 9, 2342, 19200300, 100, 1, 25}, cbasn1.IA5String, 63}, true
	case "E", "EMAIL", "EMAILADDRESS":
		return nameType{[]int{1, 2, 840, 113549, 1, 9, 1}, cbasn1.IA5String, 255}, true
	}
	return nameType{}, false
}

// SubjectDER encodes a name in the text form of RFC 4514, "CN=host,OU=servers,O=Example,C=DE". The last part of the text
// is the first of the encoding.
func SubjectDER(text string) ([]byte, error) {
	dn, err := ldap.ParseDN(text)
	if err != nil {
		return nil, fmt.Errorf("subject %q: %w", text, err)
	}
	if len(dn.RDNs) == 0 {
		return nil, fmt.Errorf("subject %q: empty", text)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range slices.Backward(dn.RDNs) {
			var parts [][]byte
			for _, a := range rdn.Attributes {
				part, partErr := namePart(a.Type, a.Value)
				if partErr != nil {
					err = partErr
					return
				}
				parts = append(parts, part)
			}
			slices.SortFunc(parts, slices.Compare) // DER order of a SET OF
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
		}
	})
	if err != nil {
		return nil, fmt.Errorf("subject %q: %w", text, err)
	}
	return b.Bytes()
}

func namePart(short, value string) ([]byte, error) {
	t, ok := nameTypeOf(strings.TrimSpace(short))
	switch {
	case !ok:
		return nil, fmt.Errorf("attribute type %q is not known", short)
	case value == "" || !utf8.ValidString(value) || strings.ContainsFunc(value, isControl):
		return nil, fmt.Errorf("%s is empty or holds what is no text", short)
	case utf8.RuneCountInString(value) > t.max:
		return nil, fmt.Errorf("%s has more than %d characters", short, t.max)
	case t.tag == cbasn1.IA5String && !isASCII(value), t.tag == cbasn1.PrintableString && strings.ContainsFunc(value, notPrintable):
		return nil, fmt.Errorf("%s=%q holds characters that this attribute cannot have", short, value)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(t.oid)
		b.AddASN1(t.tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) })
	})
	return b.Bytes()
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// notPrintable tells what a PrintableString cannot hold (X.680 41.4).
func notPrintable(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(" '()+,-./:=?", r)
}

// SANValue encodes alternative names: "dns:host", "email:user@domain", "upn:user@domain", "ip:address".
func SANValue(names []string) ([]byte, error) {
	var b cryptobyte.Builder
	var err error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, name := range names {
			if err = addGeneralName(b, name); err != nil {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return b.Bytes()
}

func addGeneralName(b *cryptobyte.Builder, name string) error {
	kind, text, _ := strings.Cut(name, ":")
	octets := func(tag uint8, value []byte) {
		b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
	}
	switch strings.ToLower(kind) {
	case "dns":
		if !isHostName(text) {
			return fmt.Errorf("alternative name %q: not a host name", name)
		}
		octets(2, []byte(text))
	case "email":
		if a, err := mail.ParseAddress(text); err != nil || a.Address != text || !isASCII(text) {
			return fmt.Errorf("alternative name %q: not a mail address", name)
		}
		octets(1, []byte(text))
	case "ip":
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Zone() != "" {
			return fmt.Errorf("alternative name %q: not an IP address", name)
		}
		octets(7, ip.AsSlice())
	case "upn":
		user, domain, ok := strings.Cut(text, "@")
		if !ok || user == "" || domain == "" || !utf8.ValidString(text) || strings.ContainsFunc(text, isControl) {
			return fmt.Errorf("alternative name %q: not a user principal name", name)
		}
		tag := cbasn1.Tag(0).ContextSpecific().Constructed()
		b.AddASN1(tag, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3})
			b.AddASN1(tag, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(text)) })
			})
		})
	default:
		return fmt.Errorf("alternative name %q: begin with dns:, email:, upn: or ip:", name)
	}
	return nil
}

// isHostName accepts letters, digits, hyphens and dots, and one leading wildcard label.
func isHostName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(s, "*."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool {
				return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
			}) {
			return false
		}
	}
	return true
}
