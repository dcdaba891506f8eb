// Package est tests the driver on GlobalSign's EST server, which test/upstreams/estserver runs.
package est

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/test/testpki"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream/est"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/program"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

type Server struct {
	url   string
	proxy *proxy.Proxy
	a     *authority.Authority
	o     est.Options
}

const password = "correct horse"

func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{a: authority.New(t)}
	key, err := x509.MarshalPKCS8PrivateKey(s.a.IssuingKey)
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, b := range []pem.Block{{Type: "CERTIFICATE", Bytes: s.a.Issuing.Raw}, {Type: "CERTIFICATE", Bytes: s.a.Root.Raw}, {Type: "PRIVATE KEY", Bytes: key}} {
		text = append(text, pem.EncodeToMemory(&b)...)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + program.Run(t, program.Path(t, "estserver"), "-ca", file, "-password", password)
	s.proxy = proxy.Start(t, s.url, s.a.Server(t, true), nil)
	s.o = est.Options{Name: "EST", URL: s.proxy.URL, TLS: s.a.Client(t, "gateway"), User: "gateway", Password: func() ([]byte, error) { return []byte(password), nil },
		Roots: []*x509.Certificate{s.a.Root}}
	return s
}

func (s *Server) issuer(t testing.TB) *est.CA {
	t.Helper()
	ca, err := est.New(s.o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (s *Server) issued(t testing.TB) (out []string) {
	t.Helper()
	res, err := http.Get(s.url + "/test/issued")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Config is how a gateway uses the server.
func (s *Server) Config(t testing.TB) config.EST {
	t.Helper()
	own := s.o.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return config.EST{Connection: config.Connection{URL: s.proxy.URL, Root: testpki.PEM(t, "CERTIFICATE", s.a.Root.Raw), CAFile: testpki.PEM(t, "CERTIFICATE", s.a.Root.Raw),
		Certificate: testpki.PEM(t, "CERTIFICATE", own.Certificate...), Key: testpki.PEM(t, "PRIVATE KEY", key)}, User: "gateway", Password: config.Secret{File: testpki.Secret(t, password)}}
}
