// Package awspca tests the driver for AWS Private CA. AWS itself cannot be had here: the server in this package is written from the API's
// published reference.
package awspca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/awspca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

func submits(r *http.Request) bool {
	return strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".IssueCertificate")
}

// order is a decision as Windows leads to it, and a request with a name that is none of it.
func order(t testing.TB, id string, key crypto.Signer) upstream.Order {
	return named(t, contract.WindowsOrder(t, id, key), key)
}

func named(t testing.TB, o upstream.Order, key crypto.Signer) upstream.Order {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "whatever"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	o.CSR = der
	return o
}

func mallory(t testing.TB) upstream.Order {
	o := order(t, "0-dd", testpki.RSA(t, 2048))
	for i, e := range o.Profile.Extensions {
		if e.OID == wcce.OIDSAN {
			o.Profile.Extensions[i].Value = append([]byte{0x30, 0x12, 0x81, 0x10}, "mallory@lab.test"...)
		}
	}
	return o
}

func TestContract(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := start(t)
		return &contract.Subject{Issuer: s.driver(s.options()), Issued: s.list, Revoked: s.isRevoked, Order: order, Proxy: s.proxy, Submits: submits, Refused: mallory}
	})
}

func TestContractWhereRequestsWithoutNamesAreTaken(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := start(t)
		s.empty = true
		o := s.options()
		o.EmptyRequests = true
		return &contract.Subject{Issuer: s.driver(o), Issued: s.list, Revoked: s.isRevoked, Proxy: s.proxy, Submits: submits, Refused: mallory}
	})
}

func TestRequestsThatAWSRejectsAreNotSent(t *testing.T) {
	s := start(t)
	d := s.driver(s.options())
	windows := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	if err := upstream.Check(d, windows); err == nil || !strings.Contains(err.Error(), "empty_requests") {
		t.Errorf("a request without names: %v", err)
	}
	key := testpki.RSA(t, 2048)
	nameless := order(t, "2-bb", key)
	nameless.Profile.Subject = []byte{0x30, 0}
	if err := upstream.Check(d, nameless); err == nil || !strings.Contains(err.Error(), "takes the subject of the request") {
		t.Errorf("the request's own subject: %v", err)
	}
	plain := contract.NamedOrder(t, "3-cc", key)
	plain.Profile.Extensions = plain.Profile.Extensions[:2]
	if err := upstream.Check(d, plain); err == nil || !strings.Contains(err.Error(), "alternative names of the request") {
		t.Errorf("the request's own names: %v", err)
	}
	if sent := s.proxy.Everything(); len(sent) != 0 {
		t.Errorf("sent %q", sent)
	}
	o := s.options()
	o.EmptyRequests = true // and where AWS does reject it, that is a refusal
	if r, err := s.driver(o).Submit(background, windows); err != nil || r.State != upstream.Refused || !strings.Contains(r.Reason, "MalformedCSR") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestEveryKindOfExtension(t *testing.T) {
	s := start(t)
	for name, e := range map[string]templates.Extension{
		"a user principal name":    {OID: wcce.OIDSAN, Value: append([]byte{0x30, 0x1f, 0xa0, 0x1d, 0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 20, 2, 3, 0xa0, 0x0f, 0x0c, 0x0d}, "alice@lab.tes"...)},
		"critical names":           {OID: wcce.OIDSAN, Critical: true, Value: append([]byte{0x30, 0x0a, 0x82, 0x08}, "lab.test"...)},
		"an address and a URI":     {OID: wcce.OIDSAN, Value: append([]byte{0x30, 0x0f, 0x87, 0x04, 10, 0, 0, 1, 0x86, 0x07}, "urn:x:y"...)},
		"a purpose without a name": {OID: wcce.OIDEKU, Value: []byte{0x30, 0x18, 0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 4, 0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 12}},
		"a usage of two octets":    {OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x03, 0x07, 0x08, 0x80}},
		"a usage not critical":     {OID: wcce.OIDKeyUsage, Value: []byte{0x03, 0x02, 0x05, 0x20}},
	} {
		o := order(t, "1-"+name, testpki.RSA(t, 2048))
		for i := range o.Profile.Extensions {
			if o.Profile.Extensions[i].OID == e.OID {
				o.Profile.Extensions[i] = e
			}
		}
		r, err := s.driver(s.options()).Submit(background, o)
		if err != nil || r.State != upstream.Issued {
			t.Errorf("%s: %+v, %v", name, r, err)
		} else if err := upstream.Compare(o, r.Certificate, upstream.Tolerance{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACertificateInProgressIsPending(t *testing.T) {
	s := start(t)
	s.slow = 100
	o := s.options()
	o.Wait = 300 * time.Millisecond
	d, ord := s.driver(o), order(t, "1-aa", testpki.RSA(t, 2048))
	r, err := d.Submit(background, ord)
	if err != nil || r.State != upstream.Pending || !strings.HasPrefix(r.Token, arn) {
		t.Fatalf("%+v, %v", r, err)
	}
	s.slow = 0
	if r, err = s.driver(o).Find(background, ord, r.Token); err != nil || r.State != upstream.Issued {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := d.Find(background, ord, "arn:aws:acm-pca:eu-central-1:1:certificate-authority/x/certificate/y"); err == nil {
		t.Errorf("another CA's certificate: %+v", r)
	}
}

func TestAfterFiveMinutesNobodyCanTell(t *testing.T) {
	s := start(t)
	now := time.Now()
	s.now = func() time.Time { return now }
	o := s.options()
	o.Now = s.now
	d, ord := s.driver(o), order(t, "1-aa", testpki.RSA(t, 2048))
	s.proxy.Make(proxy.Lost, 3, submits)
	if r, err := d.Submit(background, ord); err == nil || upstream.IsNotIssued(err) {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err := s.driver(o).Find(background, ord, "") // another process does not know when it was
	if err != nil || r.State != upstream.Uncertain || !strings.Contains(r.Reason, "CloudTrail") {
		t.Errorf("%+v, %v", r, err)
	}
	now = now.Add(3 * time.Minute)
	if r, err := d.Find(background, ord, ""); err != nil || r.State != upstream.Issued {
		t.Errorf("within the time: %+v, %v", r, err)
	}
	now = now.Add(2 * time.Minute)
	if r, err := d.Find(background, ord, ""); err != nil || r.State != upstream.Uncertain {
		t.Errorf("after it: %+v, %v", r, err)
	}
	if got := s.list(t); len(got) != 1 {
		t.Errorf("issued %q", got)
	}
}

func TestErrorsOfTheAPI(t *testing.T) {
	s := start(t)
	o := s.options()
	o.Credentials = credentials.NewStaticCredentialsProvider("AKIDOTHER", "other words", "")
	r, err := s.driver(o).Submit(background, order(t, "1-aa", testpki.RSA(t, 2048)))
	if !upstream.IsNotIssued(err) || strings.Contains(err.Error(), "words") {
		t.Errorf("wrong credentials: %+v, %v", r, err)
	}
	for kind, want := range map[string]string{"InvalidStateException": "not issued", "ThrottlingException": "not issued", "AccessDeniedException": "not issued",
		"ValidationException": "refused", "SomethingNew": "unknown"} {
		s.fail = kind
		r, err := s.driver(s.options()).Submit(background, order(t, "1-"+kind, testpki.RSA(t, 2048)))
		got := "unknown"
		switch {
		case err == nil && r.State == upstream.Refused:
			got = "refused"
		case upstream.IsNotIssued(err):
			got = "not issued"
		}
		if got != want || err != nil && strings.Contains(err.Error(), "\x07") {
			t.Errorf("%s: %s: %+v, %v", kind, got, r, err)
		}
	}
}

func TestReasonsThatAWSDoesNotKnow(t *testing.T) {
	s := start(t)
	d := s.driver(s.options())
	for _, reason := range []int{-1, 6, 7, 8, 11} {
		if err := d.Revoke(background, s.issuing.SerialNumber, reason); err == nil {
			t.Errorf("reason %d is taken", reason)
		}
	}
}

func TestOptionsThatCannotBeUsed(t *testing.T) {
	s := start(t)
	for name, change := range map[string]func(*awspca.Options){
		"another service": func(o *awspca.Options) { o.ARN = "arn:aws:acm:eu-central-1:1:certificate/x" },
		"plain HTTP":      func(o *awspca.Options) { o.Endpoint = "http://x" },
		"an algorithm":    func(o *awspca.Options) { o.SigningAlgorithm = "SHA1WITHRSA" },
		"no credentials":  func(o *awspca.Options) { o.Credentials = nil },
		"no root":         func(o *awspca.Options) { o.Roots = nil },
	} {
		o := s.options()
		change(&o)
		if _, err := awspca.New(o); err == nil || !strings.Contains(err.Error(), "AWS") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
