package adcs

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/adcs"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	pki "github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/fullsailor/pkcs7"
)

const (
	realm     = "LAB.TEST"
	principal = "svc-enroll@" + realm
	service   = "host/ca.lab.test"
	authority = "Lab Issuing CA"
	host      = "127.0.0.1"
)

// question is what server.py was asked, and answer what it says then.
type question struct {
	Caller     string `json:"caller"`
	Flags      uint32 `json:"flags"`
	Authority  string `json:"authority"`
	ID         uint32 `json:"id"`
	Attributes []byte `json:"attributes"`
	Request    []byte `json:"request"`
}

type answer struct {
	ID          uint32 `json:"id"`
	Disposition uint32 `json:"disposition"`
	Chain       []byte `json:"chain"`
	Certificate []byte `json:"certificate"`
	Message     []byte `json:"message"`
	Return      uint32 `json:"return"`
	Lost        bool   `json:"lost"`
	Raw         []byte `json:"raw"`
}

// server is what AD CS does with a request ([MS-WCCE] 3.2.1.4.2.1), as far as the driver sees it: server.py is its transport, an MIT
// KDC knows its clients, and the embedded CA signs what the request and a template say.
type server struct {
	t       testing.TB
	dir     string
	port    int
	issuer  upstream.Issuer
	root    *x509.Certificate
	issuing *x509.Certificate

	mu       sync.Mutex
	issued   []string
	requests map[uint32]answer
	pend     bool
	change   func(question, *answer)
	calls    int
}

// start runs everything; mapper is an address for an endpoint mapper, or nothing.
func start(t testing.TB, mapper ...string) *server {
	t.Helper()
	for _, program := range []string{"/usr/sbin/krb5kdc", "/usr/sbin/kdb5_util", "/usr/sbin/kadmin.local"} {
		if _, err := os.Stat(program); err != nil {
			missing(t, err)
		}
	}
	if err := exec.Command("/usr/bin/python3", "-c", "import gssapi").Run(); err != nil {
		missing(t, fmt.Errorf("python3-gssapi: %w", err))
	}
	s := &server{t: t, dir: t.TempDir(), requests: map[uint32]answer{}}
	rootKey, key := testpki.RSA(t, 2048), testpki.RSA(t, 2048)
	s.root = pki.Sign(t, pki.CA("Lab Root"), nil, rootKey.Public(), rootKey)
	s.issuing = pki.Sign(t, pki.CA(authority), s.root, key.Public(), rootKey)
	ca, err := local.New(local.Options{Name: authority, Certificate: s.issuing, Above: []*x509.Certificate{s.root}, Key: key, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.issuer = ca.Issuer()
	s.kdc()
	front := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(front.Close)
	portFile := filepath.Join(s.dir, "port")
	s.run("/usr/bin/python3", append([]string{"server.py", portFile, front.URL}, mapper...)...)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if text, err := os.ReadFile(portFile); err == nil {
			if _, err := fmt.Sscan(string(text), &s.port); err != nil {
				t.Fatal(err)
			}
			return s
		}
		if time.Now().After(deadline) {
			t.Fatal("server.py does not start")
		}
	}
}

func missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skipf("needs krb5-kdc, krb5-admin-server and python3-gssapi, which test/deps.sh installs: %v", err)
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

// kdc runs a KDC with the two principals of the tests.
func (s *server) kdc() {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	for name, text := range map[string]string{
		"krb5.conf": fmt.Sprintf("[libdefaults]\n default_realm = %s\n dns_lookup_kdc = false\n dns_lookup_realm = false\n rdns = false\n udp_preference_limit = 1\n"+
			"[realms]\n %s = {\n  kdc = 127.0.0.1:%d\n }\n[domain_realm]\n .lab.test = %s\n", realm, realm, port, realm),
		"kdc.conf": fmt.Sprintf("[kdcdefaults]\n kdc_listen = \"\"\n kdc_tcp_listen = 127.0.0.1:%d\n[realms]\n %s = {\n  database_name = %s\n  key_stash_file = %s\n  acl_file = %s\n }\n",
			port, realm, s.file("db"), s.file("stash"), s.file("acl")),
	} {
		if err := os.WriteFile(s.file(name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"/usr/sbin/kdb5_util", "create", "-s", "-W", "-P", "master"},
		{"/usr/sbin/kadmin.local", "-q", "addprinc -randkey " + service},
		{"/usr/sbin/kadmin.local", "-q", "addprinc -randkey " + principal},
		{"/usr/sbin/kadmin.local", "-q", "ktadd -k " + s.file("server.keytab") + " " + service},
		{"/usr/sbin/kadmin.local", "-q", "ktadd -k " + s.file("client.keytab") + " " + principal},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = s.env()
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	s.run("/usr/sbin/krb5kdc", "-n")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatal("the KDC does not start")
		}
	}
}

func (s *server) env() []string {
	return append(os.Environ(), "KRB5_CONFIG="+s.file("krb5.conf"), "KRB5_KDC_PROFILE="+s.file("kdc.conf"), "KRB5_KTNAME="+s.file("server.keytab"), "KRB5RCACHENAME=none:",
		"PYTHONDONTWRITEBYTECODE=1")
}

func (s *server) run(program string, args ...string) {
	s.t.Helper()
	log, err := os.Create(s.file(filepath.Base(program) + ".log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env(), log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && s.t.Failed() {
			s.t.Logf("%s says:\n%s", program, text)
		}
	})
}

func (s *server) options() adcs.Options {
	return adcs.Options{Name: "Lab", Server: host, Port: s.port, Authority: authority, Roots: []*x509.Certificate{s.root}, Principal: principal,
		Keytab: s.file("client.keytab"), Krb5Conf: s.file("krb5.conf"), ServicePrincipal: service, Timeout: 5 * time.Second, Now: time.Now}
}

func (s *server) driver(o adcs.Options) *adcs.CA {
	s.t.Helper()
	d, err := adcs.New(o)
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

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	var q question
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	a := s.answer(q)
	if s.change != nil {
		s.change(q, &a)
	}
	_ = json.NewEncoder(w).Encode(a)
}

// answer is what AD CS does.
func (s *server) answer(q question) answer {
	switch {
	case q.Caller != principal || q.Authority != authority:
		return answer{Return: 0x80070057}
	case len(q.Request) == 0:
		a, ok := s.requests[q.ID]
		if !ok {
			return answer{Return: 0x80094004}
		}
		if a.Disposition == 3 && !slices.Contains(s.issued, testpki.Cert(s.t, a.Certificate).SerialNumber.Text(16)) {
			s.issued = append(s.issued, testpki.Cert(s.t, a.Certificate).SerialNumber.Text(16))
		}
		return a
	case q.Flags != 0x100 || string(q.Attributes) != utf16Text("CertificateTemplate:T\x00"):
		return answer{Disposition: 0x80094800, Message: []byte(utf16Text("The requested certificate template is not supported by this CA.\r\n\x00"))}
	}
	csr, err := x509.ParseCertificateRequest(q.Request)
	if err != nil || csr.CheckSignature() != nil {
		return answer{Disposition: 2}
	}
	id := uint32(len(s.requests) + 1)
	p := templates.CertificateProfile{Subject: csr.RawSubject, NotBefore: time.Now().Add(-10 * time.Minute), NotAfter: time.Now().AddDate(0, 2, 0)}
	for _, e := range csr.Extensions {
		p.Extensions = append(p.Extensions, templates.Extension{OID: e.Id.String(), Critical: e.Critical, Value: e.Value})
	}
	if slices.Contains(csr.EmailAddresses, "mallory@lab.test") {
		return answer{ID: id, Disposition: 2, Message: []byte(utf16Text("Denied by Policy Module\n\x00"))}
	}
	r, err := s.issuer.Submit(s.t.Context(), upstream.Order{ID: fmt.Sprint(id), PublicKey: csr.PublicKey, Profile: p})
	if err != nil {
		return answer{Return: 0x80004005}
	}
	chain, err := pkcs7.DegenerateCertificate(slices.Concat(s.root.Raw, s.issuing.Raw, r.Certificate.Raw))
	if err != nil {
		return answer{Return: 0x80004005}
	}
	a := answer{ID: id, Disposition: 3, Certificate: r.Certificate.Raw, Chain: chain, Message: []byte(utf16Text("Issued\x00"))}
	s.requests[id] = a
	if s.pend {
		return answer{ID: id, Disposition: 5, Message: []byte(utf16Text("Taken Under Submission\x00"))}
	}
	s.issued = append(s.issued, r.Certificate.SerialNumber.Text(16))
	return a
}

func utf16Text(text string) string {
	var out []byte
	for _, u := range utf16.Encode([]rune(text)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return string(out)
}
