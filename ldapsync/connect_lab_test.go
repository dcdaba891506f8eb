package ldapsync

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/test/inlab"
)

func TestConnectionsThatMustFailSayWhyAndWhatToDo(t *testing.T) {
	inlab.Need(t)
	wrongCA := ldapsSimple()
	wrongCA.CAFile = os.Getenv("LAB_ISSUING_CA_PEM")
	startTLSWrongCA := startTLSSimple()
	startTLSWrongCA.CAFile = os.Getenv("LAB_ISSUING_CA_PEM")
	wrongPassword := ldapsSimple()
	wrongPassword.Auth.Password = "wrong"
	kerberosInTLS := sealedKerberos()
	kerberosInTLS.Servers, kerberosInTLS.CAFile = []string{os.Getenv("LAB_LDAPS_URL")}, os.Getenv("LAB_CA_PEM")
	wrongKeytab := sealedKerberos()
	wrongKeytab.Auth.Keytab = os.Getenv("LAB_KEYTAB_ALICE")
	wrongKerberosPassword := sealedKerberos()
	wrongKerberosPassword.Auth.Keytab, wrongKerberosPassword.Auth.Password = "", "wrong"
	otherName := sealedKerberos()
	otherName.Servers = []string{"ldap://lab.test"}
	unresolved := ldapsSimple()
	unresolved.Servers = []string{"ldaps://dc9.lab.test"}
	for name, tt := range map[string]struct {
		config Config
		want   []string
	}{
		"wrong CA":                      {wrongCA, []string{"not from a CA that is trusted", "ca_file"}},
		"wrong CA with StartTLS":        {startTLSWrongCA, []string{"not from a CA that is trusted", "ca_file"}},
		"wrong password":                {wrongPassword, []string{"does not accept the name", "svc-enroll"}},
		"Kerberos unsigned inside TLS":  {kerberosInTLS, []string{"strong auth required", "use ldap://dc1.lab.test without starttls"}},
		"keytab of another account":     {wrongKeytab, []string{"Kerberos authentication failed", "svc-enroll@LAB.TEST"}},
		"wrong password with Kerberos":  {wrongKerberosPassword, []string{"Kerberos authentication failed", "not the account's current one"}},
		"a name without a Kerberos SPN": {otherName, []string{"KDC_ERR_S_PRINCIPAL_UNKNOWN", "the controller's own host name"}},
		"a name that does not resolve":  {unresolved, []string{"dc9.lab.test", "does not resolve"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "Kerberos unsigned inside TLS" && os.Getenv("LAB_STRONG_AUTH") == allowInTLS {
				t.Skip("this lab takes it")
			}
			d := open(t, tt.config)
			err := d.Refresh(t.Context())
			if err == nil {
				t.Fatal("connected")
			}
			for _, want := range append(tt.want, tt.config.Servers[0]) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), os.Getenv("LAB_PASSWORD")) {
				t.Error("the password is in the error")
			}
			if d.Snapshot() != nil || d.Status().Err == nil || d.Status().Server != "" {
				t.Errorf("status %+v", d.Status())
			}
		})
	}
}

// What the library can do by itself is refused: if this fails, the layer written here is no longer needed, or the lab
// no longer demands it.
func TestTheLabRefusesABindWithoutEncryption(t *testing.T) {
	inlab.Need(t)
	conn, err := ldap.DialURL(os.Getenv("LAB_LDAP_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Bind(os.Getenv("LAB_BIND_USER"), os.Getenv("LAB_PASSWORD")); !ldap.IsErrorWithCode(err, ldap.LDAPResultStrongAuthRequired) {
		t.Errorf("bind in the clear: %v", err)
	}
}

// tap is a proxy in front of the controller that keeps what it sees, and can damage it.
type tap struct {
	mu       sync.Mutex
	seen     bytes.Buffer
	received int                            // octets from the controller so far
	damage   func(b []byte, from int) error // changes octets from the controller; from is the position of b[0]
	conns    []net.Conn
}

func (p *tap) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.received = 0
	p.conns = append(p.conns, conn)
	return &tapped{Conn: conn, tap: p}, nil
}

type tapped struct {
	net.Conn
	tap *tap
}

func (c *tapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.tap.seen.Write(b[:n])
	if c.tap.damage != nil {
		if e := c.tap.damage(b[:n], c.tap.received); e != nil {
			return 0, e
		}
	}
	c.tap.received += n
	return n, err
}

func (c *tapped) Write(b []byte) (int, error) {
	c.tap.mu.Lock()
	c.tap.seen.Write(b)
	c.tap.mu.Unlock()
	return c.Conn.Write(b)
}

func TestNothingReadableIsOnTheWireOnceKerberosIsDone(t *testing.T) {
	d := open(t, sealedKerberos())
	p := &tap{}
	d.dial = p.dial
	refresh(t, d)
	if _, err := d.SubjectByName(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen.Len() < 20_000 {
		t.Errorf("only %d octets were seen: the proxy is not in the way", p.seen.Len())
	}
	for _, secret := range []string{"Archer", "LabUserSMIME", "pKICertificateTemplate", "highestCommittedUSN", "tokenGroups", "objectClass"} {
		if bytes.Contains(bytes.ToLower(p.seen.Bytes()), bytes.ToLower([]byte(secret))) {
			t.Errorf("%q travels in the clear", secret)
		}
	}
	if !bytes.Contains(p.seen.Bytes(), []byte("GSSAPI")) {
		t.Error("not even the bind is there: this test could not fail")
	}
}

func TestAFlippedBitEndsTheConnection(t *testing.T) {
	d := open(t, sealedKerberos())
	p := &tap{}
	d.dial = p.dial
	before := refresh(t, d)
	p.mu.Lock()
	start := p.received
	p.damage = func(b []byte, from int) error {
		if at := start + 100 - from; at >= 0 && at < len(b) { // inside of the next sealed frame
			b[at] ^= 0x10
		}
		return nil
	}
	p.mu.Unlock()
	err := d.Refresh(t.Context())
	if err == nil || !strings.Contains(err.Error(), "integrity") {
		t.Errorf("after a flipped bit: %v", err)
	}
	if d.Status().Server != "" || d.Snapshot() != before {
		t.Errorf("still connected: %+v", d.Status())
	}
	p.mu.Lock()
	p.damage = nil
	p.mu.Unlock()
	if refresh(t, d) == before {
		t.Error("no new snapshot after the next connection")
	}
	if len(p.conns) != 2 {
		t.Errorf("%d connections, want a second one", len(p.conns))
	}
}

func TestKerberosWithAPasswordAndFromACredentialCache(t *testing.T) {
	inlab.Need(t)
	password := sealedKerberos()
	password.Auth.Principal, password.Auth.Keytab, password.Auth.Password = "svc-enroll", "", os.Getenv("LAB_PASSWORD")
	cache := sealedKerberos()
	path := filepath.Join(t.TempDir(), "cc")
	if out, err := exec.Command("kinit", "-c", path, "-k", "-t", os.Getenv("LAB_KEYTAB_SVC"), "svc-enroll").CombinedOutput(); err != nil {
		t.Fatalf("kinit: %v: %s", err, out)
	}
	cache.Auth = Auth{Method: GSSAPI, CCache: "FILE:" + path}
	for name, config := range map[string]Config{"password": password, "credential cache": cache} {
		t.Run(name, func(t *testing.T) { refresh(t, open(t, config)) })
	}
	cache.Auth.CCache = os.Getenv("LAB_CA_PEM")
	if err := open(t, cache).Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "credential cache") {
		t.Errorf("a file that is no cache: %v", err)
	}
}

// Active Directory takes Kerberos inside TLS; of Samba it must be demanded: LAB_STRONG_AUTH=allow_sasl_over_tls.
func TestKerberosInsideTLSHasNoLayerOfItsOwn(t *testing.T) {
	inlab.Need(t)
	if os.Getenv("LAB_STRONG_AUTH") != allowInTLS {
		t.Skip("needs LAB_STRONG_AUTH=" + allowInTLS)
	}
	for name, config := range map[string]Config{"ldaps": ldapsSimple(), "starttls": startTLSSimple()} {
		config.Auth = sealedKerberos().Auth
		t.Run(name, func(t *testing.T) { refresh(t, open(t, config)) })
	}
}

const allowInTLS = "allow_sasl_over_tls"

// Answers of hundreds of kilobytes come in many sealed frames.
func TestLargeAnswersComeInManyFrames(t *testing.T) {
	d := open(t, sealedKerberos())
	before := len(refresh(t, d).OIDs)
	conn, base := admin(t), "CN=OID,"+pkiBase(os.Getenv("LAB_CONFIG_DN"))
	const n = 600
	t.Cleanup(func() {
		for i := range n {
			_ = conn.Del(ldap.NewDelRequest(fmt.Sprintf("CN=many-%d,%s", i, base), nil))
		}
	})
	for i := range n {
		add := ldap.NewAddRequest(fmt.Sprintf("CN=many-%d,%s", i, base), nil)
		add.Attribute("objectClass", []string{"msPKI-Enterprise-Oid"})
		add.Attribute("msPKI-Cert-Template-OID", []string{fmt.Sprintf("1.3.6.1.4.1.99999.%d", i)})
		add.Attribute("displayName", []string{strings.Repeat("x", 200)})
		if err := conn.Add(add); err != nil {
			t.Fatal(err)
		}
	}
	p := &tap{}
	d.dial = p.dial
	d.mu.Lock()
	d.session.close()
	d.mu.Unlock()
	start := time.Now()
	if got := len(refresh(t, d).OIDs); got != before+n {
		t.Errorf("%d OIDs, want %d", got, before+n)
	}
	t.Logf("%d objects read in %v, %d octets received", before+n, time.Since(start), p.received)
	if p.received < 200_000 {
		t.Errorf("only %d octets were received", p.received)
	}
}
