// Package e2e runs the whole gateway against the lab's Active Directory: tickets from its KDC, templates and groups from
// its directory, TLS, the real database. Run it with: test/lab/lab.sh ns go test ./test/e2e/
package e2e

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

const caName = "LAB Issuing CA"

var background = context.Background()

// lab skips where there is no domain controller.
func lab(t testing.TB) {
	t.Helper()
	if os.Getenv("LAB_DC") == "" {
		t.Skip("needs the lab: run test/lab/lab.sh ns go test ./test/e2e/")
	}
}

func env(name string) string { return os.Getenv(name) }

// world is a running gateway with one recovery agent.
type world struct {
	*gateway.Gateway
	agentKey *rsa.PrivateKey
	agent    *x509.Certificate
	roots    *x509.CertPool
	dir      string
}

// start runs a gateway as serve does.
func start(t testing.TB) *world {
	t.Helper()
	lab(t)
	w := &world{dir: t.TempDir(), roots: x509.NewCertPool()}
	pemText, err := os.ReadFile(env("LAB_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	w.roots.AppendCertsFromPEM(pemText)
	cfg, err := config.Load(w.writeConfig(t))
	if err != nil {
		t.Fatal(err)
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
	w.agentKey, w.agent = testpki.Agent(t, "kra", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	if err := w.Escrow.AddAgent(background, w.agent, "test"); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) writeConfig(t testing.TB) string {
	t.Helper()
	key, err := os.ReadFile(env("LAB_ISSUING_CA_KEY"))
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
`, filepath.Join(w.dir, "data"), env("LAB_GATEWAY"), env("LAB_GW_IP"), env("LAB_TLS_PEM"), env("LAB_TLS_KEY"), env("LAB_KEYTAB_SVC"),
		env("LAB_LDAP_URL"), env("KRB5_CONFIG"), caName, env("LAB_ISSUING_CA_PEM"))
	path := filepath.Join(w.dir, "enrollgate.yaml")
	for name, content := range map[string][]byte{"ca.key": encrypted, "pass": []byte("passphrase\n"), "enrollgate.yaml": []byte(text)} {
		if err := os.WriteFile(filepath.Join(w.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// client is a SOAP client with an account's ticket.
type client struct {
	soap.Client
	krb *kerberos.Client
	ces string
	cep string
}

func (w *world) client(t testing.TB, account string) *client {
	t.Helper()
	krb, err := kerberos.NewClient(kerberos.ClientOptions{Principal: account + "@" + env("LAB_REALM"), Password: env("LAB_PASSWORD"), ConfigFile: env("KRB5_CONFIG")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(krb.Close)
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}}
	t.Cleanup(base.CloseIdleConnections)
	origin := "https://" + env("LAB_GATEWAY")
	return &client{Client: soap.Client{HTTP: &http.Client{Transport: krb.Transport(base), Timeout: 20 * time.Second}}, krb: krb,
		ces: origin + strings.ReplaceAll(soap.CESPath(caName), " ", "%20"), cep: origin + soap.DefaultCEPPath}
}

func (c *client) submit(t testing.TB, der []byte) (*soap.TokenReply, error) {
	t.Helper()
	return c.RequestToken(background, c.ces, soap.TokenRequest{Kind: soap.Issue, Token: der})
}

func (c *client) poll(t testing.TB, id string) (*soap.TokenReply, error) {
	t.Helper()
	return c.RequestToken(background, c.ces, soap.TokenRequest{Kind: soap.QueryTokenStatus, RequestID: id})
}

// exchange fetches the exchange certificate as a client does.
func (c *client) exchange(t testing.TB) *x509.Certificate {
	t.Helper()
	der, err := c.KeyExchange(background, c.ces)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

// policy finds a template in what the caller is offered; nil where it is not.
func (c *client) policy(t testing.TB, template string) *soap.Policy {
	t.Helper()
	p, err := c.GetPolicies(background, c.cep, soap.GetPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Policies, func(p soap.Policy) bool { return p.CommonName == template })
	if i < 0 {
		return nil
	}
	return &p.Policies[i]
}

// request builds a CMC request for a template by name; exchange nil leaves the key out.
func request(t testing.TB, template string, exchange *x509.Certificate, extra ...wcce.Extension) (der []byte, key *rsa.PrivateKey) {
	t.Helper()
	key = testpki.RSA(t, 2048)
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: key, Exchange: exchange,
		Extensions: append(extra, wcce.Extension{OID: wcce.OIDTemplateName, Value: wcce.BMPString(template)})})
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// wantFault requires a refusal with this code and these words.
func wantFault(t testing.TB, err error, code hresult.Code, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code != code {
		t.Errorf("error %v, want %v", err, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Error(), word) {
			t.Errorf("error %q does not say %q", e.Error(), word)
		}
	}
}

// admin is an LDAP connection as Administrator.
func admin(t testing.TB) *ldap.Conn {
	t.Helper()
	roots := x509.NewCertPool()
	text, err := os.ReadFile(env("LAB_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(text)
	c, err := ldap.DialURL(env("LAB_LDAPS_URL"), ldap.DialWithTLSConfig(&tls.Config{RootCAs: roots, ServerName: env("LAB_DC")}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Bind("Administrator@lab.test", env("LAB_PASSWORD")); err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually waits for what the gateway does in the background.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not happen within 10 s", what)
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
