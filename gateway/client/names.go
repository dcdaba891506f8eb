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

	"github.com/enrollgate/enrollgate/templates/dn"
)

// SubjectDER encodes a name in the text form of RFC 4514, "CN=host,OU=servers,O=Example,C=DE". The last part of the text
// is the first of the encoding.
func SubjectDER(text string) ([]byte, error) {
	parsed, err := ldap.ParseDN(text)
	if err != nil {
		return nil, fmt.Errorf("subject %q: %w", text, err)
	}
	if len(parsed.RDNs) == 0 {
		return nil, fmt.Errorf("subject %q: empty", text)
	}
	var rdns [][]dn.RDN
	for _, rdn := range slices.Backward(parsed.RDNs) {
		var parts []dn.RDN
		for _, a := range rdn.Attributes {
			parts = append(parts, dn.RDN{Type: a.Type, Value: a.Value})
		}
		rdns = append(rdns, parts)
	}
	der, err := dn.Encode(rdns)
	if err != nil {
		return nil, fmt.Errorf("subject %q: %w", text, err)
	}
	return der, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
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
		return fmt.Errorf("alternative name %q: the kinds are dns:, email:, upn: and ip: before the name", name)
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
