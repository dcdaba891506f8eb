package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writePair writes a self-signed server certificate and its key.
func writePair(t *testing.T, certPath, keyPath, name string, modified time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certPath: {Type: "CERTIFICATE", Bytes: cert}, keyPath: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheServerCertificateIsReadAgainWhenItChanges(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	begin := time.Now().Add(-time.Hour)
	writePair(t, certPath, keyPath, "first", begin)
	f, err := newCertificateFile(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		f.checked = time.Time{} // as if the period between two looks had passed
		c, err := f.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.Subject.CommonName
	}
	if got := name(); got != "first" {
		t.Errorf("%q", got)
	}
	writePair(t, certPath, keyPath, "second", begin.Add(time.Minute))
	if got := name(); got != "second" {
		t.Errorf("after the renewal: %q", got)
	}
	// Half written: the certificate is new, the key is not yet.
	writePair(t, certPath, filepath.Join(dir, "elsewhere"), "third", begin.Add(2*time.Minute))
	if got := name(); got != "second" {
		t.Errorf("while the file is being replaced: %q", got)
	}
	writePair(t, certPath, keyPath, "fourth", begin.Add(3*time.Minute))
	if got := name(); got != "fourth" {
		t.Errorf("after it was replaced: %q", got)
	}
	if _, err := newCertificateFile(filepath.Join(dir, "missing"), keyPath); err == nil {
		t.Error("a missing file is no error at the start")
	}
}
