// Package server runs a real step-ca for tests, with a recording proxy in front of it, and reads its database.
package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/program"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

const (
	// Provisioner is the name of the one provisioner.
	Provisioner = "enrollgate"
	// Password opens Server.Key.
	Password = "correct horse"
)

// Server is a step-ca with a recording proxy in front of it.
type Server struct {
	URL      string // of the proxy
	Direct   string // of step-ca itself
	Root     *x509.Certificate
	RootFile string
	Issuing  *x509.Certificate
	Key      []byte // encrypted JWK
	Proxy    *proxy.Proxy
	PID      int

	log      *program.Log
	database string // path
	stop     func()
}

// Start makes a root, an intermediate and a provisioner, and runs step-ca with them. template "" leaves the provisioner
// without one.
func Start(t testing.TB, template string) *Server {
	t.Helper()
	path := program.Path(t, "stepcaserver")
	dir := t.TempDir()
	s := &Server{log: &program.Log{}, database: filepath.Join(dir, "db")}
	write := func(name string, content []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	writePEM := func(name, kind string, der []byte) string {
		return write(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	rootKey, issuingKey := authority.Key(t), authority.Key(t)
	s.Root = authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "Step Root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, nil, rootKey.Public(), rootKey)
	s.Issuing = authority.Sign(t, &x509.Certificate{Subject: pkix.Name{Organization: []string{"Lab"}, CommonName: "Step Issuing CA"}, IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, s.Root, issuingKey.Public(), rootKey)
	keyDER, err := x509.MarshalECPrivateKey(issuingKey)
	if err != nil {
		t.Fatal(err)
	}
	s.RootFile = writePEM("root.pem", "CERTIFICATE", s.Root.Raw)

	jwk := jose.JSONWebKey{Key: authority.Key(t), Algorithm: "ES256", Use: "sig"}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	s.Key = encrypt(t, jwk)

	address := Free(t)
	config := map[string]any{
		"root": s.RootFile, "crt": writePEM("issuing.pem", "CERTIFICATE", s.Issuing.Raw), "key": writePEM("issuing.key", "EC PRIVATE KEY", keyDER),
		"address": address, "dnsNames": []string{"127.0.0.1", "localhost"}, "logger": map[string]string{"format": "json"},
		"db":  map[string]string{"type": "bbolt", "dataSource": s.database},
		"crl": map[string]any{"enabled": true, "generateOnRevoke": true},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": Provisioner, "key": jwk.Public(), "claims": map[string]any{"maxTLSCertDuration": "26280h", "defaultTLSCertDuration": "24h"},
			"options": map[string]any{"x509": x509Options(template, write)},
		}}},
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, write("ca.json", text))
	cmd.Env = append(os.Environ(), "STEPPATH="+dir, "HOME="+dir)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	s.stop = func() { _ = cmd.Process.Kill(); <-ended }
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("step-ca says:\n%s", s.log)
		}
	})
	s.PID, s.Direct = cmd.Process.Pid, "https://"+address
	s.Proxy = proxy.Start(t, s.Direct, certificateFor(t, s.Root, rootKey), &http.Transport{TLSClientConfig: &tls.Config{RootCAs: Pool(s.Root)}})
	s.URL = s.Proxy.URL
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: Pool(s.Root)}}, Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if res, err := client.Get("https://" + address + "/health"); err == nil {
			res.Body.Close()
			return s
		} else if time.Now().After(deadline) {
			t.Fatalf("step-ca does not start: %v", err)
		}
		select {
		case <-ended:
			t.Fatal("step-ca ended")
		default:
		}
	}
}

func x509Options(template string, write func(string, []byte) string) map[string]any {
	if template == "" {
		return map[string]any{}
	}
	return map[string]any{"templateFile": write("template.json", []byte(template)),
		"templateData": map[string]any{"crlDistributionPoints": []string{"http://ca.lab.test/1.0/crl"}}}
}

// Issuer is the driver, connected to the server.
func (s *Server) Issuer(t testing.TB) *stepca.CA {
	t.Helper()
	ca, err := stepca.New(stepca.Options{Name: "Step", URL: s.URL, Roots: []*x509.Certificate{s.Root}, Provisioner: Provisioner, Key: s.Key,
		Password: []byte(Password), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// certificateFor makes a TLS certificate for this machine by step-ca's root, so that the pinned root suits the proxy.
func certificateFor(t testing.TB, root *x509.Certificate, rootKey crypto.Signer) *tls.Config {
	t.Helper()
	key := authority.Key(t)
	cert := authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "proxy"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, root, key.Public(), rootKey)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

// IsSign tells whether a request asks for a certificate.
func IsSign(r *http.Request) bool { return r.URL.Path == "/1.0/sign" }

// encrypt writes a key as step crypto jwk create does.
func encrypt(t testing.TB, jwk jose.JSONWebKey) []byte {
	t.Helper()
	plain, err := json.Marshal(jwk)
	if err != nil {
		t.Fatal(err)
	}
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: []byte(Password), PBES2Count: 10_000, PBES2Salt: []byte("0123456789abcdef")},
		(&jose.EncrypterOptions{}).WithContentType("jwk+json"))
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt(plain)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(jwe.FullSerialize())
}

// Free is an address that nobody listens on.
func Free(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Pool has the certificates.
func Pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}
