package client_test

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestSubjectsAreEncodedAsOpenSSLReadsThem(t *testing.T) {
	for text, want := range map[string]string{
		"CN=a":                          "CN=a",
		"cn=Ä,ou=B+cn=C,dc=lab,DC=test": "CN=Ä,OU=B+CN=C,DC=lab,DC=test",
		`CN=a\,b\+c,O=\#x`:              `CN=a\,b\+c,O=\#x`,
		"E=a@b.example,CN=x,C=DE":       "emailAddress=a@b.example,CN=x,C=DE",
		"SERIALNUMBER=12-3,ST=Bayern":   "serialNumber=12-3,ST=Bayern",
	} {
		der, err := client.SubjectDER(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := opensslName(t, der); got != want {
			t.Errorf("%s: OpenSSL reads %q, want %q", text, got, want)
		}
	}
}

// opensslName lets OpenSSL print a name inside a certificate revocation list, the smallest thing that has one.
func opensslName(t *testing.T, name []byte) string {
	t.Helper()
	der := func(tag byte, parts ...[]byte) []byte {
		body := []byte(strings.Join(func() (s []string) {
			for _, p := range parts {
				s = append(s, string(p))
			}
			return
		}(), ""))
		if len(body) > 127 {
			return append([]byte{tag, 0x81, byte(len(body))}, body...)
		}
		return append([]byte{tag, byte(len(body))}, body...)
	}
	algorithm, err := hex.DecodeString("300d06092a864886f70d01010b0500")
	if err != nil {
		t.Fatal(err)
	}
	crl := der(0x30, der(0x30, algorithm, name, der(0x17, []byte("260101000000Z"))), algorithm, der(0x03, []byte{0, 1}))
	out, err := testpki.OpenSSL(t, crl, "crl", "-inform", "DER", "-noout", "-issuer", "-nameopt", "RFC2253,-esc_msb,utf8")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), "issuer="))
}

func TestNamesThatCannotBeEncodedAreErrors(t *testing.T) {
	for _, text := range []string{"", "CN", "CN=", "X=y", "C=DEU", "DC=ä", "C=*!", "CN=a\\00b", "CN=" + strings.Repeat("x", 65)} {
		if _, err := client.SubjectDER(text); err == nil {
			t.Errorf("subject %q was accepted", text)
		}
	}
	for _, name := range []string{"", "host", "dns:", "dns:a..b", "dns:-a", "dns:a b", "email:x", "email:A <a@b>", "upn:x", "upn:@b", "ip:1", "ip:fe80::1%eth0", "uri:x"} {
		if _, err := client.SANValue([]string{name}); err == nil {
			t.Errorf("alternative name %q was accepted", name)
		}
	}
}

// twoAddresses publishes an address where nobody listens before that of the server, and some that are not for us.
type twoAddresses struct{ *server }

func (b *twoAddresses) Policies(ctx context.Context, c templates.Caller, r soap.GetPoliciesRequest) (*soap.Policies, error) {
	p, err := b.server.Policies(ctx, c, r)
	p.CAs[0].URIs[0].Priority = ptr(2)
	p.CAs[0].URIs = append(p.CAs[0].URIs, soap.CAURI{ClientAuthentication: soap.AuthKerberos, URI: "https://127.0.0.1:1/x", Priority: ptr(1)},
		soap.CAURI{ClientAuthentication: soap.AuthPassword, URI: "https://127.0.0.1:1/y", Priority: ptr(0)},
		soap.CAURI{ClientAuthentication: soap.AuthKerberos, URI: "https://127.0.0.1:1/z", Priority: ptr(0), RenewalOnly: true},
		soap.CAURI{ClientAuthentication: soap.AuthKerberos, URI: "http://127.0.0.1:1/plain", Priority: ptr(0)})
	return p, err
}

func (b *twoAddresses) attach(t *testing.T, o *client.Options) {
	t.Helper()
	if c, err := net.Dial("tcp", "127.0.0.1:1"); err == nil {
		c.Close()
		if os.Getenv("CI") != "" {
			t.Fatal("somebody listens on port 1")
		}
		t.Skip("somebody listens on port 1")
	}
	handler := soap.NewHandler(b, soap.Options{})
	ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(kerberos.WithCaller(r.Context(), templates.Caller{Principal: "alice@LAB.TEST"})))
	}))
	t.Cleanup(ts.Close)
	o.PolicyURL = ts.URL + soap.Kerberos.CEPPath
}
