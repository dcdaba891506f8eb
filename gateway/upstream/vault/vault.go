// Package vault issues through the PKI secrets engine of HashiCorp Vault, or of OpenBao, which has the same calls and is tried by hand
// only.
//
// There are two ways to sign, of which the administrator chooses one. With a role (/sign/:role) the common name, the serial number
// attribute and the alternative names travel beside the request, and the role says everything else: the rest of the subject, key usage,
// extended key usages and policies. No other extension can be carried. The driver reads the role before each order, makes of role and order
// the certificate that Vault will make of them, and refuses what would differ from the decision before anything is sent. It also refuses to
// work with a role that takes names from requests (use_csr_common_name, use_csr_sans), that does not store what it signs (no_store: it
// could be neither found nor revoked), or that revokes certificates together with the token (generate_lease).
//
// Verbatim (/sign-verbatim) all comes from the request, with every extension that is in it. A request of Windows has no names unless the
// template lets the enrollee supply them: other orders are refused by name.
//
// Vault has no name for an order that it would recognize. What became of a lost answer is found by looking for the public key in all
// certificates that are stored, of which those looked at before are remembered. Where there is none Vault may still be working on the
// order, which is pending then; only when no request can be under way any more, after Settled, the order may be submitted again. Where Vault stores more
// certificates than its list can tell at once, nobody can tell.
//
// Vault does not take a reason for a revocation.
package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/settle"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// Options configure the driver.
type Options struct {
	Name      string      // of the CA, for messages
	URL       string      // https://HOST[:PORT]
	TLS       *tls.Config // whom to trust, and the client certificate; nil for the system's roots
	Roots     []*x509.Certificate
	Namespace string // of Vault Enterprise and OpenBao; "" for the root namespace
	Mount     string // of the PKI engine; default pki
	Role      string // required unless Verbatim
	Verbatim  bool
	Issuer    string // name or ID of an issuer in the mount; default: the role's, or the mount's default one

	// Token reads a token anew each time: an agent renews it. Or AppRole logs in.
	Token   func() ([]byte, error)
	AppRole *AppRole

	// Tolerance is in what the certificate may differ from the decision: what the role leaves out or adds.
	Tolerance upstream.Tolerance
	ChainFile string        // keeps the CA's chain for when it cannot be asked; "" keeps it in memory only
	Timeout   time.Duration // of one HTTP request; default 15 s
	// Settled is how long after a lost answer no request can be under way to Vault any more; default settle.Default. Vault itself gives
	// a request up after 90 seconds (default_max_request_duration).
	Settled time.Duration
	Now     func() time.Time
}

// AppRole is a login of a machine.
type AppRole struct {
	Mount    string // default approle
	RoleID   string
	SecretID func() ([]byte, error)
}

// CA is a PKI mount. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o     Options
	web   *web.Client
	auth  *session
	chain *chain.Keeper
	mold  *mold
	found *finder
	lost  *settle.Orders

	mu   sync.Mutex // guards role, read
	role *role
	read time.Time
}

// New checks the options. It does not connect: a CA that is down must not keep the gateway from starting.
func New(o Options) (*CA, error) {
	if o.Role == "" && !o.Verbatim {
		return nil, fmt.Errorf("CA %q: a role is needed, unless it signs requests verbatim", o.Name)
	}
	if (o.Token == nil) == (o.AppRole == nil) {
		return nil, fmt.Errorf("CA %q: either a token or an AppRole is needed", o.Name)
	}
	if o.Mount = strings.Trim(o.Mount, "/"); o.Mount == "" {
		o.Mount = "pki"
	}
	for what, s := range map[string]string{"role": o.Role, "issuer": o.Issuer} {
		if s != url.PathEscape(s) {
			return nil, fmt.Errorf("CA %q: %s %q is not a name that Vault takes", o.Name, what, s)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	header := http.Header{"X-Vault-Request": {"true"}}
	if o.Namespace != "" {
		header.Set("X-Vault-Namespace", o.Namespace)
	}
	client, err := web.New(web.Options{CA: o.Name, URL: o.URL, TLS: o.TLS, Timeout: o.Timeout, Header: header})
	if err != nil {
		return nil, err
	}
	ca := &CA{o: o, web: client, auth: &session{web: client, o: o}, found: newFinder(), lost: settle.New(o.Settled, o.Now)}
	if ca.mold, err = newMold(); err != nil {
		return nil, err
	}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tells what this configuration can take.
func (ca *CA) Traits() upstream.Traits {
	t := upstream.Traits{Product: "HashiCorp Vault", Names: upstream.NamesBeside, Repetition: upstream.RepeatBlind}
	if ca.o.Verbatim {
		t.Names = upstream.NamesInCSR
	}
	return t
}

// minRSABits is what Vault accepts.
const minRSABits = 2048

// Check refuses what neither way of signing can carry, whatever the role says.
func (ca *CA) Check(order upstream.Order) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("CA %q is a Vault, which "+format, append([]any{ca.o.Name}, args...)...)
	}
	csr, err := upstream.SignedCSR(order, "a Vault")
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	switch k := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return refuse("takes RSA keys from %d bits on; this one has %d", minRSABits, k.N.BitLen())
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return refuse("does not take keys of type %T", k)
	}
	parsed, err := x509.ParseCertificateRequest(order.CSR)
	if err == nil {
		err = parsed.CheckSignature()
	}
	if err != nil {
		return refuse("cannot verify the request: %w", err)
	}
	if ca.o.Verbatim {
		if err := ca.mold.verbatim(order, parsed, ca.o.Tolerance); err != nil {
			return refuse("takes everything from the request here (sign: verbatim), and what it would sign is not what was decided: %w", err)
		}
		return nil
	}
	if _, err := beside(order, ca.o.Tolerance); err != nil {
		return refuse("cannot carry this order: %w", err)
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
	body, refusal, err := ca.body(ctx, order)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(fmt.Errorf("CA %q: %w", ca.o.Name, err))
	}
	if refusal != "" {
		return upstream.Result{State: upstream.Refused, Reason: refusal}, nil
	}
	var answer struct {
		Certificate string   `json:"certificate"`
		IssuingCA   string   `json:"issuing_ca"`
		Chain       []string `json:"ca_chain"`
	}
	if err := ca.call(ctx, http.MethodPost, ca.signPath(), body, &answer); err != nil {
		return ca.failed(order, err)
	}
	cert, err := ca.checked(ctx, answer.Certificate, append([]string{answer.IssuingCA}, answer.Chain...))
	if err != nil {
		ca.lost.Lost(order.ID)
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert, Token: serialText(cert.SerialNumber)}, nil
}

// body is what is asked for, or why it is not.
func (ca *CA) body(ctx context.Context, order upstream.Order) (body map[string]any, refusal string, err error) {
	var r *role
	if ca.o.Role != "" {
		if r, err = ca.readRole(ctx); err != nil {
			return nil, "", err
		}
	}
	if ca.o.Verbatim {
		// Without these two Vault adds its defaults to a request that has no such extension.
		body = map[string]any{"key_usage": []string{}, "ext_key_usage": []string{}}
	} else {
		b, err := beside(order, ca.o.Tolerance)
		if err != nil {
			return nil, "", err
		}
		if err := ca.mold.byRole(order, b, r, ca.o.Tolerance); err != nil {
			return nil, fmt.Sprintf("CA %q: its role %q makes other certificates than what was decided: %v", ca.o.Name, ca.o.Role, err), nil
		}
		body = b.fields()
	}
	body["csr"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: order.CSR}))
	body["not_after"] = order.Profile.NotAfter.UTC().Format(time.RFC3339)
	return body, "", nil
}

func (ca *CA) signPath() string {
	path := "/v1/" + ca.o.Mount
	if ca.o.Issuer != "" {
		path += "/issuer/" + ca.o.Issuer
	}
	switch {
	case !ca.o.Verbatim:
		return path + "/sign/" + ca.o.Role
	case ca.o.Role != "":
		return path + "/sign-verbatim/" + ca.o.Role
	}
	return path + "/sign-verbatim"
}

// misconfigured are the beginnings of what Vault says before it signs anything, and not about the order.
var misconfigured = []string{"could not fetch the CA certificate", "unknown role", "missing client token", "unable to resolve issuer"}

// failed tells a final refusal from an answer that is not known.
func (ca *CA) failed(order upstream.Order, err error) (upstream.Result, error) {
	wrapped := fmt.Errorf("CA %q: %w", ca.o.Name, err)
	if e, ok := errors.AsType[*web.StatusError](err); ok {
		switch e.Status {
		case http.StatusBadRequest, http.StatusInternalServerError:
			if slices.ContainsFunc(misconfigured, func(m string) bool { return strings.HasPrefix(e.Message, m) }) {
				return upstream.Result{}, upstream.NotIssued(wrapped)
			}
			if e.Status == http.StatusInternalServerError {
				break
			}
			return upstream.Result{State: upstream.Refused, Reason: e.Message}, nil
		case http.StatusForbidden:
			return upstream.Result{}, upstream.NotIssued(fmt.Errorf("%w; the policy of the token needs update on %s", wrapped, strings.TrimPrefix(ca.signPath(), "/v1/")))
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusPreconditionFailed, http.StatusTooManyRequests:
			return upstream.Result{}, upstream.NotIssued(wrapped)
		case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			return upstream.Result{}, upstream.NotIssued(fmt.Errorf("%w; it is a standby node that forwards nothing: configure the address of the active one", wrapped))
		}
	}
	if !upstream.IsNotIssued(err) {
		ca.lost.Lost(order.ID)
		return upstream.Result{}, wrapped
	}
	return upstream.Result{}, upstream.NotIssued(wrapped)
}

// checked reads a certificate and those above it.
func (ca *CA) checked(ctx context.Context, text string, above []string) (*x509.Certificate, error) {
	cert, err := chain.One([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("the certificate in the answer: %w", err)
	}
	var list []*x509.Certificate
	for _, a := range above {
		c, err := chain.ParsePEM([]byte(a))
		if err != nil {
			return nil, fmt.Errorf("the chain in the answer: %w", err)
		}
		list = append(list, c...)
	}
	return cert, ca.chain.Check(ctx, cert, list)
}

// Revoke revokes a stored certificate. Revoking twice is no error. Vault does not take the reason.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	if reason < 0 || reason > 10 || reason == 7 {
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	}
	var answer struct {
		State string `json:"state"`
	}
	err := ca.call(ctx, http.MethodPost, "/v1/"+ca.o.Mount+"/revoke", map[string]any{"serial_number": serialText(serial)}, &answer)
	if err == nil && answer.State == "pending" {
		err = errors.New("the certificate is of another cluster, which has still to do it")
	}
	if err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, serialText(serial), err)
	}
	return nil
}

// serialText is a serial number as Vault writes it: octets in hexadecimal, with colons.
func serialText(serial *big.Int) string {
	var parts []string
	for _, b := range serial.Bytes() {
		parts = append(parts, fmt.Sprintf("%02x", b))
	}
	return strings.Join(parts, ":")
}

// Chain returns the issuing certificate and those above it.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	issuer := ca.o.Issuer
	if issuer == "" && ca.o.Role != "" {
		r, err := ca.readRole(ctx)
		if err != nil {
			return nil, err
		}
		issuer = r.Issuer
	}
	if issuer == "" {
		issuer = "default"
	}
	var answer struct {
		Certificate string   `json:"certificate"`
		Chain       []string `json:"ca_chain"`
	}
	if err := ca.call(ctx, http.MethodGet, "/v1/"+ca.o.Mount+"/issuer/"+url.PathEscape(issuer)+"/json", nil, &answer); err != nil {
		return nil, err
	}
	return chain.ParsePEM([]byte(answer.Certificate + "\n" + strings.Join(answer.Chain, "\n")))
}

// call makes a request with the token, and once again with a new one where Vault does not know it any more. out is for "data".
func (ca *CA) call(ctx context.Context, method, path string, in, out any) error {
	for again := false; ; again = true {
		token, err := ca.auth.get(ctx)
		if err != nil {
			return upstream.NotIssued(err) // what path is for was not asked for
		}
		var answer struct {
			Data json.RawMessage `json:"data"`
		}
		err = ca.web.JSON(ctx, product, web.Request{Method: method, Path: path, Header: http.Header{"X-Vault-Token": {token}}}, in, &answer, describe)
		switch {
		case web.Status(err) == http.StatusForbidden && !again && ca.auth.drop(ctx, token):
			continue
		case err != nil:
			return err
		case len(answer.Data) == 0 || string(answer.Data) == "null":
			return nil
		}
		if err := json.Unmarshal(answer.Data, out); err != nil {
			return fmt.Errorf("the answer of %s: %w", product, err)
		}
		return nil
	}
}

const product = "Vault"

// describe finds what Vault says in an error.
func describe(body []byte) string {
	var e struct {
		Errors []string `json:"errors"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	return strings.TrimSpace(strings.Join(e.Errors, "; "))
}
