package inspect

import (
	"crypto"
	"crypto/dsa" //lint:ignore SA1019 recorded Windows requests have DSA keys; they are shown, never used
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// addAttributes lists each value of each attribute, and takes the template from name/value pairs.
func (r *Report) addAttributes(attrs []wcce.Attribute, where string) {
	for _, a := range attrs {
		for _, v := range a.Values {
			r.Attributes = append(r.Attributes, Attribute{OID: a.OID, Name: wcce.OIDName(a.OID), Where: where, Value: attributeText(a.OID, v)})
			for _, p := range pairsOf(a.OID, v) {
				if strings.EqualFold(p.Name, "CertificateTemplate") {
					r.template().Name = p.Value
				}
			}
		}
	}
}

func (r *Report) template() *Template {
	if r.Template == nil {
		r.Template = &Template{}
	}
	return r.Template
}

// attributeText decodes the attributes of [MS-WCCE] 2.2.2.7; hexadecimal is the honest answer to all else.
func attributeText(oid string, der []byte) string {
	text, ok := "", false
	switch oid {
	case wcce.OIDClientInfo:
		text, ok = clientInfoText(der)
	case wcce.OIDCSP:
		text, ok = providerText(der)
	case wcce.OIDNameValuePair, wcce.OIDCMCRegInfo:
		var parts []string
		for _, p := range pairsOf(oid, der) {
			parts = append(parts, p.Name+"="+p.Value)
		}
		text, ok = strings.Join(parts, ", "), len(parts) > 0
	case wcce.OIDRenewalCert:
		if cert, err := x509.ParseCertificate(der); err == nil {
			text, ok = certificateText(cert), true
		}
	case wcce.OIDArchivedKey, wcce.OIDAIKInfo, wcce.OIDEKInfo:
		text, ok = envelopedText(der)
	case wcce.OIDExtensions, wcce.OIDMSExtensions:
		text, ok = extensionNames(der)
	case wcce.OIDContentType:
		text, ok = oidText(der)
	default:
		if text, ok = stringText(der); !ok {
			octets := octetsOf(der)
			text, ok = hex.EncodeToString(octets), octets != nil
		}
	}
	if !ok {
		return hex.EncodeToString(der)
	}
	return text
}

// clientInfoText reads who made the request and with which program ([MS-WCCE] 2.2.2.7.4). It proves nothing.
func clientInfoText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var seq, machine, user, process cryptobyte.String
	var id int64
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&id) || !seq.ReadASN1(&machine, cbasn1.UTF8String) ||
		!seq.ReadASN1(&user, cbasn1.UTF8String) || !seq.ReadASN1(&process, cbasn1.UTF8String) {
		return "", false
	}
	return fmt.Sprintf("client %d, machine %s, user %s, process %s", id, dn.Clean(string(machine)), dn.Clean(string(user)), dn.Clean(string(process))), true
}

// providerText reads the cryptographic provider ([MS-WCCE] 2.2.2.7.2).
func providerText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var seq, name cryptobyte.String
	var spec int64
	var tag cbasn1.Tag
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&spec) || !seq.ReadAnyASN1(&name, &tag) {
		return "", false
	}
	use := map[int64]string{0: "CNG", 1: "key exchange", 2: "signature"}[spec]
	return fmt.Sprintf("%s (key spec %d, %s)", dn.Decode(tag, name), spec, use), true
}

// pairsOf reads a name/value pair, or a sequence of them, or "name=value&…" in registration information
// ([MS-WCCE] 2.2.2.7.10, 2.2.2.6.3).
func pairsOf(oid string, der []byte) []wcce.NameValue {
	var out []wcce.NameValue
	switch oid {
	case wcce.OIDCMCRegInfo:
		for item := range strings.SplitSeq(dn.Clean(string(octetsOf(der))), "&") {
			if name, value, ok := strings.Cut(item, "="); ok {
				out = append(out, wcce.NameValue{Name: name, Value: value})
			}
		}
	case wcce.OIDNameValuePair:
		s := cryptobyte.String(der)
		var seq cryptobyte.String
		if !s.ReadASN1(&seq, cbasn1.SEQUENCE) {
			return nil
		}
		for !seq.Empty() {
			pair := &seq
			var inner, name, value cryptobyte.String
			if seq.PeekASN1Tag(cbasn1.SEQUENCE) {
				if !seq.ReadASN1(&inner, cbasn1.SEQUENCE) {
					return out
				}
				pair = &inner
			}
			var nameTag, valueTag cbasn1.Tag
			if !pair.ReadAnyASN1(&name, &nameTag) || !pair.ReadAnyASN1(&value, &valueTag) {
				return out
			}
			out = append(out, wcce.NameValue{Name: dn.Decode(nameTag, name), Value: dn.Decode(valueTag, value)})
		}
	}
	return out
}

func certificateText(cert *x509.Certificate) string {
	return fmt.Sprintf("%s, serial %s", dn.Show(cert.RawSubject), serialText(cert.SerialNumber))
}

func envelopedText(der []byte) (string, bool) {
	e, err := wcce.ParseEnveloped(der)
	if err != nil {
		return "", false
	}
	text := fmt.Sprintf("EnvelopedData, %d octets, %s", len(der), named(e.Cipher))
	for i := range e.Recipients {
		r := describeRecipient(&e.Recipients[i])
		text += fmt.Sprintf(", to %s%s %s by %s", r.KeyID, r.Issuer, r.Serial, r.Transport)
	}
	return text, true
}

func extensionNames(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) {
		return "", false
	}
	var names []string
	for !list.Empty() {
		var one cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&oid) {
			return "", false
		}
		names = append(names, named(oid.String()))
	}
	return strings.Join(names, ", "), true
}

func oidText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&oid) || !s.Empty() {
		return "", false
	}
	return named(oid.String()), true
}

// stringText reads a value that is one character string.
func stringText(der []byte) (string, bool) {
	s := cryptobyte.String(der)
	var value cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&value, &tag) || !s.Empty() {
		return "", false
	}
	switch tag {
	case cbasn1.Tag(30), cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String, cbasn1.T61String:
		return dn.Decode(tag, value), true
	}
	return "", false
}

func firstValue(attrs []wcce.Attribute, oid string) []byte {
	for _, a := range attrs {
		if a.OID == oid && len(a.Values) > 0 {
			return a.Values[0]
		}
	}
	return nil
}

// octetsOf returns the contents of an OCTET STRING, or nil.
func octetsOf(der []byte) []byte {
	s := cryptobyte.String(der)
	var octets cryptobyte.String
	if !s.ReadASN1(&octets, cbasn1.OCTET_STRING) || !s.Empty() {
		return nil
	}
	return octets
}

// named returns what an OID stands for, or the OID.
func named(oid string) string {
	if name := OIDName(oid); name != "" {
		return name
	}
	return oid
}

// OIDName returns what an OID stands for, or "".
func OIDName(oid string) string {
	if name := wcce.OIDName(oid); name != "" {
		return name
	}
	return otherNames[oid]
}

// otherNames are those of signature algorithms and purposes, which no message format depends on.
var otherNames = map[string]string{
	"1.2.840.113549.1.1.5": "SHA1-RSA", "1.2.840.113549.1.1.11": "SHA256-RSA", "1.2.840.113549.1.1.12": "SHA384-RSA",
	"1.2.840.113549.1.1.13": "SHA512-RSA", "1.2.840.113549.1.1.10": "RSASSA-PSS", "1.3.14.3.2.29": "SHA1-RSA",
	"1.2.840.10045.4.1": "ECDSA-SHA1", "1.2.840.10045.4.3.2": "ECDSA-SHA256", "1.2.840.10045.4.3.3": "ECDSA-SHA384",
	"1.2.840.10045.4.3.4": "ECDSA-SHA512", "1.2.840.10040.4.3": "DSA-SHA1", "2.16.840.1.101.3.4.3.2": "DSA-SHA256", "1.3.101.112": "Ed25519",
	"1.3.6.1.5.5.7.3.1": "server authentication", "1.3.6.1.5.5.7.3.2": "client authentication", "1.3.6.1.5.5.7.3.3": "code signing",
	"1.3.6.1.5.5.7.3.4": "secure e-mail", "1.3.6.1.5.5.7.3.8": "time stamping", "1.3.6.1.5.5.7.3.9": "OCSP signing",
	"1.3.6.1.4.1.311.20.2.1": "certificate request agent", "1.3.6.1.4.1.311.20.2.2": "smart card logon",
	"1.3.6.1.4.1.311.10.3.4": "encrypting file system", "1.3.6.1.4.1.311.10.3.4.1": "file recovery",
	"1.2.840.113549.3.2": "RC2", "1.2.840.113549.3.4": "RC4", "1.3.14.3.2.7": "DES", "1.3.6.1.5.5.7.48.1": "OCSP", "1.3.6.1.5.5.7.48.2": "issuer",
	"1.3.6.1.5.2.3.5": "KDC authentication", "2.5.29.37.0": "any purpose",
}

// digestOfSignature is the hash that a signature algorithm names.
func digestOfSignature(oid string) string {
	name := named(oid)
	for _, h := range []string{"1", "256", "384", "512"} {
		if strings.Contains(name, "SHA"+h+"-") || strings.HasSuffix(name, "SHA"+h) {
			return "SHA-" + h
		}
	}
	return name // a bare hash names itself
}

func digestName(a x509.SignatureAlgorithm) string {
	return digestOfSignature(strings.ReplaceAll(a.String(), "ECDSA-", ""))
}

func describePublicKey(key crypto.PublicKey) *PublicKey {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return &PublicKey{"RSA", k.N.BitLen()}
	case *ecdsa.PublicKey:
		return &PublicKey{k.Curve.Params().Name, k.Curve.Params().BitSize}
	case *dsa.PublicKey:
		return &PublicKey{"DSA", k.P.BitLen()}
	case ed25519.PublicKey:
		return &PublicKey{"Ed25519", 256}
	}
	return &PublicKey{Algorithm: fmt.Sprintf("%T", key)}
}
