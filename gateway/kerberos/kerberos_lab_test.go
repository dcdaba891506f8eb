package kerberos

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/spnego"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/inlab"
)

const labSPN = "HTTP/enroll.lab.test"

func labAcceptor(t *testing.T, change func(*Options)) *Acceptor {
	t.Helper()
	opts := Options{KeytabFile: os.Getenv("LAB_KEYTAB_SVC"), SPNs: []string{labSPN}}
	if change != nil {
		change(&opts)
	}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func labClient(t *testing.T, principal, keytabVariable string) *Client {
	t.Helper()
	c, err := NewClient(ClientOptions{Principal: principal, KeytabFile: os.Getenv(keytabVariable)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func labToken(t *testing.T, c *Client, spn string) []byte {
	t.Helper()
	token, err := c.Token(spn)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// directorySID asks the directory, not the ticket, for the SID of an account.
func directorySID(t *testing.T, account string) security.SID {
	t.Helper()
	out, err := exec.Command("ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-x", "-H", os.Getenv("LAB_LDAPS_URL"), "-D", os.Getenv("LAB_BIND_USER"),
		"-w", os.Getenv("LAB_PASSWORD"), "-b", os.Getenv("LAB_BASE_DN"), "(sAMAccountName="+account+")", "objectSid").CombinedOutput()
	if err != nil {
		t.Fatalf("ldapsearch: %v\n%s", err, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if value, ok := strings.CutPrefix(line, "objectSid:: "); ok {
			b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			sid, err := security.ParseSID(b)
			if err != nil {
				t.Fatal(err)
			}
			return sid
		}
	}
	t.Fatalf("no objectSid for %s in %s", account, out)
	return ""
}

func TestLabCallerHasTheSIDsThatTheDirectorySays(t *testing.T) {
	inlab.Need(t)
	a := labAcceptor(t, nil)
	for _, tc := range []struct {
		principal, keytab, account string
		groups                     []string
		machine                    bool
	}{
		{"alice@LAB.TEST", "LAB_KEYTAB_ALICE", "alice", []string{"SMIME Users", "Domain Users"}, false},
		{"erin@LAB.TEST", "LAB_KEYTAB_ERIN", "erin", []string{"SMIME Users", "Contractors"}, false},
		{"WS1$@LAB.TEST", "LAB_KEYTAB_WS1", "WS1$", []string{"Domain Computers"}, true},
	} {
		t.Run(tc.account, func(t *testing.T) {
			caller, reply, err := a.Accept(t.Context(), labToken(t, labClient(t, tc.principal, tc.keytab), labSPN))
			if err != nil {
				t.Fatal(err)
			}
			if caller.Principal != tc.principal || caller.Realm != "LAB.TEST" || caller.Machine != tc.machine {
				t.Errorf("caller is %+v", caller)
			}
			if want := directorySID(t, tc.account); caller.SID != want {
				t.Errorf("SID %s, the directory says %s", caller.SID, want)
			}
			want := []security.SID{security.Everyone, security.AuthenticatedUsers, security.Network, security.ThisOrganization, security.BuiltinUsers}
			for _, g := range tc.groups {
				want = append(want, directorySID(t, g))
			}
			for _, g := range want {
				if !slices.Contains(caller.Groups, g) {
					t.Errorf("group %s is missing in %v", g, caller.Groups)
				}
			}
			var resp spnego.SPNEGOToken
			if err := resp.Unmarshal(reply); err != nil || resp.NegTokenResp.State() != spnego.NegStateAcceptCompleted {
				t.Errorf("reply %x is not accept-completed: %v", reply, err)
			}
		})
	}
}

func TestLabBobIsNotInTheGroup(t *testing.T) {
	inlab.Need(t)
	caller, _, err := labAcceptor(t, nil).Accept(t.Context(), labToken(t, labClient(t, "bob@LAB.TEST", "LAB_KEYTAB_BOB"), labSPN))
	if err != nil {
		t.Fatal(err)
	}
	if sid := directorySID(t, "SMIME Users"); slices.Contains(caller.Groups, sid) {
		t.Errorf("bob is in SMIME Users (%s)", sid)
	}
}

func TestLabKeytabDecidesTheServiceWhenNoneIsConfigured(t *testing.T) {
	inlab.Need(t)
	a := labAcceptor(t, func(o *Options) { o.SPNs = nil })
	alice := labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE")
	if _, _, err := a.Accept(t.Context(), labToken(t, alice, labSPN)); err != nil {
		t.Error(err)
	}
	_, _, err := a.Accept(t.Context(), labToken(t, alice, "host/enroll.lab.test"))
	wantRefusal(t, err, "host/enroll.lab.test", "HTTP/enroll.lab.test")
}

func TestLabRefusals(t *testing.T) {
	inlab.Need(t)
	alice := labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE")
	at := func(d time.Duration) func(*Options) {
		return func(o *Options) { o.Clock = func() time.Time { return time.Now().Add(d) } }
	}
	for _, tc := range []struct {
		name   string
		spn    string
		change func(*Options)
		words  []string
	}{
		{"a ticket for another service", "host/enroll.lab.test", nil, []string{"host/enroll.lab.test", labSPN, "SPN"}},
		{"a client whose clock is behind", labSPN, at(time.Hour), []string{"clock", "behind", "5m0s"}},
		{"a client whose clock is ahead", labSPN, at(-7 * time.Minute), []string{"not valid before"}},
		{"an expired ticket", labSPN, at(1000 * time.Hour), []string{"expired", "new ticket"}},
		{"a realm that is not welcome", labSPN, func(o *Options) { o.Realms = []string{"OTHER.TEST"} }, []string{"LAB.TEST", "OTHER.TEST"}},
		{"a keytab of another account", labSPN, func(o *Options) { o.KeytabFile = os.Getenv("LAB_KEYTAB_BOB") }, []string{"keytab"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := labAcceptor(t, tc.change).Accept(t.Context(), labToken(t, alice, tc.spn))
			wantRefusal(t, err, tc.words...)
		})
	}
}

func TestLabReplayIsRefused(t *testing.T) {
	inlab.Need(t)
	a := labAcceptor(t, nil)
	token := labToken(t, labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE"), labSPN)
	if _, _, err := a.Accept(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	_, _, err := a.Accept(t.Context(), token)
	wantRefusal(t, err, "replay", "alice@LAB.TEST")
}

func TestLabDamagedTokensAreRefused(t *testing.T) {
	inlab.Need(t)
	a := labAcceptor(t, nil)
	token := labToken(t, labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE"), labSPN)
	for n := range len(token) {
		if _, _, err := a.Accept(t.Context(), token[:n]); err == nil {
			t.Fatalf("cut to %d of %d octets: accepted", n, len(token))
		}
	}
	// A flipped bit outside of what is encrypted may leave the token valid (a hint, a name type), but never change who
	// the caller is. Each acceptance is a new token for the replay cache, so that a fresh acceptor is not needed.
	for bit := range 8 * len(token) {
		bad := slices.Clone(token)
		bad[bit/8] ^= 1 << (bit % 8)
		caller, _, err := a.Accept(t.Context(), bad)
		if err == nil && caller.Principal != "alice@LAB.TEST" {
			t.Fatalf("bit %d flipped: accepted as %+v", bit, caller)
		}
		if err != nil {
			if _, ok := errors.AsType[*hresult.Error](err); !ok {
				t.Fatalf("bit %d flipped: %v", bit, err)
			}
		}
	}
}

// labServer serves over HTTP what the middleware makes of a caller.
func labServer(t *testing.T, a *Acceptor, tls bool) *httptest.Server {
	t.Helper()
	h := a.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, ok := CallerFrom(r.Context())
		fmt.Fprintf(w, "%v %s %s", ok, caller.Principal, caller.SID)
	}))
	if tls {
		s := httptest.NewTLSServer(h)
		t.Cleanup(s.Close)
		return s
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, c *http.Client, r *http.Request) (int, string) {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestLabTransportAuthenticatesEachRequest(t *testing.T) {
	inlab.Need(t)
	s := labServer(t, labAcceptor(t, nil), true)
	base := s.Client().Transport.(*http.Transport).Clone()
	base.TLSClientConfig.InsecureSkipVerify = true // the test server's certificate names another host
	// The URL holds the service's name, as clients choose the SPN by it; the connection goes to the test server.
	base.DialContext = dialer(s.Listener.Addr().String())
	c := &http.Client{Transport: labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE").Transport(base)}
	for range 3 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://enroll.lab.test/x", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		status, body := get(t, c, r)
		if want := "true alice@LAB.TEST " + string(directorySID(t, "alice")); status != 200 || body != want {
			t.Errorf("%d %q, want %q", status, body, want)
		}
	}
}

func TestLabGokrb5ClientIsAccepted(t *testing.T) {
	inlab.Need(t)
	s := labServer(t, labAcceptor(t, nil), false)
	alice := labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE")
	c := spnego.NewClient(alice.krb, nil, labSPN)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.HasPrefix(string(b), "true alice@LAB.TEST ") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// TestLabCurlIsAccepted uses MIT's GSS library, which asks for mutual authentication and checks the AP-REP.
func TestLabCurlIsAccepted(t *testing.T) {
	inlab.Need(t)
	for _, tool := range []string{"curl", "kinit"} {
		if _, err := exec.LookPath(tool); err != nil {
			inlab.Missing(t, tool)
		}
	}
	s := labServer(t, labAcceptor(t, nil), false)
	env := append(os.Environ(), "KRB5CCNAME=FILE:"+filepath.Join(t.TempDir(), "cc"))
	kinit := exec.Command("kinit", "-k", "-t", os.Getenv("LAB_KEYTAB_ALICE"), "alice@LAB.TEST")
	kinit.Env = env
	if out, err := kinit.CombinedOutput(); err != nil {
		t.Fatalf("kinit: %v\n%s", err, out)
	}
	_, port, _ := cutLast(s.Listener.Addr().String(), ":")
	curl := exec.Command("curl", "-sS", "-i", "--negotiate", "-u", ":", "-d", "body",
		"--connect-to", "enroll.lab.test:80:127.0.0.1:"+port, "http://enroll.lab.test/")
	curl.Env = env
	out, err := curl.CombinedOutput()
	if err != nil {
		t.Fatalf("curl: %v\n%s", err, out)
	}
	if want := "true alice@LAB.TEST " + string(directorySID(t, "alice")); !bytes.Contains(out, []byte(want)) {
		t.Errorf("curl got %s, want %q", out, want)
	}
}

func TestLabRefusalReachesTheClient(t *testing.T) {
	inlab.Need(t)
	s := labServer(t, labAcceptor(t, nil), false)
	alice := labClient(t, "alice@LAB.TEST", "LAB_KEYTAB_ALICE")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Negotiate "+base64.StdEncoding.EncodeToString(labToken(t, alice, "host/enroll.lab.test")))
	if status, body := get(t, s.Client(), r); status != 401 || !strings.Contains(body, "host/enroll.lab.test") {
		t.Errorf("%d %q", status, body)
	}
}

// TestLabMutualAuthentication verifies the AP-REP with MIT's GSS library, which checks the echoed time, and the channel
// binding that it sends.
func TestLabMutualAuthentication(t *testing.T) {
	inlab.Need(t)
	// The distribution's interpreter has the distribution's package; another one may come first in the path.
	python := "python3"
	if exec.Command(python, "-c", "import gssapi").Run() != nil {
		python = "/usr/bin/python3"
	}
	if out, err := exec.Command(python, "-c", "import gssapi").CombinedOutput(); err != nil {
		inlab.Missing(t, "python3-gssapi: "+string(out))
	}
	cert := &x509.Certificate{Raw: []byte("a certificate"), SignatureAlgorithm: x509.ECDSAWithSHA384}
	a := labAcceptor(t, func(o *Options) {
		o.ServerCertificates, o.RequireChannelBinding = func() []*x509.Certificate { return []*x509.Certificate{cert} }, true
	})
	for _, mech := range []string{"1.3.6.1.5.5.2", "1.2.840.113554.1.2.2"} {
		t.Run(mech, func(t *testing.T) {
			cmd := exec.Command(python, "-c", mutualScript, mech, os.Getenv("LAB_KEYTAB_ALICE"), filepath.Join(t.TempDir(), "cc"))
			cmd.Args = append(cmd.Args, string(cert.Raw))
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var encoded string
			if _, err := fmt.Fscanln(out, &encoded); err != nil {
				t.Fatal(err)
			}
			token, err := base64.StdEncoding.DecodeString(encoded)
			if err != nil {
				t.Fatal(err)
			}
			caller, reply, err := a.Accept(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(in, base64.StdEncoding.EncodeToString(reply))
			in.Close()
			rest, _ := io.ReadAll(out)
			if err := cmd.Wait(); err != nil || strings.TrimSpace(string(rest)) != "complete True" {
				t.Errorf("client says %q, %v (caller %+v)", rest, err, caller)
			}
		})
	}
}

const mutualScript = `
import sys, base64, hashlib, gssapi
from gssapi.raw import ChannelBindings
mech, keytab, cc, cert = sys.argv[1:]
binding = ChannelBindings(application_data=b"tls-server-end-point:" + hashlib.sha384(cert.encode()).digest())
name = gssapi.Name("alice@LAB.TEST", gssapi.NameType.kerberos_principal)
cred = gssapi.Credentials(usage="initiate", name=name, store={"client_keytab": keytab, "ccache": "FILE:" + cc})
target = gssapi.Name("HTTP@enroll.lab.test", gssapi.NameType.hostbased_service)
ctx = gssapi.SecurityContext(name=target, creds=cred, mech=gssapi.OID.from_int_seq(mech), usage="initiate",
    channel_bindings=binding, flags=[gssapi.RequirementFlag.mutual_authentication])
print(base64.b64encode(ctx.step()).decode(), flush=True)
ctx.step(base64.b64decode(sys.stdin.readline()))
print("complete", ctx.complete and bool(ctx.actual_flags & gssapi.RequirementFlag.mutual_authentication))
`

// TestLabTicketFromCacheWorks is the way of a user who ran kinit.
func TestLabTicketFromCacheWorks(t *testing.T) {
	inlab.Need(t)
	cache := filepath.Join(t.TempDir(), "cc")
	cmd := exec.Command("kinit", "-c", "FILE:"+cache, "alice@LAB.TEST")
	cmd.Stdin = strings.NewReader(os.Getenv("LAB_PASSWORD") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kinit: %v\n%s", err, out)
	}
	c, err := NewClient(ClientOptions{CCache: "FILE:" + cache})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	caller, _, err := labAcceptor(t, nil).Accept(t.Context(), labToken(t, c, labSPN))
	if err != nil || c.Principal() != "alice@LAB.TEST" || caller.Principal != c.Principal() {
		t.Errorf("%v %+v %v", c.Principal(), caller, err)
	}
}

func TestLabPasswordLogsOn(t *testing.T) {
	inlab.Need(t)
	c, err := NewClient(ClientOptions{Principal: "bob", Password: os.Getenv("LAB_PASSWORD")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Token(labSPN); err != nil {
		t.Error(err)
	}
	if _, err := NewClient(ClientOptions{Principal: "bob", Password: "wrong"}); err == nil {
		t.Error("a wrong password logs on")
	}
}
