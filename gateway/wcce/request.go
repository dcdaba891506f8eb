// Package wcce reads and writes the messages of Windows certificate enrollment: PKCS#10, CMC and PKCS#7 requests,
// certs-only and CMC full responses, archived keys and the key blobs in them ([MS-WCCE] 2.2.2, RFC 5272, RFC 5652).
//
// A server calls ParseRequest, which verifies every signature over the octets as received, and later
// CertsOnly or FullResponse. A client calls NewRequest and ParseResponse. The package does no input or output.
package wcce

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Format is the container of a request ([MS-WCCE] 2.2.2.6).
type Format string

// The containers.
const (
	PKCS10 Format = "PKCS#10"
	PKCS7  Format = "PKCS#7" // CMS over PKCS#10
	CMC    Format = "CMC"    // CMS over PKIData
)

// Request is a certificate request whose signatures have all been verified.
type Request struct {
	Format     Format
	Raw        []byte
	CSR        *CSR
	Controls   []Control   // CMC controls, in order
	Attributes []Attribute // from the CMC add-attributes control
	Values     []NameValue // name/value pairs, wherever they stood
	Template   Template    // the template that the request names
	Signers    []Signer    // in order; the first is the subject key in CMC
	Renewal    *x509.Certificate
	// RequestorName is the account that an enrollment agent enrolls, DOMAIN\account; empty in other requests.
	RequestorName string
	Chain         []*x509.Certificate // certificates that the message encloses

	// Archived is the enclosed private key, still encrypted; nil where there is none.
	Archived *ArchivedKey
	// ArchivedErr tells why the archival parts are not acceptable; it matters only if the template archives keys.
	ArchivedErr error
	// ArchivedHash tells that the request has a key hash, even where no key is enclosed.
	ArchivedHash bool
}

// Control is a CMC control (RFC 5272 3.2.1.1).
type Control struct {
	BodyPartID int64
	OID        string
	Values     [][]byte
}

// NameValue is a request attribute.
type NameValue struct{ Name, Value string }

// Template is how a request names its template. Major and Minor are -1 where absent.
type Template struct {
	Name, OID    string
	Major, Minor int
}

// Signer is one verified signer of a CMS message.
type Signer struct {
	Key         crypto.PublicKey
	Certificate *x509.Certificate // nil for the subject key of a new request
	Role        string            // "subject key", "renewed certificate", "additional"
	Digest      string            // OID of the hash
}

// ArchivedKey is a private key on its way into escrow ([MS-WCCE] 2.2.2.7.8).
type ArchivedKey struct {
	Raw     []byte // the attribute value: a ContentInfo with EnvelopedData, as received
	Hash    []byte // the value of the encrypted key hash attribute
	HashAlg crypto.Hash
}

func invalid(cause error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if cause != nil {
		text += ": " + cause.Error()
	}
	return hresult.New(hresult.InvalidData, "%s", text)
}

// ParseRequest reads a request in any container and verifies its signatures. Errors are *hresult.Error.
func ParseRequest(der []byte) (*Request, error) {
	if len(der) == 0 || len(der) > MaxMessage {
		return nil, invalid(nil, "the request has %d octets; 1 to %d are allowed", len(der), MaxMessage)
	}
	der = bytes.Clone(der)
	r := &Request{Raw: der, Template: Template{Major: -1, Minor: -1}}
	var err error
	if LooksLikeCMS(der) {
		err = r.parseCMS()
	} else {
		r.Format = PKCS10
		if err = r.parsePKCS10(der, false); err == nil {
			err = r.readRequestor(nil)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := r.readRenewal(); err != nil {
		return nil, err
	}
	if err := r.readTemplate(); err != nil {
		return nil, err
	}
	return r, nil
}

// LooksLikeCMS tells a ContentInfo, which begins with an OID, from a PKCS#10 request, which begins with a sequence.
func LooksLikeCMS(der []byte) bool {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	return s.ReadASN1(&seq, cbasn1.SEQUENCE) && seq.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER)
}

func (r *Request) parsePKCS10(der []byte, inCMS bool) error {
	csr, err := ParseCSR(der)
	if err != nil {
		return invalid(err, "the request is malformed")
	}
	if err := csr.Verify(inCMS); err != nil {
		return invalid(err, "the request's proof of possession fails")
	}
	r.CSR = csr
	for _, a := range csr.Attributes {
		if a.OID == OIDOSVersion || a.OID == OIDCSP {
			if _, err := single(csr.Attributes, a.OID); err != nil {
				return invalid(err, "the request is malformed")
			}
		}
		if a.OID != OIDNameValuePair {
			continue
		}
		for _, v := range a.Values {
			pair, err := readNameValuePair(v)
			if err != nil {
				return invalid(err, "the request is malformed")
			}
			r.Values = append(r.Values, pair...)
		}
	}
	return nil
}

func (r *Request) parseCMS() error {
	sd, err := ParseSignedData(r.Raw)
	if err != nil {
		return invalid(err, "the request is malformed")
	}
	if len(sd.Signers) == 0 {
		return hresult.New(hresult.NoSigner, "the request has no signer")
	}
	r.Chain = sd.Certificates
	switch sd.ContentType {
	case OIDData:
		r.Format = PKCS7
		if sd.Content == nil {
			return invalid(nil, "the request is empty")
		}
		if err := r.parsePKCS10(sd.Content, true); err != nil {
			return err
		}
	case OIDPKIData:
		r.Format = CMC
		if err := r.parsePKIData(sd.Content); err != nil {
			return err
		}
	default:
		return hresult.New(hresult.InvalidMsgType, "the request's content type %s is neither data nor CMC", sd.ContentType)
	}
	if err := r.verifySigners(sd); err != nil {
		return err
	}
	r.readArchivedKey(sd)
	return r.readRequestor(sd)
}

// verifySigners checks every signature. In CMC the first signer of a request is the subject key, named by its key
// identifier without a certificate; all others bring their certificate ([MS-WCCE] 3.2.2.6.2.1.2).
func (r *Request) verifySigners(sd *SignedData) error {
	possession := !r.CSR.NullSignature
	for i := range sd.Signers {
		si := &sd.Signers[i]
		signer := Signer{Digest: si.Digest}
		isSubject := si.KeyID != nil && (bytes.Equal(si.KeyID, r.CSR.KeyID) || bytes.Equal(si.KeyID, r.CSR.subjectKeyID()))
		if si.Algorithm == OIDNoSignature {
			if err := checkNoSignature(sd, si); err != nil {
				return invalid(err, "signer %d", i+1)
			}
			r.Signers = append(r.Signers, Signer{Key: r.CSR.PublicKey, Role: "subject key", Digest: si.Digest})
			continue
		}
		if isSubject {
			signer.Key, signer.Role = r.CSR.PublicKey, "subject key"
			possession = true
		} else {
			signer.Certificate = sd.certificateOf(si)
			if signer.Certificate == nil {
				return invalid(nil, "signer %d is named neither by the request's key nor by an enclosed certificate", i+1)
			}
			signer.Key, signer.Role = signer.Certificate.PublicKey, "additional"
		}
		if err := sd.Verify(si, signer.Key); err != nil {
			return invalid(err, "signer %d", i+1)
		}
		r.Signers = append(r.Signers, signer)
	}
	if !possession {
		return invalid(nil, "nothing in the request proves possession of the private key")
	}
	if r.Format == CMC && r.Signers[0].Role != "subject key" {
		return invalid(nil, "the first signer of a CMC request must be the request's own key")
	}
	return nil
}

// checkNoSignature accepts the form of RFC 2797 3.3.3.1, which proves nothing but must be consistent.
func checkNoSignature(sd *SignedData, si *SignerInfo) error {
	hash, err := hashByOID(si.Digest)
	if err != nil {
		return err
	}
	message := sd.Content
	if si.signedRaw != nil {
		if err := sd.checkSignedAttrs(si); err != nil {
			return err
		}
		message = si.signedRaw
	}
	if subtle.ConstantTimeCompare(sum(hash, message), si.Signature) != 1 {
		return errors.New("the hash in place of the signature does not match")
	}
	return nil
}

func (c *CSR) subjectKeyID() []byte {
	s := cryptobyte.String(c.Extension(OIDSKI))
	var id cryptobyte.String
	if !s.ReadASN1(&id, cbasn1.OCTET_STRING) || !s.Empty() {
		return nil
	}
	return id
}

// parsePKIData reads the body of a CMC full PKIRequest (RFC 5272 3.2.1): exactly one PKCS#10 request.
func (r *Request) parsePKIData(der []byte) error {
	s := cryptobyte.String(der)
	var seq, controls, requests, cms, other, tagged, csr cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1(&controls, cbasn1.SEQUENCE) ||
		!seq.ReadASN1(&requests, cbasn1.SEQUENCE) || !seq.ReadASN1(&cms, cbasn1.SEQUENCE) ||
		!seq.ReadASN1(&other, cbasn1.SEQUENCE) || !seq.Empty() {
		return invalid(nil, "the CMC request is malformed")
	}
	if !cms.Empty() || !other.Empty() {
		return invalid(nil, "the CMC request encloses other messages, which is not supported")
	}
	var id int64
	if !requests.ReadASN1(&tagged, tag0) || !requests.Empty() || !tagged.ReadASN1Integer(&id) ||
		!tagged.ReadASN1Element(&csr, cbasn1.SEQUENCE) || !tagged.Empty() {
		return invalid(nil, "the CMC request must hold exactly one PKCS#10 request")
	}
	if err := r.parsePKCS10(csr, true); err != nil {
		return err
	}
	for !controls.Empty() {
		var control cryptobyte.String
		if !controls.ReadASN1(&control, cbasn1.SEQUENCE) || len(r.Controls) == maxAttributes {
			return invalid(nil, "the CMC controls are malformed")
		}
		if err := r.readControl(control, id); err != nil {
			return invalid(err, "CMC control %d", len(r.Controls)+1)
		}
	}
	return nil
}

func (r *Request) readControl(s cryptobyte.String, requestID int64) error {
	var c Control
	var oid asn1.ObjectIdentifier
	var set cryptobyte.String
	if !s.ReadASN1Integer(&c.BodyPartID) || !s.ReadASN1ObjectIdentifier(&oid) || !s.ReadASN1(&set, cbasn1.SET) || !s.Empty() {
		return errors.New("malformed")
	}
	c.OID = oid.String()
	for !set.Empty() {
		var v cryptobyte.String
		var tag cbasn1.Tag
		if !set.ReadAnyASN1Element(&v, &tag) || len(c.Values) == maxAttributes {
			return errors.New("malformed values")
		}
		c.Values = append(c.Values, v)
	}
	r.Controls = append(r.Controls, c)
	for _, v := range c.Values {
		var err error
		switch c.OID {
		case OIDCMCAddAttrs:
			err = r.readAddAttributes(v, requestID)
		case OIDCMCRegInfo:
			err = r.readRegInfo(v)
		case OIDCMCAddExt:
			err = r.readAddExtensions(v, requestID)
		default:
			err = fmt.Errorf("type %s is not supported", c.OID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readReferences reads { pkiDataReference, certReferences } and requires that they mean the one request.
func readReferences(seq *cryptobyte.String, requestID int64) error {
	var data, ref int64
	var refs cryptobyte.String
	if !seq.ReadASN1Integer(&data) || data != 0 || !seq.ReadASN1(&refs, cbasn1.SEQUENCE) ||
		!refs.ReadASN1Integer(&ref) || ref != requestID || !refs.Empty() {
		return errors.New("does not refer to the enclosed request")
	}
	return nil
}

func (r *Request) readAddAttributes(der []byte, requestID int64) error {
	s := cryptobyte.String(der)
	var seq, set cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return errors.New("malformed")
	}
	if err := readReferences(&seq, requestID); err != nil {
		return err
	}
	if !seq.ReadASN1(&set, cbasn1.SET) || !seq.Empty() {
		return errors.New("malformed attributes")
	}
	attrs, err := readAttributes(set)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if a.OID != OIDNameValuePair {
			continue
		}
		for _, v := range a.Values {
			pair, err := readNameValuePair(v)
			if err != nil {
				return err
			}
			r.Values = append(r.Values, pair...)
		}
	}
	r.Attributes = append(r.Attributes, attrs...)
	return nil
}

func (r *Request) readAddExtensions(der []byte, requestID int64) error {
	s := cryptobyte.String(der)
	var seq, list cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return errors.New("malformed")
	}
	if err := readReferences(&seq, requestID); err != nil {
		return err
	}
	if !seq.ReadASN1Element(&list, cbasn1.SEQUENCE) || !seq.Empty() {
		return errors.New("malformed extensions")
	}
	extensions, err := readExtensions(list)
	if err != nil {
		return err
	}
	r.CSR.Extensions = append(r.CSR.Extensions, extensions...)
	return nil
}

// readRenewal finds the certificate that the request renews ([MS-WCCE] 3.2.2.6.2.1.2.3). The old key must have signed.
func (r *Request) readRenewal() error {
	der, err := single(r.CSR.Attributes, OIDRenewalCert)
	if err != nil {
		return hresult.New(hresult.BadRenewalCertAttribute, "%v", err)
	}
	if der == nil {
		return nil
	}
	old, err := x509.ParseCertificate(der)
	if err != nil {
		return hresult.New(hresult.BadRenewalCertAttribute, "the certificate to renew is malformed: %v", err)
	}
	for i := range r.Signers {
		if cert := r.Signers[i].Certificate; cert != nil && bytes.Equal(cert.Raw, old.Raw) {
			r.Signers[i].Role = "renewed certificate"
			r.Renewal = old
			return nil
		}
	}
	return hresult.New(hresult.BadRenewalCertAttribute, "the request renews a certificate whose key has not signed it").
		WithFix("renew with a CMC or PKCS#7 request that the old key signs")
}

// Value returns the value of a request attribute, ignoring the case of its name.
func (r *Request) Value(name string) string {
	for _, v := range r.Values {
		if strings.EqualFold(v.Name, name) {
			return v.Value
		}
	}
	return ""
}
