// Package scep tests the SCEP driver on micromdm's SCEP server.
package scep

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/scep"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

func submits(r *http.Request) bool { return r.URL.Query().Get("operation") == "PKIOperation" }

// order is for what micromdm always issues: client authentication and a signing key. The request says it all.
func order(t testing.TB, id string, key crypto.Signer) upstream.Order {
	return orderFor(t, id, key, "alice@lab.test")
}

func orderFor(t testing.TB, id string, key crypto.Signer, address string) upstream.Order {
	t.Helper()
	p := contract.Profile()
	p.Extensions = []templates.Extension{
		{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x07, 0x80}},
		{OID: wcce.OIDEKU, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, 2}},
		{OID: wcce.OIDSAN, Value: append([]byte{0x30, byte(2 + len(address)), 0x81, byte(len(address))}, address...)},
	}
	template := &x509.CertificateRequest{RawSubject: p.Subject}
	for _, e := range p.Extensions {
		x, err := e.X509()
		if err != nil {
			t.Fatal(err)
		}
		template.ExtraExtensions = append(template.ExtraExtensions, x)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Order{ID: id, CSR: der, PublicKey: key.Public(), Profile: p}
}

func TestContract(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := Start(t)
		return &contract.Subject{Issuer: s.driver(s.options()), Issued: s.list, Order: order, Proxy: s.proxy, Submits: submits,
			Refused: func(t testing.TB) upstream.Order {
				return orderFor(t, "0-dd", testpki.RSA(t, 2048), "mallory@lab.test")
			}}
	})
}

func TestAnOrderThatWaitsIsPolledFor(t *testing.T) {
	s := Start(t, "pending")
	d, o := s.driver(s.options()), order(t, "1-aa", testpki.RSA(t, 2048))
	r, err := d.Submit(background, o)
	if err != nil || r.State != upstream.Pending || r.Token == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := d.Find(background, order(t, "2-bb", testpki.RSA(t, 2048)), r.Token); err == nil {
		t.Errorf("the token of another order: %+v", r)
	}
	if r, err := d.Find(background, order(t, "2-bb", testpki.RSA(t, 2048)), ""); err != nil || r.State != upstream.Uncertain {
		t.Errorf("an order that was never there: %+v, %v", r, err)
	}
	r, err = s.driver(s.options()).Find(background, o, r.Token)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
}

// The contract lets the first request fail; here who answers is known already.
func TestTroublesOfTheRequestItself(t *testing.T) {
	s := Start(t)
	d := s.driver(s.options())
	if r, err := d.Submit(background, order(t, "1-aa", testpki.RSA(t, 2048))); err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, trouble := range []proxy.Trouble{proxy.Garbage, proxy.Endless, proxy.Lost, proxy.Broken, proxy.Silence} {
		s.proxy.Make(trouble, 1, submits)
		ctx, cancel := context.WithTimeout(background, 2*time.Second)
		r, err := d.Submit(ctx, order(t, "2-bb", testpki.RSA(t, 2048)))
		cancel()
		if err == nil || upstream.IsNotIssued(err) {
			t.Errorf("trouble %d: %+v, %v", trouble, r, err)
		}
	}
}

func TestAnswersInDESAreRefused(t *testing.T) {
	s := Start(t, "des")
	r, err := s.driver(s.options()).Submit(background, order(t, "1-aa", testpki.RSA(t, 2048)))
	if err == nil || upstream.IsNotIssued(err) || !strings.Contains(err.Error(), "in place of AES") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhoDoesNotLeadToTheRootIsAskedNothing(t *testing.T) {
	s := Start(t)
	o := s.options()
	key := testpki.RSA(t, 2048)
	o.Roots = []*x509.Certificate{authority.Sign(t, authority.CA("Another Root"), nil, key.Public(), key)}
	if r, err := s.driver(o).Submit(background, order(t, "1-aa", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) {
		t.Errorf("%+v, %v", r, err)
	}
	if strings.Contains(string(s.proxy.Everything()), "x-pki-message") {
		t.Error("the request went to somebody else")
	}
}

func TestConfiguredResponders(t *testing.T) {
	s := Start(t)
	o := s.options()
	o.Issuing, o.Responders = []*x509.Certificate{s.issuing}, []*x509.Certificate{s.issuing}
	d := s.driver(o)
	if chain, err := d.Chain(background); err != nil || len(chain) != 2 {
		t.Errorf("%v, %v", chain, err)
	}
	if r, err := d.Submit(background, order(t, "1-aa", testpki.RSA(t, 2048))); err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
	o.Responders = []*x509.Certificate{s.ra} // who cannot open it
	if r, err := s.driver(o).Submit(background, order(t, "2-bb", testpki.RSA(t, 2048))); err == nil {
		t.Errorf("%+v", r)
	}
}

func TestOptionsThatCannotBeUsed(t *testing.T) {
	s := Start(t)
	elliptic, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*scep.Options){
		"no certificate": func(o *scep.Options) { o.Certificate = nil },
		"another key":    func(o *scep.Options) { o.Key = testpki.RSA(t, 2048) },
		"no root":        func(o *scep.Options) { o.Roots = nil },
		"no address":     func(o *scep.Options) { o.URL = "scep" },
	} {
		o := s.options()
		change(&o)
		if _, err := scep.New(o); err == nil || !strings.Contains(err.Error(), "SCEP") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r, err := s.driver(s.options()).Submit(background, order(t, "1-ec", elliptic)); err != nil || r.State != upstream.Issued {
		t.Errorf("an elliptic key of the client: %+v, %v", r, err)
	}
	null := order(t, "1-aa", testpki.RSA(t, 2048))
	null.Profile = contract.Profile()
	if err := upstream.Check(s.driver(s.options()), null); err == nil {
		t.Error("a decision that the request does not say is carried")
	}
}
