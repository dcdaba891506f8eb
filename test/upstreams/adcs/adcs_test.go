// Package adcs tests the AD CS driver. No AD CS runs here: server.py and what is behind it are written from [MS-ICPR], [MS-WCCE] and
// [MS-RPCE]. Kerberos is MIT's, on both sides of none of the project's own code.
package adcs

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/adcs"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

var background = context.Background()

func TestContract(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := start(t)
		return &contract.Subject{Issuer: s.driver(s.options()), Issued: s.list, Order: contract.NamedOrder, Refused: func(t testing.TB) upstream.Order {
			return mallory(t, testpki.RSA(t, 2048))
		}}
	})
}

// mallory is an order that the policy of the CA denies.
func mallory(t testing.TB, key crypto.Signer) upstream.Order {
	t.Helper()
	o := contract.NamedOrder(t, "0-dd", key)
	template := &x509.CertificateRequest{RawSubject: o.Profile.Subject}
	for i, e := range o.Profile.Extensions {
		if e.OID == wcce.OIDSAN {
			o.Profile.Extensions[i].Value = append([]byte{0x30, 0x12, 0x81, 0x10}, "mallory@lab.test"...)
		}
		x, err := o.Profile.Extensions[i].X509()
		if err != nil {
			t.Fatal(err)
		}
		template.ExtraExtensions = append(template.ExtraExtensions, x)
	}
	var err error
	if o.CSR, err = x509.CreateCertificateRequest(rand.Reader, template, key); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAPendingRequestIsFoundByItsNumber(t *testing.T) {
	s := start(t)
	s.pend = true
	d, order := s.driver(s.options()), contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	r, err := d.Submit(background, order)
	if err != nil || r.State != upstream.Pending || r.Token != "1" {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err = d.Find(background, order, r.Token)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := upstream.Compare(order, r.Certificate, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
	other := contract.NamedOrder(t, "2-bb", testpki.RSA(t, 2048))
	if r, err := d.Find(background, other, "1"); err == nil {
		t.Errorf("another order's request: %+v", r)
	}
	if r, err := d.Find(background, order, "99"); err != nil || r.State != upstream.Refused {
		t.Errorf("an unknown request: %+v, %v", r, err)
	}
	if r, err := d.Find(background, order, "one"); err == nil {
		t.Errorf("%+v", r)
	}
}

// Without a port in the configuration the CA's endpoint mapper is asked for it.
func TestTheEndpointMapperIsAsked(t *testing.T) {
	l, err := net.Listen("tcp", host+":135")
	if err != nil && os.Getenv("CI") != "" && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	if err != nil {
		t.Skipf("nobody but root can be an endpoint mapper, and only where there is no other: %v", err)
	}
	l.Close()
	s := start(t, host)
	o := s.options()
	o.Port = 0
	r, err := s.driver(o).Submit(background, contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048)))
	if err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestALostAnswerIsUncertain(t *testing.T) {
	s := start(t)
	s.change = func(_ question, a *answer) { a.Lost = true }
	d, order := s.driver(s.options()), contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	if r, err := d.Submit(background, order); err == nil || upstream.IsNotIssued(err) {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := d.Find(background, order, ""); err != nil || r.State != upstream.Uncertain || !strings.Contains(r.Reason, "pending requests") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFailuresBeforeTheCall(t *testing.T) {
	s := start(t)
	order := contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048))
	for name, change := range map[string]func(*adcs.Options){
		"an account that the KDC does not know": func(o *adcs.Options) { o.Principal = "nobody@" + realm },
		"a service that the KDC does not know":  func(o *adcs.Options) { o.ServicePrincipal = "host/other.lab.test" },
		"nobody listens":                        func(o *adcs.Options) { o.Port = 1 },
	} {
		o := s.options()
		change(&o)
		if r, err := s.driver(o).Submit(background, order); !upstream.IsNotIssued(err) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if s.calls != 0 {
		t.Errorf("%d calls", s.calls)
	}
	o := s.options()
	o.Authority = "Other CA"
	if r, err := s.driver(o).Submit(background, order); !upstream.IsNotIssued(err) || !strings.Contains(err.Error(), "0x80070057") {
		t.Errorf("another CA's name: %+v, %v", r, err)
	}
}

func TestStrangeAnswers(t *testing.T) {
	s := start(t)
	d := s.driver(s.options())
	for name, c := range map[string]struct {
		change func(question, *answer)
		want   string // in the error; "" refused
	}{
		"nothing":                    {func(_ question, a *answer) { *a = answer{Raw: []byte{0}} }, "CA"},
		"a length beyond all":        {func(_ question, a *answer) { *a = answer{Raw: []byte(strings.Repeat("\xff", 400))} }, "CA"},
		"endless":                    {func(_ question, a *answer) { *a = answer{Raw: make([]byte, 6<<20)} }, "CA"},
		"no certificate":             {func(_ question, a *answer) { a.Certificate = nil }, "certificate"},
		"the certificate of another": {func(_ question, a *answer) { a.Certificate = s.issuing.Raw }, "another public key"},
		"a disposition that is none": {func(_ question, a *answer) { *a = answer{Disposition: 77} }, "77"},
		"pending without a number":   {func(_ question, a *answer) { *a = answer{Disposition: 5} }, "request 0"},
		"an unspecified failure":     {func(_ question, a *answer) { *a = answer{Return: 0x80004005} }, "0x80004005"},
		"a template that is not": {func(_ question, a *answer) {
			*a = answer{Disposition: 0x80094800, Message: []byte(utf16Text("no\x00"))}
		}, ""},
	} {
		s.mu.Lock()
		s.change = c.change
		s.mu.Unlock()
		r, err := d.Submit(background, contract.NamedOrder(t, "1-"+name, testpki.RSA(t, 2048)))
		switch {
		case c.want == "" && (err != nil || r.State != upstream.Refused || r.Reason == ""):
			t.Errorf("%s: %+v, %v", name, r, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || upstream.IsNotIssued(err)):
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestSilenceEnds(t *testing.T) {
	s := start(t)
	s.change = func(question, *answer) { time.Sleep(3 * time.Second) }
	ctx, cancel := context.WithTimeout(background, time.Second)
	defer cancel()
	begin := time.Now()
	r, err := s.driver(s.options()).Submit(ctx, contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048)))
	if !errors.Is(err, context.DeadlineExceeded) || upstream.IsNotIssued(err) || time.Since(begin) > 2*time.Second {
		t.Errorf("%+v, %v after %s", r, err, time.Since(begin))
	}
}

func TestWhatADCSCannotCarryIsRefusedBefore(t *testing.T) {
	s := start(t)
	d := s.driver(s.options())
	windows := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	if err := upstream.Check(d, windows); err == nil || !strings.Contains(err.Error(), "subject") {
		t.Errorf("names that the request does not say: %v", err)
	}
	if s.calls != 0 {
		t.Error("the CA was asked")
	}
}
