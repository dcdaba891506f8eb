package inspect

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// body is the content of a CMC message, with the controls in order (RFC 5272 3.2.1, 3.2.2).
type body struct {
	controls []control
	request  []byte // the one PKCS#10 request; nil in a response
}

// control is one control with the attributes that an add-attributes control holds.
type control struct {
	oid        string
	values     [][]byte
	attributes []wcce.Attribute
}

// attributes gathers what all add-attributes controls hold.
func (b *body) attributes() []wcce.Attribute {
	var out []wcce.Attribute
	for _, c := range b.controls {
		out = append(out, c.attributes...)
	}
	return out
}

// tag0 is both [0] EXPLICIT and the choice of a tagged PKCS#10 request.
const tag0 = cbasn1.Tag(0x80 | 0x20)

// readBody reads PKIData (request true) or PKIResponse. It checks the frame only: whether body part numbers refer to each
// other is for wcce.ParseRequest to judge.
func readBody(der []byte, request bool) (*body, error) {
	s := cryptobyte.String(der)
	var seq, controls, requests, tagged, csr cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1(&controls, cbasn1.SEQUENCE) {
		return nil, errors.New("the content is malformed")
	}
	b := &body{}
	if request {
		var id int64
		if !seq.ReadASN1(&requests, cbasn1.SEQUENCE) || !requests.ReadASN1(&tagged, tag0) || !tagged.ReadASN1Integer(&id) ||
			!tagged.ReadASN1Element(&csr, cbasn1.SEQUENCE) || !tagged.Empty() || !requests.Empty() {
			return nil, errors.New("the content must hold exactly one PKCS#10 request")
		}
		b.request = csr
	}
	for !controls.Empty() {
		var one, set cryptobyte.String
		var id int64
		var oid asn1.ObjectIdentifier
		if !controls.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1Integer(&id) || !one.ReadASN1ObjectIdentifier(&oid) ||
			!one.ReadASN1(&set, cbasn1.SET) || !one.Empty() {
			return nil, fmt.Errorf("control %d is malformed", len(b.controls)+1)
		}
		c := control{oid: oid.String()}
		var err error
		if c.values, err = readSet(set); err != nil {
			return nil, fmt.Errorf("control %d: %w", len(b.controls)+1, err)
		}
		if c.oid == wcce.OIDCMCAddAttrs {
			for _, v := range c.values {
				c.attributes = append(c.attributes, readAddAttributes(v)...)
			}
		}
		b.controls = append(b.controls, c)
	}
	return b, nil
}

func readSet(set cryptobyte.String) ([][]byte, error) {
	var out [][]byte
	for !set.Empty() {
		var v cryptobyte.String
		var tag cbasn1.Tag
		if !set.ReadAnyASN1Element(&v, &tag) {
			return nil, errors.New("a value is malformed")
		}
		out = append(out, v)
	}
	return out, nil
}

// readAddAttributes reads { pkiDataReference, certReferences, attributes } as far as it decodes.
func readAddAttributes(der []byte) []wcce.Attribute {
	s := cryptobyte.String(der)
	var seq, refs, set cryptobyte.String
	var data int64
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&data) || !seq.ReadASN1(&refs, cbasn1.SEQUENCE) || !seq.ReadASN1(&set, cbasn1.SET) {
		return nil
	}
	var out []wcce.Attribute
	for !set.Empty() {
		var one, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !set.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&oid) || !one.ReadASN1(&values, cbasn1.SET) {
			return out
		}
		list, err := readSet(values)
		if err != nil {
			return out
		}
		out = append(out, wcce.Attribute{OID: oid.String(), Values: list})
	}
	return out
}

// addControls lists the attributes that controls hold, and other controls as they are.
func (r *Report) addControls(controls []control) {
	for _, c := range controls {
		switch {
		case len(c.attributes) > 0:
			r.addAttributes(c.attributes, inControl)
		case c.oid != wcce.OIDCMCStatusInfo: // Report.Response has it
			r.addAttributes([]wcce.Attribute{{OID: c.oid, Values: c.values}}, inControl)
		}
	}
}

// describeResponse reads a CMC full response ([MS-WCCE] 3.2.1.4.2.1.4.8.2).
func (r *Report) describeResponse(der []byte, sd *wcce.SignedData) error {
	b, err := readBody(sd.Content, false)
	if err != nil {
		return fmt.Errorf("CMC response: %w", err)
	}
	r.addSigners(sd, nil)
	r.addControls(b.controls)
	r.Response = &Response{Status: -1}
	for _, c := range b.controls {
		if c.oid == wcce.OIDCMCStatusInfo && len(c.values) == 1 {
			if err := r.Response.readStatus(c.values[0]); err != nil {
				return fmt.Errorf("CMC response: %w", err)
			}
		}
	}
	attrs := b.attributes()
	r.Response.ArchivedHash = hex.EncodeToString(octetsOf(firstValue(attrs, wcce.OIDArchivedHash)))
	hash := octetsOf(firstValue(attrs, wcce.OIDIssuedCertHash))
	r.Response.CertificateHash = hex.EncodeToString(hash)
	cert := certificateWithHash(sd.Certificates, hash)
	if hash != nil {
		valid := cert != nil
		r.Response.HashValid = &valid
	}
	if cert != nil {
		r.setCertificate(cert, sd.Certificates)
	} else {
		r.Chain = outlines(sd.Certificates)
	}
	if _, err := wcce.ParseResponse(der); err != nil {
		r.Problem = err.Error()
	}
	return nil
}

// readStatus reads CMCStatusInfo (RFC 5272 6.1).
func (r *Response) readStatus(der []byte) error {
	s := cryptobyte.String(der)
	var seq, bodies, text, pend, token cryptobyte.String
	var hasText bool
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&r.Status) || !seq.ReadASN1(&bodies, cbasn1.SEQUENCE) ||
		!seq.ReadOptionalASN1(&text, &hasText, cbasn1.UTF8String) {
		return errors.New("the status is malformed")
	}
	r.Text = dn.Clean(string(text))
	switch wcce.Status(r.Status) {
	case wcce.StatusIssued:
		r.State = "issued"
	case wcce.StatusDenied:
		r.State = "denied"
	case wcce.StatusPending:
		r.State = "pending"
	default:
		r.State = "unknown"
	}
	if seq.ReadASN1(&pend, cbasn1.SEQUENCE) && pend.ReadASN1(&token, cbasn1.OCTET_STRING) {
		r.RequestID = dn.Clean(string(token))
	}
	return nil
}

// describeCertsOnly reads a degenerate SignedData: the first certificate that is no CA's is the issued one.
func (r *Report) describeCertsOnly(sd *wcce.SignedData) error {
	if len(sd.Certificates) == 0 {
		return errors.New("SignedData without content and without certificates")
	}
	r.Kind = KindCertsOnly
	r.addSigners(sd, nil)
	subject := sd.Certificates[0]
	for _, c := range sd.Certificates {
		if !c.IsCA {
			subject = c
			break
		}
	}
	r.setCertificate(subject, sd.Certificates)
	return nil
}

func (r *Report) describeCertificate(der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	r.Kind = KindCertificate
	r.setCertificate(cert, nil)
	if bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		s := Signer{Role: roleCA, Issuer: r.Certificate.Issuer, Serial: r.Certificate.Serial, Digest: digestName(cert.SignatureAlgorithm)}
		err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
		if s.Verified = err == nil; err != nil {
			s.Error = err.Error()
		}
		r.Signers = append(r.Signers, s)
	}
	return nil
}

// outline names a certificate.
func outline(cert *x509.Certificate) *Certificate {
	h := sha1.Sum(cert.Raw)
	return &Certificate{Subject: dn.Show(cert.RawSubject), Issuer: dn.Show(cert.RawIssuer), Serial: serialText(cert.SerialNumber),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, SHA1: hex.EncodeToString(h[:])}
}

func outlines(certs []*x509.Certificate) []Certificate {
	var out []Certificate
	for _, c := range certs {
		out = append(out, *outline(c))
	}
	return out
}
