package est

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/est"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
	"github.com/fullsailor/pkcs7"
)

var background = context.Background()

func submits(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/simpleenroll") }

// ordered is an order that a request carries wholly, for another name than contract.NamedOrder has.
func ordered(t testing.TB, id, name string) upstream.Order {
	t.Helper()
	key := testpki.RSA(t, 2048)
	o := contract.NamedOrder(t, id, key)
	csr, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, ExtraExtensions: csr.Extensions}
	if o.CSR, err = x509.CreateCertificateRequest(rand.Reader, template, key); err != nil {
		t.Fatal(err)
	}
	if csr, err = x509.ParseCertificateRequest(o.CSR); err != nil {
		t.Fatal(err)
	}
	o.Profile.Subject, o.Profile.SubjectText = csr.RawSubject, "CN="+name
	return o
}

func TestContract(t *testing.T) {
	for name, label := range map[string]string{"without a label": "", "with a label": "fast"} {
		t.Run(name, func(t *testing.T) {
			contract.Run(t, func(t testing.TB) *contract.Subject {
				s := Start(t)
				s.o.Label = label
				return &contract.Subject{Issuer: s.issuer(t), Order: contract.NamedOrder, Proxy: s.proxy, Submits: submits, Issued: s.issued,
					Refused: func(t testing.TB) upstream.Order { return ordered(t, "r-1", "Mallory") }}
			})
		})
	}
}

func TestWindowsRequestsWithoutNamesAreRefusedBefore(t *testing.T) {
	s := Start(t)
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	if r, err := s.issuer(t).Submit(background, o); err != nil || r.State != upstream.Refused || !strings.Contains(r.Reason, "subject") {
		t.Errorf("%+v, %v", r, err)
	}
	// What the CA's profile adds need not be in the request.
	o = contract.NamedOrder(t, "2-bb", testpki.RSA(t, 2048))
	key := testpki.RSA(t, 2048)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: o.Profile.Subject, EmailAddresses: []string{"alice@lab.test"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	o.CSR, o.PublicKey = der, key.Public()
	if err := upstream.Check(s.issuer(t), o); err == nil {
		t.Error("the request has no key usage")
	}
	s.o.FromProfile = []string{wcce.OIDKeyUsage, wcce.OIDEKU}
	if err := upstream.Check(s.issuer(t), o); err != nil {
		t.Error(err)
	}
	if len(s.proxy.Everything()) != 0 {
		t.Error("something was sent")
	}
}

// An order that the CA accepts for later is sent again when it is time, and is one certificate in the end.
func TestAnOrderThatPends(t *testing.T) {
	s := Start(t)
	s.o.Label = "slow"
	ca := s.issuer(t)
	o := contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	r, err := ca.Submit(background, o)
	if err != nil || r.State != upstream.Pending || r.Token == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	sent := len(s.proxy.Everything())
	if early, err := ca.Find(background, o, r.Token); err != nil || early.State != upstream.Pending || len(s.proxy.Everything()) != sent {
		t.Errorf("it was asked for before its time: %+v, %v", early, err)
	}
	again := s.issuer(t) // after a restart
	for range 50 {
		if r, err = again.Find(background, o, r.Token); err != nil || r.State != upstream.Pending {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil || r.State != upstream.Issued || len(s.issued(t)) != 1 {
		t.Fatalf("%+v, %v, issued %v", r, err, s.issued(t))
	}
	if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
}

// When the answer to a repetition is lost, the CA may have issued: it is not sent once more.
func TestALostAnswerWhilePending(t *testing.T) {
	s := Start(t)
	s.o.Label = "slow"
	ahead := time.Duration(0)
	s.o.Now = func() time.Time { return time.Now().Add(ahead) }
	ca := s.issuer(t)
	o := contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	r, err := ca.Submit(background, o)
	if err != nil {
		t.Fatal(err)
	}
	ahead += time.Minute
	s.proxy.Make(proxy.Busy, 1, submits)
	if _, err := ca.Find(background, o, r.Token); !upstream.IsNotIssued(err) {
		t.Errorf("503: %v", err)
	}
	if r, err = ca.Find(background, o, r.Token); err != nil || r.State != upstream.Pending {
		t.Fatalf("%+v, %v", r, err)
	}
	ahead += time.Minute
	s.proxy.Make(proxy.Lost, 1, submits)
	if lost, err := ca.Find(background, o, r.Token); err == nil || upstream.IsNotIssued(err) {
		t.Fatalf("%+v, %v", lost, err)
	}
	for range 2 {
		if r, err := ca.Find(background, o, r.Token); err != nil || r.State != upstream.Uncertain || r.Reason == "" {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if n := len(s.issued(t)); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

func TestWhoIsNotLetIn(t *testing.T) {
	s := Start(t)
	o := contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	for name, change := range map[string]func(*est.Options){
		"a wrong password":      func(o *est.Options) { o.Password = func() ([]byte, error) { return []byte("secret-wrong"), nil } },
		"no password":           func(o *est.Options) { o.User, o.Password = "", nil },
		"a file that is gone":   func(o *est.Options) { o.Password = func() ([]byte, error) { return nil, os.ErrNotExist } },
		"no client certificate": func(o *est.Options) { o.TLS = s.a.Client(t, "") },
		"a stranger":            func(o *est.Options) { c := authority.New(t).Client(t, "gateway"); c.RootCAs = o.TLS.RootCAs; o.TLS = c },
		"another root":          func(o *est.Options) { o.Roots = []*x509.Certificate{authority.New(t).Root} },
		"another server":        func(o *est.Options) { o.TLS = authority.New(t).Client(t, "gateway") },
		"another label":         func(o *est.Options) { o.Label = "nothing" },
		"another address":       func(o *est.Options) { o.URL += "/elsewhere" },
	} {
		t.Run(name, func(t *testing.T) {
			before := s.o
			defer func() { s.o = before }()
			change(&s.o)
			r, err := s.issuer(t).Submit(background, o)
			if err == nil || strings.Contains(err.Error(), "secret-wrong") {
				t.Fatalf("%+v, %v", r, err)
			}
			// With TLS 1.3 a client learns only while it reads that its certificate is not taken.
			if !upstream.IsNotIssued(err) && !strings.Contains(name, "certificate") && !strings.Contains(name, "stranger") {
				t.Errorf("it is certain that nothing was issued: %v", err)
			}
		})
	}
	if n := len(s.issued(t)); n != 0 {
		t.Errorf("%d certificates", n)
	}
	if _, err := est.New(est.Options{Name: "EST", URL: s.o.URL, Roots: s.o.Roots, Label: "cacerts"}); err == nil {
		t.Error("a label that is an operation")
	}
}

// The chain is put in order although the server names the root first, also after a certificate.
func TestTheChain(t *testing.T) {
	s := Start(t)
	now := time.Now()
	var hours atomic.Int64
	s.o.ChainFile = filepath.Join(t.TempDir(), "chain.pem")
	s.o.Now = func() time.Time { return now.Add(time.Duration(hours.Load()) * time.Hour) }
	ca := s.issuer(t)
	if r, err := ca.Submit(background, contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))); err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	hours.Store(2)
	for _, c := range []*est.CA{ca, s.issuer(t)} {
		if chain, err := c.Chain(background); err != nil || len(chain) != 2 || !chain[0].Equal(s.a.Issuing) || !chain[1].Equal(s.a.Root) {
			t.Errorf("%v, %v", chain, err)
		}
	}
}

func TestHostileAnswers(t *testing.T) {
	a := authority.New(t)
	for name, answer := range map[string]struct {
		kind, body string
		status     int
	}{
		"nothing":             {"application/pkcs7-mime", "", 200},
		"no base64":           {"application/pkcs7-mime", "***", 200},
		"no PKCS#7":           {"application/pkcs7-mime", "MAA=", 200},
		"a page":              {"text/html", "<h1>Welcome</h1>", 200},
		"created":             {"application/pkcs7-mime", "MAA=", 201},
		"a broken gateway":    {"text/plain", "bad\x00\x1b[2J gateway", 502},
		"a timeout":           {"text/plain", "timeout", 408},
		"an empty SignedData": {"application/pkcs7-mime; smime-type=certs-only", "MCMGCSqGSIb3DQEHAqAWMBQCAQExADALBgkqhkiG9w0BBwGgADEA", 200},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/cacerts") {
					list, err := pkcs7.DegenerateCertificate(append(slices.Clone(a.Root.Raw), a.Issuing.Raw...))
					if err != nil {
						t.Error(err)
					}
					w.Header().Set("Content-Type", "application/pkcs7-mime")
					_, _ = io.WriteString(w, base64.StdEncoding.EncodeToString(list))
					return
				}
				w.Header().Set("Content-Type", answer.kind)
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, answer.body)
			}))
			s.TLS = a.Server(t, false)
			s.StartTLS()
			defer s.Close()
			ca, err := est.New(est.Options{Name: "EST", URL: s.URL, TLS: &tls.Config{RootCAs: a.Pool()}, Roots: []*x509.Certificate{a.Root}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := ca.Submit(background, contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048)))
			if err == nil || upstream.IsNotIssued(err) || strings.ContainsAny(err.Error(), "\x00\x1b") {
				t.Errorf("%+v, %q", r, err)
			}
		})
	}
}
