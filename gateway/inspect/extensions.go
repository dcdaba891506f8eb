package inspect

import (
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// addExtension lists one extension, and takes the template from the two that name it ([MS-WCCE] 2.2.2.7.7).
func (r *Report) addExtension(oid string, critical bool, value []byte) {
	text, ok := extensionText(oid, value)
	switch oid {
	case wcce.OIDTemplateName:
		if name, found := templateName(value); found {
			r.template().Name, text, ok = name, name, true
		}
	case wcce.OIDTemplateInfo:
		if t, found := templateInfo(value); found {
			t.Name = r.template().Name
			*r.template(), text, ok = *t, t.text(), true
		}
	}
	if !ok {
		text = hex.EncodeToString(value)
	}
	r.Extensions = append(r.Extensions, Extension{OID: oid, Name: wcce.OIDName(oid), Critical: critical, Value: text})
}

// templateName reads a character string, or a sequence around one: Windows writes the first, the specification the second.
func templateName(der []byte) (string, bool) {
	if text, ok := stringText(der); ok {
		return text, true
	}
	s := cryptobyte.String(der)
	var inner cryptobyte.String
	if !s.ReadASN1(&inner, cbasn1.SEQUENCE) {
		return "", false
	}
	return stringText(inner)
}

func templateInfo(der []byte) (*Template, bool) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) {
		return nil, false
	}
	t := &Template{OID: oid.String()}
	for _, field := range []**int{&t.Major, &t.Minor} {
		var v int
		if seq.Empty() {
			break
		}
		if !seq.ReadASN1Integer(&v) {
			return nil, false
		}
		*field = &v
	}
	return t, true
}

// text is "name, OID, version 100.3", as far as known.
func (t *Template) text() string {
	var parts []string
	for _, s := range []string{t.Name, t.OID} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	switch {
	case t.Major != nil && t.Minor != nil:
		parts = append(parts, fmt.Sprintf("version %d.%d", *t.Major, *t.Minor))
	case t.Major != nil:
		parts = append(parts, fmt.Sprintf("version %d", *t.Major))
	}
	return strings.Join(parts, ", ")
}

// ExtensionText is an extension's value for people, in hexadecimal where it is not understood.
func ExtensionText(oid string, der []byte) string {
	if text, ok := extensionText(oid, der); ok {
		return text
	}
	return hex.EncodeToString(der)
}

// extensionText decodes the extensions whose meaning is simple.
func extensionText(oid string, der []byte) (string, bool) {
	switch oid {
	case wcce.OIDEKU:
		return oidList(der, false)
	case wcce.OIDAppPolicies, "2.5.29.32":
		return oidList(der, true)
	case "1.2.840.113549.1.9.15":
		return oidList(der, true)
	case wcce.OIDKeyUsage:
		return keyUsageText(der)
	case "2.5.29.17":
		return generalNames(der)
	case wcce.OIDSKI:
		id := octetsOf(der)
		return hex.EncodeToString(id), id != nil
	case "2.5.29.35":
		return authorityKeyText(der)
	case "2.5.29.19":
		return basicConstraintsText(der)
	case "1.3.6.1.4.1.311.25.2":
		return generalNames(der)
	case "2.5.29.31":
		return distributionPoints(der)
	case "1.3.6.1.5.5.7.1.1":
		return accessText(der)
	}
	return "", false
}

// distributionPoints lists where the revocation lists are (RFC 5280 4.2.1.13).
func distributionPoints(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return "", false
	}
	var places []string
	for !list.Empty() {
		var point, name, full cryptobyte.String
		if !list.ReadASN1(&point, cbasn1.SEQUENCE) || !point.ReadASN1(&name, tag0) || !name.ReadASN1(&full, tag0) {
			return "", false
		}
		for !full.Empty() {
			var value cryptobyte.String
			var tag cbasn1.Tag
			if !full.ReadAnyASN1(&value, &tag) {
				return "", false
			}
			places = append(places, generalName(tag, value))
		}
	}
	return strings.Join(places, ", "), true
}

// accessText lists where the issuer's certificate and its OCSP responder are (RFC 5280 4.2.2.1).
func accessText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return "", false
	}
	var places []string
	for !list.Empty() {
		var one, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&oid) || !one.ReadAnyASN1(&value, &tag) {
			return "", false
		}
		places = append(places, named(oid.String())+" "+generalName(tag, value))
	}
	return strings.Join(places, ", "), true
}

// oidList reads SEQUENCE OF OID, or, nested, SEQUENCE OF SEQUENCE { OID, … }.
func oidList(der []byte, nested bool) (string, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return "", false
	}
	var names []string
	for !list.Empty() {
		from := &list
		var one cryptobyte.String
		if nested {
			if !list.ReadASN1(&one, cbasn1.SEQUENCE) {
				return "", false
			}
			from = &one
		}
		var oid asn1.ObjectIdentifier
		if !from.ReadASN1ObjectIdentifier(&oid) {
			return "", false
		}
		names = append(names, named(oid.String()))
	}
	return strings.Join(names, ", "), true
}

func keyUsageText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var bits asn1.BitString
	if !s.ReadASN1BitString(&bits) || !s.Empty() {
		return "", false
	}
	var names []string
	for i, name := range []string{"digital signature", "non-repudiation", "key encipherment", "data encipherment", "key agreement",
		"certificate signing", "CRL signing", "encipher only", "decipher only"} {
		if bits.At(i) == 1 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", "), true
}

func authorityKeyText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var seq, id cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&id, cbasn1.Tag(0).ContextSpecific()) {
		return "", false
	}
	return hex.EncodeToString(id), true
}

func basicConstraintsText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	ca, depth := false, -1
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() ||
		seq.PeekASN1Tag(cbasn1.BOOLEAN) && !seq.ReadASN1Boolean(&ca) || !seq.Empty() && !seq.ReadASN1Integer(&depth) {
		return "", false
	}
	switch {
	case !ca:
		return "no CA", true
	case depth >= 0:
		return fmt.Sprintf("CA, path length %d", depth), true
	}
	return "CA", true
}

// generalNames lists GeneralNames (RFC 5280 4.2.1.6) as "dns:host, upn:user@domain"; other kinds are shown as hexadecimal.
func generalNames(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return "", false
	}
	var names []string
	for !list.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&value, &tag) {
			return "", false
		}
		names = append(names, generalName(tag, value))
	}
	return strings.Join(names, ", "), true
}

func generalName(tag cbasn1.Tag, value cryptobyte.String) string {
	switch tag {
	case cbasn1.Tag(1).ContextSpecific():
		return "email:" + dn.Clean(string(value))
	case cbasn1.Tag(2).ContextSpecific():
		return "dns:" + dn.Clean(string(value))
	case cbasn1.Tag(6).ContextSpecific():
		return "uri:" + dn.Clean(string(value))
	case cbasn1.Tag(7).ContextSpecific():
		if len(value) == net.IPv4len || len(value) == net.IPv6len {
			return "ip:" + net.IP(value).String()
		}
	case cbasn1.Tag(4).ContextSpecific().Constructed():
		return "directory name:" + dn.Show(value)
	case tag0:
		return otherNameText(value)
	}
	return fmt.Sprintf("[%d]:%s", uint8(tag)&0x1f, hex.EncodeToString(value))
}

// otherNameText knows the principal name, the directory GUID and the SID of an account ([MS-WCCE] 2.2.2.7.7.4).
func otherNameText(value cryptobyte.String) string {
	var oid asn1.ObjectIdentifier
	var wrapped cryptobyte.String
	whole := hex.EncodeToString(value)
	if !value.ReadASN1ObjectIdentifier(&oid) || !value.ReadASN1(&wrapped, tag0) {
		return "other name:" + whole
	}
	switch oid.String() {
	case "1.3.6.1.4.1.311.20.2.3":
		if text, ok := stringText(wrapped); ok {
			return "upn:" + text
		}
	case "1.3.6.1.4.1.311.25.2.1":
		if sid := octetsOf(wrapped); sid != nil {
			return "sid:" + dn.Clean(string(sid))
		}
	case "1.3.6.1.4.1.311.25.1":
		if guid := octetsOf(wrapped); guid != nil {
			return "guid:" + hex.EncodeToString(guid)
		}
	}
	return fmt.Sprintf("other name %s:%s", oid, hex.EncodeToString(wrapped))
}
