package gateway

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
)

// A CA is opened from the file without being asked anything: one that is down does not keep the gateway from starting.
func TestDriversAreOpenedFromTheFile(t *testing.T) {
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"root.pem": {Type: "CERTIFICATE", Bytes: der}, "client.pem": {Type: "CERTIFICATE", Bytes: der},
		"client.key": {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}, "bad.pem": {Type: "CERTIFICATE", Bytes: []byte{1}}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	connection := `url: "https://127.0.0.1:1", root: DIR/root.pem, ca_file: DIR/root.pem, certificate: DIR/client.pem, key: DIR/client.key, `
	for driver, c := range map[string]struct{ block, product string }{
		"vault": {`vault: {` + connection + `role: mail, app_role: {role_id: r, secret_id: {env: NOTHING}}}`, "HashiCorp Vault"},
		"est":   {`est: {` + connection + `user: u, password: {env: NOTHING}}`, "EST server"},
		"ejbca": {`ejbca: {` + connection + `ca: C, certificate_profile: P, end_entity_profile: E}`, "EJBCA"},
		"hvca":  {`hvca: {` + connection + `api_key: k, api_secret: {env: NOTHING}}`, "GlobalSign Atlas"},
	} {
		t.Run(driver, func(t *testing.T) {
			open := func(text string) (*CA, error) {
				t.Helper()
				cfg, err := config.Parse([]byte("cas: [{name: Mail CA, driver: " + driver + ", identity: own, tolerate: {missing: [1.2.3]}, " + strings.ReplaceAll(text, "DIR", dir) + "}]\n"))
				if err != nil {
					t.Fatal(err)
				}
				cfg.Data = t.TempDir()
				g := &Gateway{Config: cfg, now: time.Now}
				return g.openCA(t.Context(), cfg.CAs[0], []byte("a secret of more than 16 octets"))
			}
			ca, err := open(c.block)
			if err != nil {
				t.Fatal(err)
			}
			if got := upstream.TraitsOf(ca.Issuer).Product; got != c.product || len(ca.Tolerance.Missing) != 1 {
				t.Errorf("%q, %+v", got, ca.Tolerance)
			}
			for _, file := range []string{"root: DIR/root.pem", "ca_file: DIR/root.pem", "certificate: DIR/client.pem"} {
				name, _, _ := strings.Cut(file, ":")
				for _, other := range []string{"DIR/nothing.pem", "DIR/bad.pem"} {
					if _, err := open(strings.Replace(c.block, file, name+": "+other, 1)); err == nil || !strings.Contains(err.Error(), `CA "Mail CA"`) {
						t.Errorf("%s %s: %v", name, other, err)
					}
				}
			}
		})
	}
}
