// Package issuers knows what is above the certificates of a foreign CA: it checks that a certificate was signed by somebody who leads
// to a configured root, and keeps the last such chain for when the CA cannot be asked.
package issuers

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Options configure a Keeper.
type Options struct {
	CA    string              // its name, for messages
	Roots []*x509.Certificate // pinned
	// Known are the issuing certificate, first, and those between it and a root. It may be empty: the CA then says them in its answers.
	Known []*x509.Certificate
	File  string // keeps the chain for the next start; "" keeps it in memory only
	Now   func() time.Time
}

// Keeper keeps the chain of one CA. It is safe for concurrent use.
type Keeper struct {
	o     Options
	roots *x509.CertPool

	mu      sync.Mutex // guards chain, asked
	chain   []*x509.Certificate
	asked   time.Time // when the CA itself was asked last
	pending bool
}

// Age is for how long a chain is used without asking the CA again.
const Age = time.Hour

// New checks that the known certificates lead to a root, and reads the file.
func New(o Options) (*Keeper, error) {
	if len(o.Roots) == 0 {
		return nil, fmt.Errorf("CA %q: no root certificate", o.CA)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	k := &Keeper{o: o, roots: x509.NewCertPool()}
	for _, c := range o.Roots {
		k.roots.AddCert(c)
	}
	if len(o.Known) > 0 {
		chain, err := k.Above(o.Known[0], o.Known[1:])
		if err != nil {
			return nil, fmt.Errorf("CA %q: %w", o.CA, err)
		}
		k.chain = chain
		return k, nil
	}
	k.load()
	return k, nil
}

// Roots are the pinned certificates.
func (k *Keeper) Roots() *x509.CertPool { return k.roots }

// Above orders certificates from an issuing one to a root.
func (k *Keeper) Above(issuing *x509.Certificate, others []*x509.Certificate) ([]*x509.Certificate, error) {
	if !issuing.IsCA || !issuing.BasicConstraintsValid {
		return nil, fmt.Errorf("the certificate %q is not that of a CA", issuing.Subject)
	}
	between := x509.NewCertPool()
	for _, c := range append(others, k.o.Known...) {
		between.AddCert(c)
	}
	chains, err := issuing.Verify(x509.VerifyOptions{Roots: k.roots, Intermediates: between, CurrentTime: k.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("the issuing certificate %q does not chain to a configured root: %w", issuing.Subject, err)
	}
	return chains[0], nil
}

// Issued checks that cert was signed by somebody who leads to a root, and keeps who that is. others are what came with it.
func (k *Keeper) Issued(cert *x509.Certificate, others []*x509.Certificate) ([]*x509.Certificate, error) {
	candidates := append(append(append([]*x509.Certificate(nil), others...), k.Last()...), k.o.Known...)
	candidates = append(candidates, k.o.Roots...)
	why := fmt.Errorf("the certificate is by %q, whose own certificate is neither configured nor in the answer", cert.Issuer)
	for _, c := range candidates {
		if !bytes.Equal(c.RawSubject, cert.RawIssuer) || cert.CheckSignatureFrom(c) != nil {
			continue
		}
		chain, err := k.Above(c, candidates)
		if err == nil {
			k.keep(chain)
			return chain, nil
		}
		why = err
	}
	return nil, why
}

// Last is the chain that was seen last; nil before the first.
func (k *Keeper) Last() []*x509.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chain
}

// Learned returns the last chain of a CA that tells it only with what it issues.
func (k *Keeper) Learned() ([]*x509.Certificate, error) {
	if chain := k.Last(); chain != nil {
		return chain, nil
	}
	return nil, fmt.Errorf("CA %q: its certificate is not known before it has issued something; name it in the configuration", k.o.CA)
}

// Get returns the chain, asking the CA when it is older than an hour; the issuing certificate is the first of what ask returns.
// While the CA cannot be asked the last known chain is returned.
func (k *Keeper) Get(ctx context.Context, ask func(context.Context) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	k.mu.Lock()
	known := k.chain
	if known != nil && (k.pending || k.o.Now().Sub(k.asked) < Age) {
		k.mu.Unlock()
		return known, nil
	}
	k.pending = true
	k.mu.Unlock()
	chain, err := k.ask(ctx, ask)
	k.mu.Lock()
	k.pending = false
	switch {
	case err == nil:
		k.asked = k.o.Now()
	case known != nil:
		k.asked = k.o.Now().Add(time.Minute - Age) // ask again in a minute
		chain, err = known, nil
	}
	k.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", k.o.CA, err)
	}
	k.keep(chain)
	return chain, nil
}

func (k *Keeper) ask(ctx context.Context, ask func(context.Context) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	certs, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	if len(certs) == 0 {
		return nil, errors.New("the CA names no certificate of its own")
	}
	return k.Above(certs[0], certs[1:])
}

func (k *Keeper) keep(chain []*x509.Certificate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.chain) > 0 && k.chain[0].Equal(chain[0]) {
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
	// The file is a convenience; without it the chain is found again.
	temporary := k.o.File + ".new"
	if os.MkdirAll(filepath.Dir(temporary), 0o700) == nil && os.WriteFile(temporary, text, 0o600) == nil {
		_ = os.Rename(temporary, k.o.File)
	}
}

// load takes the saved chain if it still leads to a root.
func (k *Keeper) load() {
	text, err := os.ReadFile(k.o.File)
	if err != nil {
		return
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return
	}
	if chain, err := k.Above(certs[0], certs[1:]); err == nil {
		k.chain = chain
	}
}
