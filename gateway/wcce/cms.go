package wcce

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Limits on what one message may hold. They are far above anything that a client sends.
const (
	MaxMessage      = 1 << 20
	maxCertificates = 32
	maxSigners      = 8
	maxAttributes   = 64
	maxRecipients   = 64
)

var (
	tag0  = cbasn1.Tag(0).ContextSpecific().Constructed()
	tag1  = cbasn1.Tag(1).ContextSpecific().Constructed()
	tag0p = cbasn1.Tag(0).ContextSpecific()
)

// Attribute is an attribute with the DER of each of its values, exactly as received.
type Attribute struct {
	OID    string
	Values [][]byte
}

// SignedData is a CMS SignedData (RFC 5652 5.1) whose signatures have not been looked at.
type SignedData struct {
	Version      int
	ContentType  string
	Content      []byte // nil where there is none
	Certificates []*x509.Certificate
	CRLs         [][]byte
	Signers      []SignerInfo
}

// SignerInfo is one signer (RFC 5652 5.3). Either Issuer and Serial or KeyID name the key.
type SignerInfo struct {
	Version       int
	Issuer        []byte // DER of the Name
	Serial        *big.Int
	KeyID         []byte
	Digest        string // OID
	SignedAttrs   []Attribute
	signedRaw     []byte // the attributes as the SET that is signed; nil where there are none
	Algorithm     string // OID
	algorithmRaw  []byte
	Signature     []byte
	UnsignedAttrs []Attribute
}

// ParseContentInfo opens the outermost structure (RFC 5652 3) and returns the content's type and DER.
func ParseContentInfo(der []byte) (contentType string, content []byte, err error) {
	s := cryptobyte.String(der)
	var seq, inner cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return "", nil, errors.New("ContentInfo: not exactly one DER sequence")
	}
	if !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadASN1(&inner, tag0) || !seq.Empty() {
		return "", nil, errors.New("ContentInfo: malformed")
	}
	return oid.String(), inner, nil
}

// ParseSignedData reads a ContentInfo with SignedData.
func ParseSignedData(der []byte) (*SignedData, error) {
	if len(der) > MaxMessage {
		return nil, fmt.Errorf("SignedData: %d octets, at most %d allowed", len(der), MaxMessage)
	}
	kind, content, err := ParseContentInfo(der)
	if err != nil {
		return nil, err
	}
	if kind != OIDSignedData {
		return nil, fmt.Errorf("ContentInfo: content type %s, want signedData", kind)
	}
	s := cryptobyte.String(content)
	var seq, digests, encap, certs, crls, signers cryptobyte.String
	var hasCerts, hasCRLs bool
	sd := &SignedData{}
	var eContentType asn1.ObjectIdentifier
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1Integer(&sd.Version) ||
		!seq.ReadASN1(&digests, cbasn1.SET) || !seq.ReadASN1(&encap, cbasn1.SEQUENCE) || !encap.ReadASN1ObjectIdentifier(&eContentType) {
		return nil, errors.New("SignedData: malformed head")
	}
	sd.ContentType = eContentType.String()
	if sd.Content, err = readEContent(encap); err != nil {
		return nil, err
	}
	if !seq.ReadOptionalASN1(&certs, &hasCerts, tag0) || !seq.ReadOptionalASN1(&crls, &hasCRLs, tag1) ||
		!seq.ReadASN1(&signers, cbasn1.SET) || !seq.Empty() {
		return nil, errors.New("SignedData: malformed certificates, CRLs or signers")
	}
	if sd.Certificates, err = readCertificates(certs); err != nil {
		return nil, err
	}
	for !crls.Empty() {
		var crl cryptobyte.String
		if !crls.ReadASN1Element(&crl, cbasn1.SEQUENCE) || len(sd.CRLs) == maxCertificates {
			return nil, errors.New("SignedData: malformed CRLs")
		}
		sd.CRLs = append(sd.CRLs, crl)
	}
	for !signers.Empty() {
		if len(sd.Signers) == maxSigners {
			return nil, fmt.Errorf("SignedData: more than %d signers", maxSigners)
		}
		si, err := readSignerInfo(&signers)
		if err != nil {
			return nil, fmt.Errorf("SignerInfo %d: %w", len(sd.Signers)+1, err)
		}
		sd.Signers = append(sd.Signers, *si)
	}
	return sd, nil
}

func readEContent(encap cryptobyte.String) ([]byte, error) {
	if encap.Empty() {
		return nil, nil
	}
	var explicit, octets cryptobyte.String
	if !encap.ReadASN1(&explicit, tag0) || !encap.Empty() {
		return nil, errors.New("SignedData: malformed content")
	}
	if explicit.Empty() { // seen in degenerate replies: an empty [0]
		return nil, nil
	}
	if !explicit.ReadASN1(&octets, cbasn1.OCTET_STRING) || !explicit.Empty() {
		return nil, errors.New("SignedData: content is not one octet string")
	}
	return append([]byte{}, octets...), nil
}

func readCertificates(s cryptobyte.String) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for !s.Empty() {
		var raw cryptobyte.String
		if !s.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
			return nil, errors.New("SignedData: an enclosed certificate is not X.509")
		}
		if len(out) == maxCertificates {
			return nil, fmt.Errorf("SignedData: more than %d certificates", maxCertificates)
		}
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("SignedData: certificate %d: %w", len(out)+1, err)
		}
		out = append(out, cert)
	}
	return out, nil
}

func readSignerInfo(s *cryptobyte.String) (*SignerInfo, error) {
	si := &SignerInfo{}
	var seq, digest, signed, algorithm, signature, unsigned cryptobyte.String
	var hasSigned, hasUnsigned bool
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&si.Version) {
		return nil, errors.New("malformed head")
	}
	if seq.PeekASN1Tag(tag0p) {
		var id cryptobyte.String
		if !seq.ReadASN1(&id, tag0p) || len(id) == 0 || len(id) > 64 {
			return nil, errors.New("malformed subject key identifier")
		}
		si.KeyID = id
	} else {
		var err error
		if si.Issuer, si.Serial, err = readIssuerAndSerial(&seq); err != nil {
			return nil, err
		}
	}
	if !seq.ReadASN1(&digest, cbasn1.SEQUENCE) || !seq.ReadOptionalASN1(&signed, &hasSigned, tag0) {
		return nil, errors.New("malformed digest algorithm or signed attributes")
	}
	if !seq.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !seq.ReadASN1(&signature, cbasn1.OCTET_STRING) ||
		!seq.ReadOptionalASN1(&unsigned, &hasUnsigned, tag1) || !seq.Empty() {
		return nil, errors.New("malformed signature or unsigned attributes")
	}
	var err error
	if si.Digest, err = readAlgorithm(digest); err != nil {
		return nil, err
	}
	si.algorithmRaw, si.Signature = algorithm, signature
	var body cryptobyte.String
	algorithm.ReadASN1(&body, cbasn1.SEQUENCE)
	if si.Algorithm, err = readAlgorithm(body); err != nil {
		return nil, err
	}
	if hasSigned {
		if si.SignedAttrs, err = readAttributes(signed); err != nil {
			return nil, fmt.Errorf("signed attributes: %w", err)
		}
		si.signedRaw = asSet(signed)
	}
	if si.UnsignedAttrs, err = readAttributes(unsigned); err != nil {
		return nil, fmt.Errorf("unsigned attributes: %w", err)
	}
	return si, nil
}

// asSet gives attributes the SET tag under which they are signed (RFC 5652 5.4).
func asSet(attributes []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(attributes) })
	return b.BytesOrPanic()
}

func readIssuerAndSerial(s *cryptobyte.String) (issuer []byte, serial *big.Int, err error) {
	var seq, name cryptobyte.String
	serial = new(big.Int)
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Element(&name, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(serial) || !seq.Empty() {
		return nil, nil, errors.New("malformed issuer and serial number")
	}
	return name, serial, nil
}

// readAlgorithm returns the OID of an AlgorithmIdentifier's body; parameters are left to who needs them.
func readAlgorithm(body cryptobyte.String) (string, error) {
	var oid asn1.ObjectIdentifier
	if !body.ReadASN1ObjectIdentifier(&oid) {
		return "", errors.New("malformed algorithm identifier")
	}
	return oid.String(), nil
}

// readAttributes reads the body of a SET OF Attribute.
func readAttributes(s cryptobyte.String) ([]Attribute, error) {
	var out []Attribute
	for !s.Empty() {
		if len(out) == maxAttributes {
			return nil, fmt.Errorf("more than %d attributes", maxAttributes)
		}
		var seq, set cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadASN1(&set, cbasn1.SET) || !seq.Empty() {
			return nil, fmt.Errorf("attribute %d is malformed", len(out)+1)
		}
		a := Attribute{OID: oid.String()}
		for !set.Empty() {
			var value cryptobyte.String
			var tag cbasn1.Tag
			if !set.ReadAnyASN1Element(&value, &tag) || len(a.Values) == maxAttributes {
				return nil, fmt.Errorf("attribute %s: malformed values", a.OID)
			}
			a.Values = append(a.Values, value)
		}
		out = append(out, a)
	}
	return out, nil
}

// single returns the one value of an attribute that must occur at most once with exactly one value.
func single(attrs []Attribute, oid string) (value []byte, err error) {
	found := false
	for _, a := range attrs {
		if a.OID != oid {
			continue
		}
		if found || len(a.Values) != 1 {
			return nil, fmt.Errorf("attribute %s (%s): want one value", oid, OIDName(oid))
		}
		value, found = a.Values[0], true
	}
	return value, nil
}

// Verify checks the signer's signature with the given key, over the octets as received (RFC 5652 5.4, 5.6).
func (sd *SignedData) Verify(si *SignerInfo, key crypto.PublicKey) error {
	message := sd.Content
	if message == nil {
		return errors.New("there is no content to verify")
	}
	if si.signedRaw != nil {
		if err := sd.checkSignedAttrs(si); err != nil {
			return err
		}
		message = si.signedRaw
	} else if sd.ContentType != OIDData {
		return errors.New("signed attributes are missing")
	}
	return verifySignature(key, si.algorithmRaw, si.Digest, message, si.Signature)
}

func (sd *SignedData) checkSignedAttrs(si *SignerInfo) error {
	kind, err := single(si.SignedAttrs, OIDContentType)
	if err != nil {
		return err
	}
	s := cryptobyte.String(kind)
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&oid) || !s.Empty() || oid.String() != sd.ContentType {
		return errors.New("signed attribute contentType does not match the content")
	}
	value, err := single(si.SignedAttrs, OIDMessageDigest)
	if err != nil {
		return err
	}
	s = value
	var digest cryptobyte.String
	if !s.ReadASN1(&digest, cbasn1.OCTET_STRING) || !s.Empty() {
		return errors.New("signed attribute messageDigest is malformed")
	}
	hash, err := hashByOID(si.Digest)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(digest, sum(hash, sd.Content)) != 1 {
		return errors.New("signed attribute messageDigest does not match the content")
	}
	return nil
}

// certificateOf finds the signer's certificate among the enclosed ones.
func (sd *SignedData) certificateOf(si *SignerInfo) *x509.Certificate {
	for _, cert := range sd.Certificates {
		if si.KeyID != nil && bytes.Equal(si.KeyID, cert.SubjectKeyId) ||
			si.Issuer != nil && bytes.Equal(si.Issuer, cert.RawIssuer) && si.Serial.Cmp(cert.SerialNumber) == 0 {
			return cert
		}
	}
	return nil
}

// VerifyAll checks every signature with the enclosed certificates. It says nothing about whether they are trusted.
func (sd *SignedData) VerifyAll() error {
	if len(sd.Signers) == 0 {
		return errors.New("there is no signer")
	}
	for i := range sd.Signers {
		cert := sd.certificateOf(&sd.Signers[i])
		if cert == nil {
			return fmt.Errorf("signer %d: its certificate is not enclosed", i+1)
		}
		if err := sd.Verify(&sd.Signers[i], cert.PublicKey); err != nil {
			return fmt.Errorf("signer %d: %w", i+1, err)
		}
	}
	return nil
}
