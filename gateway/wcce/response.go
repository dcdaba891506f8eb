package wcce

import (
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fullsailor/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Status is the CMCStatus of a full response (RFC 5272 6.1.3, as AD CS uses it: [MS-WCCE] 3.2.1.4.2.1.4.8.2).
type Status int

// The states that a response tells.
const (
	StatusIssued  Status = 0
	StatusDenied  Status = 2
	StatusPending Status = 3
)

// Response is a CMC full PKIResponse.
type Response struct {
	Status      Status
	Text        string              // "Issued", "Taken Under Submission", or the reason of the refusal
	Certificate *x509.Certificate   // the issued certificate; nil unless issued
	Chain       []*x509.Certificate // the CA's chain, root first
	KeyHash     []byte              // hash of the archived key as the request had it; nil where none was archived
	RequestID   string              // of a pending request
	Received    time.Time           // of a pending request
	Signer      *x509.Certificate   // who signed the response
}

// CertsOnly returns a degenerate SignedData with the certificate and its chain ([MS-WCCE] 3.2.1.4.2.1.4.8.1).
func CertsOnly(cert *x509.Certificate, chain []*x509.Certificate) ([]byte, error) {
	raw := cert.Raw[:len(cert.Raw):len(cert.Raw)]
	for _, c := range chain {
		raw = append(raw, c.Raw...)
	}
	return pkcs7.DegenerateCertificate(raw)
}

// FullResponse signs a CMC full response with the CA's key, or with that of the enrollment identity in its place.
func FullResponse(r Response, key crypto.Signer, hash crypto.Hash) ([]byte, error) {
	var attrs [][]byte
	if r.Certificate != nil {
		attrs = append(attrs, attribute(OIDIssuedCertHash, octetString(SHA1Of(r.Certificate.Raw))))
	}
	if r.KeyHash != nil {
		attrs = append(attrs, attribute(OIDArchivedHash, octetString(r.KeyHash)))
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addStatusControl(b, &r)
			if len(attrs) > 0 {
				addAttributesControl(b, 2, attrs)
			}
		})
		b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {})
		b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {})
	})
	body, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	certs := append([]*x509.Certificate{}, r.Chain...)
	if r.Certificate != nil {
		certs = append(certs, r.Certificate)
	}
	if r.Signer != nil && !containsCert(certs, r.Signer) {
		certs = append(certs, r.Signer)
	}
	return signedData(OIDPKIResponse, body, certs, outgoingSigner{key: key, cert: r.Signer, hash: hash})
}

// AddCRLs puts revocation lists into a SignedData that is complete otherwise. Nobody signs them there (RFC 5652 5.1), so that signatures stay good.
func AddCRLs(der []byte, crls [][]byte) ([]byte, error) {
	if len(crls) == 0 {
		return der, nil
	}
	in := cryptobyte.String(der)
	var info, kind, outer, signed, before, certs, present, rest cryptobyte.String
	var hasCerts, hasCRLs bool
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() || !info.ReadASN1Element(&kind, cbasn1.OBJECT_IDENTIFIER) || !info.ReadASN1(&outer, tag0) || !info.Empty() ||
		!outer.ReadASN1(&signed, cbasn1.SEQUENCE) || !outer.Empty() {
		return nil, errors.New("CRLs cannot be added: no SignedData")
	}
	for _, tag := range []cbasn1.Tag{cbasn1.INTEGER, cbasn1.SET, cbasn1.SEQUENCE} { // version, digestAlgorithms, encapContentInfo
		var e cryptobyte.String
		if !signed.ReadASN1Element(&e, tag) {
			return nil, errors.New("CRLs cannot be added: malformed SignedData")
		}
		before = append(before, e...)
	}
	if !signed.ReadOptionalASN1(&certs, &hasCerts, tag0) || !signed.ReadOptionalASN1(&present, &hasCRLs, tag1) || !signed.ReadASN1Element(&rest, cbasn1.SET) || !signed.Empty() {
		return nil, errors.New("CRLs cannot be added: malformed SignedData")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(kind)
		b.AddASN1(tag0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddBytes(before)
				if hasCerts {
					b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddBytes(certs) })
				}
				b.AddASN1(tag1, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(present, slices.Concat(crls...))) })
				b.AddBytes(rest)
			})
		})
	})
	return b.Bytes()
}

func containsCert(list []*x509.Certificate, cert *x509.Certificate) bool {
	for _, c := range list {
		if c.Equal(cert) {
			return true
		}
	}
	return false
}

// addStatusControl writes CMCStatusInfo { status, bodyList {1}, text, PendInfo } (RFC 5272 6.1).
func addStatusControl(b *cryptobyte.Builder, r *Response) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1ObjectIdentifier(parsedOID(OIDCMCStatusInfo))
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(int64(r.Status))
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Int64(1) })
				b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(r.Text)) })
				if r.Status == StatusPending {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString([]byte(r.RequestID))
						b.AddASN1GeneralizedTime(r.Received.UTC().Truncate(time.Second))
					})
				}
			})
		})
	})
}

// ParseResponse reads a certs-only reply or a CMC full response, verifies the signature of the latter and the hash of
// the issued certificate. A certs-only reply's first certificate that is no CA is the issued one.
func ParseResponse(der []byte) (*Response, error) {
	sd, err := ParseSignedData(der)
	if err != nil {
		return nil, err
	}
	if sd.ContentType == OIDData && len(sd.Signers) == 0 {
		return certsOnlyResponse(sd)
	}
	if sd.ContentType != OIDPKIResponse {
		return nil, fmt.Errorf("response: content type %s is neither certs-only nor a CMC response", sd.ContentType)
	}
	if len(sd.Signers) != 1 {
		return nil, fmt.Errorf("response: %d signers, want 1", len(sd.Signers))
	}
	r := &Response{Signer: sd.certificateOf(&sd.Signers[0])}
	if r.Signer == nil {
		return nil, errors.New("response: the signer's certificate is not enclosed")
	}
	if err := sd.Verify(&sd.Signers[0], r.Signer.PublicKey); err != nil {
		return nil, fmt.Errorf("response: %w", err)
	}
	certHash, err := r.readBody(sd.Content)
	if err != nil {
		return nil, fmt.Errorf("response: %w", err)
	}
	for _, c := range sd.Certificates {
		if certHash != nil && subtle.ConstantTimeCompare(SHA1Of(c.Raw), certHash) == 1 {
			r.Certificate = c
		} else {
			r.Chain = append(r.Chain, c)
		}
	}
	if certHash != nil && r.Certificate == nil {
		return nil, errors.New("response: the certificate with the announced hash is not enclosed")
	}
	return r, nil
}

func certsOnlyResponse(sd *SignedData) (*Response, error) {
	r := &Response{Status: StatusIssued}
	for _, c := range sd.Certificates {
		if r.Certificate == nil && !c.IsCA {
			r.Certificate = c
		} else {
			r.Chain = append(r.Chain, c)
		}
	}
	if r.Certificate == nil {
		return nil, errors.New("response: no certificate is enclosed")
	}
	return r, nil
}

// readBody reads PKIResponse and returns the hash of the issued certificate.
func (r *Response) readBody(der []byte) (certHash []byte, err error) {
	s := cryptobyte.String(der)
	var seq, controls, cms, other cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1(&controls, cbasn1.SEQUENCE) ||
		!seq.ReadASN1(&cms, cbasn1.SEQUENCE) || !seq.ReadASN1(&other, cbasn1.SEQUENCE) || !seq.Empty() {
		return nil, errors.New("malformed body")
	}
	hasStatus := false
	for !controls.Empty() {
		var control, values cryptobyte.String
		var id int64
		var oid asn1.ObjectIdentifier
		if !controls.ReadASN1(&control, cbasn1.SEQUENCE) || !control.ReadASN1Integer(&id) ||
			!control.ReadASN1ObjectIdentifier(&oid) || !control.ReadASN1(&values, cbasn1.SET) {
			return nil, errors.New("malformed control")
		}
		switch oid.String() {
		case OIDCMCStatusInfo:
			hasStatus, err = true, r.readStatus(values)
		case OIDCMCAddAttrs:
			certHash, err = r.readHashes(values)
		}
		if err != nil {
			return nil, err
		}
	}
	if !hasStatus { // the zero value would mean issued
		return nil, errors.New("the status is missing")
	}
	return certHash, nil
}

func (r *Response) readStatus(s cryptobyte.String) error {
	var seq, bodies, text cryptobyte.String
	var status int64
	var hasText bool
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&status) || !seq.ReadASN1(&bodies, cbasn1.SEQUENCE) ||
		!seq.ReadOptionalASN1(&text, &hasText, cbasn1.UTF8String) {
		return errors.New("malformed status")
	}
	r.Status, r.Text = Status(status), string(text)
	if seq.PeekASN1Tag(cbasn1.SEQUENCE) {
		var pend, token cryptobyte.String
		if !seq.ReadASN1(&pend, cbasn1.SEQUENCE) || !pend.ReadASN1(&token, cbasn1.OCTET_STRING) || !pend.ReadASN1GeneralizedTime(&r.Received) {
			return errors.New("malformed pending information")
		}
		r.RequestID = string(token)
	}
	return nil
}

func (r *Response) readHashes(s cryptobyte.String) (certHash []byte, err error) {
	var seq, refs, set cryptobyte.String
	var data int64
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&data) || !seq.ReadASN1(&refs, cbasn1.SEQUENCE) ||
		!seq.ReadASN1(&set, cbasn1.SET) {
		return nil, errors.New("malformed attributes")
	}
	attrs, err := readAttributes(set)
	if err != nil {
		return nil, err
	}
	octets := func(oid string) ([]byte, error) {
		value, err := single(attrs, oid)
		if err != nil || value == nil {
			return nil, err
		}
		v := cryptobyte.String(value)
		var out cryptobyte.String
		if !v.ReadASN1(&out, cbasn1.OCTET_STRING) {
			return nil, fmt.Errorf("attribute %s is malformed", OIDName(oid))
		}
		return out, nil
	}
	if r.KeyHash, err = octets(OIDArchivedHash); err != nil {
		return nil, err
	}
	return octets(OIDIssuedCertHash)
}
