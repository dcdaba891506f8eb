// Package softhsm makes SoftHSM tokens for tests, and looks into them with OpenSC's pkcs11-tool.
package softhsm

import (
	"crypto"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// PIN is the user PIN of every token.
const PIN = "4711-0815"

// Token is a token of one test.
type Token struct {
	Label  string
	Module string // path of the library
	Dir    string // where SoftHSM keeps the objects
	pin    string // file with the PIN
}

// New makes an empty token. SOFTHSM2_CONF names it for this process and its children until the test ends. Without SoftHSM the
// test is skipped, or fails where CI is set.
func New(t testing.TB) *Token {
	t.Helper()
	module := ""
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			module = path
			break
		}
	}
	if module == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("SoftHSM is missing: install the package softhsm2")
		}
		t.Skip("SoftHSM is missing: install the package softhsm2")
	}
	dir := t.TempDir()
	k := &Token{Label: "test", Module: module, Dir: filepath.Join(dir, "tokens"), pin: filepath.Join(dir, "pin")}
	conf := filepath.Join(dir, "softhsm2.conf")
	write(t, conf, "directories.tokendir = "+k.Dir+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	write(t, k.pin, PIN+"\n")
	if err := os.Mkdir(k.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	run(t, "softhsm2-util", "--init-token", "--free", "--label", k.Label, "--so-pin", PIN, "--pin", PIN)
	return k
}

// URI names an object of the token, or with "" the token itself.
func (k *Token) URI(object string) string {
	uri := "pkcs11:token=" + k.Label
	if object != "" {
		uri += ";object=" + object
	}
	return uri + "?module-path=" + k.Module + "&pin-source=file:" + k.pin
}

// Tool runs pkcs11-tool, logged in, and returns what it prints.
func (k *Token) Tool(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "pkcs11-tool", append([]string{"--module", k.Module, "--token-label", k.Label, "--login", "--pin", PIN}, args...)...)
}

// Import writes a private key, and beside it its certificate if there is one, under a label.
func (k *Token) Import(t testing.TB, label, id string, key crypto.PrivateKey, cert *x509.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "object.der")
	write(t, file, string(der))
	k.Tool(t, "--write-object", file, "--type", "privkey", "--label", label, "--id", id, "--usage-decrypt", "--usage-sign")
	if cert != nil {
		write(t, file, string(cert.Raw))
		k.Tool(t, "--write-object", file, "--type", "cert", "--label", label, "--id", id)
	}
}

// Has tells whether pkcs11-tool lists a private key with the label.
func (k *Token) Has(t testing.TB, label string) bool {
	t.Helper()
	return strings.Contains(k.Tool(t, "--list-objects", "--type", "privkey"), label)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
