// Package vectors gives tests the requests and replies recorded from real Windows clients. They lie beside the
// checkout, in ../shared/vectors, and are never copied into it.
package vectors

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Dir returns the folder with the recordings. Where it is absent the test is skipped, unless the environment variable
// CI is set: there the recordings must be present.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		candidate := filepath.Join(dir, "..", "shared", "vectors")
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			if _, err := os.Stat(candidate); err == nil {
				return candidate
			}
			if os.Getenv("CI") != "" {
				t.Fatalf("the recorded requests are missing: %s", candidate)
			}
			t.Skipf("the recorded requests are not beside this checkout: %s", candidate)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("not inside the module")
		}
		dir = parent
	}
}

// Read returns one recording, "ejbca/user-enroll-1.cmc.der".
func Read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(Dir(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Requests returns the recorded requests by name: every PKCS#10, CMC and PKCS#7 request.
func Requests(t testing.TB) map[string][]byte {
	t.Helper()
	dir := Dir(t)
	out := map[string][]byte{}
	for _, pattern := range []string{"*/*.p10.der", "*/*.cmc.der", "ms-wstep/4.1.1.1-tok0.der", "ms-wstep/4.1.5.1-tok0.der"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no recording matches %s: %v", pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimPrefix(f, dir+string(filepath.Separator))] = b
		}
	}
	return out
}

// Seeds adds the recorded requests to a fuzz target, where they are beside the checkout.
func Seeds(f *testing.F) {
	f.Helper()
	if dir, err := filepath.Abs("../../../shared/vectors"); err == nil {
		if _, err := os.Stat(dir); err == nil {
			for _, der := range Requests(f) {
				f.Add(der)
			}
		}
	}
}

// ExchangeCertificate returns the published exchange key of the recorded requests, with a certificate that has the issuer
// and serial number by which the enclosed key names it. The original certificate was never published.
func ExchangeCertificate(t testing.TB, enveloped []byte) (*x509.Certificate, *rsa.PrivateKey) {
	t.Helper()
	block, _ := pem.Decode(Read(t, "ejbca/exchange-key.pem"))
	if block == nil {
		t.Fatal("exchange-key.pem holds no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	key := parsed.(*rsa.PrivateKey)
	e, err := wcce.ParseEnveloped(enveloped)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{RawSubject: e.Recipients[0].Issuer}
	template := &x509.Certificate{SerialNumber: e.Recipients[0].Serial, Subject: pkix.Name{CommonName: "Issuer2-Xchg"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}
