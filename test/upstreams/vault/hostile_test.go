package vault

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/vault"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

// What something that is no Vault answers is an error, and never a certificate, a panic, or the word that nothing was issued.
func TestHostileAnswers(t *testing.T) {
	a := authority.New(t)
	text := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	stranger := authority.New(t)
	for name, data := range map[string]string{
		"nothing":                        `{}`,
		"no data":                        `{"data": null}`,
		"a number":                       `{"data": {"certificate": 7}}`,
		"a list":                         `[]`,
		"no PEM":                         quote(t, "certificate", "hello"),
		"a key":                          quote(t, "certificate", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}))),
		"two certificates":               quote(t, "certificate", text(a.Issuing.Raw)+text(a.Root.Raw)),
		"a CA of somebody else":          quote(t, "certificate", text(stranger.Issuing.Raw)),
		"a certificate with words after": quote(t, "certificate", text(a.Issuing.Raw)+"and more"),
		"broken DER":                     quote(t, "certificate", text([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})),
		"a broken chain":                 `{"data": {"certificate": ` + encode(t, text(a.Issuing.Raw)) + `, "ca_chain": ["x"]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/roles/mail"):
					_, _ = io.WriteString(w, `{"data": {"key_usage": ["KeyEncipherment"], "email_protection_flag": true, "organization": ["Lab"]}}`)
				case strings.Contains(r.URL.Path, "/issuer/"):
					_, _ = io.WriteString(w, `{"data": {"certificate": `+encode(t, text(a.Issuing.Raw))+`, "ca_chain": []}}`)
				case strings.HasSuffix(r.URL.Path, "/certs"):
					_, _ = io.WriteString(w, `{"data": {"keys": ["11:22"]}}`)
				default:
					_, _ = io.WriteString(w, data)
				}
			}))
			s.TLS = a.Server(t, false)
			s.StartTLS()
			defer s.Close()
			o := options(a, t)
			o.URL = s.URL
			ca, err := vault.New(o)
			if err != nil {
				t.Fatal(err)
			}
			order := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
			if r, err := ca.Submit(background, order); err == nil || upstream.IsNotIssued(err) {
				t.Errorf("%+v, %v", r, err)
			}
			if r, err := ca.Find(background, order, ""); err == nil {
				t.Errorf("found %+v", r)
			}
		})
	}
}

func options(a *authority.Authority, t testing.TB) vault.Options {
	t.Helper()
	s := &server{}
	s.o.Name, s.o.TLS, s.o.Role = "Vault", a.Client(t, ""), "mail"
	s.o.Roots = append(s.o.Roots, a.Root)
	s.o.Token = func() ([]byte, error) { return []byte("t"), nil }
	s.o.Tolerance.Missing = []string{"1.3.6.1.4.1.311.20.2", "1.3.6.1.4.1.311.25.2"}
	return s.o
}

func encode(t testing.TB, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func quote(t testing.TB, key, text string) string {
	t.Helper()
	return `{"data": {"` + key + `": ` + encode(t, text) + `}}`
}
