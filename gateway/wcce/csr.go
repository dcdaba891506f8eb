package wcce

import (
	"crypto"
	"crypto/sha1"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CSR is a PKCS#10 request (RFC 2986) with everything that Windows puts into it. crypto/x509 drops all attributes but
// the extension request.
type CSR struct {
	Raw           []byte
	RawInfo       []byte // CertificationRequestInfo: what is signed
	RawSubject    []byte
	RawSPKI       []byte // SubjectPublicKeyInfo
	PublicKey     crypto.PublicKey
	KeyID         []byte // SHA-1 of the key bits (RFC 5280 4.2.1.2 method 1)
	Attributes    []Attribute
	Extensions    []Extension // all extension requests, in order
	Algorithm     string      // OID of the signature algorithm
	NullSignature bool        // a bare hash stands in place of the signature ([MS-WCCE] 2.2.2.6.5)

	algorithmRaw []byte
	signature    []byte
}

// Extension is a requested certificate extension.
type Extension struct {
	OID      string
	Critical bool
	Value    []byte // DER
}

// ParseCSR reads a PKCS#10 request. It does not verify the signature: see Verify.
func ParseCSR(der []byte) (*CSR, error) {
	if len(der) > MaxMessage {
		return nil, fmt.Errorf("PKCS#10: %d octets, at most %d allowed", len(der), MaxMessage)
	}
	s := cryptobyte.String(der)
	var outer, infoRaw, info, subject, spki, attrs, algorithm cryptobyte.String
	var signature asn1.BitString
	var hasAttrs bool
	var version int
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("PKCS#10: not exactly one DER sequence")
	}
	if !outer.ReadASN1Element(&infoRaw, cbasn1.SEQUENCE) || !outer.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) ||
		!outer.ReadASN1BitString(&signature) || !outer.Empty() || signature.BitLength%8 != 0 {
		return nil, errors.New("PKCS#10: malformed")
	}
	c := &CSR{Raw: der, RawInfo: infoRaw, algorithmRaw: algorithm, signature: signature.Bytes}
	if !infoRaw.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1Integer(&version) || version != 0 ||
		!info.ReadASN1Element(&subject, cbasn1.SEQUENCE) || !info.ReadASN1Element(&spki, cbasn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attrs, &hasAttrs, tag0) || !info.Empty() {
		return nil, errors.New("PKCS#10: malformed CertificationRequestInfo")
	}
	c.RawSubject, c.RawSPKI = subject, spki
	var body cryptobyte.String
	algorithm.ReadASN1(&body, cbasn1.SEQUENCE)
	var err error
	if c.Algorithm, err = readAlgorithm(body); err != nil {
		return nil, fmt.Errorf("PKCS#10: %w", err)
	}
	if c.PublicKey, err = x509.ParsePKIXPublicKey(spki); err != nil {
		return nil, fmt.Errorf("PKCS#10: public key: %w", err)
	}
	if c.KeyID, err = keyID(spki); err != nil {
		return nil, err
	}
	if c.Attributes, err = readAttributes(attrs); err != nil {
		return nil, fmt.Errorf("PKCS#10: %w", err)
	}
	for _, a := range c.Attributes {
		if a.OID != OIDExtensions && a.OID != OIDMSExtensions {
			continue
		}
		for _, v := range a.Values {
			extensions, err := readExtensions(v)
			if err != nil {
				return nil, fmt.Errorf("PKCS#10: extension request: %w", err)
			}
			c.Extensions = append(c.Extensions, extensions...)
		}
	}
	return c, nil
}

// keyID is the SHA-1 of the key bits in a SubjectPublicKeyInfo.
func keyID(spki []byte) ([]byte, error) {
	s := cryptobyte.String(spki)
	var seq, algorithm cryptobyte.String
	var bits asn1.BitString
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !seq.ReadASN1BitString(&bits) {
		return nil, errors.New("SubjectPublicKeyInfo: malformed")
	}
	h := sha1.Sum(bits.Bytes)
	return h[:], nil
}

func readExtensions(der []byte) ([]Extension, error) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("not a list of extensions")
	}
	var out []Extension
	for !list.Empty() {
		var seq, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		e := Extension{}
		if len(out) == maxAttributes || !list.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) ||
			seq.PeekASN1Tag(cbasn1.BOOLEAN) && !seq.ReadASN1Boolean(&e.Critical) || !seq.ReadASN1(&value, cbasn1.OCTET_STRING) || !seq.Empty() {
			return nil, fmt.Errorf("extension %d is malformed", len(out)+1)
		}
		e.OID, e.Value = oid.String(), value
		out = append(out, e)
	}
	return out, nil
}

// Extension returns the value of the first requested extension of that type, or nil.
func (c *CSR) Extension(oid string) []byte {
	for _, e := range c.Extensions {
		if e.OID == oid {
			return e.Value
		}
	}
	return nil
}

// Verify checks the proof of possession. A null signature proves nothing by itself and is accepted only where
// allowNull is set, that is, inside a CMS message that the same key signs.
func (c *CSR) Verify(allowNull bool) error {
	if hash, err := hashByOID(c.Algorithm); err == nil {
		c.NullSignature = true
		if !allowNull {
			return errors.New("PKCS#10: a hash in place of the signature is allowed only inside CMC or PKCS#7")
		}
		if subtle.ConstantTimeCompare(sum(hash, c.RawInfo), c.signature) != 1 {
			return errors.New("PKCS#10: the hash in place of the signature does not match")
		}
		return nil
	}
	if err := verifySignature(c.PublicKey, c.algorithmRaw, "", c.RawInfo, c.signature); err != nil {
		return fmt.Errorf("PKCS#10: %w", err)
	}
	return nil
}
