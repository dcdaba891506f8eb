package issuers_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/issuers"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

type pki struct{ root, issuing, leaf, strange *x509.Certificate }

func sign(t *testing.T, name string, authority bool, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: authority, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

func newPKI(t *testing.T) pki {
	rootKey, key, leafKey, other := testpki.RSA(t, 2048), testpki.RSA(t, 2048), testpki.RSA(t, 2048), testpki.RSA(t, 2048)
	var p pki
	p.root = sign(t, "Root", true, nil, rootKey.Public(), rootKey)
	p.issuing = sign(t, "Issuing", true, p.root, key.Public(), rootKey)
	p.leaf = sign(t, "Leaf", false, p.issuing, leafKey.Public(), key)
	impostor := sign(t, "Issuing", true, nil, other.Public(), other) // the name of the CA, and not its key
	p.strange = sign(t, "Leaf", false, impostor, leafKey.Public(), other)
	return p
}

func TestTheChainOfACertificateIsKeptForTheNextStart(t *testing.T) {
	p, file := newPKI(t), filepath.Join(t.TempDir(), "chain.pem")
	o := issuers.Options{CA: "CA", Roots: []*x509.Certificate{p.root}, File: file}
	k, err := issuers.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Learned(); err == nil {
		t.Error("a chain is known before there is any")
	}
	if _, err := k.Issued(p.leaf, nil); err == nil {
		t.Error("the issuer is known from nowhere")
	}
	if chain, err := k.Issued(p.leaf, []*x509.Certificate{p.strange, p.issuing}); err != nil || len(chain) != 2 {
		t.Errorf("%v, %v", chain, err)
	}
	if _, err := k.Issued(p.strange, []*x509.Certificate{p.issuing}); err == nil {
		t.Error("who only has the CA's name issues")
	}
	again, err := issuers.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if chain, err := again.Learned(); err != nil || len(chain) != 2 || !chain[0].Equal(p.issuing) {
		t.Errorf("%v, %v", chain, err)
	}
	if _, err := issuers.New(issuers.Options{CA: "CA", Roots: []*x509.Certificate{p.root}, Known: []*x509.Certificate{p.leaf}}); err == nil {
		t.Error("a certificate that is no CA's issues")
	}
}

func TestTheLastChainServesWhileTheCACannotBeAsked(t *testing.T) {
	p, now := newPKI(t), time.Now()
	k, err := issuers.New(issuers.Options{CA: "CA", Roots: []*x509.Certificate{p.root}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	down := func(context.Context) ([]*x509.Certificate, error) { asked++; return nil, errors.New("down") }
	up := func(context.Context) ([]*x509.Certificate, error) {
		asked++
		return []*x509.Certificate{p.issuing}, nil
	}
	if _, err := k.Get(background, down); err == nil {
		t.Error("a chain from nowhere")
	}
	for range 2 { // the second is from memory
		if chain, err := k.Get(background, up); err != nil || len(chain) != 2 {
			t.Errorf("%v, %v", chain, err)
		}
	}
	now = now.Add(2 * issuers.Age)
	for range 2 { // the second does not ask
		if chain, err := k.Get(background, down); err != nil || len(chain) != 2 {
			t.Errorf("%v, %v", chain, err)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
}
