package recovery_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/test/testpki"
	"software.sslmate.com/src/go-pkcs12"
)

// recovered are n keys with certificates of one CA.
func recovered(t *testing.T, n int) (keys []recovery.Recovered) {
	t.Helper()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	rootKey := testpki.RSA(t, 2048)
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	ca := testpki.Cert(t, der)
	for i := range n {
		key := testpki.RSA(t, 2048)
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: "Alice"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
		if der, err = x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), rootKey); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, recovery.Recovered{Key: key, Certificate: testpki.Cert(t, der), Chain: []*x509.Certificate{ca}})
	}
	return keys
}

func TestOpenSSLReadsSeveralKeysInOneFile(t *testing.T) {
	for _, password := range []string{"23456-abcde", "pässwört 密"} {
		for n := 1; n <= 3; n++ {
			for _, legacy := range []bool{false, true} {
				keys := recovered(t, n)
				file, err := recovery.PKCS12(keys, password, legacy)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "user.p12")
				if err := os.WriteFile(path, file, 0o600); err != nil {
					t.Fatal(err)
				}
				args := []string{"pkcs12", "-in", path, "-passin", "pass:" + password, "-nodes"}
				text, err := testpki.OpenSSL(t, nil, args...)
				if err != nil {
					t.Fatalf("%d keys, legacy %v: %v\n%s", n, legacy, err, text)
				}
				if got, certs := bytes.Count(text, []byte("BEGIN PRIVATE KEY")), bytes.Count(text, []byte("BEGIN CERTIFICATE")); got != n || certs != n+1 {
					t.Errorf("OpenSSL finds %d keys and %d certificates of %d keys, legacy %v", got, certs, n, legacy)
				}
				// A wrong password is found by the MAC.
				if _, err := testpki.OpenSSL(t, nil, "pkcs12", "-in", path, "-passin", "pass:wrong", "-noout"); err == nil {
					t.Error("a wrong password opens the file")
				}
				if n == 1 {
					if _, _, _, err := pkcs12.DecodeChain(file, password); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
	if _, err := recovery.PKCS12(nil, "x", false); err == nil {
		t.Error("a file without a key")
	}
}
