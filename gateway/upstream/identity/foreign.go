package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
)

// usageCMC is id-kp-cmcCA (RFC 6402 2.10): the holder answers CMC requests for the CA that issued the certificate. Without a
// purpose of its own, everybody with a certificate of the CA could sign responses in its name.
var usageCMC = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 27}

const (
	responseValidity = 90 * 24 * time.Hour
	clockSkew        = 10 * time.Minute
	askTimeout       = 30 * time.Second
	retryAfter       = time.Minute
)

// Options configure Foreign.
type Options struct {
	Dir    string // for the key and certificate
	CA     string // name as the directory publishes it
	Secret []byte // encrypts the key
	Issuer upstream.Issuer
	// Tolerance is in what the CA may differ from what was ordered.
	Tolerance upstream.Tolerance
	Now       func() time.Time
}

// foreign is the foreign CA itself, with certificates that it issued to the gateway.
type foreign struct {
	o   Options
	key crypto.Signer

	renewing sync.Mutex // held while the CA is asked

	mu    sync.Mutex          // guards what follows
	chain []*x509.Certificate // the response certificate and what is above it
	tried time.Time           // last failed renewal
}

// Foreign has the CA issue a response certificate to the gateway, unless a good one is in Dir. On first start the CA must
// answer; later an old certificate serves while it does not.
func Foreign(ctx context.Context, o Options) (upstream.Identity, error) {
	f := &foreign{o: o}
	var err error
	if f.key, err = loadOrCreateKey(path(o.Dir, "response", o.CA, ".key"), o.Secret); err != nil {
		return nil, fmt.Errorf("CA %q: enrollment identity: %w", o.CA, err)
	}
	if certs, err := local.LoadCertificates(f.file()); err == nil && len(certs) > 1 && belongs(certs[0], f.key) && certs[0].CheckSignatureFrom(certs[1]) == nil {
		f.chain = certs
	}
	if _, _, _, err := f.ResponseSigner(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *foreign) file() string { return path(f.o.Dir, "response", f.o.CA, ".pem") }

func (f *foreign) current() []*x509.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.chain
}

// Certificate is the CA that issued the response certificate.
func (f *foreign) Certificate() *x509.Certificate { return f.current()[1] }

// Chain is Certificate and what is above it.
func (f *foreign) Chain() []*x509.Certificate { return f.current()[1:] }

// ResponseSigner returns the response certificate and its key. In the last third of its life it is renewed; while that
// fails the old one is used.
func (f *foreign) ResponseSigner(ctx context.Context) (*x509.Certificate, crypto.Signer, crypto.Hash, error) {
	now := f.o.Now()
	f.mu.Lock()
	chain, tried := f.chain, f.tried
	f.mu.Unlock()
	usable := len(chain) > 0 && now.Before(chain[0].NotAfter)
	if !usable || f.old(chain[0], now) && now.Sub(tried) > retryAfter {
		if usable && !f.renewing.TryLock() { // somebody else is at it
			return chain[0], f.key, crypto.SHA256, nil
		}
		if !usable {
			f.renewing.Lock()
		}
		err := f.renew(ctx)
		f.renewing.Unlock()
		if err != nil && !usable {
			return nil, nil, 0, fmt.Errorf("CA %q: certificate for signing responses: %w", f.o.CA, err)
		}
		chain = f.current()
	}
	return chain[0], f.key, crypto.SHA256, nil
}

func (f *foreign) old(cert *x509.Certificate, now time.Time) bool {
	return cert.NotAfter.Sub(now) < cert.NotAfter.Sub(cert.NotBefore)/3
}

// renew gets a new response certificate; the caller holds renewing.
func (f *foreign) renew(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			f.mu.Lock()
			f.tried = f.o.Now()
			f.mu.Unlock()
		}
	}()
	if chain := f.current(); len(chain) > 0 && !f.old(chain[0], f.o.Now()) {
		return nil // it was renewed while we waited
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	above, err := f.o.Issuer.Chain(ctx)
	if err != nil {
		return err
	}
	profile, err := responseProfile(above[0], f.o.Now())
	if err != nil {
		return err
	}
	csr, err := upstream.NewCSR(profile, f.key)
	if err != nil {
		return err
	}
	var nonce [8]byte
	rand.Read(nonce[:])
	cert, err := f.issue(ctx, upstream.Order{ID: "response-" + hex.EncodeToString(nonce[:]), CSR: csr, PublicKey: f.key.Public(), Profile: profile})
	if err != nil {
		return err
	}
	// The CA may have changed its issuing certificate since.
	if above, err = f.o.Issuer.Chain(ctx); err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(above[0]); err != nil {
		return fmt.Errorf("the response certificate is not signed by %q: %w", above[0].Subject, err)
	}
	chain := append([]*x509.Certificate{cert}, above...)
	if err := writeFile(f.file(), encodePEM(chain...)); err != nil {
		return err
	}
	f.mu.Lock()
	f.chain = chain
	f.mu.Unlock()
	return nil
}

// IssueExchange has the CA issue an exchange certificate.
func (f *foreign) IssueExchange(order upstream.Order) (*x509.Certificate, error) {
	if len(order.CSR) == 0 {
		return nil, fmt.Errorf("CA %q: a foreign CA issues an exchange certificate for a signed request only", f.o.CA)
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	return f.issue(ctx, order)
}

// issue orders a certificate for the gateway and checks what comes.
func (f *foreign) issue(ctx context.Context, order upstream.Order) (*x509.Certificate, error) {
	result, err := f.o.Issuer.Submit(ctx, order)
	switch {
	case err != nil:
		return nil, err
	case result.State == upstream.Refused:
		return nil, errors.New("the CA refused: " + result.Reason)
	case result.State != upstream.Issued:
		return nil, errors.New("the CA lets the gateway's own certificate wait for somebody's approval; it has to issue it at once")
	}
	if err := upstream.Compare(order, result.Certificate, f.o.Tolerance); err != nil {
		err = fmt.Errorf("the CA issued another certificate than ordered: %w", err)
		return nil, errors.Join(err, f.o.Issuer.Revoke(ctx, result.Certificate.SerialNumber, 5))
	}
	return result.Certificate, nil
}

// responseProfile is the shape of the response certificate: the CA's name with "-CMC" added, as exchange certificates have
// "-Xchg".
func responseProfile(ca *x509.Certificate, now time.Time) (templates.CertificateProfile, error) {
	name := ca.Subject.CommonName
	if name == "" {
		name = "CA"
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: name + "-CMC"}.ToRDNSequence())
	if err != nil {
		return templates.CertificateProfile{}, err
	}
	usages, err := asn1.Marshal([]asn1.ObjectIdentifier{usageCMC})
	if err != nil {
		return templates.CertificateProfile{}, err
	}
	start := now.UTC().Truncate(time.Second).Add(-clockSkew)
	end := start.Add(responseValidity)
	if end.After(ca.NotAfter) {
		end = ca.NotAfter.UTC()
	}
	return templates.CertificateProfile{
		Template: "CMCResponse", Subject: subject, SubjectText: "CN=" + name + "-CMC", NotBefore: start, NotAfter: end,
		Extensions: []templates.Extension{
			{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x07, 0x80}}, // digitalSignature
			{OID: wcce.OIDEKU, Value: usages},
		},
	}, nil
}
