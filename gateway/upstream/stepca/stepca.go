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
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
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
	o     Options
	base  string
	key   *provisionerKey
	web   *web.Client
	chain *chain.Keeper
}

// New reads the key and the saved chain. It does not connect: a CA that is down must not keep the gateway from starting.
func New(o Options) (*CA, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("CA %q: the address %q is not https://HOST[:PORT]", o.Name, o.URL)
	}
	ca := &CA{o: o, base: "https://" + u.Host}
	if ca.key, err = readKey(o.Key, o.Password); err != nil {
		return nil, fmt.Errorf("CA %q: %w", o.Name, err)
	}
	ca.o.Key, ca.o.Password = nil, nil
	if ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now}); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range o.Roots {
		pool.AddCert(c)
	}
	if ca.web, err = web.New(web.Options{CA: o.Name, URL: ca.base, TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, Timeout: o.Timeout}); err != nil {
		return nil, err
	}
	return ca, nil
}

// minRSABits is what step-ca accepts.
const minRSABits = 2048

// Check refuses what step-ca cannot sign: it insists on a request that its key has signed.
func (ca *CA) Check(order upstream.Order) error {
	csr, err := upstream.SignedCSR(order, "a step-ca")
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
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
	if web.Status(err) != http.StatusUnauthorized {
		return ca.outcome(result, err)
	}
	// 401 is either a used token or one that step-ca does not accept at all; it tells nobody which. A new token decides.
	if result, err = ca.sign(ctx, order, first+"."+randomID()); upstream.IsNotIssued(err) {
		err = errors.New(err.Error()) // now; before, perhaps
	}
	if status := web.Status(err); status == http.StatusBadRequest || status == http.StatusForbidden {
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
	if e, ok := errors.AsType[*web.StatusError](err); ok && (e.Status == http.StatusBadRequest || e.Status == http.StatusForbidden) {
		return upstream.Result{State: upstream.Refused, Reason: e.Message}, nil
	}
	switch wrapped := fmt.Errorf("CA %q: %w", ca.o.Name, err); {
	case err == nil:
		return result, nil
	case upstream.IsNotIssued(err):
		return upstream.Result{}, upstream.NotIssued(wrapped)
	default:
		return upstream.Result{}, wrapped
	}
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
	if err := ca.chain.Check(ctx, cert, certificates(answer.Chain[1:])); err != nil {
		return upstream.Result{}, err
	}
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
	if e, ok := errors.AsType[*web.StatusError](err); ok && e.Status == http.StatusBadRequest && strings.Contains(e.Message, "already revoked") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, text, err)
	}
	return nil
}

// Chain returns the issuing certificate and those above it. While step-ca cannot be asked the last known chain is returned.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	var answer struct {
		Certificates []certificate `json:"crts"`
	}
	if err := ca.call(ctx, http.MethodGet, "/1.0/intermediates", nil, &answer); err != nil {
		return nil, err
	}
	return certificates(answer.Certificates), nil
}

func certificates(list []certificate) (out []*x509.Certificate) {
	for _, c := range list {
		if c.Certificate != nil {
			out = append(out, c.Certificate)
		}
	}
	return out
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

const product = "step-ca"

// call makes one HTTP request.
func (ca *CA) call(ctx context.Context, method, path string, body, answer any) error {
	return ca.web.JSON(ctx, product, web.Request{Method: method, Path: path}, body, answer, func(text []byte) string {
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &e) != nil {
			return ""
		}
		return e.Message
	})
}

// Traits tells what step-ca can take.
func (ca *CA) Traits() upstream.Traits { return upstream.Traits{Product: product} }
