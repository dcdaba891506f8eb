// Package est issues through a CA that speaks Enrollment over Secure Transport (RFC 7030, with RFC 8951).
//
// An EST server takes names and extensions from the request. A request of Windows has no names unless the template lets the enrollee
// supply them: other orders are refused by name before anything is sent. When a certificate ends is the CA's decision; one that ends later
// than was decided is refused by the gateway.
//
// EST has no way to ask what became of a request, and none to revoke. When an answer is lost nobody can tell whether the CA has issued;
// the order is then Uncertain, and an administrator has to look at the CA. An order that the CA accepted for later (202) is asked for by
// sending it again, which is how EST does that (RFC 7030 4.2.3). But when the answer to such a repetition is lost it is not sent once more:
// the CA may have issued, and forgotten that it had to wait. An instance that ends in that moment does not know that, and sends it again.
//
// The request cannot be linked to the TLS connection (RFC 7030 3.5), because the client's key has signed it before.
package est

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Options configure the driver. One of a TLS client certificate and a user is needed, or both.
type Options struct {
	Name     string      // of the CA, for messages
	URL      string      // https://HOST[:PORT]; what is before /.well-known
	Label    string      // of the CA or profile at the server (RFC 7030 3.2.2); "" for none
	TLS      *tls.Config // whom to trust, and the client certificate; nil for the system's roots
	User     string      // for HTTP Basic (RFC 7030 3.2.3); "" for none
	Password func() ([]byte, error)
	Roots    []*x509.Certificate // all that the CA issues must chain to one of them
	// FromProfile are extensions, by OID, that the CA's own profile adds just as they are decided: they need not be in the request.
	FromProfile []string
	Tolerance   upstream.Tolerance
	ChainFile   string        // keeps the CA's chain for when it cannot be asked; "" keeps it in memory only
	Timeout     time.Duration // of one HTTP request; default 15 s
	Now         func() time.Time
}

// CA is an EST server. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o     Options
	web   *web.Client
	path  string
	chain *chain.Keeper

	mu   sync.Mutex // guards lost
	lost map[string]bool
}

// New checks the options. It does not connect: a CA that is down must not keep the gateway from starting.
func New(o Options) (*CA, error) {
	if o.Label != url.PathEscape(o.Label) || slices.Contains([]string{"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}, o.Label) {
		return nil, fmt.Errorf("CA %q: %q is no label (RFC 7030 3.2.2)", o.Name, o.Label)
	}
	if (o.User == "") != (o.Password == nil) {
		return nil, fmt.Errorf("CA %q: user and password go together", o.Name)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	client, err := web.New(web.Options{CA: o.Name, URL: o.URL, TLS: o.TLS, Timeout: o.Timeout})
	if err != nil {
		return nil, err
	}
	ca := &CA{o: o, web: client, path: "/.well-known/est/", lost: map[string]bool{}}
	if o.Label != "" {
		ca.path += o.Label + "/"
	}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tells what EST can take and tell.
func (ca *CA) Traits() upstream.Traits {
	return upstream.Traits{Product: product, Names: upstream.NamesInCSR, Repetition: upstream.RepeatBlind, NoRevocation: true}
}

const product = "EST server"

// Check refuses an order of which the request does not say everything, or that proves nothing.
func (ca *CA) Check(order upstream.Order) error {
	if _, err := upstream.SignedCSR(order, "an EST server"); err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	if err := upstream.CarriedByCSR(order, slices.Concat(ca.o.FromProfile, ca.o.Tolerance.Missing, ca.o.Tolerance.Changed)); err != nil {
		return fmt.Errorf("CA %q speaks EST: %w", ca.o.Name, err)
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
	r, err := ca.enroll(ctx, order)
	if err != nil {
		err = ca.wrap(err)
	}
	return r, err
}

func (ca *CA) wrap(err error) error { return fmt.Errorf("CA %q: %w", ca.o.Name, err) }

// Find sends an order again that the CA wants to be asked for later. Of any other nobody can tell.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	at, pending := strings.CutPrefix(token, tokenPrefix)
	seconds, err := strconv.ParseInt(at, 10, 64)
	ca.mu.Lock()
	lost := ca.lost[order.ID]
	ca.mu.Unlock()
	switch {
	case !pending || err != nil || lost:
		return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the answer of CA %q was lost, and EST cannot ask for it again: look at the CA whether it has issued a certificate for %q",
			ca.o.Name, order.Profile.SubjectText)}, nil
	case ca.o.Now().Unix() < seconds:
		return upstream.Result{State: upstream.Pending, Token: token}, nil
	}
	if err := ca.chain.Ready(ctx); err != nil {
		return upstream.Result{}, err
	}
	r, err := ca.enroll(ctx, order)
	if err != nil && !upstream.IsNotIssued(err) {
		ca.mu.Lock()
		ca.lost[order.ID] = true
		ca.mu.Unlock()
	}
	if err != nil {
		return upstream.Result{}, ca.wrap(err)
	}
	return r, nil
}

// tokenPrefix is before the time, in seconds of Unix, from which on the CA may be asked.
const tokenPrefix = "est:"

// enroll sends the request once (RFC 7030 4.2.1).
func (ca *CA) enroll(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	header := http.Header{"Content-Transfer-Encoding": {"base64"}}
	if err := ca.authorize(header); err != nil {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	a, err := ca.web.Do(ctx, web.Request{Path: ca.path + "simpleenroll", Type: "application/pkcs10", Accept: "application/pkcs7-mime", Header: header,
		Body: []byte(base64.StdEncoding.EncodeToString(order.CSR))})
	if err != nil {
		return upstream.Result{}, err
	}
	switch {
	case a.Status == http.StatusAccepted:
		return upstream.Result{State: upstream.Pending, Token: tokenPrefix + strconv.FormatInt(ca.o.Now().Add(retryAfter(a.Header, ca.o.Now())).Unix(), 10)}, nil
	case a.Status != http.StatusOK:
		return ca.refused(a)
	}
	certs, err := certsOnly(a)
	if err != nil {
		return upstream.Result{}, err
	}
	key, ok := order.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	isOurs := func(c *x509.Certificate) bool { return ok && key.Equal(c.PublicKey) }
	i := slices.IndexFunc(certs, isOurs)
	if i < 0 || slices.ContainsFunc(certs[i+1:], isOurs) {
		return upstream.Result{}, errors.New("the answer does not have exactly one certificate with the key of the request")
	}
	cert := certs[i]
	if err := ca.chain.Check(ctx, cert, slices.Delete(certs, i, i+1)); err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

func (ca *CA) authorize(header http.Header) error {
	if ca.o.User == "" {
		return nil
	}
	password, err := ca.o.Password()
	if err != nil {
		return fmt.Errorf("the password: %w", err)
	}
	defer clear(password)
	header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(ca.o.User+":"+string(password))))
	return nil
}

// refused tells what an answer that is no success means (RFC 7030 4.2.3): 4xx is final where it is about the request, and not about who
// asks or where.
func (ca *CA) refused(a *web.Answer) (upstream.Result, error) {
	text := ""
	if strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") {
		text = strings.TrimSpace(string(a.Body))
	}
	err := a.Fail(product, text)
	switch a.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType,
		http.StatusProxyAuthRequired:
		return upstream.Result{}, upstream.NotIssued(err)
	}
	if a.Status/100 == 3 {
		return upstream.Result{}, upstream.NotIssued(fmt.Errorf("%w; configure the address that it points to", err))
	}
	e, ok := errors.AsType[*web.StatusError](err)
	if a.Status/100 == 4 && a.Status != http.StatusRequestTimeout && ok && !upstream.IsNotIssued(err) {
		return upstream.Result{State: upstream.Refused, Reason: e.Message}, nil
	}
	return upstream.Result{}, err
}

// retryAfter is for how long not to ask (RFC 9110 10.2.3); a minute where the server says nothing that can be read, a day at most.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text, wait := h.Get("Retry-After"), time.Minute
	if seconds, err := strconv.Atoi(text); err == nil && seconds >= 0 {
		wait = time.Duration(min(seconds, 86400)) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return max(0, min(wait, 24*time.Hour))
}

// certsOnly reads the certificates of an answer: base64 in any number of lines (RFC 8951 3.1) of a SignedData without signers (RFC 7030 4.1.3).
func certsOnly(a *web.Answer) ([]*x509.Certificate, error) {
	if kind, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(kind), "application/pkcs7-mime") {
		return nil, fmt.Errorf("the answer is %q and not application/pkcs7-mime", kind)
	}
	return ParseCertsOnly(a.Body)
}

// ParseCertsOnly reads the body of an answer.
func ParseCertsOnly(body []byte) ([]*x509.Certificate, error) {
	text := strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\r\n", r) {
			return -1
		}
		return r
	}, string(body))
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("the answer: %w", err)
	}
	sd, err := wcce.ParseSignedData(der)
	if err != nil {
		return nil, fmt.Errorf("the answer: %w", err)
	}
	if len(sd.Certificates) == 0 || len(sd.Signers) > 0 || len(sd.Content) > 0 {
		return nil, errors.New("the answer is not a list of certificates")
	}
	return sd.Certificates, nil
}

// Revoke cannot: EST has no such operation.
func (ca *CA) Revoke(_ context.Context, serial *big.Int, _ int) error {
	return fmt.Errorf("CA %q speaks EST, which cannot revoke: revoke the serial number %s at the CA itself", ca.o.Name, serial.Text(16))
}

// Chain returns the issuing certificate and those above it.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

// fetchChain asks for the CA's certificates (RFC 7030 4.1), which come in no order. The issuing one is that of the last certificate; before
// the first one, that which has issued none of the others.
func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	a, err := ca.web.Do(ctx, web.Request{Method: http.MethodGet, Path: ca.path + "cacerts", Accept: "application/pkcs7-mime"})
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, a.Fail(product, "")
	}
	certs, err := certsOnly(a)
	if err != nil {
		return nil, err
	}
	i := -1
	if known := ca.chain.Known(); known != nil {
		i = slices.IndexFunc(certs, known[0].Equal)
	}
	if i < 0 {
		i = slices.IndexFunc(certs, func(c *x509.Certificate) bool {
			return c.IsCA && !slices.ContainsFunc(certs, func(other *x509.Certificate) bool { return !other.Equal(c) && other.CheckSignatureFrom(c) == nil })
		})
	}
	if i < 0 {
		return nil, errors.New("none of the certificates that the server names is that of an issuing CA")
	}
	certs[0], certs[i] = certs[i], certs[0]
	return certs, nil
}
