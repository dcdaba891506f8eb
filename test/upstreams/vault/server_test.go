// Package vault tests the driver on Vault's own PKI engine and AppRole login, which test/upstreams/vaultserver serves.
package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/vault"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

// server is a Vault with a root in the mount root and an issuing CA in the mount pki, and a proxy before it.
type server struct {
	t     testing.TB
	url   string
	proxy *proxy.Proxy
	tls   *authority.Authority
	root  *x509.Certificate
	o     vault.Options
	own   map[string]bool // serial numbers that Vault has stored for itself
}

// start makes the CAs, and a role that signs what contract.Profile decides.
func start(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, tls: authority.New(t), own: map[string]bool{}}
	s.url = "http://" + authority.Run(t, authority.Binary(t, "vaultserver"), "-namespace", "lab/", "-mounts", "root,pki")
	s.proxy = proxy.Start(t, s.url, s.tls.Server(t, false), nil)
	s.root = testpki.Cert(t, pemDER(t, s.post("root/root/generate/internal", map[string]any{"common_name": "Vault Root", "key_type": "ec", "ttl": "87600h"})["certificate"].(string)))
	csr := s.post("pki/intermediate/generate/internal", map[string]any{"common_name": "Vault Issuing CA", "key_type": "ec"})["csr"]
	signed := s.post("root/root/sign-intermediate", map[string]any{"csr": csr, "common_name": "Vault Issuing CA", "ttl": "43800h"})
	s.post("pki/intermediate/set-signed", map[string]any{"certificate": signed["certificate"].(string) + "\n" + signed["issuing_ca"].(string)})
	s.post("pki/config/urls", map[string]any{"crl_distribution_points": "http://vault.lab.test/v1/pki/crl"})
	s.role(nil)
	s.o = vault.Options{Name: "Vault", URL: s.proxy.URL, TLS: s.tls.Client(t, ""), Roots: []*x509.Certificate{s.root}, Namespace: "lab/", Role: "mail",
		Token:     func() ([]byte, error) { return []byte("root\n"), nil },
		Tolerance: upstream.Tolerance{Missing: []string{wcce.OIDTemplateName, wcce.OIDSID}}, Settled: time.Hour}
	for _, serial := range s.stored() {
		s.own[serial] = true
	}
	return s
}

// role writes the role mail, with changes.
func (s *server) role(changes map[string]any) {
	s.t.Helper()
	role := map[string]any{"allow_any_name": true, "enforce_hostnames": false, "cn_validations": "disabled", "allow_ip_sans": true, "allowed_uri_sans": "*",
		"allowed_other_sans": "*", "use_csr_common_name": false, "use_csr_sans": false, "server_flag": false, "client_flag": false, "email_protection_flag": true,
		"key_usage": "KeyEncipherment", "key_type": "any", "organization": "Lab", "no_store": false, "require_cn": false}
	for k, v := range changes {
		role[k] = v
	}
	s.post("pki/roles/mail", role)
}

func (s *server) post(path string, in map[string]any) map[string]any {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.do(http.MethodPost, path, body)
}

func (s *server) do(method, path string, body []byte) map[string]any {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+"/v1/"+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", "root")
	req.Header.Set("X-Vault-Namespace", "lab/")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode/100 != 2 && res.StatusCode != http.StatusNotFound {
		s.t.Fatalf("%s %s: %d %s, %v", method, path, res.StatusCode, text, err)
	}
	var out struct {
		Data map[string]any `json:"data"`
		Auth map[string]any `json:"auth"`
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &out); err != nil {
			s.t.Fatalf("%s: %v", path, err)
		}
	}
	return out.Data
}

// stored are the serial numbers of the mount, in hexadecimal without leading zeros.
func (s *server) stored() (out []string) {
	s.t.Helper()
	keys, _ := s.do("LIST", "pki/certs", nil)["keys"].([]any)
	for _, k := range keys {
		if serial := strings.TrimLeft(strings.ReplaceAll(k.(string), ":", ""), "0"); !s.own[serial] {
			out = append(out, serial)
		}
	}
	return out
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
	return &contract.Subject{Issuer: s.issuer(), Tolerance: s.o.Tolerance, Proxy: s.proxy,
		Submits: func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/sign") },
		Issued:  func(testing.TB) []string { return s.stored() },
		Revoked: func(t testing.TB, cert *x509.Certificate) bool {
			t.Helper()
			res, err := http.NewRequest(http.MethodGet, s.url+"/v1/pki/crl", nil)
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
