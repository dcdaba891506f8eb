// Package chain keeps the certificates above what a CA issues, and checks what a CA sends against them. Every driver needs it.
package chain

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
)

// Options configure a Keeper.
type Options struct {
	CA    string              // its name, for messages
	Roots []*x509.Certificate // pinned: all that the CA issues must chain to one of them
	// Fetch asks the CA for the issuing certificate and those above it, in any order but that the issuing one is first; nil
	// where the CA tells only together with a certificate.
	Fetch func(ctx context.Context) ([]*x509.Certificate, error)
	// Known are the issuing certificate, first, and those between it and a root, where the administrator says them.
	Known []*x509.Certificate
	File  string // keeps the chain for when the CA cannot be asked; "" keeps it in memory only
	Now   func() time.Time
}

// Keeper knows the chain of a CA. It is safe for concurrent use.
type Keeper struct {
	o    Options
	pool *x509.CertPool

	mu      sync.Mutex // guards chain, fetched
	chain   []*x509.Certificate
	fetched time.Time
}

// New reads the saved chain, if there is any. It does not connect.
func New(o Options) (*Keeper, error) {
	if len(o.Roots) == 0 {
		return nil, fmt.Errorf("CA %q: no root certificate", o.CA)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	k := &Keeper{o: o, pool: x509.NewCertPool()}
	for _, c := range o.Roots {
		k.pool.AddCert(c)
	}
	if len(o.Known) > 0 {
		chain, err := k.Above(o.Known[0], o.Known[1:])
		if err != nil {
			return nil, fmt.Errorf("CA %q: %w", o.CA, err)
		}
		k.chain, k.o.Fetch = chain, nil
		return k, nil
	}
	if o.File != "" {
		if text, err := os.ReadFile(o.File); err == nil {
			if list, err := ParsePEM(text); err == nil && len(list) > 0 {
				if chain, err := k.Above(list[0], list[1:]); err == nil {
					k.chain = chain // fetched stays zero: it is asked for again when first needed
				}
			}
		}
	}
	return k, nil
}

// Age is for how long a chain is used without asking again; after a failure it is asked for again in retry.
const (
	Age   = time.Hour
	retry = time.Minute
)

// Roots are the pinned certificates.
func (k *Keeper) Roots() *x509.CertPool { return k.pool }

// Get returns the issuing certificate and those above it, up to a pinned root. While the CA cannot be asked the last known chain is
// returned.
func (k *Keeper) Get(ctx context.Context) ([]*x509.Certificate, error) {
	k.mu.Lock()
	known, fetched := k.chain, k.fetched
	k.mu.Unlock()
	if known != nil && (k.o.Fetch == nil || k.o.Now().Sub(fetched) < Age) {
		return known, nil
	}
	if k.o.Fetch == nil {
		return nil, fmt.Errorf("CA %q: its chain is not known before its first certificate", k.o.CA)
	}
	list, err := k.o.Fetch(ctx)
	var chain []*x509.Certificate
	if err == nil {
		chain, err = k.toRootOf(list)
	}
	switch {
	case err == nil:
		k.keep(chain)
		return chain, nil
	case known != nil:
		k.mu.Lock()
		k.fetched = k.o.Now().Add(retry - Age)
		k.mu.Unlock()
		return known, nil
	}
	return nil, fmt.Errorf("CA %q: its chain: %w", k.o.CA, err)
}

// Known is the chain that Get returned last, or that was saved, without asking; nil where there is none.
func (k *Keeper) Known() []*x509.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chain
}

// Ready makes sure that the chain is known and leads to a pinned root, before the CA is asked for a certificate that could not be checked
// otherwise. Its error is marked: nothing was issued.
func (k *Keeper) Ready(ctx context.Context) error {
	_, err := k.Get(ctx)
	return upstream.NotIssued(err)
}

// Check refuses a certificate that is not signed by the CA. Its issuer is looked for among above, which the CA has sent with it in any
// order, and in the known chain, and must chain to a pinned root. The certificate's own times, names and usages are not looked at: that is
// what upstream.Compare is for.
func (k *Keeper) Check(ctx context.Context, cert *x509.Certificate, above []*x509.Certificate) error {
	if _, err := k.Get(ctx); err != nil && len(above) == 0 {
		return err
	}
	return k.Verify(cert, above)
}

// Verify is Check without asking the CA for anything.
func (k *Keeper) Verify(cert *x509.Certificate, above []*x509.Certificate) error {
	candidates := slices.Concat(above, k.Known(), k.o.Known, k.o.Roots)
	why := fmt.Errorf("the certificate is by %q, whose own certificate is neither known nor in the answer", cert.Issuer)
	for _, issuer := range candidates {
		if issuer.Equal(cert) || !bytes.Equal(issuer.RawSubject, cert.RawIssuer) || cert.CheckSignatureFrom(issuer) != nil {
			continue
		}
		chain, err := k.Above(issuer, candidates)
		if err == nil {
			if len(above) > 0 {
				k.keep(chain)
			}
			return nil
		}
		why = err
	}
	return why
}

func (k *Keeper) toRootOf(list []*x509.Certificate) ([]*x509.Certificate, error) {
	if len(list) == 0 {
		return nil, errors.New("the CA named no certificate of its own")
	}
	return k.Above(list[0], list[1:])
}

// Above orders certificates from an issuing one to a pinned root.
func (k *Keeper) Above(issuing *x509.Certificate, others []*x509.Certificate) ([]*x509.Certificate, error) {
	if !issuing.IsCA || !issuing.BasicConstraintsValid {
		return nil, fmt.Errorf("the certificate %q is not that of a CA", issuing.Subject)
	}
	between := x509.NewCertPool()
	for _, c := range append(slices.Clip(others), k.o.Known...) {
		between.AddCert(c)
	}
	chains, err := issuing.Verify(x509.VerifyOptions{Roots: k.pool, Intermediates: between, CurrentTime: k.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("the issuing certificate %q does not chain to the configured root: %w", issuing.Subject, err)
	}
	return chains[0], nil
}

func (k *Keeper) keep(chain []*x509.Certificate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fetched = k.o.Now()
	if slices.EqualFunc(k.chain, chain, (*x509.Certificate).Equal) {
		return
	}
	k.chain = chain
	if k.o.File == "" {
		return
	}
	var text []byte
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	// The file is a convenience; without it the chain is asked for again.
	temporary := k.o.File + ".new"
	if os.MkdirAll(filepath.Dir(temporary), 0o700) == nil && os.WriteFile(temporary, text, 0o600) == nil {
		_ = os.Rename(temporary, k.o.File)
	}
}

// maxCertificates is more than any CA has above what it issues.
const maxCertificates = 32

// ParsePEM reads certificates, one after the other. Anything between and behind them, and any other kind of block, is an error.
func ParsePEM(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for rest := text; len(trim(rest)) > 0; {
		var block *pem.Block
		before := trim(rest)
		block, rest = pem.Decode(before)
		if block == nil || block.Type != "CERTIFICATE" || len(list) == maxCertificates {
			return nil, errors.New("not a list of certificates in PEM form")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, cert)
	}
	return list, nil
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == '\n' || b[0] == '\r' || b[0] == ' ') {
		b = b[1:]
	}
	return b
}

// One reads exactly one certificate in PEM form.
func One(text []byte) (*x509.Certificate, error) {
	list, err := ParsePEM(text)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%d certificates in place of one", len(list))
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}
