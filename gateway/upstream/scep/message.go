package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Message types (RFC 8894 3.2.1.2).
const (
	messageCertRep  = "3"
	messagePKCSReq  = "19"
	messageCertPoll = "20"
)

// pkiStatus (RFC 8894 3.2.1.3) and failInfo (3.2.1.4).
const (
	statusSuccess = "0"
	statusFailure = "2"
	statusPending = "3"

	failBadRequest = "2"
	failBadCertID  = "4"
)

var failNames = map[string]string{"0": "badAlg", "1": "badMessageCheck", "2": "badRequest", "3": "badTime", "4": "badCertId"}

// The signed attributes (RFC 8894 3.2.1).
const (
	oidMessageType    = "2.16.840.1.113733.1.9.2"
	oidPKIStatus      = "2.16.840.1.113733.1.9.3"
	oidFailInfo       = "2.16.840.1.113733.1.9.4"
	oidSenderNonce    = "2.16.840.1.113733.1.9.5"
	oidRecipientNonce = "2.16.840.1.113733.1.9.6"
	oidTransactionID  = "2.16.840.1.113733.1.9.7"
	oidFailInfoText   = "1.3.6.1.5.5.7.24.1"
)

// failure is a CertRep that says so.
type failure struct{ info, text string }

func (f *failure) Error() string {
	text := fmt.Sprintf("%s answered FAILURE: %s", product, failNames[f.info])
	if f.text != "" {
		text += ": " + f.text
	}
	return text
}

// ask sends one message and makes a result of the answer.
func (ca *CA) ask(ctx context.Context, order upstream.Order, messageType string, content []byte) (upstream.Result, error) {
	p, err := ca.peer(ctx)
	if err != nil {
		return upstream.Result{}, err
	}
	id, err := transactionID(order)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	nonce := make([]byte, 16)
	rand.Read(nonce)
	sealed, err := wcce.Seal(content, wcce.OIDAES128CBC, false, p.recipient)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	message, err := wcce.SignData(sealed, wcce.RequestSigner{Certificate: ca.o.Certificate, Key: ca.o.Key}, crypto.SHA256,
		wcce.Attribute{OID: oidTransactionID, Values: [][]byte{element(cbasn1.PrintableString, []byte(id))}},
		wcce.Attribute{OID: oidMessageType, Values: [][]byte{element(cbasn1.PrintableString, []byte(messageType))}},
		wcce.Attribute{OID: oidSenderNonce, Values: [][]byte{element(cbasn1.OCTET_STRING, nonce)}})
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	a, err := ca.web.Do(ctx, web.Request{Path: "?operation=PKIOperation", Type: "application/x-pki-message", Body: message})
	if err != nil {
		return upstream.Result{}, err
	}
	if !a.OK() {
		return upstream.Result{}, a.Fail(product, "")
	}
	reply, err := parseReply(a.Body, p.signers)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("the answer of %s: %w", product, err)
	}
	if subtle.ConstantTimeCompare([]byte(reply.transaction), []byte(id)) != 1 || subtle.ConstantTimeCompare(reply.nonce, nonce) != 1 {
		return upstream.Result{}, fmt.Errorf("the answer of %s is to another message", product)
	}
	return ca.result(order, id, reply, p.signers)
}

// result tells what an answer means. What a CA says about our message, and not about the request in it, says that nothing was issued.
func (ca *CA) result(order upstream.Order, id string, reply *reply, signers []*x509.Certificate) (upstream.Result, error) {
	switch reply.status {
	case statusPending:
		return upstream.Result{State: upstream.Pending, Token: id}, nil
	case statusFailure:
		f := &failure{reply.fail, reply.text}
		if reply.fail == failBadRequest || reply.fail == failBadCertID {
			return upstream.Result{State: upstream.Refused, Reason: f.Error()}, nil
		}
		return upstream.Result{}, upstream.NotIssued(f)
	case statusSuccess:
		certs, err := ca.open(reply.content)
		if err != nil {
			return upstream.Result{}, fmt.Errorf("the answer of %s: %w", product, err)
		}
		for _, c := range certs {
			key, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
			if !ok || !key.Equal(order.PublicKey) {
				continue
			}
			if err := ca.chain.Verify(c, append(certs, signers...)); err != nil {
				return upstream.Result{}, fmt.Errorf("certificate %s: %w", c.SerialNumber.Text(16), err)
			}
			return upstream.Result{State: upstream.Issued, Certificate: c}, nil
		}
		return upstream.Result{}, fmt.Errorf("%s answered SUCCESS without a certificate for the key of the request", product)
	}
	return upstream.Result{}, fmt.Errorf("%s answered with pkiStatus %q", product, dn.Clean(reply.status))
}

// open decrypts the certificates, which only who asked can read.
func (ca *CA) open(content []byte) ([]*x509.Certificate, error) {
	enveloped, err := wcce.ParseEnveloped(content)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]string{wcce.OIDAES128CBC, wcce.OIDAES192CBC, wcce.OIDAES256CBC}, enveloped.Cipher) {
		return nil, fmt.Errorf("it is encrypted with %s in place of AES", enveloped.Cipher)
	}
	for i := range enveloped.Recipients {
		if r := &enveloped.Recipients[i]; r.Names(ca.o.Certificate) {
			plain, err := enveloped.Open(r, ca.o.Key)
			if err != nil {
				return nil, err
			}
			signed, err := wcce.ParseSignedData(plain)
			if err != nil {
				return nil, err
			}
			return signed.Certificates, nil
		}
	}
	return nil, errors.New("it is encrypted to somebody else")
}

// reply is a CertRep whose signature is verified.
type reply struct {
	transaction, status, fail, text string
	nonce                           []byte
	content                         []byte
}

// parseReply reads CertRep (RFC 8894 3.3.2), signed by one of signers.
func parseReply(der []byte, signers []*x509.Certificate) (*reply, error) {
	signed, err := wcce.ParseSignedData(der)
	if err != nil {
		return nil, err
	}
	if signed.ContentType != wcce.OIDData || len(signed.Signers) != 1 {
		return nil, errors.New("it is no message with one signature")
	}
	if signed.Content == nil {
		signed.Content = []byte{} // as FAILURE and PENDING have it
	}
	si := &signed.Signers[0]
	if si.Digest == wcce.OIDSHA1 || len(si.SignedAttrs) == 0 {
		return nil, errors.New("it is signed with SHA-1, or without attributes")
	}
	i := slices.IndexFunc(signers, func(c *x509.Certificate) bool {
		return si.KeyID != nil && bytes.Equal(si.KeyID, c.SubjectKeyId) || si.Issuer != nil && bytes.Equal(si.Issuer, c.RawIssuer) && si.Serial.Cmp(c.SerialNumber) == 0
	})
	if i < 0 {
		return nil, errors.New("who signed it is neither the CA nor one of its registration authorities")
	}
	if err := signed.Verify(si, signers[i].PublicKey); err != nil {
		return nil, err
	}
	r := &reply{content: signed.Content}
	var kind string
	for _, a := range si.SignedAttrs {
		to := map[string]*string{oidMessageType: &kind, oidTransactionID: &r.transaction, oidPKIStatus: &r.status, oidFailInfo: &r.fail, oidFailInfoText: &r.text}[a.OID]
		if to == nil && a.OID != oidRecipientNonce {
			continue
		}
		value, err := oneValue(a)
		if err != nil {
			return nil, err
		}
		if to == nil {
			r.nonce = value
		} else {
			*to = dn.Clean(string(value))
		}
	}
	if kind != messageCertRep || len(r.nonce) == 0 {
		return nil, errors.New("it is no CertRep, or has no nonce")
	}
	return r, nil
}

// oneValue is the value of an attribute with a string.
func oneValue(a wcce.Attribute) ([]byte, error) {
	if len(a.Values) != 1 {
		return nil, fmt.Errorf("attribute %s has not one value", a.OID)
	}
	s := cryptobyte.String(a.Values[0])
	var value cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&value, &tag) || !s.Empty() || tag != cbasn1.PrintableString && tag != cbasn1.OCTET_STRING && tag != cbasn1.UTF8String || len(value) > 1000 {
		return nil, fmt.Errorf("attribute %s is malformed", a.OID)
	}
	return value, nil
}

func element(tag cbasn1.Tag, value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(value) })
	return b.BytesOrPanic()
}

// issuerAndSubject is the content of CertPoll: the CA's name and the request's subject.
func (ca *CA) issuerAndSubject(ctx context.Context, order upstream.Order) ([]byte, error) {
	csr, err := wcce.ParseCSR(order.CSR)
	if err != nil {
		return nil, err
	}
	chain, err := ca.Chain(ctx)
	if err != nil {
		return nil, err
	}
	return element(cbasn1.SEQUENCE, append(slices.Clone(chain[0].RawSubject), csr.RawSubject...)), nil
}
