// Package testpki makes throw-away certificates and databases for tests.
package testpki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// pool keeps keys for the tests that come: making them would take most of the time. given is how many of each size each
// top-level test has.
var pool = struct {
	sync.Mutex
	keys  map[int][]*rsa.PrivateKey
	given map[string]int
}{keys: map[int][]*rsa.PrivateKey{}, given: map[string]int{}}

func init() {
	storetest.BeforeAgain = func() { clear(pool.given) }
}

// RSA returns a key that is like no other of the same top-level test; another one may have had it.
func RSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	name = fmt.Sprint(name, " ", bits)
	pool.Lock()
	defer pool.Unlock()
	n := pool.given[name]
	pool.given[name]++
	if n < len(pool.keys[bits]) {
		return pool.keys[bits][n]
	}
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	pool.keys[bits] = append(pool.keys[bits], k)
	return k
}

// DB opens a new database.
func DB(t testing.TB) *store.DB {
	t.Helper()
	return storetest.Open(t)
}

// CA makes an embedded CA with its own root certificate.
func CA(t testing.TB, db *store.DB, now func() time.Time) *local.CA {
	t.Helper()
	key := RSA(t, 2048)
	der, err := local.SelfSigned("Test CA", key, now(), 5)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := local.New(local.Options{Name: "Test CA", Certificate: Cert(t, der), Key: key, DB: db, Now: now,
		CRLURLs: []string{"http://ca.test/ca.crl"}, AIAURLs: []string{"http://ca.test/ca.crt"}})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Cert parses DER.
func Cert(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Agent makes a key recovery agent: a key and a self-signed certificate with the agents' purpose.
func Agent(t testing.TB, name string, from, to time.Time) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key := RSA(t, 2048)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageKeyEncipherment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 21, 6}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return key, Cert(t, der)
}

// Renewed makes a newer certificate for an agent's key.
func Renewed(t testing.TB, old *x509.Certificate, key *rsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template := *old
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), old.NotBefore.Add(time.Minute), old.NotAfter.AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Cert(t, der)
}

// PEM writes a block to a new file and returns its path.
func PEM(t testing.TB, kind string, ders ...[]byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*.pem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, der := range ders {
		if err := pem.Encode(f, &pem.Block{Type: kind, Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// OpenSSL runs openssl with the given standard input and returns its standard output.
func OpenSSL(t testing.TB, stdin []byte, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Logf("openssl %v: %v\n%s", args, err, stderr.String())
		return stdout.Bytes(), err
	}
	return stdout.Bytes(), nil
}

// Passphrase encrypts the keys of EncryptedKey.
const Passphrase = "passphrase of the tests"

// EncryptedKey writes a key as encrypted PKCS#8 to a file, and returns its path.
func EncryptedKey(t testing.TB, key crypto.Signer) string {
	t.Helper()
	text, err := local.EncryptKey(key, []byte(Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "key.pem", text)
}

// Secret writes a secret to a file, and returns its path.
func Secret(t testing.TB, text string) string {
	t.Helper()
	return write(t, "secret", []byte(text+"\n"))
}

func write(t testing.TB, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
