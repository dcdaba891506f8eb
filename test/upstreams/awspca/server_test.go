package awspca

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/awspca"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

const (
	arn       = "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"
	accessKey = "AKIDEXAMPLE"
)

// server answers as the API reference of AWS Private CA says (JSON 1.1 protocol; actions IssueCertificate, GetCertificate,
// GetCertificateAuthorityCertificate and RevokeCertificate; template BlankEndEntityCertificate_APIPassthrough/V1). The embedded CA signs.
type server struct {
	t       testing.TB
	issuer  upstream.Issuer
	root    *x509.Certificate
	issuing *x509.Certificate
	proxy   *proxy.Proxy
	roots   *x509.CertPool

	mu       sync.Mutex
	now      func() time.Time
	empty    bool // takes requests without names
	slow     int  // so many times a certificate is in progress
	fail     string
	tokens   map[string]known
	certs    map[string]*x509.Certificate // by ARN
	issued   []string
	revoked  map[string]string
	progress map[string]int
}

type known struct {
	arn string
	at  time.Time
}

func start(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, now: time.Now, tokens: map[string]known{}, certs: map[string]*x509.Certificate{}, revoked: map[string]string{}, progress: map[string]int{}}
	rootKey, key, tlsKey := testpki.RSA(t, 2048), testpki.RSA(t, 2048), testpki.RSA(t, 2048)
	s.root = authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "AWS Root"}, IsCA: true, BasicConstraintsValid: true}, nil, rootKey.Public(), rootKey)
	s.issuing = authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "AWS Issuing CA"}, IsCA: true, BasicConstraintsValid: true}, s.root, key.Public(), rootKey)
	web := authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "endpoint"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, s.root, tlsKey.Public(), rootKey)
	s.roots = x509.NewCertPool()
	s.roots.AddCert(s.root)
	ca, err := local.New(local.Options{Name: "AWS", Certificate: s.issuing, Above: []*x509.Certificate{s.root}, Key: key, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.issuer = ca.Issuer()
	back := httptest.NewServer(s)
	t.Cleanup(back.Close)
	s.proxy = proxy.Start(t, back.URL, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{web.Raw}, PrivateKey: tlsKey}}}, &http.Transport{})
	return s
}

func (s *server) options() awspca.Options {
	return awspca.Options{Name: "AWS", ARN: arn, Roots: []*x509.Certificate{s.root}, Credentials: credentials.NewStaticCredentialsProvider(accessKey, "secret words", ""),
		Endpoint: s.proxy.URL, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}}, Wait: 2 * time.Second, Now: time.Now}
}

func (s *server) driver(o awspca.Options) *awspca.CA {
	s.t.Helper()
	d, err := awspca.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *server) list(testing.TB) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.issued)
}

func (s *server) isRevoked(_ testing.TB, cert *x509.Certificate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.revoked[cert.SerialNumber.Text(16)]
	return ok
}

// trouble is an error of the API.
type trouble struct{ kind, message string }

type subject struct {
	CommonName       string
	CustomAttributes []struct{ ObjectIdentifier, Value string }
}

type issueRequest struct {
	CertificateAuthorityArn, SigningAlgorithm, TemplateArn, IdempotencyToken string
	Csr                                                                      []byte
	Validity, ValidityNotBefore                                              struct {
		Type  string
		Value int64
	}
	ApiPassthrough struct { //nolint:staticcheck // the API's name
		Subject    *subject
		Extensions struct {
			KeyUsage                map[string]bool
			ExtendedKeyUsage        []struct{ ExtendedKeyUsageType, ExtendedKeyUsageObjectIdentifier string }
			SubjectAlternativeNames []struct{ Rfc822Name, DnsName, UniformResourceIdentifier, IpAddress string }
			CustomExtensions        []struct {
				ObjectIdentifier, Value string
				Critical                bool
			}
		}
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out any
	var bad *trouble
	action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "ACMPrivateCA.")
	auth := r.Header.Get("Authorization")
	switch {
	case !ok || r.Header.Get("Content-Type") != "application/x-amz-json-1.1":
		bad = &trouble{"UnknownOperationException", ""}
	case !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential="+accessKey+"/") || !strings.Contains(auth, "/eu-central-1/acm-pca/aws4_request"):
		bad = &trouble{"UnrecognizedClientException", "The security token included in the request is invalid."}
	case s.fail != "" && action == "IssueCertificate":
		bad = &trouble{s.fail, "no\x07"}
	case action == "IssueCertificate":
		out, bad = s.issue(r)
	case action == "GetCertificate":
		out, bad = s.get(r)
	case action == "GetCertificateAuthorityCertificate":
		out = map[string]string{"Certificate": text(s.issuing), "CertificateChain": text(s.root)}
	case action == "RevokeCertificate":
		bad = s.revoke(r)
	default:
		bad = &trouble{"UnknownOperationException", ""}
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if bad != nil {
		w.WriteHeader(http.StatusBadRequest)
		out = map[string]string{"__type": bad.kind, "message": bad.message}
	}
	if out != nil {
		_ = json.NewEncoder(w).Encode(out)
	}
}

func (s *server) issue(r *http.Request) (any, *trouble) {
	var q issueRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, &trouble{"ValidationException", err.Error()}
	}
	if q.CertificateAuthorityArn != arn || q.TemplateArn != "arn:aws:acm-pca:::template/BlankEndEntityCertificate_APIPassthrough/V1" || q.SigningAlgorithm != "SHA256WITHRSA" ||
		q.Validity.Type != "ABSOLUTE" || q.ValidityNotBefore.Type != "ABSOLUTE" || len(q.IdempotencyToken) > 36 {
		return nil, &trouble{"InvalidArgsException", "arguments"}
	}
	if k, ok := s.tokens[q.IdempotencyToken]; ok && s.now().Sub(k.at) < 5*time.Minute {
		return map[string]string{"CertificateArn": k.arn}, nil
	}
	block, _ := pem.Decode(q.Csr)
	if block == nil {
		return nil, &trouble{"MalformedCSRException", "not PEM"}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, &trouble{"MalformedCSRException", "signature"}
	}
	if len(csr.Subject.Names) == 0 && !slices.ContainsFunc(csr.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.17" && e.Critical }) && !s.empty {
		return nil, &trouble{"MalformedCSRException", "CSR must mark the SAN extension critical when it has an empty subject"}
	}
	p, err := profile(&q, csr)
	if err != nil {
		return nil, &trouble{"InvalidArgsException", err.Error()}
	}
	if slices.Contains(q.names(), "mallory@lab.test") {
		return nil, &trouble{"InvalidArgsException", "mallory is not wanted"}
	}
	id := fmt.Sprintf("%032x", len(s.certs)+1)
	res, err := s.issuer.Submit(s.t.Context(), upstream.Order{ID: id, PublicKey: csr.PublicKey, Profile: p})
	if err != nil {
		return nil, &trouble{"InvalidArgsException", err.Error()}
	}
	address := arn + "/certificate/" + id
	s.certs[address], s.tokens[q.IdempotencyToken] = res.Certificate, known{address, s.now()}
	s.issued = append(s.issued, res.Certificate.SerialNumber.Text(16))
	return map[string]string{"CertificateArn": address}, nil
}

func (q *issueRequest) names() (out []string) {
	for _, n := range q.ApiPassthrough.Extensions.SubjectAlternativeNames {
		out = append(out, n.Rfc822Name+n.DnsName)
	}
	return out
}

// generalNames are the alternative names, encoded.
func (q *issueRequest) generalNames() (names []asn1.RawValue) {
	for _, n := range q.ApiPassthrough.Extensions.SubjectAlternativeNames {
		for tag, value := range map[int]string{1: n.Rfc822Name, 2: n.DnsName, 6: n.UniformResourceIdentifier} {
			if value != "" {
				names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(value)})
			}
		}
		if n.IpAddress != "" {
			names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 7, Bytes: net.ParseIP(n.IpAddress).To4()})
		}
	}
	return names
}

// profile is the certificate that the template and the API's fields make.
func profile(q *issueRequest, csr *x509.CertificateRequest) (templates.CertificateProfile, error) {
	p := templates.CertificateProfile{Subject: csr.RawSubject, NotBefore: time.Unix(q.ValidityNotBefore.Value, 0), NotAfter: time.Unix(q.Validity.Value, 0)}
	add := func(oid string, critical bool, value any) error {
		der, err := asn1.Marshal(value)
		p.Extensions = append(p.Extensions, templates.Extension{OID: oid, Critical: critical, Value: der})
		return err
	}
	if sub := q.ApiPassthrough.Subject; sub != nil {
		var name pkix.RDNSequence
		for _, a := range sub.CustomAttributes {
			name = append(name, pkix.RelativeDistinguishedNameSET{{Type: oid(a.ObjectIdentifier), Value: a.Value}})
		}
		der, err := asn1.Marshal(name)
		if err != nil {
			return p, err
		}
		p.Subject = der
	}
	x := q.ApiPassthrough.Extensions
	if x.KeyUsage != nil {
		bits := asn1.BitString{Bytes: []byte{0, 0}}
		for i, name := range []string{"DigitalSignature", "NonRepudiation", "KeyEncipherment", "DataEncipherment", "KeyAgreement", "KeyCertSign", "CRLSign", "EncipherOnly", "DecipherOnly"} {
			if x.KeyUsage[name] {
				bits.Bytes[i/8] |= 0x80 >> (i % 8)
				bits.BitLength = i + 1
			}
		}
		bits.Bytes = bits.Bytes[:(bits.BitLength+7)/8]
		if err := add("2.5.29.15", true, bits); err != nil {
			return p, err
		}
	}
	var purposes []asn1.ObjectIdentifier
	for _, u := range x.ExtendedKeyUsage {
		number := map[string]string{"SERVER_AUTH": "1.3.6.1.5.5.7.3.1", "CLIENT_AUTH": "1.3.6.1.5.5.7.3.2", "EMAIL_PROTECTION": "1.3.6.1.5.5.7.3.4"}[u.ExtendedKeyUsageType]
		purposes = append(purposes, oid(number+u.ExtendedKeyUsageObjectIdentifier))
	}
	if purposes != nil {
		if err := add("2.5.29.37", false, purposes); err != nil {
			return p, err
		}
	}
	names := q.generalNames()
	if names != nil {
		if err := add("2.5.29.17", false, names); err != nil {
			return p, err
		}
	}
	for _, e := range x.CustomExtensions {
		der, err := base64.StdEncoding.DecodeString(e.Value)
		if err != nil {
			return p, err
		}
		p.Extensions = append(p.Extensions, templates.Extension{OID: e.ObjectIdentifier, Critical: e.Critical, Value: der})
	}
	return p, nil
}

func oid(text string) (out asn1.ObjectIdentifier) {
	for _, part := range strings.Split(text, ".") {
		n, _ := strconv.Atoi(part)
		out = append(out, n)
	}
	return out
}

func (s *server) get(r *http.Request) (any, *trouble) {
	var q struct{ CertificateAuthorityArn, CertificateArn string }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || q.CertificateAuthorityArn != arn {
		return nil, &trouble{"InvalidArnException", ""}
	}
	cert := s.certs[q.CertificateArn]
	if cert == nil {
		return nil, &trouble{"ResourceNotFoundException", ""}
	}
	if s.progress[q.CertificateArn]++; s.progress[q.CertificateArn] <= s.slow {
		return nil, &trouble{"RequestInProgressException", "The request is in progress."}
	}
	return map[string]string{"Certificate": text(cert), "CertificateChain": text(s.issuing) + text(s.root)}, nil
}

func (s *server) revoke(r *http.Request) *trouble {
	var q struct{ CertificateAuthorityArn, CertificateSerial, RevocationReason string }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return &trouble{"ValidationException", err.Error()}
	}
	n, ok := new(big.Int).SetString(strings.ReplaceAll(q.CertificateSerial, ":", ""), 16)
	switch {
	case !ok || !slices.Contains(s.issued, n.Text(16)):
		return &trouble{"ResourceNotFoundException", ""}
	case s.revoked[n.Text(16)] != "":
		return &trouble{"RequestAlreadyProcessedException", "Your request has already been completed."}
	}
	s.revoked[n.Text(16)] = q.RevocationReason
	return nil
}

func text(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}
