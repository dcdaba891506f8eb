package scep

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"github.com/enrollgate/enrollgate/gateway/config"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/scep"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/program"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

// Server is micromdm's SCEP server, in ../scepserver, and its depot.
type Server struct {
	t       testing.TB
	dir     string
	root    *x509.Certificate
	issuing *x509.Certificate
	rootKey crypto.Signer
	ra      *x509.Certificate
	raKey   *rsa.PrivateKey
	proxy   *proxy.Proxy
}

func Start(t testing.TB, mode ...string) *Server {
	t.Helper()
	program := program.Path(t, "scepserver")
	s := &Server{t: t, dir: t.TempDir()}
	rootKey, key := testpki.RSA(t, 2048), testpki.RSA(t, 2048)
	s.rootKey, s.raKey = rootKey, testpki.RSA(t, 2048)
	s.root = authority.Sign(t, authority.CA("SCEP Root"), nil, rootKey.Public(), rootKey)
	s.issuing = authority.Sign(t, authority.CA("SCEP Issuing CA"), s.root, key.Public(), rootKey)
	s.ra = authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "enrollgate"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment}, s.root, s.raKey.Public(), rootKey)
	for name, block := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: s.issuing.Raw}, "ca.key": {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}} {
		if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(block), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	portFile := filepath.Join(t.TempDir(), "port")
	cmd := exec.Command(program, append([]string{s.dir, portFile}, mode...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the SCEP server says:\n%s", &log)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if address, err := os.ReadFile(portFile); err == nil {
			s.proxy = proxy.Start(t, "http://"+string(address), nil, &http.Transport{})
			return s
		}
		if time.Now().After(deadline) {
			t.Fatal("the SCEP server does not start")
		}
	}
}

func (s *Server) options() scep.Options {
	return scep.Options{Name: "SCEP", URL: s.proxy.URL + "/scep", Roots: []*x509.Certificate{s.root}, Certificate: s.ra, Key: s.raKey, Now: time.Now}
}

func (s *Server) driver(o scep.Options) *scep.CA {
	s.t.Helper()
	d, err := scep.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// list reads the depot's index, which is as OpenSSL's.
func (s *Server) list(t testing.TB) (out []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "index.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(line, "\t"); len(fields) > 3 {
			n, _ := new(big.Int).SetString(fields[3], 16)
			out = append(out, n.Text(16))
		}
	}
	return out
}

// Config is how a gateway uses the server.
func (s *Server) Config(t testing.TB) config.SCEP {
	t.Helper()
	return config.SCEP{URL: s.proxy.URL + "/scep", Root: testpki.PEM(t, "CERTIFICATE", s.root.Raw), Certificate: testpki.PEM(t, "CERTIFICATE", s.ra.Raw),
		Key: testpki.EncryptedKey(t, s.raKey), Passphrase: config.Secret{File: testpki.Secret(t, testpki.Passphrase)}}
}
