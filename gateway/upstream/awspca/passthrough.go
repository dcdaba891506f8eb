package awspca

import (
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// passthrough puts a decision into the words of the API. Where it has a field of its own for an extension, and that says all that was
// decided, the extension goes there; every other one goes as a custom extension, octet for octet.
func passthrough(p templates.CertificateProfile) (*types.ApiPassthrough, error) {
	out := &types.ApiPassthrough{Extensions: &types.Extensions{}}
	attributes, err := subject(p.Subject)
	if err != nil {
		return nil, fmt.Errorf("the subject %q: %w", p.SubjectText, err)
	}
	if len(attributes) > 0 {
		out.Subject = &types.ASN1Subject{CustomAttributes: attributes}
	}
	x := out.Extensions
	for _, e := range p.Extensions {
		done := false
		switch {
		case e.OID == wcce.OIDKeyUsage && e.Critical:
			x.KeyUsage, done = keyUsage(e.Value)
		case e.OID == wcce.OIDEKU && !e.Critical:
			x.ExtendedKeyUsage, done = purposes(e.Value)
		case e.OID == wcce.OIDSAN && !e.Critical:
			x.SubjectAlternativeNames, done = alternatives(e.Value)
		}
		if !done {
			x.CustomExtensions = append(x.CustomExtensions, types.CustomExtension{ObjectIdentifier: aws.String(e.OID), Critical: aws.Bool(e.Critical),
				Value: aws.String(base64.StdEncoding.EncodeToString(e.Value))})
		}
		if len(e.Value) > maxCustom*3/4 {
			return nil, fmt.Errorf("extension %s has %d octets, more than AWS takes", e.OID, len(e.Value))
		}
	}
	if p := x; p.KeyUsage == nil && p.ExtendedKeyUsage == nil && p.SubjectAlternativeNames == nil && p.CustomExtensions == nil {
		out.Extensions = nil
	}
	return out, nil
}

// maxCustom is how many characters in base64 an extension has at most.
const maxCustom = 4096

// subject lists the attributes of a Name, in its order. The API's own fields have no documented order.
func subject(der []byte) ([]types.CustomAttribute, error) {
	s := cryptobyte.String(der)
	var name cryptobyte.String
	if s.Empty() {
		return nil, nil
	}
	if !s.ReadASN1(&name, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("it is not a Name")
	}
	var out []types.CustomAttribute
	for !name.Empty() {
		var set, seq, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !name.ReadASN1(&set, cbasn1.SET) || !set.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadAnyASN1(&value, &tag) || !seq.Empty() {
			return nil, errors.New("an attribute is malformed")
		}
		if !set.Empty() {
			return nil, errors.New("AWS does not take several attributes in one RDN")
		}
		text, ok := decode(tag, value)
		if !ok || text == "" || len(text) > 256 {
			return nil, fmt.Errorf("AWS does not take the value of attribute %s: it is empty, no text, or longer than 256 characters", oid)
		}
		out = append(out, types.CustomAttribute{ObjectIdentifier: aws.String(oid.String()), Value: aws.String(text)})
	}
	return out, nil
}

func decode(tag cbasn1.Tag, value []byte) (string, bool) {
	switch tag {
	case cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String:
		return string(value), utf8.Valid(value)
	case cbasn1.Tag(30): // BMPString
		var units []uint16
		for i := 0; i+1 < len(value); i += 2 {
			units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
		}
		return string(utf16.Decode(units)), len(value)%2 == 0
	}
	return "", false
}

// keyUsage reads the bits (RFC 5280 4.2.1.3).
func keyUsage(der []byte) (*types.KeyUsage, bool) {
	s := cryptobyte.String(der)
	var bits asn1.BitString
	if !s.ReadASN1BitString(&bits) || !s.Empty() || bits.BitLength > 9 {
		return nil, false
	}
	at := func(i int) bool { return bits.At(i) == 1 }
	return &types.KeyUsage{DigitalSignature: at(0), NonRepudiation: at(1), KeyEncipherment: at(2), DataEncipherment: at(3), KeyAgreement: at(4), KeyCertSign: at(5), CRLSign: at(6),
		EncipherOnly: at(7), DecipherOnly: at(8)}, true
}

// purposes reads ExtKeyUsageSyntax. Each goes by its number, which says the same as the API's own words.
func purposes(der []byte) ([]types.ExtendedKeyUsage, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return nil, false
	}
	var out []types.ExtendedKeyUsage
	for !list.Empty() {
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1ObjectIdentifier(&oid) || len(out) == 20 {
			return nil, false
		}
		if name, ok := purposeNames[oid.String()]; ok {
			out = append(out, types.ExtendedKeyUsage{ExtendedKeyUsageType: name})
		} else {
			out = append(out, types.ExtendedKeyUsage{ExtendedKeyUsageObjectIdentifier: aws.String(oid.String())})
		}
	}
	return out, true
}

var purposeNames = map[string]types.ExtendedKeyUsageType{
	"1.3.6.1.5.5.7.3.1": types.ExtendedKeyUsageTypeServerAuth, "1.3.6.1.5.5.7.3.2": types.ExtendedKeyUsageTypeClientAuth,
	"1.3.6.1.5.5.7.3.3": types.ExtendedKeyUsageTypeCodeSigning, "1.3.6.1.5.5.7.3.4": types.ExtendedKeyUsageTypeEmailProtection,
	"1.3.6.1.4.1.311.20.2.2": types.ExtendedKeyUsageTypeSmartCardLogin,
}

// alternatives reads GeneralNames of the kinds that the API says plainly: mail and DNS names, URIs and addresses. With any other, as a user
// principal name, whose encoding the API does not document, the whole extension goes as it is.
func alternatives(der []byte) ([]types.GeneralName, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return nil, false
	}
	var out []types.GeneralName
	for !list.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&value, &tag) || len(out) == 150 {
			return nil, false
		}
		text := aws.String(string(value))
		switch {
		case len(value) > 253:
			return nil, false
		case tag == cbasn1.Tag(1).ContextSpecific():
			out = append(out, types.GeneralName{Rfc822Name: text})
		case tag == cbasn1.Tag(2).ContextSpecific():
			out = append(out, types.GeneralName{DnsName: text})
		case tag == cbasn1.Tag(6).ContextSpecific():
			out = append(out, types.GeneralName{UniformResourceIdentifier: text})
		case tag == cbasn1.Tag(7).ContextSpecific() && (len(value) == 4 || len(value) == 16):
			out = append(out, types.GeneralName{IpAddress: aws.String(net.IP(value).String())})
		default:
			return nil, false
		}
	}
	return out, true
}
