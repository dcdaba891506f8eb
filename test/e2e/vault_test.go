package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
	"github.com/enrollgate/enrollgate/test/upstreams/vault/engine"
	"github.com/enrollgate/enrollgate/test/world"
)

// throughVault puts Vault's PKI engine in the place of the embedded CA, with a role for computers.
func throughVault(t testing.TB, e *engine.Engine, address string, c *config.CA) {
	t.Helper()
	e.Role(map[string]any{"server_flag": true, "client_flag": true, "email_protection_flag": false, "key_usage": "DigitalSignature,KeyEncipherment", "organization": "", "max_ttl": "17520h"})
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Driver, c.Local = "vault", config.LocalCA{}
	c.Tolerate.Missing = []string{"1.3.6.1.4.1.311.20.2", "1.3.6.1.4.1.311.21.7", "1.3.6.1.4.1.311.21.10", "1.3.6.1.4.1.311.25.2"} // which no role signs
	c.Vault = config.Vault{Connection: config.Connection{URL: address, Root: testpki.PEM(t, "CERTIFICATE", e.Root.Raw), CAFile: testpki.PEM(t, "CERTIFICATE", e.TLS.Root.Raw)},
		Namespace: engine.Namespace, Role: "mail", Token: config.Secret{File: token}}
}

// A domain computer gets its certificate from Vault, and a lost answer is found there.
func TestAComputerEnrollsThroughVault(t *testing.T) {
	e := engine.Start(t)
	w := world.StartChanged(t, "", func(c *config.Config) { throughVault(t, e, e.Proxy.URL, &c.CAs[0]) })
	computer := w.Client(t, "WS1$")
	der, key := world.Request(t, "LabMachine", nil)
	reply, err := computer.Submit(t, der)
	if err != nil || reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	cert := testpki.Cert(t, reply.Certificate)
	if !key.PublicKey.Equal(cert.PublicKey) || len(cert.DNSNames) != 1 || cert.DNSNames[0] != "ws1.lab.test" || cert.Subject.CommonName != "ws1.lab.test" {
		t.Errorf("%v for %v", cert.Subject, cert.DNSNames)
	}
	// A user's names are more than a role carries: refused by name, and nothing is archived.
	alice := w.Client(t, "alice")
	der, _ = world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if reply, err := alice.Submit(t, der); err == nil {
		t.Errorf("%+v", reply)
	} else {
		t.Logf("a user: %v", err)
	}
	if list, err := w.Escrow.List(background, "", 10); err != nil || len(list) != 0 {
		t.Errorf("%d keys are archived, %v", len(list), err)
	}
	before := len(e.Stored())
	e.Proxy.Make(proxy.Lost, 1, isSign)
	der, _ = world.Request(t, "LabMachine", nil)
	if reply, err = computer.Submit(t, der); err != nil || !reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	eventually(t, "the certificate whose answer was lost", func() bool {
		again, err := computer.Poll(t, reply.RequestID)
		return err == nil && !again.Pending
	})
	if n := len(e.Stored()) - before; n != 1 {
		t.Errorf("Vault has issued %d certificates for one request", n)
	}
	rows, err := w.Ledger.List(background, ledger.Issued, 10)
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if err := w.Revoke(background, rows[0], "test", 4); err != nil {
		t.Error(err)
	}
}

func isSign(r *http.Request) bool { return strings.Contains(r.URL.Path, "/sign") }
