// Package scep issues through any CA that speaks the Simple Certificate Enrolment Protocol (RFC 8894).
//
// SCEP passes the client's PKCS#10 request on as it is: it carries an order only if the request says what was decided. The gateway signs
// the message as a registration authority, and that has to be enough for the CA: a challenge password would have to be in the request,
// which the client has signed. AES, SHA-256 and POST are required of the CA (RFC 8894 3.5.2), and answers in anything weaker are refused.
//
// Messages are signed and encrypted, so that plain HTTP is possible. Who may answer is the CA itself, as pinned by the root; a
// registration authority of the CA's own (RFC 8894 3.3) is believed only where it is configured, or named over HTTPS. Whoever is on the
// path of plain HTTP can lose answers and make up that the CA is busy, which lets the gateway ask again.
//
// A lost answer is asked for once more by CertPoll with the same transaction, which few servers answer for what is not pending; else
// nobody can tell. SCEP has no revocation.
package scep

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// Options configure the driver.
type Options struct {
	Name  string              // of the CA, for messages
	URL   string              // http[s]://HOST[:PORT]/PATH, without a query
	Roots []*x509.Certificate // all that the CA issues, and who answers for it, must chain to one of them
	// Issuing are the CA's certificate and those up to the root; empty: GetCACert says them.
	Issuing []*x509.Certificate
	// Responders decrypt requests and sign answers in place of the CA; empty: GetCACert says them, over HTTPS.
	Responders []*x509.Certificate
	TLS        *tls.Config

	Certificate *x509.Certificate // the gateway's, as registration authority; its key is RSA
	Key         Key

	Ignore    []string      // extensions that the client's request need not say, by OID
	ChainFile string        // keeps the CA's chain for the next start; "" keeps it in memory only
	Timeout   time.Duration // of one HTTP request; default 15 s
	Now       func() time.Time
}

// Key signs requests and decrypts answers.
type Key interface {
	crypto.Signer
	crypto.Decrypter
}

// CA is a CA that speaks SCEP. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o      Options
	web    *web.Client
	chain  *chain.Keeper
	secure bool // TLS tells who answers

	mu    sync.Mutex // guards peers, until
	peers *peers
	until time.Time
}

const product = "the SCEP server"

// New checks the options. It does not connect.
func New(o Options) (*CA, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	ca := &CA{o: o, secure: strings.HasPrefix(o.URL, "https:")}
	if o.Certificate == nil || o.Key == nil {
		return nil, fmt.Errorf("CA %q: certificate and key of the registration authority are missing", o.Name)
	}
	pub, ok := o.Key.Public().(*rsa.PublicKey)
	switch {
	case !ok:
		return nil, fmt.Errorf("CA %q: the registration authority's key is not RSA, and SCEP encrypts to it", o.Name)
	case !pub.Equal(o.Certificate.PublicKey):
		return nil, fmt.Errorf("CA %q: the key is not that of the registration authority's certificate %q", o.Name, o.Certificate.Subject)
	}
	var err error
	if ca.web, err = web.New(web.Options{CA: o.Name, URL: o.URL, TLS: o.TLS, Timeout: o.Timeout, PlainHTTP: true}); err != nil {
		return nil, err
	}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Known: o.Issuing, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tell that the client's request goes to the CA, and that SCEP cannot be asked about lost answers.
func (ca *CA) Traits() upstream.Traits {
	return upstream.Traits{Product: "SCEP", Names: upstream.NamesInCSR, Repetition: upstream.RepeatBlind, NoRevocation: true}
}

// Check refuses a request that does not say what was decided, or that its key has not signed.
func (ca *CA) Check(order upstream.Order) error {
	_, err := upstream.SignedCSR(order, "asked by SCEP")
	if err == nil {
		err = upstream.CarriedByCSR(order, ca.o.Ignore)
	}
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return nil
}

// Submit asks for the certificate (PKCSReq, RFC 8894 3.3.1).
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	r, err := ca.ask(ctx, order, messagePKCSReq, order.CSR)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return r, nil
}

// Find polls (CertPoll, RFC 8894 3.3.3): for an order that the CA has let wait, and on the chance for one whose answer was lost.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	id, err := transactionID(order)
	if err == nil && token != "" && token != id {
		err = errors.New("the token is not that of this order")
	}
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	content, err := ca.issuerAndSubject(ctx, order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	r, err := ca.ask(ctx, order, messageCertPoll, content)
	failed, isFailure := errors.AsType[*failure](err)
	switch {
	case err == nil && r.State != upstream.Refused:
		return r, nil
	case err == nil && token != "":
		return r, nil // it was pending, and now it is denied
	case err == nil:
		err = errors.New(r.Reason)
	case !isFailure && !web.DoesNotKnow(err):
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	case isFailure && failed.info != failBadRequest && failed.info != failBadCertID:
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the answer of CA %q was lost, and its SCEP server cannot tell what became of transaction %s (%v). "+
		"Look in the CA for a certificate with this public key that was issued at that time: revoke it there, then let the client ask again", ca.o.Name, id, err)}, nil
}

// Revoke cannot be done by SCEP.
func (ca *CA) Revoke(_ context.Context, serial *big.Int, _ int) error {
	return fmt.Errorf("CA %q is asked by SCEP, which has no revocation: revoke %s at the CA", ca.o.Name, serial.Text(16))
}

// Chain returns the CA's certificate and those above it.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	certs, err := ca.certificates(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(certs, func(a, b *x509.Certificate) int { return rank(a, certs) - rank(b, certs) })
	return certs, nil
}

// rank puts the CA that issues before those above it, and registration authorities last.
func rank(c *x509.Certificate, all []*x509.Certificate) int {
	if !c.IsCA {
		return 100
	}
	above := 0
	for _, other := range all {
		if other.IsCA && !other.Equal(c) && other.CheckSignatureFrom(c) == nil {
			above++
		}
	}
	return above
}

// transactionID names an order at the CA (RFC 8894 3.2.1.1): a hash of the public key and the order.
func transactionID(order upstream.Order) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(spki)
	h.Write([]byte("enrollgate SCEP " + order.ID))
	return hex.EncodeToString(h.Sum(nil)[:20]), nil
}
