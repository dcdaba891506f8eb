package scep

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// peers are who decrypts requests and who signs answers.
type peers struct {
	recipient *x509.Certificate
	signers   []*x509.Certificate
}

// required are the abilities without which nothing is sent; SCEPStandard stands for all of them (RFC 8894 3.5.2).
var required = []string{"AES", "SHA-256", "POSTPKIOperation"}

// peer asks what the CA can do and who it is, once an hour. Its errors say that nothing was issued.
func (ca *CA) peer(ctx context.Context) (*peers, error) {
	ca.mu.Lock()
	known := ca.peers
	fresh := known != nil && ca.o.Now().Before(ca.until)
	ca.mu.Unlock()
	if fresh {
		return known, nil
	}
	if err := ca.capable(ctx); err != nil {
		return nil, upstream.NotIssued(err)
	}
	certs := append(append([]*x509.Certificate(nil), ca.o.Responders...), ca.o.Issuing...)
	if len(ca.o.Responders) == 0 {
		var err error
		if certs, err = ca.certificates(ctx); err != nil {
			return nil, upstream.NotIssued(err)
		}
	}
	p, err := ca.choose(certs)
	if err != nil {
		return nil, upstream.NotIssued(err)
	}
	ca.mu.Lock()
	ca.peers, ca.until = p, ca.o.Now().Add(chain.Age)
	ca.mu.Unlock()
	return p, nil
}

func (ca *CA) capable(ctx context.Context) error {
	a, err := ca.web.Do(ctx, web.Request{Method: http.MethodGet, Path: "?operation=GetCACaps"})
	if err != nil {
		return err
	}
	if !a.OK() {
		return a.Fail(product, "")
	}
	can := map[string]bool{}
	for line := range strings.Lines(string(a.Body)) {
		can[strings.ToLower(strings.TrimSpace(line))] = true
	}
	for _, ability := range required {
		if !can[strings.ToLower(ability)] && !can["scepstandard"] {
			return fmt.Errorf("%s does not say that it can do %s (GetCACaps), which is required", product, ability)
		}
	}
	return nil
}

// certificates asks for the CA's certificates (GetCACert, RFC 8894 4.2). Nothing protects the answer.
func (ca *CA) certificates(ctx context.Context) ([]*x509.Certificate, error) {
	a, err := ca.web.Do(ctx, web.Request{Method: http.MethodGet, Path: "?operation=GetCACert"})
	if err != nil {
		return nil, err
	}
	if !a.OK() {
		return nil, a.Fail(product, "")
	}
	return parseCACert(a.Body)
}

// parseCACert reads one certificate, or SignedData with several.
func parseCACert(body []byte) ([]*x509.Certificate, error) {
	if cert, err := x509.ParseCertificate(body); err == nil {
		return []*x509.Certificate{cert}, nil
	}
	signed, err := wcce.ParseSignedData(body)
	if err != nil {
		return nil, fmt.Errorf("GetCACert of %s: %w", product, err)
	}
	if len(signed.Certificates) == 0 {
		return nil, fmt.Errorf("GetCACert of %s names no certificate", product)
	}
	return signed.Certificates, nil
}

// choose finds who can be believed, and whom to encrypt to: a registration authority before the CA.
func (ca *CA) choose(certs []*x509.Certificate) (*peers, error) {
	p := &peers{}
	between := x509.NewCertPool()
	for _, c := range append(certs, ca.o.Issuing...) {
		between.AddCert(c)
	}
	var why error
	for _, c := range certs {
		configured := false
		for _, r := range ca.o.Responders {
			configured = configured || r.Equal(c)
		}
		if !c.IsCA && !configured && !ca.secure {
			why = fmt.Errorf("%q is no CA, and named over plain HTTP: name it as responder, or use HTTPS", c.Subject)
			continue
		}
		options := x509.VerifyOptions{Roots: ca.chain.Roots(), Intermediates: between, CurrentTime: ca.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := c.Verify(options); err != nil {
			why = err
			continue
		}
		p.signers = append(p.signers, c)
		_, isRSA := c.PublicKey.(*rsa.PublicKey)
		if isRSA && (p.recipient == nil || p.recipient.IsCA && !c.IsCA || p.recipient.IsCA && c.IsCA && bytes.Equal(c.RawIssuer, p.recipient.RawSubject)) &&
			(c.IsCA || c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageKeyEncipherment != 0) {
			p.recipient = c
		}
	}
	if p.recipient == nil {
		return nil, errors.Join(fmt.Errorf("%s names nobody with an RSA key to encrypt to who chains to a configured root", product), why)
	}
	return p, nil
}
