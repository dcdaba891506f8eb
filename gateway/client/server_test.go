package client_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// authority is a throw-away CA.
type authority struct {
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{key: testpki.RSA(t, 2048)}
	a.cert = a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}, a.key.Public())
	return a
}

func (a *authority) issue(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	parent := a.cert
	if parent == nil {
		parent = template
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

// exchange makes a CA exchange certificate.
func (a *authority) exchange(t testing.TB, change func(*x509.Certificate)) (*x509.Certificate, *rsa.PrivateKey) {
	t.Helper()
	key := testpki.RSA(t, 2048)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: a.cert.Subject.CommonName + "-Xchg"}, KeyUsage: x509.KeyUsageKeyEncipherment,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 21, 5}}}
	if change != nil {
		change(template)
	}
	return a.issue(t, template, key.Public()), key
}

// server is a policy and enrollment service whose answers a test can bend.
type server struct {
	t        *testing.T
	url      string
	http     *http.Client
	ca       *authority // published; signs certificates and responses
	policies []soap.Policy

	exchangeCert *x509.Certificate
	exchangeKey  *rsa.PrivateKey

	refuse   error                // of Enroll
	pend     int                  // how many times a request is told to wait
	respond  func(*wcce.Response) // bends the response before it is signed
	signer   *authority           // signs the response; the published CA if nil
	swapKey  bool                 // certifies another key
	token    func([]byte) []byte  // bends the certificate beside the response
	noAnswer bool                 // leaves out the CMC response
	closed   bool                 // nobody may enroll at the CA

	mu      sync.Mutex
	waiting []byte // the request under submission
	last    *wcce.Request
	polls   int
}

const serverCA = "Test CA"

func newServer(t *testing.T, policies ...soap.Policy) *server {
	t.Helper()
	s := &server{t: t, ca: newAuthority(t, serverCA), policies: policies}
	s.exchangeCert, s.exchangeKey = s.ca.exchange(t, nil)
	handler := soap.NewHandler(s, soap.Options{})
	ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(kerberos.WithCaller(r.Context(), templates.Caller{Principal: "alice@LAB.TEST"})))
	}))
	t.Cleanup(ts.Close)
	s.url, s.http = ts.URL, ts.Client()
	return s
}

func (s *server) options(template string) client.Options {
	return client.Options{PolicyURL: s.url + soap.Kerberos.CEPPath, HTTP: s.http, Template: template}
}

func (s *server) Policies(context.Context, templates.Caller, soap.GetPoliciesRequest) (*soap.Policies, error) {
	return &soap.Policies{ID: "{1}", Policies: s.policies, CAs: []soap.CA{{Certificate: s.ca.cert.Raw, EnrollPermission: !s.closed,
		URIs: []soap.CAURI{{ClientAuthentication: soap.AuthKerberos, URI: s.url + "/Test%20CA" + soap.Kerberos.CESSuffix}}}}}, nil
}

func (s *server) ExchangeCertificate(context.Context, templates.Caller, string) ([]byte, error) {
	return s.exchangeCert.Raw, nil
}

func (s *server) Enroll(_ context.Context, _ templates.Caller, req soap.TokenRequest) (*soap.TokenReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return nil, s.refuse
	}
	var err error
	if s.last, err = wcce.ParseRequest(req.Token); err != nil {
		return nil, err
	}
	if s.pend > 0 {
		s.pend--
		s.waiting = req.Token
		return &soap.TokenReply{Pending: true, RequestID: "17", Message: "Taken Under Submission"}, nil
	}
	return s.issued(s.last)
}

func (s *server) Poll(_ context.Context, _ templates.Caller, req soap.TokenRequest) (*soap.TokenReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polls++
	if req.RequestID != "17" || s.waiting == nil {
		return nil, hresult.New(hresult.PropertyEmpty, "there is no request %s", req.RequestID)
	}
	if s.pend > 0 {
		s.pend--
		return &soap.TokenReply{Pending: true, RequestID: "17", Message: "Taken Under Submission"}, nil
	}
	r, err := wcce.ParseRequest(s.waiting)
	if err != nil {
		return nil, err
	}
	return s.issued(r)
}

func (s *server) issued(r *wcce.Request) (*soap.TokenReply, error) {
	public := r.CSR.PublicKey
	if s.swapKey {
		public = s.exchangeKey.Public()
	}
	response := wcce.Response{Text: "Issued", Chain: []*x509.Certificate{s.ca.cert}, Signer: s.ca.cert,
		Certificate: s.ca.issue(s.t, &x509.Certificate{Subject: pkix.Name{CommonName: "alice"}}, public)}
	if r.Archived != nil {
		response.KeyHash = r.Archived.Hash
	}
	key := s.ca.key
	if s.signer != nil {
		response.Signer, key = s.signer.cert, s.signer.key
	}
	if s.respond != nil {
		s.respond(&response)
	}
	reply := &soap.TokenReply{RequestID: "17", Message: "Issued"}
	if response.Certificate != nil {
		reply.Certificate = response.Certificate.Raw
	}
	if s.token != nil {
		reply.Certificate = s.token(reply.Certificate)
	}
	if s.noAnswer {
		return reply, nil
	}
	var err error
	reply.PKCS7, err = wcce.FullResponse(response, key, crypto.SHA256)
	return reply, err
}

func ptr(v uint32) *uint32 { return &v }

// mail is a template that archives keys.
func mailPolicy() soap.Policy {
	return soap.Policy{OID: soap.OIDRef{Value: "1.3.6.1.4.1.311.21.8.1.2.3", Group: soap.GroupTemplate}, CAs: []int{0}, CommonName: "Mail", Schema: 2,
		Enroll: true, PrivateKeyFlags: ptr(templates.KeyRequireArchival | templates.KeyExportable), EnrollmentFlags: ptr(templates.EnrollIncludeSymmetricAlgorithms),
		PrivateKey: soap.PrivateKeyAttributes{MinimalKeyLength: 2048},
		Archival:   &soap.KeyArchival{Algorithm: soap.OIDRef{Value: wcce.OIDAES256CBC, Group: soap.GroupEncryption}, KeyLength: 256},
		Extensions: []soap.Extension{{OID: soap.OIDRef{Value: wcce.OIDTemplateInfo, Group: soap.GroupExtension},
			Value: []byte{0x30, 0x0f, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x15, 0x08, 0x01, 0x02, 0x01, 0x64}}}}
}

// webPolicy is a template with elliptic curve keys whose names the enrollee supplies.
func webPolicy() soap.Policy {
	return soap.Policy{OID: soap.OIDRef{Value: "1.3.6.1.4.1.311.21.8.1.2.4", Group: soap.GroupTemplate}, CAs: []int{0}, CommonName: "Web", Schema: 3,
		Enroll: true, SubjectNameFlags: ptr(templates.NameEnrolleeSuppliesSubject), HashAlgorithm: &soap.OIDRef{Value: wcce.OIDSHA384, Group: soap.GroupHash},
		PrivateKey: soap.PrivateKeyAttributes{MinimalKeyLength: 384, Algorithm: &soap.OIDRef{Value: "1.3.132.0.34", Group: soap.GroupPublicKey}}}
}
