package cmp

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/testpki"
)

// sign makes a certificate; by itself where parent is nil.
func sign(t testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	number := make([]byte, 16)
	rand.Read(number)
	number[0] = number[0]&0x7f | 0x40
	template.SerialNumber = new(big.Int).SetBytes(number)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(5, 0, 0)
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}
