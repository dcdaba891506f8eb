// Package world runs the whole gateway for tests against the lab's Active Directory: tickets from its KDC, templates and
// groups from its directory, TLS, the real database. Start it with Start, talk to it with Client.
package world

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// CAName is how the lab publishes its CA.
const CAName = "LAB Issuing CA"

var background = context.Background()

// Env is a variable of the lab.
func Env(name string) string { return os.Getenv(name) }

// World is a running gateway with one recovery agent.
type World struct {
	*gateway.Gateway
	AgentKey *rsa.PrivateKey
	Agent    *x509.Certificate
	Roots    *x509.CertPool
	dir      string
}

// Start runs a gateway as serve does.
func Start(t testing.TB) *World {
	t.Helper()
	return StartWith(t, "")
}

// StartWith is Start with a section of the configuration replaced, such as "tls: {…}".
func StartWith(t testing.TB, section string) *World {
	t.Helper()
	return StartChanged(t, section, nil)
}

// StartChanged is StartWith with a change to the configuration that was read; nil changes nothing.
func StartChanged(t testing.TB, section string, change func(*config.Config)) *World {
	t.Helper()
	w, path := Prepare(t, section)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cfg)
		if problems := cfg.Check(); len(problems) > 0 {
			t.Fatal(strings.Join(problems, "\n"))
		}
	}
	log, err := gateway.NewLogger(cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	if w.Gateway, err = gateway.New(background, cfg, log); err != nil {
		t.Fatal(err)
	}
	if err := w.Forest.Refresh(background); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(background)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		w.Close()
	})
	w.AgentKey, w.Agent = testpki.Agent(t, "kra", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	if err := w.Escrow.AddAgent(background, w.Agent, "test"); err != nil {
		t.Fatal(err)
	}
	return w
}

// Prepare writes the configuration of a gateway without starting it.
func Prepare(t testing.TB, section string) (w *World, path string) {
	t.Helper()
	inlab.Need(t)
	w = &World{dir: t.TempDir(), Roots: x509.NewCertPool()}
	pemText, err := os.ReadFile(Env("LAB_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	w.Roots.AppendCertsFromPEM(pemText)
	return w, w.writeConfig(t, section)
}

func (w *World) writeConfig(t testing.TB, section string) string {
	t.Helper()
	key, err := os.ReadFile(Env("LAB_ISSUING_CA_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(key)
	signer, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := local.EncryptKey(signer.(crypto.Signer), []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`
data: %s
public_name: %s
listen: {https: "%[3]s:443", http: "%[3]s:80", metrics: "off"}
tls: {certificate: %[4]s, key: %[5]s}
kerberos: {keytab: %[6]s, service_principals: ["HTTP/%[2]s"]}
directory:
  servers: ["%[7]s"]
  krb5_conf: %[8]s
  bind: {method: gssapi, principal: svc-enroll}
  poll: 200ms
cas:
  - name: %[9]s
    local: {certificate: %[10]s, key: ca.key, passphrase: {file: pass}}
log: {level: error, format: text}
`, filepath.Join(w.dir, "data"), Env("LAB_GATEWAY"), Env("LAB_GW_IP"), Env("LAB_TLS_PEM"), Env("LAB_TLS_KEY"), Env("LAB_KEYTAB_SVC"),
		Env("LAB_LDAP_URL"), Env("KRB5_CONFIG"), CAName, Env("LAB_ISSUING_CA_PEM"))
	if key, _, ok := strings.Cut(section, ":"); ok {
		if !strings.Contains(text, "\n"+key+":") {
			text += key + ":\n"
		}
		text = regexp.MustCompile(`(?m)^`+key+`:.*$`).ReplaceAllLiteralString(text, section)
	}
	path := filepath.Join(w.dir, "enrollgate.yaml")
	for name, content := range map[string][]byte{"ca.key": encrypted, "pass": []byte("passphrase\n"), "enrollgate.yaml": []byte(text)} {
		if err := os.WriteFile(filepath.Join(w.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// Dir is where the gateway's files are.
func (w *World) Dir() string { return w.dir }

// Client is a SOAP client with an account's ticket.
type Client struct {
	soap.Client
	Kerberos *kerberos.Client
	CES      string // address of the enrollment service
	CEP      string // address of the policy service
}

// Client logs an account on with the lab's password.
func (w *World) Client(t testing.TB, account string) *Client {
	t.Helper()
	krb, err := kerberos.NewClient(kerberos.ClientOptions{Principal: account + "@" + Env("LAB_REALM"), Password: Env("LAB_PASSWORD"), ConfigFile: Env("KRB5_CONFIG")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(krb.Close)
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Roots}}
	t.Cleanup(base.CloseIdleConnections)
	origin := "https://" + Env("LAB_GATEWAY")
	return &Client{Client: soap.Client{HTTP: &http.Client{Transport: krb.Transport(base), Timeout: 20 * time.Second}}, Kerberos: krb,
		CES: origin + strings.ReplaceAll(soap.Kerberos.CESPath(CAName), " ", "%20"), CEP: origin + soap.Kerberos.CEPPath}
}

// LogTo collects the gateway's log, down to debug level. Read it with LogText.
func (w *World) LogTo(b *bytes.Buffer) {
	w.Log.SetLevel(logrus.DebugLevel)
	w.Log.SetOutput(b)
}

// LogText ends the collection and returns what was logged.
func (w *World) LogText(b *bytes.Buffer) string {
	w.Log.SetOutput(io.Discard)
	return b.String()
}

// HTTP is a client without credentials.
func (w *World) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Roots}}, Timeout: 20 * time.Second}
}

// Submit sends a request.
func (c *Client) Submit(t testing.TB, der []byte) (*soap.TokenReply, error) {
	t.Helper()
	return c.RequestToken(background, c.CES, soap.TokenRequest{Kind: soap.Issue, Token: der})
}

// Poll asks what became of a request.
func (c *Client) Poll(t testing.TB, id string) (*soap.TokenReply, error) {
	t.Helper()
	return c.RequestToken(background, c.CES, soap.TokenRequest{Kind: soap.QueryTokenStatus, RequestID: id})
}

// Exchange fetches the exchange certificate as a client does.
func (c *Client) Exchange(t testing.TB) *x509.Certificate {
	t.Helper()
	der, err := c.KeyExchange(background, c.CES)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

// Policy finds a template in what the caller is offered; nil where it is not.
func (c *Client) Policy(t testing.TB, template string) *soap.Policy {
	t.Helper()
	p, err := c.GetPolicies(background, c.CEP, soap.GetPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Policies, func(p soap.Policy) bool { return p.CommonName == template })
	if i < 0 {
		return nil
	}
	return &p.Policies[i]
}

// Request builds a CMC request for a template by name; exchange nil leaves the key out.
func Request(t testing.TB, template string, exchange *x509.Certificate, extra ...wcce.Extension) (der []byte, key *rsa.PrivateKey) {
	t.Helper()
	key = testpki.RSA(t, 2048)
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: key, Exchange: exchange,
		Extensions: append(extra, wcce.Extension{OID: wcce.OIDTemplateName, Value: wcce.BMPString(template)})})
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// Admin is an LDAP connection as Administrator.
func Admin(t testing.TB) *ldap.Conn {
	t.Helper()
	return AdminOf(t, Env("LAB_LDAPS_URL"), Env("LAB_DC"), "Administrator@lab.test")
}

// AdminOf is an LDAP connection to a controller as somebody with the lab's password.
func AdminOf(t testing.TB, url, host, account string) *ldap.Conn {
	t.Helper()
	roots := x509.NewCertPool()
	text, err := os.ReadFile(Env("LAB_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(text)
	c, err := ldap.DialURL(url, ldap.DialWithTLSConfig(&tls.Config{RootCAs: roots, ServerName: host}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Bind(account, Env("LAB_PASSWORD")); err != nil {
		t.Fatal(err)
	}
	return c
}
