// Package acme tests the ACME driver on Let's Encrypt's pebble.
package acme

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/acme"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

func submits(r *http.Request) bool { return strings.Contains(r.URL.Path, "finalize") }

// order is a web server's, of what pebble always issues. The request says it all.
func order(t testing.TB, id string, key crypto.Signer) upstream.Order {
	return orderFor(t, id, key, "ws1.lab.test")
}

func orderFor(t testing.TB, id string, key crypto.Signer, name string) upstream.Order {
	t.Helper()
	subject, err := asn1.Marshal(pkix.Name{CommonName: name}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	p := contract.Profile()
	p.Subject, p.SubjectText = subject, "CN="+name
	p.Extensions = []templates.Extension{
		{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x07, 0x80}},
		{OID: wcce.OIDEKU, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, 1}},
		{OID: wcce.OIDSAN, Value: append([]byte{0x30, byte(2 + len(name)), 0x82, byte(len(name))}, name...)},
	}
	template := &x509.CertificateRequest{RawSubject: p.Subject, DNSNames: []string{name}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Order{ID: id, CSR: der, PublicKey: key.Public(), Profile: p}
}

func TestContract(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := Start(t)
		s.authorize("ws1.lab.test")
		return &contract.Subject{Issuer: s.driver(s.options()), Issued: s.list, Revoked: s.isRevoked, Order: order, Proxy: s.proxy, Submits: submits,
			Refused: func(t testing.TB) upstream.Order {
				return orderFor(t, "0-dd", testpki.RSA(t, 2048), "mallory.lab.test")
			}}
	})
}

func TestNamesThatAreNotAuthorizedAreNamed(t *testing.T) {
	s := Start(t)
	r, err := s.driver(s.options()).Submit(background, orderFor(t, "1-aa", testpki.RSA(t, 2048), "ws2.lab.test"))
	if err != nil || r.State != upstream.Refused || !strings.Contains(r.Reason, "ws2.lab.test (") || !strings.Contains(r.Reason, "dns-01") {
		t.Errorf("%+v, %v", r, err)
	}
}

// However long the CA cannot be asked after an order was finalized, the order's address leads to its certificate.
func TestTheAddressOfAnOrderLeadsToItsCertificate(t *testing.T) {
	for name, submit := range map[string]func(*http.Request) bool{
		"the request is lost with all that follow": func(r *http.Request) bool { return submits(r) || strings.Contains(r.URL.Path, "my-order") },
	} {
		t.Run(name, func(t *testing.T) {
			for _, trouble := range []proxy.Trouble{proxy.Lost, proxy.Busy} {
				s := Start(t)
				s.authorize("ws1.lab.test")
				d, o := s.driver(s.options()), order(t, "1-aa", testpki.RSA(t, 2048))
				s.proxy.Make(trouble, 100, submit)
				r, err := d.Submit(background, o)
				if err != nil || r.State != upstream.Pending || r.Token == "" {
					t.Fatalf("%+v, %v", r, err)
				}
				s.proxy.Make(proxy.None, 0, nil)
				r, err = s.driver(s.options()).Find(background, o, r.Token)
				if err != nil || r.State != upstream.Issued {
					t.Fatalf("%+v, %v", r, err)
				}
				if got := s.list(t); len(got) != 1 || got[0] != r.Certificate.SerialNumber.Text(16) {
					t.Errorf("issued %q", got)
				}
				if r, err := d.Find(background, o, ""); err != nil || r.State != upstream.Uncertain || r.Reason == "" {
					t.Errorf("without the address: %+v, %v", r, err)
				}
				if r, err := d.Find(background, o, "https://elsewhere.test/order"); err == nil {
					t.Errorf("an address at another host: %+v", r)
				}
			}
		})
	}
}

func TestWrongCredentialsHaveIssuedNothing(t *testing.T) {
	s := Start(t)
	o := s.options()
	o.MACKey = []byte("another key of thirty-two octets..")
	r, err := s.driver(o).Submit(background, order(t, "1-aa", testpki.RSA(t, 2048)))
	if !upstream.IsNotIssued(err) || strings.Contains(err.Error(), "thirty-two") {
		t.Errorf("%+v, %v", r, err)
	}
	o = s.options()
	o.TLS = nil
	if r, err := s.driver(o).Submit(background, order(t, "1-aa", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) {
		t.Errorf("a server that is not to be trusted: %+v, %v", r, err)
	}
}

func TestAnotherRootIsNotTrusted(t *testing.T) {
	s := Start(t)
	s.authorize("ws1.lab.test")
	o := s.options()
	_, other := testpki.Agent(t, "Another root", o.Now(), o.Now().AddDate(1, 0, 0))
	o.Roots = []*x509.Certificate{other}
	if r, err := s.driver(o).Submit(background, order(t, "1-aa", testpki.RSA(t, 2048))); err == nil || upstream.IsNotIssued(err) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestACertificateThatCannotBeKeptStaysAtTheCA(t *testing.T) {
	s := Start(t)
	s.authorize("ws1.lab.test")
	o := s.options()
	file := filepath.Join(o.Dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Dir = filepath.Join(file, "no folder")
	ord := order(t, "1-aa", testpki.RSA(t, 2048))
	r, err := s.driver(o).Submit(background, ord)
	if err != nil || r.State != upstream.Pending || r.Token == "" || r.Reason == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = s.driver(s.options()).Find(background, ord, r.Token); err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhatWasNotKeptCannotBeRevoked(t *testing.T) {
	s := Start(t)
	s.authorize("ws1.lab.test")
	o := s.options()
	d := s.driver(o)
	r, err := d.Submit(background, order(t, "1-aa", testpki.RSA(t, 2048)))
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	files, err := filepath.Glob(filepath.Join(o.Dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if err := d.Revoke(background, r.Certificate.SerialNumber, 1); err == nil || !strings.Contains(err.Error(), "at the CA") {
		t.Error(err)
	}
	o.Dir = ""
	if !upstream.TraitsOf(s.driver(o)).NoRevocation {
		t.Error("without a folder there is revocation")
	}
}

func TestWhatACMECannotCarry(t *testing.T) {
	d, err := acme.New(acme.Options{Name: "ACME", Directory: "https://ca.test/dir", Roots: []*x509.Certificate{{Raw: []byte{1}}}, Key: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	good := order(t, "1-aa", testpki.RSA(t, 2048))
	if err := upstream.Check(d, good); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		order upstream.Order
		want  string
	}{
		"a request without names": {contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)), "subject"},
		"a mail address":          {contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048)), "DNS names"},
	} {
		if err := upstream.Check(d, c.order); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*acme.Options){
		"plain HTTP":    func(o *acme.Options) { o.Directory = "http://ca.test/dir" },
		"no account":    func(o *acme.Options) { o.Key = nil },
		"half a secret": func(o *acme.Options) { o.KeyID = "x" },
	} {
		o := acme.Options{Name: "ACME", Directory: "https://ca.test/dir", Roots: []*x509.Certificate{{Raw: []byte{1}}}, Key: newKey(t)}
		change(&o)
		if _, err := acme.New(o); err == nil {
			t.Errorf("%s is possible", name)
		}
	}
}
