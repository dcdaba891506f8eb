// Package hvca issues through GlobalSign Atlas, over its Certificate Management API (HVCA), version 2.
//
// Subject, alternative names, extended key usages, validity, the template information of Microsoft and custom extensions travel beside the
// key, as far as the account's validation policy lets a request say them; the driver reads the policy and asks for what it knows. Of a
// PKCS#10 request HVCA takes the key and the signature alone. An account whose policy takes a bare public key (PKCS8) without a signature also
// has certificates for requests with a null signature. Key usage and policies are the account's; HVCA also chooses the order of a subject's
// attributes. The gateway compares both with the decision when the certificate comes. Custom extensions are text, integers or nothing: what
// Windows has beside the template information is none of these.
//
// HVCA answers with the serial number at once, and with the certificate a moment later: until then the order is pending. When the first
// answer is lost, the certificates that the account was given since the order was decided are listed and their keys compared. The
// description does not say how soon a certificate is in that list: where none is found nobody can tell, and an administrator has to look.
package hvca

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/settle"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Options configure the driver.
type Options struct {
	Name      string      // of the CA, for messages
	URL       string      // https://emea.api.hvca.globalsign.com:8443/v2
	TLS       *tls.Config // the client certificate that GlobalSign has given out with the API key
	APIKey    string
	APISecret func() ([]byte, error)
	Roots     []*x509.Certificate
	// PublicKey sends the public key alone, for accounts whose validation policy has the key format PKCS8 and demands no signature.
	PublicKey bool
	// FromProfile are extensions, by OID, that the account adds just as they are decided, besides key usage and policies.
	FromProfile []string
	// Extensions are custom extensions of the validation policy, by OID.
	Extensions []string
	Tolerance  upstream.Tolerance
	ChainFile  string        // keeps the CA's chain for when it cannot be asked; "" keeps it in memory only
	Timeout    time.Duration // of one HTTP request; default 15 s
	Settled    time.Duration // how long after a lost answer it is looked for; default settle.Default
	Now        func() time.Time
}

// CA is an account of HVCA. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o     Options
	web   *web.Client
	chain *chain.Keeper
	lost  *settle.Orders

	login sync.Mutex // held while logging in
	mu    sync.Mutex // guards what follows
	token string
	since time.Time
	rules *policy
	read  time.Time
	keys  map[string]fingerprint // of certificates that were looked at, by serial number
}

// New checks the options. It does not connect: a CA that is down must not keep the gateway from starting.
func New(o Options) (*CA, error) {
	if o.APIKey == "" || o.APISecret == nil {
		return nil, fmt.Errorf("CA %q: API key and secret are needed", o.Name)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	client, err := web.New(web.Options{CA: o.Name, URL: o.URL, TLS: o.TLS, Timeout: o.Timeout})
	if err != nil {
		return nil, err
	}
	ca := &CA{o: o, web: client, lost: settle.New(o.Settled, o.Now), keys: map[string]fingerprint{}}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tells what this configuration can take.
func (ca *CA) Traits() upstream.Traits {
	return upstream.Traits{Product: "GlobalSign Atlas", Names: upstream.NamesBeside, Repetition: upstream.RepeatBlind, Unsigned: ca.o.PublicKey}
}

const product = "GlobalSign Atlas"

// Check refuses what HVCA has no words for.
func (ca *CA) Check(order upstream.Order) error {
	csr, err := wcce.ParseCSR(order.CSR)
	if err == nil {
		err = csr.Verify(true)
	}
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	if csr.NullSignature && !ca.o.PublicKey {
		return fmt.Errorf("CA %q is an account of GlobalSign Atlas that needs a request signed with its own key; this one has a hash in place of the signature", ca.o.Name)
	}
	if _, err := ca.words(order); err != nil {
		return fmt.Errorf("CA %q is an account of GlobalSign Atlas: %w", ca.o.Name, err)
	}
	return nil
}

// Submit asks for the certificate.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	if err := ca.chain.Ready(ctx); err != nil {
		return upstream.Result{}, err
	}
	body, err := ca.body(ctx, order)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(fmt.Errorf("CA %q: %w", ca.o.Name, err))
	}
	a, err := ca.call(ctx, http.MethodPost, "/certificates", body)
	if err != nil {
		return ca.failed(order, err)
	}
	serial := strings.ToUpper(path.Base(a.Header.Get("Location")))
	if a.Status != http.StatusCreated || !serialPattern.MatchString(serial) {
		return ca.failed(order, errors.New("the answer does not name a serial number"))
	}
	// From here on the order has a name at the CA, which must not be lost with an error.
	for range 3 {
		r, err := ca.bySerial(ctx, order, serial)
		if err == nil && r.State != upstream.Pending && r.State != 0 {
			return r, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
			continue
		}
		break
	}
	return upstream.Result{State: upstream.Pending, Token: serial}, nil
}

// serialPattern is a serial number as HVCA writes it.
var serialPattern = regexp.MustCompile(`^[0-9A-F]{2,40}$`)

// failed tells a final refusal from an answer that is not known.
func (ca *CA) failed(order upstream.Order, err error) (upstream.Result, error) {
	wrapped := fmt.Errorf("CA %q: %w", ca.o.Name, err)
	if e, ok := errors.AsType[*web.StatusError](err); ok {
		switch {
		case e.Status == http.StatusBadRequest || e.Status == http.StatusConflict || e.Status == http.StatusUnprocessableEntity:
			return upstream.Result{State: upstream.Refused, Reason: e.Message}, nil
		case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden || e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed ||
			e.Status == http.StatusNotAcceptable || e.Status == http.StatusUnsupportedMediaType || e.Status/100 == 3:
			return upstream.Result{}, upstream.NotIssued(wrapped)
		}
	}
	if upstream.IsNotIssued(err) {
		return upstream.Result{}, upstream.NotIssued(wrapped)
	}
	ca.lost.Lost(order.ID)
	return upstream.Result{}, wrapped
}

// info is a certificate with its status; certificate is nil while HVCA works on it.
type info struct {
	certificate *x509.Certificate
	revoked     bool
}

// fetch asks for a certificate; nil where HVCA does not know the number.
func (ca *CA) fetch(ctx context.Context, serial string) (*info, error) {
	a, err := ca.call(ctx, http.MethodGet, "/certificates/"+serial, nil)
	if web.Status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a.Status == http.StatusAccepted {
		return &info{}, nil
	}
	var answer struct {
		Certificate string `json:"certificate"`
		Status      string `json:"status"`
	}
	if err := json.Unmarshal(a.Body, &answer); err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", product, err)
	}
	cert, err := chain.One([]byte(answer.Certificate))
	if err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", product, err)
	}
	if number, ok := new(big.Int).SetString(serial, 16); !ok || cert.SerialNumber.Cmp(number) != 0 {
		return nil, errors.New("the certificate in the answer has another serial number")
	}
	switch strings.ToUpper(answer.Status) {
	case "ISSUED":
		return &info{cert, false}, nil
	case "REVOKED":
		return &info{cert, true}, nil
	}
	return nil, errors.New("the certificate in the answer has a status that is neither ISSUED nor REVOKED")
}

// bySerial is the answer about the order that HVCA has given a number. State is 0 where HVCA does not know the number.
func (ca *CA) bySerial(ctx context.Context, order upstream.Order, serial string) (upstream.Result, error) {
	i, err := ca.fetch(ctx, serial)
	switch {
	case err != nil || i == nil:
		return upstream.Result{}, err
	case i.certificate == nil:
		return upstream.Result{State: upstream.Pending, Token: serial}, nil
	case !sameKey(order, i.certificate):
		return upstream.Result{}, fmt.Errorf("the certificate %s is for another key", serial)
	case i.revoked:
		return upstream.Result{State: upstream.Refused, Reason: fmt.Sprintf("the certificate %s was issued for this order, and is revoked", serial)}, nil
	}
	if err := ca.chain.Check(ctx, i.certificate, nil); err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{State: upstream.Issued, Certificate: i.certificate, Token: serial}, nil
}

func sameKey(order upstream.Order, cert *x509.Certificate) bool {
	key, ok := order.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(cert.PublicKey)
}

// reasons are the words that HVCA has for a CRLReason (RFC 5280 5.3.1); for others it has none.
var reasons = map[int]string{0: "unspecified", 1: "keyCompromise", 3: "affiliationChanged", 4: "superseded", 5: "cessationOfOperation", 9: "privilegeWithdrawn"}

// Revoke revokes a certificate. Revoking twice is no error.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	word, ok := reasons[reason]
	switch {
	case reason < 0 || reason > 10 || reason == 7:
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	case !ok:
		return fmt.Errorf("CA %q: GlobalSign Atlas does not take the revocation reason %d", ca.o.Name, reason)
	}
	text := fmt.Sprintf("%X", serial)
	_, err := ca.call(ctx, http.MethodPatch, "/certificates/"+text, map[string]string{"revocation_reason": word})
	if s := web.Status(err); s/100 == 4 {
		if i, fetchErr := ca.fetch(ctx, text); fetchErr == nil && i != nil && i.revoked {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, text, err)
	}
	return nil
}

// Chain returns the issuing certificate and those above it.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	a, err := ca.call(ctx, http.MethodGet, "/trustchain", nil)
	if err != nil {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal(a.Body, &list); err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", product, err)
	}
	return chain.ParsePEM([]byte(strings.Join(list, "\n")))
}
