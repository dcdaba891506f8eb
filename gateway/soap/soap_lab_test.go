package soap

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/inlab"
)

// TestLabPoliciesOverTLSAndKerberos is the whole way of a client: TLS, a ticket from the domain controller, SOAP.
func TestLabPoliciesOverTLSAndKerberos(t *testing.T) {
	inlab.Need(t)
	acceptor, err := kerberos.New(kerberos.Options{KeytabFile: os.Getenv("LAB_KEYTAB_SVC"), SPNs: []string{"HTTP/enroll.lab.test"}})
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBackend{policies: fullPolicies()}
	s := httptest.NewTLSServer(acceptor.Middleware(NewHandler(b, Options{})))
	defer s.Close()
	krb, err := kerberos.NewClient(kerberos.ClientOptions{Principal: "WS1$@LAB.TEST", KeytabFile: os.Getenv("LAB_KEYTAB_WS1")})
	if err != nil {
		t.Fatal(err)
	}
	defer krb.Close()
	base := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the test server's certificate names another host
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
		},
	}
	c := &Client{HTTP: &http.Client{Transport: krb.Transport(base)}}
	p, err := c.GetPolicies(t.Context(), "https://enroll.lab.test"+Kerberos.CEPPath, GetPoliciesRequest{})
	if diff := cmp.Diff(b.policies, p, ignoreEncoded, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if b.caller.Principal != "WS1$@LAB.TEST" || !b.caller.Machine {
		t.Errorf("the backend saw %+v", b.caller)
	}

	c.HTTP = &http.Client{Transport: base}
	_, err = c.GetPolicies(t.Context(), "https://enroll.lab.test"+Kerberos.CEPPath, GetPoliciesRequest{})
	if e := hresult.From(err); e.Code != hresult.AccessDenied || !strings.Contains(e.Text, "Kerberos authentication") {
		t.Errorf("without a ticket: %v", err)
	}
}
