package cmp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/cmp"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

func TestAnOrderThatWaitsIsPolledFor(t *testing.T) {
	for name, pkcs10 := range map[string]bool{"cr": false, "p10cr": true} {
		t.Run(name, func(t *testing.T) {
			s := Start(t, "-poll_count", "2", "-check_after", "1")
			o := s.options()
			o.PKCS10 = pkcs10
			d, order := s.driver(o), contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
			r, err := d.Submit(background, order)
			tokens := map[string]bool{}
			for range 2 {
				if err != nil || r.State != upstream.Pending || r.Token == "" || tokens[r.Token] {
					t.Fatalf("%+v, %v", r, err)
				}
				tokens[r.Token] = true
				d = s.driver(o) // the gateway was started again
				r, err = d.Find(background, order, r.Token)
			}
			if err != nil || r.State != upstream.Issued {
				t.Fatalf("%+v, %v", r, err)
			}
			if err := upstream.Compare(order, r.Certificate, upstream.Tolerance{}); err != nil && !pkcs10 {
				t.Error(err)
			}
		})
	}
}

func TestALostAnswerOfAnOrderThatWaitsIsUncertain(t *testing.T) {
	s := Start(t, "-poll_count", "2")
	d, order := s.driver(s.options()), contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	if r, err := d.Submit(background, order); err != nil || r.State != upstream.Pending {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err := d.Find(background, order, "")
	if err != nil || r.State != upstream.Uncertain || !strings.Contains(r.Reason, "transaction") {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := d.Find(background, order, "not a token"); err == nil {
		t.Errorf("%+v", r)
	}
}

func TestWhoIsNotAcceptedIsToldAndNothingWasIssued(t *testing.T) {
	s := Start(t)
	key := testpki.RSA(t, 2048)
	o := s.options()
	o.Key, o.Certificates = key, []*x509.Certificate{authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "stranger"}}, nil, key.Public(), key)}
	if r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) {
		t.Errorf("a registration authority that OpenSSL does not trust: %+v, %v", r, err)
	}
	// A wrong secret is told in words that the secret protects: over plain HTTP they prove nothing.
	s = Start(t, "-srv_secret", "pass:correct horse")
	o = s.options()
	o.Certificates, o.Key, o.Secret = nil, nil, []byte("wrong horse")
	r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "2-bb", testpki.RSA(t, 2048)))
	if err == nil || upstream.IsNotIssued(err) || strings.Contains(err.Error(), "horse") {
		t.Errorf("a wrong secret: %+v, %v", r, err)
	}
	if got := s.list(t); len(got) != 0 {
		t.Errorf("issued %q", got)
	}
}

func TestTheWordOfARegistrationAuthorityIsNotEnoughEverywhere(t *testing.T) {
	s := Start(t)
	for i, a := range s.args {
		if a == "-accept_raverified" {
			s.args = append(s.args[:i], s.args[i+1:]...)
			break
		}
	}
	r, err := s.driver(s.options()).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
	if err != nil || r.State != upstream.Refused || !strings.Contains(r.Reason, "badPOP") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAnswersThatNothingProtectsAreNotBelieved(t *testing.T) {
	s := Start(t, "-send_unprotected")
	if r, err := s.driver(s.options()).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); err == nil || upstream.IsNotIssued(err) {
		t.Errorf("a certificate: %+v, %v", r, err)
	}
	s = Start(t, "-send_unprot_err", "-send_error")
	if r, err := s.driver(s.options()).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); err == nil || upstream.IsNotIssued(err) {
		t.Errorf("an error: %+v, %v", r, err)
	}
}

func TestWhoHasACertificateOfTheCADoesNotSpeakForIt(t *testing.T) {
	s := Start(t)
	key := testpki.RSA(t, 2048)
	order := contract.WindowsOrder(t, "1-aa", key)
	made, err := s.issuer.Submit(background, order)
	if err != nil {
		t.Fatal(err)
	}
	s.args = append(s.args, "-srv_cert", s.write("user.pem", made.Certificate), "-srv_key", s.writeKey("user.key", key))
	r, err := s.driver(s.options()).Submit(background, contract.WindowsOrder(t, "2-bb", testpki.RSA(t, 2048)))
	if err == nil || !strings.Contains(err.Error(), "id-kp-cmcCA") {
		t.Errorf("%+v, %v", r, err)
	}
	o := s.options()
	o.Responders = []*x509.Certificate{made.Certificate} // unless he is named
	if r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "3-cc", testpki.RSA(t, 2048))); err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
	s = Start(t)
	o = s.options()
	o.Responders = []*x509.Certificate{made.Certificate} // and nobody else then
	if r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "4-dd", testpki.RSA(t, 2048))); err == nil {
		t.Errorf("%+v", r)
	}
}

func TestAnotherKeysCertificateIsRefusedAtTheCA(t *testing.T) {
	s := Start(t)
	other, err := s.issuer.Submit(background, contract.WindowsOrder(t, "0-00", testpki.RSA(t, 2048)))
	if err != nil {
		t.Fatal(err)
	}
	s.args = append(s.args, "-rsp_cert", s.write("other.pem", other.Certificate))
	r, err := s.driver(s.options()).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
	if err == nil || !strings.Contains(err.Error(), "public key is not that") || strings.Contains(err.Error(), "confirmed") {
		t.Errorf("%+v, %v", r, err)
	}
}

// Whatever octet of an answer is changed, it is an error or changes nothing.
func TestChangedAnswers(t *testing.T) {
	s := Start(t, "-srv_secret", "pass:correct horse", "-grant_implicitconf")
	o := s.options()
	o.Certificates, o.Key, o.Secret, o.ImplicitConfirm = nil, nil, []byte("correct horse"), true
	d := s.driver(o)
	changed := 0
	for at := 3; at < 4000; at += 149 {
		s.spoil = func(answer []byte) []byte {
			if at < len(answer) {
				answer[at] ^= 0x10
			}
			return answer
		}
		order := contract.WindowsOrder(t, "1-"+strings.Repeat("a", at%90+1), testpki.RSA(t, 2048))
		r, err := d.Submit(background, order)
		switch {
		case err != nil && !upstream.IsNotIssued(err):
			changed++
		case err != nil:
			t.Errorf("octet %d: it is certain that nothing was issued: %v", at, err)
		case r.State != upstream.Issued || upstream.Compare(order, r.Certificate, upstream.Tolerance{}) != nil:
			t.Errorf("octet %d: %+v", at, r)
		}
	}
	if changed < 8 {
		t.Errorf("%d answers were found out", changed)
	}
}

func TestEllipticKeysAndAKnownChain(t *testing.T) {
	s := Start(t)
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := authority.Sign(t, authority.CA("Elliptic root"), nil, rootKey.Public(), rootKey)
	s.args = append(s.args, "-srv_trusted", s.write("elliptic.pem", root))
	o := s.options()
	o.Key, o.Certificates = key, []*x509.Certificate{authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ra"}, KeyUsage: x509.KeyUsageDigitalSignature}, root, key.Public(), rootKey)}
	o.ChainFile = filepath.Join(t.TempDir(), "chain.pem")
	d := s.driver(o)
	if _, err := d.Chain(background); err == nil {
		t.Error("a chain is known before the first answer")
	}
	if r, err := d.Submit(background, contract.WindowsOrder(t, "1-aa", key)); err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
	if chain, err := s.driver(o).Chain(background); err != nil || len(chain) != 2 || !chain[0].Equal(s.issuing) || !chain[1].Equal(s.root) {
		t.Errorf("after another start: %v, %v", chain, err)
	}
}

func TestOptionsThatCannotBeUsed(t *testing.T) {
	s := Start(t)
	for name, change := range map[string]func(*cmp.Options){
		"nothing to protect with": func(o *cmp.Options) { o.Key, o.Certificates = nil, nil },
		"both ways at once":       func(o *cmp.Options) { o.Secret = []byte("x") },
		"a key of somebody else":  func(o *cmp.Options) { o.Key = testpki.RSA(t, 2048) },
		"no root":                 func(o *cmp.Options) { o.Roots = nil },
		"no address":              func(o *cmp.Options) { o.URL = "ldap://ca" },
		"a chain to nowhere":      func(o *cmp.Options) { o.Issuing = s.ra },
	} {
		o := s.options()
		change(&o)
		if _, err := cmp.New(o); err == nil || !strings.Contains(err.Error(), "CMP") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhoCannotBeReachedHasIssuedNothing(t *testing.T) {
	s := Start(t)
	closed := httptest.NewServer(http.NotFoundHandler())
	o := s.options()
	o.URL, o.Timeout = closed.URL, time.Second
	closed.Close()
	if r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); !upstream.IsNotIssued(err) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestARequestWithoutASignatureIsRefusedWhereItIsPassedOn(t *testing.T) {
	s := Start(t)
	order := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	o := s.options()
	o.PKCS10 = true
	if err := upstream.Check(s.driver(o), order); err == nil || !strings.Contains(err.Error(), "subject") {
		t.Errorf("names that are not in the request: %v", err)
	}
	if traits := upstream.TraitsOf(s.driver(o)); traits.Names != upstream.NamesInCSR || traits.Unsigned {
		t.Errorf("%+v", traits)
	}
}
