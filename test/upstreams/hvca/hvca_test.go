package hvca

import (
	"context"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/hvca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

func start(t testing.TB) (*server, *proxy.Proxy, hvca.Options) {
	t.Helper()
	s := &server{t: t, a: authority.New(t), tokens: map[string]bool{}, certs: map[string]*x509.Certificate{}, revoked: map[string]string{}, waits: map[string]int{}, format: "PKCS10"}
	plain := httptest.NewServer(s)
	t.Cleanup(plain.Close)
	p := proxy.Start(t, plain.URL, s.a.Server(t, true), nil)
	return s, p, hvca.Options{Name: "Atlas", URL: p.URL + "/v2", TLS: s.a.Client(t, "gateway"), APIKey: apiKey, APISecret: func() ([]byte, error) { return []byte(apiSecret + "\n"), nil },
		Roots: []*x509.Certificate{s.a.Root}, Tolerance: upstream.Tolerance{Missing: []string{wcce.OIDTemplateName, wcce.OIDSID}}}
}

func issuer(t testing.TB, o hvca.Options) *hvca.CA {
	t.Helper()
	ca, err := hvca.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (s *server) issued(testing.TB) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, serial := range s.order {
		out = append(out, strings.ToLower(serial))
	}
	return out
}

func submits(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/certificates")
}

func TestContract(t *testing.T) {
	for name, c := range map[string]struct {
		format string
		wait   int
	}{"requests": {"PKCS10", 0}, "bare keys": {"PKCS8", 0}, "certificates that take a while": {"PKCS10", 4}} {
		t.Run(name, func(t *testing.T) {
			contract.Run(t, func(t testing.TB) *contract.Subject {
				s, p, o := start(t)
				s.format, s.wait, o.PublicKey = c.format, c.wait, c.format == "PKCS8"
				ca := issuer(t, o)
				return &contract.Subject{Issuer: ca, Tolerance: o.Tolerance, Proxy: p, Submits: submits, Issued: s.issued,
					Revoked: func(_ testing.TB, cert *x509.Certificate) bool {
						s.mu.Lock()
						defer s.mu.Unlock()
						return s.revoked[fmt.Sprintf("%X", cert.SerialNumber)] == "keyCompromise"
					},
					Refused: func(t testing.TB) upstream.Order {
						o := contract.WindowsOrder(t, "m-1", testpki.RSA(t, 2048))
						var err error
						if o.Profile.Subject, err = asn1.Marshal(pkix.Name{CommonName: "Mallory"}.ToRDNSequence()); err != nil {
							t.Fatal(err)
						}
						return o
					}}
			})
		})
	}
}

func TestEverythingThatCanBeSaid(t *testing.T) {
	_, _, opts := start(t)
	opts.Extensions = []string{"1.3.6.1.4.1.311.21.7", "1.3.6.1.4.1.99999.1"}
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	name := pkix.Name{Country: []string{"DE"}, Organization: []string{"Lab"}, OrganizationalUnit: []string{"R+D, Süd"}, Locality: []string{"Ulm"}, Province: []string{"BW"}, CommonName: "Alice Ärcher",
		SerialNumber: "7", ExtraNames: []pkix.AttributeTypeAndValue{{Type: oid("0.9.2342.19200300.100.1.1"), Value: "alice"}}}
	var err error
	if o.Profile.Subject, err = asn1.Marshal(name.ToRDNSequence()); err != nil {
		t.Fatal(err)
	}
	san := []byte{0x30, 0, 0x81, 3, 'a', '@', 'b', 0x82, 3, 'h', '.', 'b', 0x86, 5, 'u', ':', 'v', ',', 'w', 0x87, 4, 192, 0, 2, 1,
		0xa0, 0x15, 0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x14, 2, 3, 0xa0, 0x07, 0x0c, 0x05, 'u', '+', ',', '@', 'r'}
	san[1] = byte(len(san) - 2)
	for i := range o.Profile.Extensions {
		if o.Profile.Extensions[i].OID == wcce.OIDSAN {
			o.Profile.Extensions[i].Value = san
		}
	}
	o.Profile.Extensions = append(o.Profile.Extensions,
		templates.Extension{OID: "1.3.6.1.4.1.311.21.7", Value: []byte{0x30, 0x0b, 0x06, 0x03, 0x2a, 3, 4, 0x02, 0x01, 100, 0x02, 0x01, 3}},
		templates.Extension{OID: "1.3.6.1.4.1.99999.1", Value: []byte{0x0c, 0x02, 'h', 'i'}})
	r, err := issuer(t, opts).Submit(background, o)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(o, r.Certificate, opts.Tolerance); err != nil {
		t.Error(err)
	}
	for name, e := range map[string]templates.Extension{"not told of": {OID: "1.3.6.1.4.1.311.21.10", Value: []byte{0x30, 0}}, "no text": {OID: "1.3.6.1.4.1.99999.1", Value: []byte{0x30, 0}}} {
		bad := o
		bad.Profile.Extensions = append(slices.Clone(o.Profile.Extensions[:len(o.Profile.Extensions)-1]), e)
		if err := upstream.Check(issuer(t, opts), bad); err == nil || !strings.Contains(err.Error(), e.OID) {
			t.Errorf("an extension that is %s: %v", name, err)
		}
	}
}

// An account that takes bare keys signs for a request with a null signature.
func TestANullSignature(t *testing.T) {
	s, _, opts := start(t)
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	csr, err := wcce.ParseCSR(o.CSR)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(csr.RawInfo) //nolint:gosec // what the protocol says
	if o.CSR, err = asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: csr.RawInfo}, pkix.AlgorithmIdentifier{Algorithm: oid("1.3.14.3.2.26"), Parameters: asn1.NullRawValue}, asn1.BitString{Bytes: sum[:], BitLength: 160}}); err != nil {
		t.Fatal(err)
	}
	if err := upstream.Check(issuer(t, opts), o); err == nil || !strings.Contains(err.Error(), "hash in place") {
		t.Errorf("an account that wants a request: %v", err)
	}
	opts.PublicKey = true
	ca := issuer(t, opts)
	if _, err := ca.Submit(background, o); !upstream.IsNotIssued(err) || !strings.Contains(err.Error(), "validation policy") {
		t.Errorf("the policy wants a request: %v", err)
	}
	s.format = "PKCS8"
	if !upstream.TraitsOf(ca).Unsigned {
		t.Error("it takes keys without a proof")
	}
	if r, err := ca.Submit(background, o); err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
	opts.PublicKey = false
	if _, err := issuer(t, opts).Submit(background, contract.WindowsOrder(t, "2-bb", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) {
		t.Errorf("the policy wants a bare key: %v", err)
	}
}

// The serial number is not lost when HVCA cannot be asked for the certificate.
func TestACertificateThatCannotBeFetchedNow(t *testing.T) {
	s, p, opts := start(t)
	ca := issuer(t, opts)
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	p.Make(proxy.Lost, 100, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/certificates/") })
	r, err := ca.Submit(background, o)
	if err != nil || r.State != upstream.Pending || r.Token == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if got, err := ca.Find(background, o, r.Token); err == nil {
		t.Errorf("%+v", got)
	}
	p.Make(proxy.None, 0, nil)
	if r, err = issuer(t, opts).Find(background, o, r.Token); err != nil || r.State != upstream.Issued || len(s.issued(t)) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What is not listed may be issued all the same: nobody can tell. Certificates that are listed are fetched once.
func TestALostOrderThatIsNotListed(t *testing.T) {
	s, p, opts := start(t)
	var ahead atomic.Int64
	now := time.Now()
	opts.Now = func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	ca := issuer(t, opts)
	key := testpki.RSA(t, 2048)
	for i := range 130 { // more than a page
		if r, err := ca.Submit(background, contract.WindowsOrder(t, fmt.Sprint(i), authority.Key(t))); err != nil || r.State != upstream.Issued {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	other := contract.WindowsOrder(t, "other", key) // the same key, in another order
	if r, err := ca.Submit(background, other); err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	o := contract.WindowsOrder(t, "lost", key)
	o.Profile.NotAfter = other.Profile.NotAfter.Add(time.Minute)
	p.Make(proxy.Lost, 1, submits)
	if _, err := ca.Submit(background, o); err == nil || upstream.IsNotIssued(err) {
		t.Fatal(err)
	}
	s.mu.Lock()
	lost := s.order[len(s.order)-1]
	s.order, s.fetched = s.order[:len(s.order)-1], 0
	s.mu.Unlock()
	for range 2 {
		if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Pending {
			t.Fatalf("it may come: %+v, %v", r, err)
		}
	}
	if s.fetched != 131+2 { // each once, and twice the one with the same key
		t.Errorf("%d fetched", s.fetched)
	}
	ahead.Store(int64(6 * time.Minute))
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Uncertain || r.Reason == "" {
		t.Errorf("%+v, %v", r, err)
	}
	s.mu.Lock()
	s.order = append(s.order, lost)
	s.mu.Unlock()
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Issued || r.Token != lost {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestLogins(t *testing.T) {
	s, _, opts := start(t)
	var ahead atomic.Int64
	now := time.Now()
	opts.Now = func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	ca := issuer(t, opts)
	check := func(id string, logins int) {
		t.Helper()
		if r, err := ca.Submit(background, contract.WindowsOrder(t, id, testpki.RSA(t, 2048))); err != nil || r.State != upstream.Issued {
			t.Fatalf("%+v, %v", r, err)
		}
		if s.logins != logins {
			t.Errorf("%s: %d logins, want %d", id, s.logins, logins)
		}
	}
	check("1-aa", 1)
	check("2-bb", 1)
	clear(s.tokens) // HVCA has forgotten it
	check("3-cc", 2)
	ahead.Store(int64(9 * time.Minute))
	check("4-dd", 3)
	for name, change := range map[string]func(*hvca.Options){
		"a wrong secret":        func(o *hvca.Options) { o.APISecret = func() ([]byte, error) { return []byte("0000000000000"), nil } },
		"a secret that is gone": func(o *hvca.Options) { o.APISecret = func() ([]byte, error) { return nil, io.ErrUnexpectedEOF } },
		"no client certificate": func(o *hvca.Options) { o.TLS = s.a.Client(t, "") },
		"another root":          func(o *hvca.Options) { o.Roots = []*x509.Certificate{authority.New(t).Root} },
		"another server":        func(o *hvca.Options) { o.TLS = authority.New(t).Client(t, "gateway") },
		"another address":       func(o *hvca.Options) { o.URL = strings.TrimSuffix(o.URL, "/v2") },
	} {
		t.Run(name, func(t *testing.T) {
			o := opts
			change(&o)
			r, err := issuer(t, o).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
			if !upstream.IsNotIssued(err) || strings.Contains(err.Error(), "0000000000000") {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, location := range map[string]string{"nothing": "", "a path": "https://local/../../login", "no number": "https://local/certificates/xyz", "too long": "/" + strings.Repeat("A", 41)} {
		t.Run(name, func(t *testing.T) { hostile(t, location, `{}`) })
	}
	for name, body := range map[string]string{"nothing": "", "no object": `[]`, "no PEM": `{"certificate": "x", "status": "ISSUED"}`, "no status": `{}`} {
		t.Run("a certificate that is "+name, func(t *testing.T) { hostile(t, "/certificates/AA", body) })
	}
}

// hostile submits an order to a server that answers so; the order is pending where it has a number, and an error otherwise.
func hostile(t *testing.T, location, body string) {
	t.Helper()
	a := authority.New(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/login"):
			_, _ = io.WriteString(w, `{"access_token": "t"}`)
		case strings.HasSuffix(r.URL.Path, "/validationpolicy"):
			_, _ = io.WriteString(w, `{"public_key": {"key_format": "PKCS10"}}`)
		case strings.HasSuffix(r.URL.Path, "/trustchain"):
			text, _ := json.Marshal([]string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Issuing.Raw}))})
			_, _ = w.Write(text)
		case submits(r):
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusCreated)
		default:
			_, _ = io.WriteString(w, body)
		}
	}))
	s.TLS = a.Server(t, false)
	s.StartTLS()
	defer s.Close()
	ca := issuer(t, hvca.Options{Name: "Atlas", URL: s.URL + "/v2", TLS: a.Client(t, ""), APIKey: "k", APISecret: func() ([]byte, error) { return []byte("s"), nil }, Roots: []*x509.Certificate{a.Root},
		Tolerance: upstream.Tolerance{Missing: []string{wcce.OIDTemplateName, wcce.OIDSID}}})
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	r, err := ca.Submit(background, o)
	if named := location == "/certificates/AA"; named != (err == nil && r.State == upstream.Pending) || upstream.IsNotIssued(err) {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := ca.Find(background, o, r.Token); err == nil && r.State == upstream.Issued {
		t.Errorf("found %+v", r)
	}
}
