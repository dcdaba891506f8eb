package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"github.com/enrollgate/enrollgate/gateway/config"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/acme"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/program"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
	client "golang.org/x/crypto/acme"
)

const keyID = "kid-1"

var macKey = []byte("a key of thirty-two octets, or so")

// Server is Let's Encrypt's pebble, which wants external account binding and finds every challenge met.
type Server struct {
	t           testing.TB
	proxy       *proxy.Proxy
	roots       *tls.Config // of TLS
	certificate []byte      // of TLS, DER
	management  string
	root        *x509.Certificate
	account     crypto.Signer
	log         *program.Log
}

func Start(t testing.TB) *Server {
	t.Helper()
	pebble := program.Path(t, "pebbleserver")
	dir := t.TempDir()
	s := &Server{t: t, log: &program.Log{}, account: newKey(t)}
	certificate := s.tls(dir)
	address, management := free(t), free(t)
	config := map[string]any{"pebble": map[string]any{
		"listenAddress": address, "managementListenAddress": management, "certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": 5002, "tlsPort": 5001, "retryAfter": map[string]int{"authz": 1, "order": 1}, "keyAlgorithm": "rsa", "domainBlocklist": []string{"mallory.lab.test"},
		"externalAccountBindingRequired": true, "externalAccountMACKeys": map[string]string{keyID: base64.RawURLEncoding.EncodeToString(macKey)},
		"profiles": map[string]any{"default": map[string]any{"description": "d", "validityPeriod": 30 * 86400, "promoteCommonName": true}},
	}}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(pebble, "-config", file)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_ALWAYS_VALID=1", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=100")
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("pebble says:\n%s", s.log)
		}
	})
	s.management = "https://" + management
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if body, err := s.get("/roots/0"); err == nil {
			block, _ := pem.Decode(body)
			s.root = testpki.Cert(t, block.Bytes)
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("pebble does not start: %v", err)
		}
	}
	s.proxy = proxy.Start(t, "https://"+address, &tls.Config{Certificates: []tls.Certificate{certificate}}, &http.Transport{TLSClientConfig: s.roots})
	return s
}

// tls makes the certificate that pebble and the proxy serve with.
func (s *Server) tls(dir string) tls.Certificate {
	s.t.Helper()
	key := newKey(s.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "pebble"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(testpki.Cert(s.t, der))
	s.roots, s.certificate = &tls.Config{RootCAs: pool}, der
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (s *Server) get(path string) ([]byte, error) {
	c := http.Client{Transport: &http.Transport{TLSClientConfig: s.roots}, Timeout: 5 * time.Second}
	defer c.CloseIdleConnections()
	res, err := c.Get(s.management + path)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

func (s *Server) options() acme.Options {
	return acme.Options{Name: "ACME", Directory: s.proxy.URL + "/dir", Roots: []*x509.Certificate{s.root}, TLS: s.roots, Key: s.account, KeyID: keyID, MACKey: macKey,
		Dir: s.t.TempDir(), Wait: 5 * time.Second, Now: time.Now}
}

func (s *Server) driver(o acme.Options) *acme.CA {
	s.t.Helper()
	d, err := acme.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// authorize proves control of names for the account, as an administrator would.
func (s *Server) authorize(names ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := &client.Client{Key: s.account, DirectoryURL: s.proxy.URL + "/dir", HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: s.roots}},
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return time.Millisecond }}
	if _, err := c.Register(ctx, &client.Account{ExternalAccountBinding: &client.ExternalAccountBinding{KID: keyID, Key: macKey}}, client.AcceptTOS); err != nil {
		s.t.Fatal(err)
	}
	o, err := c.AuthorizeOrder(ctx, client.DomainIDs(names...))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, address := range o.AuthzURLs {
		a, err := c.GetAuthorization(ctx, address)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := c.Accept(ctx, a.Challenges[0]); err != nil {
			s.t.Fatal(err)
		}
		if _, err := c.WaitAuthorization(ctx, address); err != nil {
			s.t.Fatal(err)
		}
	}
}

var issuedLine = regexp.MustCompile(`Issued certificate serial ([0-9a-f]+) for order`)

// list is what pebble logs; it has no list of its own.
func (s *Server) list(testing.TB) (out []string) {
	for _, m := range issuedLine.FindAllStringSubmatch(s.log.String(), -1) {
		n, _ := new(big.Int).SetString(m[1], 16)
		out = append(out, n.Text(16))
	}
	return out
}

func (s *Server) isRevoked(t testing.TB, cert *x509.Certificate) bool {
	t.Helper()
	body, err := s.get("/cert-status-by-serial/" + cert.SerialNumber.Text(16))
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Status string }
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return v.Status == "Revoked"
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Config is how a gateway uses the server, for names that are authorized before.
func (s *Server) Config(t testing.TB, names ...string) config.ACME {
	t.Helper()
	s.authorize(names...)
	return config.ACME{Directory: s.proxy.URL + "/dir", Root: testpki.PEM(t, "CERTIFICATE", s.root.Raw), CAFile: testpki.PEM(t, "CERTIFICATE", s.certificate),
		Key: testpki.EncryptedKey(t, s.account), Passphrase: config.Secret{File: testpki.Secret(t, testpki.Passphrase)}, KeyID: keyID,
		MACKey: config.Secret{File: testpki.Secret(t, base64.RawURLEncoding.EncodeToString(macKey))}, Wait: 5 * time.Second}
}
