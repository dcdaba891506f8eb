// Package acme issues through any ACME CA (RFC 8555) at which the gateway's account needs to prove nothing: one with external account
// binding whose names are authorized beforehand. The gateway answers no challenges; an order for which the CA wants one is refused, by
// the names that it wants it for.
//
// ACME takes names from the client's PKCS#10 request, and only DNS names here; the CA's own profile says key usage, extended key usage and
// validity, and the gateway compares what comes back.
//
// An order at the CA leads to one certificate at most, and before it is finalized to none. Until then each failure is certain to have
// issued nothing. After that its address names it: an answer that was lost is asked for there, and an order that the CA has not seen
// finalized is finalized again. Only a gateway that was killed between the two has lost the address, and then nobody can tell: ACME has
// no list of orders that every CA serves.
//
// A certificate is revoked by its own octets (RFC 8555 7.6), not by number: the driver keeps what it is given in Dir. Without Dir, and for
// what another instance was given, Revoke says that it cannot.
package acme

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
	"golang.org/x/crypto/acme"
)

// Options configure the driver.
type Options struct {
	Name      string              // of the CA, for messages
	Directory string              // https://HOST[:PORT]/PATH of the CA's directory
	Roots     []*x509.Certificate // all that the CA issues must chain to one of them
	TLS       *tls.Config         // whom to trust as the CA's server; nil for the system's roots

	Key     crypto.Signer // of the account
	Contact []string      // "mailto:pki@corp.example"; may be empty
	KeyID   string        // external account binding (RFC 8555 7.3.4); "" for none
	MACKey  []byte        // its key

	Ignore    []string      // further extensions that the client's request need not say, by OID
	Dir       string        // keeps certificates, for revocation; "": there is none
	ChainFile string        // keeps the CA's chain for the next start; "" keeps it in memory only
	Timeout   time.Duration // of one HTTP request; default 15 s
	Wait      time.Duration // how long to wait for a CA that is processing, before the order is pending; default 10 s
	Now       func() time.Time
}

// CA is an ACME CA. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o      Options
	client *acme.Client
	chain  *chain.Keeper

	mu         sync.Mutex // guards registered
	registered bool
}

// New checks the options. It does not connect.
func New(o Options) (*CA, error) {
	u, err := url.Parse(o.Directory)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("CA %q: the directory %q is not https://HOST[:PORT]/PATH", o.Name, o.Directory)
	}
	if o.Key == nil {
		return nil, fmt.Errorf("CA %q: the account's key is missing", o.Name)
	}
	if (o.KeyID == "") != (len(o.MACKey) == 0) {
		return nil, fmt.Errorf("CA %q: key ID and MAC key of the external account binding go together", o.Name)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	if o.Wait == 0 {
		o.Wait = 10 * time.Second
	}
	config := o.TLS.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	config.MinVersion = tls.VersionTLS12
	ca := &CA{o: o}
	ca.client = &acme.Client{Key: o.Key, DirectoryURL: o.Directory, UserAgent: "enrollgate", RetryBackoff: again, HTTPClient: &http.Client{
		Timeout: o.Timeout,
		Transport: &boundary{host: u.Host, next: web.Bounded(&http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, MaxIdleConnsPerHost: 16,
			IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10}, maxAnswer)},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// again lets the library repeat only what a CA refused for its nonce, which it did not look at.
func again(n int, _ *http.Request, res *http.Response) time.Duration {
	if res != nil && res.StatusCode == http.StatusBadRequest && n <= 5 {
		return time.Millisecond
	}
	return -1
}

// boundary keeps requests at the directory's host, whatever addresses answers name.
type boundary struct {
	host string
	next http.RoundTripper
}

const maxAnswer = 1 << 20

func (b *boundary) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || r.URL.Host != b.host {
		return nil, fmt.Errorf("the CA names an address at %q, and its directory is at %q", r.URL.Host, b.host)
	}
	return b.next.RoundTrip(r)
}

// Traits tell that names are the request's, and that a gateway that was killed at the wrong moment cannot find out.
func (ca *CA) Traits() upstream.Traits {
	return upstream.Traits{Product: "ACME", Names: upstream.NamesInCSR, Repetition: upstream.RepeatBlind, NoRevocation: ca.o.Dir == ""}
}

// fromProfile are extensions that ACME CAs make from their own profile.
var fromProfile = []string{wcce.OIDKeyUsage, wcce.OIDEKU}

// Check refuses what no ACME order can be about: names that are not DNS names, and whatever the request does not say.
func (ca *CA) Check(order upstream.Order) error {
	if _, err := ca.names(order); err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return nil
}

// names are the DNS names in the client's request.
func (ca *CA) names(order upstream.Order) ([]string, error) {
	csr, err := upstream.SignedCSR(order, "asked by ACME")
	if err != nil {
		return nil, err
	}
	if err := upstream.CarriedByCSR(order, append(fromProfile, ca.o.Ignore...)); err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificateRequest(order.CSR)
	if err != nil {
		return nil, err
	}
	alternative, err := countNames(csr.Extension(wcce.OIDSAN))
	if err != nil {
		return nil, err
	}
	switch cn := parsed.Subject.CommonName; {
	case len(parsed.DNSNames) == 0:
		return nil, errors.New("ACME is for DNS names, and the request has none")
	case alternative != len(parsed.DNSNames):
		return nil, fmt.Errorf("ACME is for DNS names, and the request has %d others", alternative-len(parsed.DNSNames))
	case len(parsed.Subject.Names) > 1 || len(parsed.Subject.Names) == 1 && !slices.Contains(parsed.DNSNames, cn):
		return nil, fmt.Errorf("ACME takes nothing into the subject but one of the DNS names as common name, and the request's is %q", dn.Show(csr.RawSubject))
	}
	return parsed.DNSNames, nil
}

// register makes the account, or finds it by its key, once.
func (ca *CA) register(ctx context.Context) error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.registered {
		return nil
	}
	account := &acme.Account{Contact: ca.o.Contact}
	if ca.o.KeyID != "" {
		account.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: ca.o.KeyID, Key: ca.o.MACKey}
	}
	if _, err := ca.client.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return fmt.Errorf("the account: %w", plain(err))
	}
	ca.registered = true
	return nil
}

// problem is what the CA says, without control characters.
type problem struct {
	status int
	kind   string // the last part of the problem's type: "badCSR"
	text   string
}

func (p *problem) Error() string {
	return fmt.Sprintf("the ACME server answered %d %s: %s", p.status, p.kind, p.text)
}

// plain takes the CA's words out of an error of the library.
func plain(err error) error {
	if e, ok := errors.AsType[*acme.Error](err); ok {
		return &problem{e.StatusCode, clean(e.ProblemType[strings.LastIndexByte(e.ProblemType, ':')+1:], 40), clean(e.Detail, 300)}
	}
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	return errors.New(clean(err.Error(), 300))
}

func clean(text string, most int) string {
	if r := []rune(dn.Clean(text)); len(r) > most {
		return string(r[:most]) + "…"
	}
	return dn.Clean(text)
}

// Chain returns the CA's certificate and those above it, as seen with the last certificate.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }
