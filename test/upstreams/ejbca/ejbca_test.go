package ejbca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/ejbca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

func start(t testing.TB) (*server, *proxy.Proxy, ejbca.Options) {
	t.Helper()
	s := &server{t: t, a: authority.New(t), entities: map[string]*entity{}, approvals: map[int]*entity{}, rejected: map[int]bool{}, revoked: map[string]string{}}
	plain := httptest.NewServer(s)
	t.Cleanup(plain.Close)
	p := proxy.Start(t, plain.URL, s.a.Server(t, true), nil)
	return s, p, ejbca.Options{Name: "EJBCA", URL: p.URL + "/ejbca/ejbca-rest-api", TLS: s.a.Client(t, "gateway"), Roots: []*x509.Certificate{s.a.Root}, CA: "Mail CA",
		CertificateProfile: "Mail", EndEntityProfile: "Users", Extensions: []string{wcce.OIDTemplateName, wcce.OIDSID}, Secret: []byte("0123456789abcdef")}
}

func issuer(t testing.TB, o ejbca.Options) *ejbca.CA {
	t.Helper()
	ca, err := ejbca.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (s *server) all(testing.TB) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.issued)
}

func subject(s *server, p *proxy.Proxy, ca *ejbca.CA) *contract.Subject {
	return &contract.Subject{Issuer: ca, Proxy: p, Issued: s.all,
		Submits: func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/certificaterequest") || strings.HasSuffix(r.URL.Path, "/pkcs10enroll")
		},
		Revoked: func(_ testing.TB, cert *x509.Certificate) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.revoked[cert.SerialNumber.Text(16)] == "KEY_COMPROMISE"
		}}
}

// mallory is an order that the server says no to.
func mallory(t testing.TB) upstream.Order {
	t.Helper()
	key := testpki.RSA(t, 2048)
	o, name := contract.NamedOrder(t, "m-1", key), "Mallory"
	old, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, ExtraExtensions: old.Extensions}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	o.CSR, o.Profile.Subject, o.Profile.SubjectText = der, csr.RawSubject, "CN="+name
	return o
}

func TestContractWithEndEntities(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s, p, o := start(t)
		c := subject(s, p, issuer(t, o))
		c.Refused = mallory
		return c
	})
}

func TestContractWithRequests(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s, p, o := start(t)
		o.FromRequest, o.Extensions = true, nil
		c := subject(s, p, issuer(t, o))
		c.Order = contract.NamedOrder
		c.Refused = mallory
		return c
	})
}

// An order with an end entity is one certificate however often it is sent, whatever was lost before.
func TestAnEndEntityHasOneCertificate(t *testing.T) {
	s, p, opts := start(t)
	ca := issuer(t, opts)
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	p.Make(proxy.Lost, 1, func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/endentity") })
	if _, err := ca.Submit(background, o); !upstream.IsNotIssued(err) {
		t.Errorf("only the end entity was registered: %v", err)
	}
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Unknown {
		t.Errorf("%+v, %v", r, err)
	}
	first, err := ca.Submit(background, o)
	if err != nil || first.State != upstream.Issued {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := ca.Submit(background, o)
	if err != nil || again.State != upstream.Issued || !again.Certificate.Equal(first.Certificate) || len(s.all(t)) != 1 {
		t.Errorf("%+v, %v, %d certificates", again, err, len(s.all(t)))
	}
	// A profile that does not store certificates leaves it open.
	s.forget = true
	for name, ask := range map[string]func() (upstream.Result, error){"submit": func() (upstream.Result, error) { return ca.Submit(background, o) },
		"find": func() (upstream.Result, error) { return ca.Find(background, o, "") }} {
		if r, err := ask(); err == nil || upstream.IsNotIssued(err) || !strings.Contains(err.Error(), "store certificates") {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestEveryKindOfName(t *testing.T) {
	s, _, opts := start(t)
	ca := issuer(t, opts)
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	san := []byte{0x30, 0, 0x81, 3, 'a', '@', 'b', 0x82, 3, 'h', '.', 'b', 0x86, 5, 'u', ':', 'v', ',', 'w', 0x87, 4, 192, 0, 2, 1,
		0xa0, 0x15, 0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x14, 2, 3, 0xa0, 0x07, 0x0c, 0x05, 'u', '+', ',', '@', 'r',
		0xa0, 0x1f, 0x06, 0x09, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x19, 1, 0xa0, 0x12, 0x04, 0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	san[1] = byte(len(san) - 2)
	for i := range o.Profile.Extensions {
		if o.Profile.Extensions[i].OID == wcce.OIDSAN {
			o.Profile.Extensions[i].Value = san
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: `Ärcher, "Alice" + <a=b>;#\`, Organization: []string{"#Lab "}}}, authority.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	o.Profile.Subject = csr.RawSubject
	r, err := ca.Submit(background, o)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
	if !r.Certificate.NotAfter.Equal(o.Profile.NotAfter) {
		t.Errorf("it ends at %s, decided was %s", r.Certificate.NotAfter, o.Profile.NotAfter)
	}
	if len(s.all(t)) != 1 {
		t.Error("more than one")
	}
	o.Profile.Extensions = append(o.Profile.Extensions, templates.Extension{OID: "1.3.6.1.4.1.311.21.10", Value: []byte{0x30, 0}})
	if err := upstream.Check(ca, o); err == nil || !strings.Contains(err.Error(), "1.3.6.1.4.1.311.21.10") {
		t.Errorf("an extension that EJBCA is not told of: %v", err)
	}
}

func TestOrdersThatWaitForAnApproval(t *testing.T) {
	for name, fromRequest := range map[string]bool{"with an end entity": false, "with the request": true} {
		for decision, yes := range map[string]bool{"approved": true, "rejected": false} {
			t.Run(name+", "+decision, func(t *testing.T) {
				s, _, opts := start(t)
				opts.FromRequest = fromRequest
				s.approve = true
				ca := issuer(t, opts)
				o := contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
				r, err := ca.Submit(background, o)
				if err != nil || r.State != upstream.Pending || r.Token == "" {
					t.Fatalf("%+v, %v", r, err)
				}
				token := r.Token
				ca = issuer(t, opts) // after a restart
				if r, err = ca.Find(background, o, token); err != nil || r.State != upstream.Pending || r.Token != token {
					t.Fatalf("%+v, %v", r, err)
				}
				s.decide(yes)
				r, err = ca.Find(background, o, token)
				switch {
				case err != nil:
					t.Fatal(err)
				case !yes:
					if r.State != upstream.Refused || !strings.Contains(r.Reason, "rejected") {
						t.Errorf("%+v", r)
					}
					return
				case r.State != upstream.Issued:
					t.Fatalf("%+v", r)
				}
				if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
					t.Error(err)
				}
				again, err := ca.Find(background, o, token)
				if err != nil || again.State != upstream.Issued || !again.Certificate.Equal(r.Certificate) || len(s.all(t)) != 1 {
					t.Errorf("%+v, %v, %d certificates", again, err, len(s.all(t)))
				}
			})
		}
	}
}

// After a lost pkcs10enroll nothing that is found means nothing only after a while.
func TestALostRequestSettles(t *testing.T) {
	_, _, opts := start(t)
	var ahead atomic.Int64
	now := time.Now()
	opts.FromRequest, opts.Now = true, func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	ca := issuer(t, opts)
	o := contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	if r, err := ca.Find(background, o, ""); err == nil {
		t.Fatalf("it may be under way: %+v", r)
	}
	ahead.Store(int64(6 * time.Minute))
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Unknown {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhoIsNotLetIn(t *testing.T) {
	for name, change := range map[string]func(*server, *ejbca.Options){
		"no role":               func(s *server, _ *ejbca.Options) { s.forbidden = true },
		"another profile":       func(_ *server, o *ejbca.Options) { o.CertificateProfile = "None" },
		"another server":        func(_ *server, o *ejbca.Options) { o.TLS = authority.New(t).Client(t, "gateway") },
		"another address":       func(_ *server, o *ejbca.Options) { o.URL += "/elsewhere" },
		"no client certificate": func(s *server, o *ejbca.Options) { o.TLS = s.a.Client(t, "") },
	} {
		t.Run(name, func(t *testing.T) {
			s, _, o := start(t)
			change(s, &o)
			r, err := issuer(t, o).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
			if !upstream.IsNotIssued(err) || len(s.all(t)) != 0 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	_, _, o := start(t)
	o.Secret = nil
	if _, err := ejbca.New(o); err == nil {
		t.Error("passwords of nothing")
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"nothing": `{}`, "a list": `[]`, "a number": `{"certificate": 7}`, "no base64": `{"certificate": "***"}`, "no certificate": `{"certificate": "MAA="}`,
		"base64 of nothing": `{"certificate": "TUFBPQ=="}`, "words": "hello", "a broken chain": `{"certificate": "MIIB", "certificate_chain": ["x"]}`,
	} {
		for _, status := range []int{200, 201, 202, 500, 302} {
			t.Run(name, func(t *testing.T) {
				a := authority.New(t)
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/endentity") {
						return
					}
					w.WriteHeader(status)
					_, _ = io.WriteString(w, body)
				}))
				s.TLS = a.Server(t, false)
				s.StartTLS()
				defer s.Close()
				ca := issuer(t, ejbca.Options{Name: "EJBCA", URL: s.URL, TLS: a.Client(t, ""), Roots: []*x509.Certificate{a.Root}, CA: "Mail CA", CertificateProfile: "Mail",
					EndEntityProfile: "Users", Extensions: []string{wcce.OIDTemplateName, wcce.OIDSID}, Secret: []byte("0123456789abcdef")})
				r, err := ca.Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
				if err == nil || upstream.IsNotIssued(err) != (status == 302) {
					t.Errorf("%d: %+v, %v", status, r, err)
				}
			})
		}
	}
}
