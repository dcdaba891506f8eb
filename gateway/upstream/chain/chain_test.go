package chain_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
)

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func makeCertificate(t testing.TB, name string, isCA bool, by *pair) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: isCA, BasicConstraintsValid: isCA,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	p := &pair{template, key}
	if by == nil {
		by = p
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAChainIsKeptAndCheckedUpToTheRoot(t *testing.T) {
	ctx := context.Background()
	root := makeCertificate(t, "Root", true, nil)
	issuing := makeCertificate(t, "Issuing", true, root)
	leaf := makeCertificate(t, "Leaf", false, issuing)
	stranger := makeCertificate(t, "Leaf", false, makeCertificate(t, "Issuing", true, makeCertificate(t, "Root", true, nil)))
	asked, down, now := 0, false, time.Now()
	o := chain.Options{CA: "X", Roots: []*x509.Certificate{root.cert}, File: filepath.Join(t.TempDir(), "d", "chain.pem"), Now: func() time.Time { return now },
		Fetch: func(context.Context) ([]*x509.Certificate, error) {
			if asked++; down {
				return nil, errors.New("down")
			}
			return []*x509.Certificate{issuing.cert}, nil
		}}
	k, err := chain.New(o)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got, err := k.Get(ctx); err != nil || len(got) != 2 || !got[0].Equal(issuing.cert) || !got[1].Equal(root.cert) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times within an hour", asked)
	}
	if err := k.Check(ctx, leaf.cert, nil); err != nil {
		t.Error(err)
	}
	for name, above := range map[string][]*x509.Certificate{"alone": nil, "with the CA's own": {issuing.cert}} {
		if err := k.Check(ctx, stranger.cert, above); err == nil {
			t.Errorf("a stranger's certificate is taken, %s", name)
		}
	}
	down = true
	again, err := chain.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Get(ctx); err != nil || len(got) != 2 {
		t.Errorf("the saved chain is not used: %v, %v", got, err)
	}
	o.File = ""
	if fresh, err := chain.New(o); err != nil {
		t.Error(err)
	} else if _, err := fresh.Get(ctx); err == nil {
		t.Error("a chain from nowhere")
	} else if err := fresh.Check(ctx, leaf.cert, []*x509.Certificate{issuing.cert}); err != nil {
		t.Errorf("the chain that came with the certificate is not used: %v", err)
	}
	if _, err := chain.New(chain.Options{CA: "X"}); err == nil {
		t.Error("no root")
	}
}

func FuzzParsePEM(f *testing.F) {
	root := makeCertificate(f, "Root", true, nil)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw})
	for _, s := range [][]byte{nil, text, append(text, text...), append(text, "x"...), []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----")} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := chain.ParsePEM(text)
		if err != nil && list != nil {
			t.Error("an error, and certificates")
		}
		if c, err := chain.One(text); err == nil && (c == nil || len(list) != 1) {
			t.Error("one in place of another number")
		}
	})
}
