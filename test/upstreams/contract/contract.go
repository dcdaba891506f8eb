// Package contract is what every driver of package upstream has to keep, tried on a real CA or one written from its published
// description.
package contract

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

// Subject is a driver in front of a CA.
type Subject struct {
	Issuer upstream.Issuer
	// Tolerance is what the CA's own profile is forgiven.
	Tolerance upstream.Tolerance
	// Order makes an order that the CA can carry; nil for what Windows sends: a request without names, and a decision with all.
	Order func(t testing.TB, id string, key crypto.Signer) upstream.Order
	// Issued are the serial numbers, in hexadecimal, of what the CA says itself that it has issued to this driver, besides what it
	// needed for itself. A number may be there twice where the CA signs the same certificate again.
	Issued func(t testing.TB) []string
	// Revoked tells, from the CA, whether a certificate is revoked; nil where the driver does not revoke.
	Revoked func(t testing.TB, cert *x509.Certificate) bool
	// Proxy is between driver and CA; nil where that is not HTTP. Submits are the requests that make the CA issue.
	Proxy   *proxy.Proxy
	Submits func(*http.Request) bool
	// Refused is an order that the CA itself says no to, after Check; nil where it never does.
	Refused func(t testing.TB) upstream.Order
}

// Subject of certificates in WindowsOrder.
var subject = pkix.Name{CommonName: "Alice Archer", Organization: []string{"Lab"}}

// Profile is a decision about a mail certificate, without what only Windows has. Drivers change it for CAs that take less.
func Profile() templates.CertificateProfile {
	name, err := asn1.Marshal(subject.ToRDNSequence())
	if err != nil {
		panic(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	return templates.CertificateProfile{
		Template: "T", Subject: name, SubjectText: "CN=Alice Archer,O=Lab", NotBefore: now.Add(-10 * time.Minute), NotAfter: now.AddDate(0, 3, 0),
		SANs: []string{"email:alice@lab.test"}, EKUs: []string{"1.3.6.1.5.5.7.3.4"}, KeyUsage: []string{"keyEncipherment"},
		Extensions: []templates.Extension{
			{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x05, 0x20}},
			{OID: wcce.OIDEKU, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, 4}},
			{OID: wcce.OIDSAN, Value: append([]byte{0x30, 0x10, 0x81, 0x0e}, "alice@lab.test"...)},
		},
	}
}

// WindowsOrder is what a client of an archival template leads to: a request without names, and everything decided.
func WindowsOrder(t testing.TB, id string, key crypto.Signer) upstream.Order {
	t.Helper()
	p := Profile()
	p.Extensions = append([]templates.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("T")}}, p.Extensions...)
	p.Extensions = append(p.Extensions, templates.Extension{OID: wcce.OIDSID, Value: []byte{0x30, 0x03, 0x02, 0x01, 0x07}})
	return order(t, id, key, p, &x509.CertificateRequest{})
}

// NamedOrder is an order for a CA that takes everything from the request: the request says what was decided.
func NamedOrder(t testing.TB, id string, key crypto.Signer) upstream.Order {
	t.Helper()
	p := Profile()
	csr := &x509.CertificateRequest{RawSubject: p.Subject}
	for _, e := range p.Extensions {
		x, err := e.X509()
		if err != nil {
			t.Fatal(err)
		}
		csr.ExtraExtensions = append(csr.ExtraExtensions, x)
	}
	return order(t, id, key, p, csr)
}

func order(t testing.TB, id string, key crypto.Signer, p templates.CertificateProfile, csr *x509.CertificateRequest) upstream.Order {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, csr, key)
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Order{ID: id, CSR: der, PublicKey: key.Public(), Profile: p}
}

// Run tries the contract on subjects that start makes, a fresh CA each time.
func Run(t *testing.T, start func(t testing.TB) *Subject) {
	with := func(name string, test func(t *testing.T, s *Subject)) {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			if s.Order == nil {
				s.Order = WindowsOrder
			}
			test(t, s)
		})
	}
	with("issues what was decided", issuesWhatWasDecided)
	with("names smuggled in the request", smuggledNames)
	with("a lost answer is one certificate", lostAnswer)
	with("the same order at once", sameAtOnce)
	with("revocation", revocation)
	with("a refusal has a reason", refusal)
	with("troubles", troubles)
}

func issue(t testing.TB, s *Subject, o upstream.Order) *x509.Certificate {
	t.Helper()
	if err := upstream.Check(s.Issuer, o); err != nil {
		t.Fatal(err)
	}
	r, err := settled(s, o, func() (upstream.Result, error) { return s.Issuer.Submit(background, o) })
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(o, r.Certificate, s.Tolerance); err != nil {
		t.Fatal(err)
	}
	return r.Certificate
}

// settled waits for a CA that lets orders pend for a moment.
func settled(s *Subject, o upstream.Order, ask func() (upstream.Result, error)) (upstream.Result, error) {
	r, err := ask()
	for range 100 {
		if err != nil || r.State != upstream.Pending {
			break
		}
		time.Sleep(100 * time.Millisecond)
		r, err = s.Issuer.Find(background, o, r.Token)
	}
	return r, err
}

func issuesWhatWasDecided(t *testing.T, s *Subject) {
	cert := issue(t, s, s.Order(t, "1-aa", testpki.RSA(t, 2048)))
	chain, err := s.Issuer.Chain(background)
	if err != nil || len(chain) == 0 {
		t.Fatalf("chain %v, %v", chain, err)
	}
	if err := cert.CheckSignatureFrom(chain[0]); err != nil {
		t.Errorf("the certificate is not by the first of the chain: %v", err)
	}
	for i, c := range chain[:len(chain)-1] {
		if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
			t.Errorf("chain[%d]: %v", i, err)
		}
	}
	if got := s.Issued(t); len(got) != 1 || got[0] != cert.SerialNumber.Text(16) {
		t.Errorf("the CA says that it issued %q; here is %s", got, cert.SerialNumber.Text(16))
	}
	inPEM := func(certs ...*x509.Certificate) (text []byte) {
		for _, c := range certs {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		return text
	}
	dir, last := t.TempDir(), len(chain)-1
	args := []string{"verify", "-partial_chain", "-CAfile", write(t, dir, "root", inPEM(chain[last]))}
	if last > 0 {
		args = append(args, "-untrusted", write(t, dir, "between", inPEM(chain[:last]...)))
	}
	if out, err := testpki.OpenSSL(t, inPEM(cert), args...); err != nil {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
}

// smuggledNames: what a request says about the holder is not what the certificate says, unless it was decided.
func smuggledNames(t *testing.T, s *Subject) {
	o := s.Order(t, "1-aa", testpki.RSA(t, 2048))
	key := testpki.RSA(t, 2048)
	bad := order(t, "2-bb", key, o.Profile, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Administrator"}, DNSNames: []string{"dc1.lab.test"},
		EmailAddresses: []string{"root@lab.test"}})
	if err := upstream.Check(s.Issuer, bad); err != nil {
		if upstream.TraitsOf(s.Issuer).Names == upstream.NamesBeside {
			t.Errorf("names beside the request carry everything, and still: %v", err)
		}
		if r, err := s.Issuer.Submit(background, bad); err != nil || r.State != upstream.Refused {
			t.Errorf("what Check refuses is submitted: %+v, %v", r, err)
		}
		if got := s.Issued(t); len(got) != 0 {
			t.Errorf("issued %q", got)
		}
		return
	}
	issue(t, s, bad)
}

// lostAnswer: however an answer is lost, the order ends with one certificate or with the word that nobody can tell.
func lostAnswer(t *testing.T, s *Subject) {
	if s.Proxy == nil {
		t.Skip("this driver's transport is tried by its own tests")
	}
	for i, trouble := range []proxy.Trouble{proxy.Lost, proxy.Broken} {
		o := s.Order(t, []string{"3-cc", "4-dd"}[i], testpki.RSA(t, 2048))
		before := distinct(s.Issued(t))
		s.Proxy.Make(trouble, 1, s.Submits)
		r, err := s.Issuer.Submit(background, o)
		s.Proxy.Make(proxy.None, 0, nil)
		if err == nil && r.State != upstream.Issued { // a driver may find out by itself
			t.Fatalf("the answer was not lost: %+v", r)
		}
		if upstream.IsNotIssued(err) {
			t.Errorf("trouble %d: it is certain that nothing was issued, and the CA has: %v", trouble, err)
		}
		if err != nil {
			r, err = settled(s, o, func() (upstream.Result, error) { return s.Issuer.Find(background, o, "") })
		}
		switch traits := upstream.TraitsOf(s.Issuer); {
		case err != nil:
			t.Fatal(err)
		case r.State == upstream.Uncertain && traits.Repetition == upstream.RepeatBlind:
			if r.Reason == "" {
				t.Error("nobody can tell, and there is no word of what to look for")
			}
		case r.State != upstream.Issued:
			t.Fatalf("trouble %d: found %+v", trouble, r)
		default:
			if err := upstream.Compare(o, r.Certificate, s.Tolerance); err != nil {
				t.Error(err)
			}
		}
		if after := distinct(s.Issued(t)); after != before+1 {
			t.Errorf("trouble %d: the CA issued %d certificates for one order", trouble, after-before)
		}
	}
}

func distinct(serials []string) int {
	m := map[string]bool{}
	for _, s := range serials {
		m[s] = true
	}
	return len(m)
}

// sameAtOnce: two gateways resume the same order.
func sameAtOnce(t *testing.T, s *Subject) {
	if upstream.TraitsOf(s.Issuer).Repetition != upstream.RepeatSame {
		t.Skip("orders are never repeated without Find")
	}
	o := s.Order(t, "5-ee", testpki.RSA(t, 2048))
	certs := make([]*x509.Certificate, 4)
	var all sync.WaitGroup
	for i := range certs {
		all.Go(func() {
			if r, err := s.Issuer.Submit(background, o); err == nil {
				certs[i] = r.Certificate
			}
		})
	}
	all.Wait()
	last := issue(t, s, o)
	for _, c := range certs {
		if c != nil && !bytes.Equal(c.RawTBSCertificate, last.RawTBSCertificate) {
			t.Errorf("certificates %s and %s for one order", c.SerialNumber.Text(16), last.SerialNumber.Text(16))
		}
	}
	if n := distinct(s.Issued(t)); n != 1 {
		t.Errorf("the CA issued %d certificates for one order", n)
	}
}

func revocation(t *testing.T, s *Subject) {
	if upstream.TraitsOf(s.Issuer).NoRevocation {
		if err := s.Issuer.Revoke(background, testpki.Cert(t, issue(t, s, s.Order(t, "6-ff", testpki.RSA(t, 2048))).Raw).SerialNumber, 1); err == nil {
			t.Error("this driver cannot revoke, and says that it has")
		}
		return
	}
	good, bad := issue(t, s, s.Order(t, "6-ff", testpki.RSA(t, 2048))), issue(t, s, s.Order(t, "7-aa", testpki.RSA(t, 2048)))
	for range 2 { // twice is no error
		if err := s.Issuer.Revoke(background, bad.SerialNumber, 1); err != nil {
			t.Fatal(err)
		}
	}
	if !s.Revoked(t, bad) || s.Revoked(t, good) {
		t.Errorf("revoked: %v, and the other one %v", s.Revoked(t, bad), s.Revoked(t, good))
	}
	if err := s.Issuer.Revoke(background, good.SerialNumber, 7); err == nil {
		t.Error("an undefined reason is taken (RFC 5280 5.3.1)")
	}
}

func refusal(t *testing.T, s *Subject) {
	if s.Refused == nil {
		t.Skip("this CA refuses nothing that Check lets through")
	}
	r, err := s.Issuer.Submit(background, s.Refused(t))
	if err != nil || r.State != upstream.Refused || r.Reason == "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// troubles: no answer of a CA, and no lack of one, makes the driver hang, panic, or say what is not so.
func troubles(t *testing.T, s *Subject) {
	if s.Proxy == nil {
		t.Skip("this driver's transport is tried by its own tests")
	}
	try := func(trouble proxy.Trouble) error {
		t.Helper()
		o := s.Order(t, "8-bb", testpki.RSA(t, 2048))
		s.Proxy.Make(trouble, 100, nil)
		defer s.Proxy.Make(proxy.None, 0, nil)
		ctx, cancel := context.WithTimeout(background, 2*time.Second)
		defer cancel()
		begin := time.Now()
		r, err := s.Issuer.Submit(ctx, o)
		if err == nil {
			t.Errorf("trouble %d: %+v", trouble, r)
		}
		if time.Since(begin) > 10*time.Second {
			t.Errorf("trouble %d took %s", trouble, time.Since(begin))
		}
		if err != nil && strings.Contains(err.Error(), "\x00") {
			t.Errorf("trouble %d: the error has control characters: %q", trouble, err)
		}
		return err
	}
	try(proxy.Garbage)
	try(proxy.Endless)
	if err := try(proxy.Silence); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence is %v", err)
	}
	if err := try(proxy.Busy); !upstream.IsNotIssued(err) {
		t.Errorf("503 leaves it open whether the CA has issued: %v", err)
	}
	issue(t, s, s.Order(t, "9-cc", testpki.RSA(t, 2048))) // it recovers
}

func write(t testing.TB, dir, name string, text []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
