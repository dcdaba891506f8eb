// Package cmp issues through any CA that speaks the Certificate Management Protocol (RFC 4210, 9480 and 9810) over HTTP (RFC 6712).
//
// The gateway is a registration authority: its certificate request (cr) has a template with everything that was decided, beside the
// public key, and says that the gateway has verified the possession of the private key (raVerified). The PKCS#10 request of the client
// is not sent at all. The CA must be set up to take both from the gateway. With PKCS10 set the client's request goes there as it is
// (p10cr), for CAs that do not; then only what the request itself says can be had.
//
// Messages are protected by the signature of a registration authority's certificate or by a shared secret, so that plain HTTP is
// possible; but whoever is on the path can then lose answers, and make up that the CA is busy, which lets the gateway ask again. Answers
// have to be protected too: by the secret, or by a signature of the CA itself, of a configured responder, or of somebody to whom the
// CA gave a certificate for it (id-kp-cmcCA).
//
// CMP has no way to ask what became of an order. The transaction's number follows from the order, and a lost answer is asked for once
// more by pollReq in the same transaction; a CA that does not know the transaction, as most do not after it has ended, leaves it open.
// A CA that waits for a confirmation (certConf) and gets none revokes the certificate, or should (RFC 9810 5.3.18); with
// ImplicitConfirm it does not wait.
package cmp

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Options configure the driver. Either Key and Certificates, or Secret protects messages.
type Options struct {
	Name  string              // of the CA, for messages
	URL   string              // https://HOST[:PORT]/PATH, or http://
	Roots []*x509.Certificate // what the CA issues, and who answers for it, must chain to one of them
	// Issuing are the CA's certificate, first, and those between it and a root; it may be empty, and is then known after the first answer.
	Issuing    []*x509.Certificate
	Responders []*x509.Certificate // who may sign answers; empty: see the package comment
	TLS        *tls.Config

	Certificates []*x509.Certificate // the registration authority's, first, and its chain
	Key          crypto.Signer
	Secret       []byte
	Reference    string // names Secret at the CA
	PBMAC1       bool   // protect by PBMAC1 (RFC 9481 6.1.2) in place of PasswordBasedMac

	PKCS10          bool     // send the client's request itself
	Ignore          []string // with PKCS10: extensions that the client's request need not say, by OID
	ImplicitConfirm bool     // ask the CA not to wait for a confirmation
	NoRevocation    bool     // the CA takes no revocation requests

	ChainFile string        // keeps the CA's chain for the next start; "" keeps it in memory only
	Timeout   time.Duration // of one HTTP request; default 15 s
	Now       func() time.Time
}

// CA is a CA that speaks CMP. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o      Options
	web    *web.Client
	chain  *chain.Keeper
	sender []byte // DER of a Name
	keyID  []byte
	path   string // "/" where the configured address ends in it: some servers insist on it
	secure bool   // TLS tells who answers
}

const product = "the CMP server"

// New checks the options. It does not connect.
func New(o Options) (*CA, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	ca := &CA{o: o, sender: emptyName, secure: strings.HasPrefix(o.URL, "https:")}
	switch signs := o.Key != nil && len(o.Certificates) > 0; {
	case signs == (len(o.Secret) > 0):
		return nil, fmt.Errorf("CA %q: messages are protected either by a registration authority's certificate and key, or by a secret", o.Name)
	case signs:
		pub, ok := o.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !pub.Equal(o.Certificates[0].PublicKey) {
			return nil, fmt.Errorf("CA %q: the key is not that of the registration authority's certificate %q", o.Name, o.Certificates[0].Subject)
		}
		if _, err := signer(o.Key); err != nil {
			return nil, fmt.Errorf("CA %q: %w", o.Name, err)
		}
		ca.sender, ca.keyID = o.Certificates[0].RawSubject, o.Certificates[0].SubjectKeyId
	case o.Reference != "":
		name, err := asn1.Marshal(pkix.Name{CommonName: o.Reference}.ToRDNSequence())
		if err != nil {
			return nil, fmt.Errorf("CA %q: reference: %w", o.Name, err)
		}
		ca.sender, ca.keyID = name, []byte(o.Reference)
	}
	if strings.HasSuffix(o.URL, "/") {
		ca.path = "/"
	}
	var err error
	if ca.web, err = web.New(web.Options{CA: o.Name, URL: o.URL, TLS: o.TLS, Timeout: o.Timeout, PlainHTTP: true}); err != nil {
		return nil, err
	}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Known: o.Issuing, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tell what goes beside the request, and that CMP cannot be asked about lost answers.
func (ca *CA) Traits() upstream.Traits {
	t := upstream.Traits{Product: "CMP", Names: upstream.NamesBeside, Unsigned: true, Repetition: upstream.RepeatBlind, NoRevocation: ca.o.NoRevocation}
	if ca.o.PKCS10 {
		t.Names, t.Unsigned = upstream.NamesInCSR, false
	}
	return t
}

// Check refuses what cannot be put into a request.
func (ca *CA) Check(order upstream.Order) error {
	fail := func(err error) error { return fmt.Errorf("CA %q: %w", ca.o.Name, err) }
	if !ca.o.PKCS10 {
		if _, err := certRequest(order); err != nil {
			return fail(err)
		}
		return nil
	}
	csr, err := wcce.ParseCSR(order.CSR)
	if err != nil {
		return fail(err)
	}
	if err := csr.Verify(true); err != nil {
		return fail(err)
	}
	if csr.NullSignature {
		return fmt.Errorf("CA %q is given the client's request (p10cr), which its key has to have signed; this one has a hash in place of the signature", ca.o.Name)
	}
	if err := upstream.CarriedByCSR(order, ca.o.Ignore); err != nil {
		return fail(err)
	}
	return nil
}

// Submit asks for the certificate.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	t, err := ca.newTransaction(order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(err))
	}
	out := outgoing{transaction: t.id, body: bodyCR, implicit: ca.o.ImplicitConfirm}
	if ca.o.PKCS10 {
		out.body, out.content = bodyP10CR, raw(order.CSR)
	} else if out.content, err = certRequest(order); err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(err))
	}
	m, proven, err := ca.exchange(ctx, out)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	r, err := ca.settle(ctx, t, m, proven)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return r, nil
}

// Find polls: for an order that the CA has let wait, and on the chance for one whose answer was lost.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	t, err := ca.newTransaction(order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	if err := t.read(token); err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	m, proven, err := ca.exchange(ctx, outgoing{transaction: t.id, recipNonce: t.nonce, body: bodyPollReq, content: pollRequest(t.reqID)})
	if web.DoesNotKnow(err) {
		return ca.uncertain(t, err), nil
	}
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	if m.body == bodyError {
		info, err := parseError(m.content)
		if err != nil {
			return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
		}
		if info.fail&ours != 0 || !proven && len(t.nonce) > 0 {
			return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, &statusError{info, bodyError})
		}
		return ca.uncertain(t, &statusError{info, bodyError}), nil
	}
	r, err := ca.settle(ctx, t, m, proven)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return r, nil
}

func (ca *CA) uncertain(t *transaction, why error) upstream.Result {
	return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the answer of CA %q was lost, and CMP cannot tell what became of transaction %X (%v). "+
		"Look in the CA for a certificate with this public key that was issued at that time: revoke it there, then let the client ask again", ca.o.Name, t.id, why)}
}

// transaction is what names an order at the CA, between messages.
type transaction struct {
	id    []byte
	nonce []byte // the CA's last
	reqID int64
	order upstream.Order
}

// newTransaction derives the transaction's number from everything that is in the certificate: 16 octets (RFC 9810 5.1.1).
func (ca *CA) newTransaction(order upstream.Order) (*transaction, error) {
	profile, err := json.Marshal(order.Profile)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte("enrollgate CMP transaction"), []byte(ca.o.Name), []byte(order.ID), profile, spki} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":"))
		h.Write(part)
	}
	t := &transaction{id: h.Sum(nil)[:16], order: order}
	if ca.o.PKCS10 {
		t.reqID = -1 // RFC 9810 5.3.4
	}
	return t, nil
}

// token keeps what the next pollReq needs: the number of the request in the transaction, and the CA's last nonce.
func (t *transaction) token() string {
	return strconv.FormatInt(t.reqID, 10) + "." + base64.RawURLEncoding.EncodeToString(t.nonce)
}

func (t *transaction) read(token string) (err error) {
	if token == "" {
		return nil
	}
	id, nonce, ok := strings.Cut(token, ".")
	if t.reqID, err = strconv.ParseInt(id, 10, 64); err != nil || !ok {
		return errors.New("the token is not one of this driver's")
	}
	t.nonce, err = base64.RawURLEncoding.DecodeString(nonce)
	return err
}

// exchange sends one message and returns the answer. proven is whether it is known that the CA has made it; any but an error message
// has to be. An error message need not be protected, above all where the CA does not accept our own protection; then TLS proves it.
func (ca *CA) exchange(ctx context.Context, out outgoing) (m *message, proven bool, err error) {
	der, nonce, err := ca.marshal(out)
	if err != nil {
		return nil, false, upstream.NotIssued(err)
	}
	const mediaType = "application/pkixcmp" // RFC 6712 3.4
	answer, err := ca.web.Do(ctx, web.Request{Path: ca.path, Type: mediaType, Accept: mediaType, Body: der})
	if err != nil {
		return nil, false, err
	}
	if !answer.OK() && !strings.HasPrefix(answer.Header.Get("Content-Type"), mediaType) {
		err := answer.Fail(product, "")
		if s := answer.Status; ca.secure && (s == 401 || s == 403 || s == 404 || s == 405 || s == 415) {
			err = upstream.NotIssued(err) // nobody took the message
		}
		return nil, false, err
	}
	if m, err = parseMessage(answer.Body); err != nil {
		return nil, false, fmt.Errorf("the answer of %s is no PKIMessage: %w", product, err)
	}
	verified := ca.verify(m)
	if verified == nil || m.body != bodyError {
		if verified != nil {
			return nil, false, fmt.Errorf("the answer of %s: %w", product, verified)
		}
		if subtle.ConstantTimeCompare(m.transaction, out.transaction) != 1 || subtle.ConstantTimeCompare(m.recipNonce, nonce) != 1 {
			return nil, false, fmt.Errorf("the answer of %s is to another message", product)
		}
		if len(m.senderNonce) == 0 {
			return nil, false, fmt.Errorf("the answer of %s has no nonce", product)
		}
		return m, true, nil
	}
	return m, ca.secure, nil
}

// recipient is the name of the CA, as far as known.
func (ca *CA) recipient() []byte {
	if last := ca.chain.Known(); len(last) > 0 {
		return last[0].RawSubject
	}
	return ca.o.Roots[0].RawSubject
}

// Chain returns the CA's certificate and those above it, as configured or as seen with the last certificate.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }
