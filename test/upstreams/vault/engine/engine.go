// Package engine runs Vault's own PKI engine for tests: a root, and an issuing CA that a role signs with.
package engine

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/program"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

// Namespace is where the mounts are.
const Namespace = "lab/"

// Engine is a Vault with a root in the mount root and an issuing CA in the mount pki, and a proxy before it.
type Engine struct {
	t     testing.TB
	URL   string // without a proxy
	Proxy *proxy.Proxy
	TLS   *authority.Authority // of Proxy
	Root  *x509.Certificate
	Own   map[string]bool // serial numbers that Vault has stored for itself
}

// Start makes the CAs, and a role that signs what contract.Profile decides.
func Start(t testing.TB) *Engine {
	t.Helper()
	s := &Engine{t: t, TLS: authority.New(t), Own: map[string]bool{}}
	s.URL = "http://" + program.Run(t, program.Path(t, "vaultserver"), "-namespace", Namespace, "-mounts", "root,pki")
	s.Proxy = proxy.Start(t, s.URL, s.TLS.Server(t, false), nil)
	s.Root = testpki.Cert(t, fromPEM(t, s.Post("root/root/generate/internal", map[string]any{"common_name": "Vault Root", "key_type": "ec", "ttl": "87600h"})["certificate"].(string)))
	csr := s.Post("pki/intermediate/generate/internal", map[string]any{"common_name": "Vault Issuing CA", "key_type": "ec"})["csr"]
	signed := s.Post("root/root/sign-intermediate", map[string]any{"csr": csr, "common_name": "Vault Issuing CA", "ttl": "43800h"})
	s.Post("pki/intermediate/set-signed", map[string]any{"certificate": signed["certificate"].(string) + "\n" + signed["issuing_ca"].(string)})
	s.Post("pki/config/urls", map[string]any{"crl_distribution_points": "http://vault.lab.test/v1/pki/crl"})
	s.Role(nil)
	for _, serial := range s.Stored() {
		s.Own[serial] = true
	}
	return s
}

// Role writes the role mail, with changes.
func (s *Engine) Role(changes map[string]any) {
	s.t.Helper()
	role := map[string]any{"allow_any_name": true, "enforce_hostnames": false, "cn_validations": "disabled", "allow_ip_sans": true, "allowed_uri_sans": "*",
		"allowed_other_sans": "*", "use_csr_common_name": false, "use_csr_sans": false, "server_flag": false, "client_flag": false, "email_protection_flag": true,
		"key_usage": "KeyEncipherment", "key_type": "any", "organization": "Lab", "no_store": false, "require_cn": false}
	for k, v := range changes {
		role[k] = v
	}
	s.Post("pki/roles/mail", role)
}

// Post writes to a path of Vault's.
func (s *Engine) Post(path string, in map[string]any) map[string]any {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.Do(http.MethodPost, path, body)
}

// Do makes a request, and returns its data.
func (s *Engine) Do(method, path string, body []byte) map[string]any {
	s.t.Helper()
	req, err := http.NewRequest(method, s.URL+"/v1/"+path, bytes.NewReader(body))
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

// Stored are the serial numbers of the mount, in hexadecimal without leading zeros.
func (s *Engine) Stored() (out []string) {
	s.t.Helper()
	keys, _ := s.Do("LIST", "pki/certs", nil)["keys"].([]any)
	for _, k := range keys {
		if serial := strings.TrimLeft(strings.ReplaceAll(k.(string), ":", ""), "0"); !s.Own[serial] {
			out = append(out, serial)
		}
	}
	return out
}

func fromPEM(t testing.TB, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("not PEM: %q", text)
	}
	return block.Bytes
}
