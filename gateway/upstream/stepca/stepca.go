// Package stepca issues through smallstep's step-ca, over its HTTP API.
//
// step-ca takes a CSR and a one-time token of a JWK provisioner. The CSR of a Windows client says nothing about the
// certificate; what was decided travels in the token, and Template, which the administrator gives to the provisioner, makes
// the certificate from it, octet for octet. The token is bound to the CSR.
//
// step-ca has no way to ask what became of a request. A lost answer is settled by the serial number, which is derived from
// the order and goes into the certificate: repeating an order yields the same certificate again (with an ECDSA CA, under
// another signature), and revoking the number strikes the certificate whether or not anybody has seen it. Therefore an
// order never has two certificates. Where a repeated order is refused, its number is revoked, because the first answer
// may have been a certificate.
package stepca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	_ "embed" // Template
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Template is what the provisioner needs as its X.509 template (options.x509.templateFile in ca.json). Its templateData may
// have crlDistributionPoints and issuingCertificateURL, each a list of addresses.
//
//go:embed template.json
var Template string

// Options configure the driver.
type Options struct {
	Name        string              // of the CA, for messages
	URL         string              // https://HOST[:PORT]
	Roots       []*x509.Certificate // pinned: step-ca's TLS certificate and all that it issues must chain to one of them
	Provisioner string
	Key         []byte        // the provisioner's encrypted JWK
	Password    []byte        // of Key
	ChainFile   string        // keeps the CA's chain for when it cannot be asked; "" keeps it in memory only
	Timeout     time.Duration // of one HTTP request; default 15 s
	Now         func() time.Time
}

// CA is a step-ca server. It implements upstream.Issuer and upstream.Checker.
type CA struct {
	o    Options
	base string
	key  *provisionerKey
	pool *x509.CertPool
	http *http.Client

	mu      sync.Mutex // guards chain, fetched
	chain   []*x509.Certificate
	fetched time.Time
}

// New reads the key and the saved chain. It does not connect: a CA that is down must not keep the gateway from starting.
func New(o Options) (*CA, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("CA %q: the address %q is not https://HOST[:PORT]", o.Name, o.URL)
	}
	if len(o.Roots) == 0 {
		return nil, fmt.Errorf("CA %q: no root certificate", o.Name)
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	ca := &CA{o: o, base: "https://" + u.Host, pool: x509.NewCertPool()}
	for _, c := range o.Roots {
		ca.pool.AddCert(c)
	}
	if ca.key, err = readKey(o.Key, o.Password); err != nil {
		return nil, fmt.Errorf("CA %q: %w", o.Name, err)
	}
	ca.o.Key, ca.o.Password = nil, nil
	ca.http = &http.Client{
		Timeout:       o.Timeout,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("step-ca does not redirect") },
	}
	ca.loadChain()
	return ca, nil
}

// minRSABits is what step-ca accepts.
const minRSABits = 2048

// Check refuses what step-ca cannot sign: it insists on a request that its key has signed.
func (ca *CA) Check(order upstream.Order) error {
	csr, err := wcce.ParseCSR(order.CSR)
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	switch err := csr.Verify(true); {
	case err != nil:
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	case csr.NullSignature:
		return fmt.Errorf("CA %q is a step-ca, which needs a request that is signed with its own key; this one has a hash in place of the signature", ca.o.Name)
	}
	switch k := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("CA %q is a step-ca, which takes RSA keys from %d bits on; this one has %d", ca.o.Name, minRSABits, k.N.BitLen())
		}
	case *ecdsa.PublicKey:
	default:
		return fmt.Errorf("CA %q is a step-ca, which does not take keys of type %T", ca.o.Name, k)
	}
	parsed, err := x509.ParseCertificateRequest(order.CSR)
	if err != nil {
		return fmt.Errorf("CA %q is a step-ca, which cannot read the request: %w", ca.o.Name, err)
	}
	if err := parsed.CheckSignature(); err != nil {
		return fmt.Errorf("CA %q is a step-ca, which cannot verify the request: %w", ca.o.Name, err)
	}
	return nil
}

// Submit asks for the certificate. The first token of an order always has the same id, which step-ca takes once only: when
// it is used up, the order was there before and its answer was lost.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	sum, err := digest("token", order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	first := base64.RawURLEncoding.EncodeToString(sum[:16])
	result, err := ca.sign(ctx, order, first)
	if !isStatus(err, http.StatusUnauthorized) {
		return ca.outcome(result, err)
	}
	// 401 is either a used token or one that step-ca does not accept at all; it tells nobody which. A new token decides.
	result, err = ca.sign(ctx, order, first+"."+randomID())
	if isStatus(err, http.StatusBadRequest) || isStatus(err, http.StatusForbidden) {
		serial, errSerial := serialOf(order)
		if errSerial != nil {
			return upstream.Result{}, errSerial
		}
		if revokeErr := ca.Revoke(ctx, serial, reasonCessation); revokeErr != nil {
			return upstream.Result{}, errors.Join(err, revokeErr)
		}
	}
	return ca.outcome(result, err)
}

const reasonCessation = 5 // cessationOfOperation (RFC 5280 5.3.1)

// outcome tells a final refusal from an answer that is not known.
func (ca *CA) outcome(result upstream.Result, err error) (upstream.Result, error) {
	if e, ok := errors.AsType[*statusError](err); ok && (e.status == http.StatusBadRequest || e.status == http.StatusForbidden) {
		return upstream.Result{State: upstream.Refused, Reason: e.message}, nil
	}
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return result, nil
}

// Find is Submit: the same order gives the same certificate.
func (ca *CA) Find(ctx context.Context, order upstream.Order, _ string) (upstream.Result, error) {
	return ca.Submit(ctx, order)
}

// sign makes one attempt.
func (ca *CA) sign(ctx context.Context, order upstream.Order, tokenID string) (upstream.Result, error) {
	csr, err := x509.ParseCertificateRequest(order.CSR)
	if err != nil {
		return upstream.Result{}, err
	}
	serial, err := serialOf(order)
	if err != nil {
		return upstream.Result{}, err
	}
	subject := csr.Subject.CommonName
	if subject == "" {
		subject = order.ID
	}
	fingerprint := sha256.Sum256(order.CSR)
	token, err := ca.key.sign(claims{
		Issuer: ca.o.Provisioner, Audience: ca.base + "/1.0/sign", Subject: subject, ID: tokenID, SANs: requestedNames(csr),
		Confirm: &confirmation{Fingerprint: base64.RawURLEncoding.EncodeToString(fingerprint[:])}, Enrollgate: contentsOf(order, serial),
	}, ca.o.Now())
	if err != nil {
		return upstream.Result{}, err
	}
	var answer struct {
		Chain []certificate `json:"certChain"`
	}
	err = ca.call(ctx, http.MethodPost, "/1.0/sign", map[string]string{
		"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: order.CSR})), "ott": token,
	}, &answer)
	if err != nil {
		return upstream.Result{}, err
	}
	if len(answer.Chain) == 0 || answer.Chain[0].Certificate == nil {
		return upstream.Result{}, errors.New("step-ca answered without a certificate")
	}
	cert := answer.Chain[0].Certificate
	chain, err := ca.verify(answer.Chain[1:])
	if err != nil {
		return upstream.Result{}, err
	}
	if err := cert.CheckSignatureFrom(chain[0]); err != nil {
		return upstream.Result{}, fmt.Errorf("the certificate is not signed by %q: %w", chain[0].Subject, err)
	}
	ca.keepChain(chain)
	if cert.SerialNumber.Cmp(serial) != 0 {
		reason := fmt.Sprintf("step-ca did not use the serial number of the order: its provisioner %q does not have enrollgate's X.509 template", ca.o.Provisioner)
		if err := ca.Revoke(ctx, cert.SerialNumber, reasonCessation); err != nil {
			reason += fmt.Sprintf("; and the certificate could not be revoked: %v", err)
		}
		return upstream.Result{State: upstream.Refused, Reason: reason}, nil
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

// Revoke revokes a serial number, issued or not. Revoking twice is no error.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	if reason < 0 || reason > 10 || reason == 7 {
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	}
	text := serial.String()
	token, err := ca.key.sign(claims{Issuer: ca.o.Provisioner, Audience: ca.base + "/1.0/revoke", Subject: text, ID: randomID()}, ca.o.Now())
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	err = ca.call(ctx, http.MethodPost, "/1.0/revoke", map[string]any{"serial": text, "ott": token, "reasonCode": reason, "passive": true}, nil)
	if e, ok := errors.AsType[*statusError](err); ok && e.status == http.StatusBadRequest && strings.Contains(e.message, "already revoked") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, text, err)
	}
	return nil
}

// chainAge is for how long a chain is used without asking again.
const chainAge = time.Hour

// Chain returns the issuing certificate and those above it. While step-ca cannot be asked the last known chain is returned.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) {
	ca.mu.Lock()
	known, fetched := ca.chain, ca.fetched
	ca.mu.Unlock()
	if known != nil && ca.o.Now().Sub(fetched) < chainAge {
		return known, nil
	}
	var answer struct {
		Certificates []certificate `json:"crts"`
	}
	err := ca.call(ctx, http.MethodGet, "/1.0/intermediates", nil, &answer)
	var chain []*x509.Certificate
	if err == nil {
		chain, err = ca.verify(answer.Certificates)
	}
	switch {
	case err == nil:
		ca.keepChain(chain)
		return chain, nil
	case known != nil:
		ca.mu.Lock()
		ca.fetched = ca.o.Now().Add(time.Minute - chainAge) // ask again in a minute
		ca.mu.Unlock()
		return known, nil
	}
	return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
}

// verify orders the certificates from the issuing one, which step-ca names first, to a pinned root.
func (ca *CA) verify(list []certificate) ([]*x509.Certificate, error) {
	if len(list) == 0 || list[0].Certificate == nil {
		return nil, errors.New("step-ca named no intermediate certificate")
	}
	between := x509.NewCertPool()
	for _, c := range list[1:] {
		if c.Certificate != nil {
			between.AddCert(c.Certificate)
		}
	}
	issuing := list[0].Certificate
	chains, err := issuing.Verify(x509.VerifyOptions{Roots: ca.pool, Intermediates: between, CurrentTime: ca.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("the issuing certificate %q does not chain to the pinned root: %w", issuing.Subject, err)
	}
	return chains[0], nil
}

func (ca *CA) keepChain(chain []*x509.Certificate) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.fetched = ca.o.Now()
	if len(ca.chain) > 0 && ca.chain[0].Equal(chain[0]) {
		return
	}
	ca.chain = chain
	if ca.o.ChainFile == "" {
		return
	}
	var text []byte
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	// The file is a convenience; without it the chain is asked for again.
	temporary := ca.o.ChainFile + ".new"
	if os.MkdirAll(filepath.Dir(temporary), 0o700) == nil && os.WriteFile(temporary, text, 0o600) == nil {
		_ = os.Rename(temporary, ca.o.ChainFile)
	}
}

// loadChain takes the saved chain if it still leads to a pinned root.
func (ca *CA) loadChain() {
	text, err := os.ReadFile(ca.o.ChainFile)
	if err != nil {
		return
	}
	var list []certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return
		}
		list = append(list, certificate{cert})
	}
	if chain, err := ca.verify(list); err == nil {
		ca.chain = chain // fetched stays zero: it is asked for again when first needed
	}
}

// certificate is a certificate in a JSON answer: PEM in a string.
type certificate struct{ *x509.Certificate }

// UnmarshalJSON reads the PEM text.
func (c *certificate) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return errors.New("not a certificate in PEM form")
	}
	var err error
	c.Certificate, err = x509.ParseCertificate(block.Bytes)
	return err
}

// statusError is an answer that is no success.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("step-ca answered %d: %s", e.status, e.message)
}

func isStatus(err error, status int) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.status == status
}

const maxAnswer = 1 << 20

// call makes one HTTP request.
func (ca *CA) call(ctx context.Context, method, path string, body, answer any) error {
	var content []byte
	if body != nil {
		var err error
		if content, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, ca.base+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := ca.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if res.StatusCode/100 != 2 {
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &e) != nil || e.Message == "" {
			e.Message = http.StatusText(res.StatusCode)
		}
		return &statusError{res.StatusCode, e.Message}
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("the answer of step-ca: %w", err)
	}
	return nil
}
