// Package vault tests the driver on Vault's own PKI engine and AppRole login, which test/upstreams/vaultserver serves.
package vault

import (
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/vault"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/vault/engine"
)

var background = context.Background()

// server is an engine, and what the driver is made with.
type server struct {
	*engine.Engine
	t testing.TB
	o vault.Options
}

func start(t testing.TB) *server {
	t.Helper()
	s := engine.Start(t)
	return &server{s, t, vault.Options{Name: "Vault", URL: s.Proxy.URL, TLS: s.TLS.Client(t, ""), Roots: []*x509.Certificate{s.Root}, Namespace: engine.Namespace, Role: "mail",
		Token:     func() ([]byte, error) { return []byte("root\n"), nil },
		Tolerance: upstream.Tolerance{Missing: []string{wcce.OIDTemplateName, wcce.OIDSID}}, Settled: time.Hour}}
}

func (s *server) issuer() *vault.CA {
	s.t.Helper()
	ca, err := vault.New(s.o)
	if err != nil {
		s.t.Fatal(err)
	}
	return ca
}

func (s *server) subject() *contract.Subject {
	return &contract.Subject{Issuer: s.issuer(), Tolerance: s.o.Tolerance, Proxy: s.Proxy,
		Submits: func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/sign") },
		Issued:  func(testing.TB) []string { return s.Stored() },
		Revoked: func(t testing.TB, cert *x509.Certificate) bool {
			t.Helper()
			res, err := http.NewRequest(http.MethodGet, s.URL+"/v1/pki/crl", nil)
			if err != nil {
				t.Fatal(err)
			}
			res.Header.Set("X-Vault-Token", "root")
			res.Header.Set("X-Vault-Namespace", "lab/")
			answer, err := http.DefaultClient.Do(res)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			der, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			crl, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range crl.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
					return true
				}
			}
			return false
		},
	}
}
