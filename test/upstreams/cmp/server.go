package cmp

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"github.com/enrollgate/enrollgate/gateway/config"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/cmp"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/program"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

// Server is OpenSSL's CMP server, one process for each transaction, because each has one certificate to give. What is in front of
// them reads requests for certificates with encoding/asn1, lets the embedded CA sign what the template says, and keeps the list of
// what OpenSSL has given away and revoked. All else is OpenSSL's: it checks protection, proof of possession, nonces and confirmations.
type Server struct {
	t       testing.TB
	args    []string // of each process
	dir     string
	issuer  upstream.Issuer
	root    *x509.Certificate
	issuing *x509.Certificate
	ra      []*x509.Certificate
	raKey   crypto.Signer
	proxy   *proxy.Proxy

	mu      sync.Mutex
	mocks   map[string]*mock // by transaction
	issued  []string
	revoked map[string]bool
	spoil   func(answer []byte) []byte
}

type mock struct {
	url  string
	cert *x509.Certificate
	log  *program.Log
}

// Start makes the keys of a CA, of its CMP server and of a registration authority. args are added to each OpenSSL's.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs openssl: test/deps.sh installs it")
	}
	s := &Server{t: t, dir: t.TempDir(), mocks: map[string]*mock{}, revoked: map[string]bool{}}
	rootKey, issuingKey, serverKey, raRootKey, raKey := testpki.RSA(t, 2048), testpki.RSA(t, 2048), testpki.RSA(t, 2048), testpki.RSA(t, 2048), testpki.RSA(t, 2048)
	s.root = authority.Sign(t, authority.CA("CMP Root"), nil, rootKey.Public(), rootKey)
	s.issuing = authority.Sign(t, authority.CA("CMP Issuing CA"), s.root, issuingKey.Public(), rootKey)
	speaker := authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "CMP server"}, KeyUsage: x509.KeyUsageDigitalSignature,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 27}}}, s.issuing, serverKey.Public(), issuingKey)
	raRoot := authority.Sign(t, authority.CA("RA Root"), nil, raRootKey.Public(), raRootKey)
	s.raKey = raKey
	s.ra = []*x509.Certificate{authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "enrollgate"}, KeyUsage: x509.KeyUsageDigitalSignature}, raRoot, raKey.Public(), raRootKey)}
	own, err := local.New(local.Options{Name: "CMP", Certificate: s.issuing, Above: []*x509.Certificate{s.root}, Key: issuingKey, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.issuer = own.Issuer()
	s.args = append([]string{"-srv_cert", s.write("server.pem", speaker, s.issuing), "-srv_key", s.writeKey("server.key", serverKey), "-srv_trusted", s.write("ra.pem", raRoot),
		"-srv_untrusted", s.write("chain.pem", s.issuing, s.root), "-rsp_extracerts", filepath.Join(s.dir, "chain.pem"), "-accept_raverified"}, args...)
	front := httptest.NewServer(s)
	t.Cleanup(front.Close)
	s.proxy = proxy.Start(t, front.URL, nil, &http.Transport{})
	return s
}

func (s *Server) write(name string, certs ...*x509.Certificate) string {
	s.t.Helper()
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func (s *Server) writeKey(name string, key crypto.Signer) string {
	s.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// options are those of a driver that signs as the registration authority.
func (s *Server) options() cmp.Options {
	return cmp.Options{Name: "CMP", URL: s.proxy.URL + "/pkix/", Roots: []*x509.Certificate{s.root}, Certificates: s.ra, Key: s.raKey, Now: time.Now}
}

func (s *Server) driver(o cmp.Options) *cmp.CA {
	s.t.Helper()
	d, err := cmp.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// look returns the transaction and the body of a message.
func look(der []byte) (transaction string, tag int, body []byte, err error) {
	parts, err := elements(der)
	if err != nil || len(parts) < 2 {
		return "", 0, nil, fmt.Errorf("not a message: %w", err)
	}
	header, err := elements(parts[0].FullBytes)
	if err != nil {
		return "", 0, nil, err
	}
	for _, f := range header {
		if f.Class == asn1.ClassContextSpecific && f.Tag == 4 && len(transaction) == 0 && f.IsCompound {
			var id []byte
			if _, err := asn1.Unmarshal(f.Bytes, &id); err == nil { // a GeneralName has the same tag
				transaction = hex.EncodeToString(id)
			}
		}
	}
	return transaction, parts[1].Tag, parts[1].Bytes, nil
}

func elements(der []byte) ([]asn1.RawValue, error) {
	var whole asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &whole); err != nil || len(rest) > 0 {
		return nil, errors.Join(err, errors.New("trailing octets"))
	}
	return inside(whole.Bytes)
}

func inside(octets []byte) (out []asn1.RawValue, err error) {
	for len(octets) > 0 {
		var v asn1.RawValue
		if octets, err = asn1.Unmarshal(octets, &v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// submits tells whether a request makes the CA issue.
func submits(r *http.Request) bool {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	_, tag, _, err := look(body)
	return err == nil && (tag == 2 || tag == 4)
}

// wanted reads the certificate template of cr (RFC 4211 5), or the request of p10cr.
func wanted(tag int, body []byte) (upstream.Order, error) {
	var o upstream.Order
	if tag == 4 {
		return fromPKCS10(body)
	}
	at := body
	for range 3 { // CertReqMessages, CertReqMsg, CertRequest
		parts, err := elements(at)
		if err != nil {
			return o, err
		}
		at = parts[0].FullBytes
		if len(parts) > 1 && parts[0].Tag == asn1.TagInteger {
			at = parts[1].FullBytes
		}
	}
	parts, err := elements(at)
	if err == nil && len(parts) > 0 && parts[0].Tag == asn1.TagInteger {
		parts, err = elements(parts[1].FullBytes)
	}
	if err != nil {
		return o, err
	}
	for _, p := range parts {
		switch p.Tag {
		case 4:
			times, err := inside(p.Bytes)
			if err != nil || len(times) != 2 {
				return o, fmt.Errorf("validity: %w", err)
			}
			for i, to := range []*time.Time{&o.Profile.NotBefore, &o.Profile.NotAfter} {
				if _, err := asn1.Unmarshal(times[i].Bytes, to); err != nil {
					return o, err
				}
			}
		case 5:
			o.Profile.Subject = p.Bytes
		case 6:
			spki, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: p.Bytes})
			if err != nil {
				return o, err
			}
			if o.PublicKey, err = x509.ParsePKIXPublicKey(spki); err != nil {
				return o, err
			}
		case 9:
			list, err := inside(p.Bytes)
			if err != nil {
				return o, err
			}
			for _, v := range list {
				var e pkix.Extension
				if _, err := asn1.Unmarshal(v.FullBytes, &e); err != nil {
					return o, err
				}
				o.Profile.Extensions = append(o.Profile.Extensions, templates.Extension{OID: e.Id.String(), Critical: e.Critical, Value: e.Value})
			}
		}
	}
	return o, nil
}

func fromPKCS10(body []byte) (upstream.Order, error) {
	var o upstream.Order
	csr, err := x509.ParseCertificateRequest(body)
	if err != nil {
		return o, err
	}
	o.PublicKey, o.Profile = csr.PublicKey, templates.CertificateProfile{Subject: csr.RawSubject, NotBefore: time.Now(), NotAfter: time.Now().AddDate(0, 1, 0)}
	for _, e := range csr.Extensions {
		o.Profile.Extensions = append(o.Profile.Extensions, templates.Extension{OID: e.Id.String(), Critical: e.Critical, Value: e.Value})
	}
	return o, nil
}

// ServeHTTP passes a message on to the OpenSSL of its transaction.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	der, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	transaction, tag, body, err := look(der)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m, err := s.mock(transaction, tag, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, m.url+r.URL.Path, bytes.NewReader(der))
	if err != nil {
		return
	}
	req.Close = true // OpenSSL serves one connection after the other
	req.Header.Set("Content-Type", r.Header.Get("Content-Type"))
	client := http.Client{Timeout: 10 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return
	}
	s.note(m, tag, body, answer)
	if s.spoil != nil {
		answer = s.spoil(answer)
	}
	w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
	w.WriteHeader(res.StatusCode)
	_, _ = w.Write(answer)
}

// note keeps what OpenSSL has done.
func (s *Server) note(m *mock, tag int, body, answer []byte) {
	_, kind, content, err := look(answer)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case kind == 3 && m.cert != nil && bytes.Contains(content, m.cert.Raw):
		s.issued = append(s.issued, m.cert.SerialNumber.Text(16))
	case kind == 12 && tag == 11 && regexp.MustCompile(`^\x30.\x30.\x30.\x02\x01\x00`).Match(content): // accepted
		for _, other := range s.mocks {
			if other.cert != nil && bytes.Contains(body, other.cert.SerialNumber.Bytes()) {
				s.revoked[other.cert.SerialNumber.Text(16)] = true
			}
		}
	}
}

func (s *Server) list(testing.TB) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.issued)
}

// mock is the OpenSSL that answers a message: a new one for each new transaction.
func (s *Server) mock(transaction string, tag int, body []byte) (*mock, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.mocks[transaction]; m != nil {
		return m, nil
	}
	var cert *x509.Certificate
	var args []string
	switch tag {
	case 2, 4:
		order, err := wanted(tag, body)
		if err != nil {
			return nil, err
		}
		order.ID = transaction
		r, err := s.issuer.Submit(s.t.Context(), order)
		if err != nil {
			return nil, err
		}
		cert = r.Certificate
		if slices.Contains(cert.EmailAddresses, "mallory@lab.test") {
			args = []string{"-pkistatus", "2", "-failure", "19", "-statusstring", "Mallory\nis not wanted"}
		}
	case 11:
		for _, m := range s.mocks {
			if m.cert != nil && bytes.Contains(body, m.cert.SerialNumber.Bytes()) {
				cert = m.cert
			}
		}
	}
	m, err := s.run(cert, args)
	if err == nil {
		s.mocks[transaction] = m
	}
	return m, err
}

// run starts an OpenSSL that gives away one certificate.
func (s *Server) run(cert *x509.Certificate, more []string) (*mock, error) {
	given := cert
	if given == nil {
		given = s.root
	}
	args := slices.Concat([]string{"cmp", "-config", "", "-port", "0", "-rsp_cert", s.write(fmt.Sprintf("given-%d.pem", len(s.mocks)), given)}, s.args, more)
	cmd := exec.Command("openssl", args...)
	m := &mock{cert: cert, log: &program.Log{}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = m.log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if s.t.Failed() {
			s.t.Logf("openssl says:\n%s", m.log)
		}
	})
	lines := bufio.NewScanner(out)
	port := make(chan string, 1)
	go func() {
		defer close(ended)
		for lines.Scan() {
			fmt.Fprintln(m.log, lines.Text())
			if _, rest, ok := strings.Cut(lines.Text(), "ACCEPT "); ok {
				address, _, _ := strings.Cut(rest, " ")
				port <- address[strings.LastIndex(address, ":")+1:]
			}
		}
		_ = cmd.Wait()
	}()
	select {
	case p := <-port:
		m.url = "http://127.0.0.1:" + p
		return m, nil
	case <-ended:
	case <-time.After(10 * time.Second):
	}
	return nil, fmt.Errorf("openssl cmp does not start: %s", m.log)
}

// Config is how a gateway uses the server.
func (s *Server) Config(t testing.TB) config.CMP {
	t.Helper()
	return config.CMP{URL: s.proxy.URL + "/pkix/", Root: testpki.PEM(t, "CERTIFICATE", s.root.Raw), Certificate: testpki.PEM(t, "CERTIFICATE", s.ra[0].Raw),
		Key: testpki.EncryptedKey(t, s.raKey), Passphrase: config.Secret{File: testpki.Secret(t, testpki.Passphrase)}}
}
