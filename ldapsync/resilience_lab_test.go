package ldapsync

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/inlab"
)

// relay is a TCP proxy under the controller's own name, on another port, that can be unplugged.
type relay struct {
	mu    sync.Mutex
	l     net.Listener
	addr  string
	conns []net.Conn
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	inlab.Need(t)
	r := &relay{addr: net.JoinHostPort(os.Getenv("LAB_IP"), "0")}
	r.plug(t)
	t.Cleanup(r.unplug)
	return r
}

func (r *relay) url() string {
	_, port, _ := net.SplitHostPort(r.addr)
	return "ldap://" + os.Getenv("LAB_DC") + ":" + port
}

// plug makes the controller reachable through the relay.
func (r *relay) plug(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	r.l, r.addr = l, l.Addr().String()
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", net.JoinHostPort(os.Getenv("LAB_IP"), "389"))
			if err != nil {
				_ = near.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, near, far)
			r.mu.Unlock()
			go func() { _, _ = io.Copy(near, far); _ = near.Close() }()
			go func() { _, _ = io.Copy(far, near); _ = far.Close() }()
		}
	}()
}

func (r *relay) unplug() {
	_ = r.l.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

func TestReadsGoOnWhenTheFirstControllerIsUnpluggedAndGoBackToIt(t *testing.T) {
	a := newRelay(t)
	config := sealedKerberos()
	config.Servers = []string{a.url(), config.Servers[0]}
	config.FailBack, config.SubjectTTL = 200*time.Millisecond, -1
	d := open(t, config)
	alice, err := d.SubjectByName(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	run(t, d)
	eventually(t, "a snapshot from the first", func() bool { return d.Snapshot() != nil && d.Status().Server == a.url() })
	stop, failures := make(chan struct{}), make(chan error, 1)
	go func() { // accounts are read all the time
		defer close(failures)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := d.Subject(t.Context(), alice.SID); err != nil {
				failures <- err
				return
			}
		}
	}()
	a.unplug()
	eventually(t, "the second", func() bool { s := d.Status(); return s.Server == config.Servers[1] && !s.Preferred && s.Err == nil })
	a.plug(t)
	eventually(t, "the first again", func() bool { s := d.Status(); return s.Server == a.url() && s.Preferred })
	if err := d.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	close(stop)
	if err := <-failures; err != nil {
		t.Errorf("an account could not be read meanwhile: %v", err)
	}
}

func TestTheRealDirectorySurvivesARestartWithoutIt(t *testing.T) {
	a := newRelay(t)
	config := sealedKerberos()
	config.Servers, config.StateFile = []string{a.url()}, filepath.Join(t.TempDir(), "directory.json")
	d := open(t, config)
	stop := run(t, d)
	eventually(t, "the saved file", func() bool { _, err := os.Stat(config.StateFile); return err == nil })
	stop()
	a.unplug()
	began := time.Now()
	again := open(t, config)
	t.Logf("loaded in %v", time.Since(began))
	got, want := *again.Snapshot(), *d.Snapshot()
	if !got.Taken.Equal(d.Status().Checked) {
		t.Errorf("taken %v, confirmed %v", got.Taken, d.Status().Checked)
	}
	got.Taken, want.Taken = time.Time{}, time.Time{}
	if !reflect.DeepEqual(got, want) || len(got.Templates) != len(labTemplates) {
		t.Errorf("%d templates of %d", len(got.Templates), len(want.Templates))
	}
	if err := again.Refresh(t.Context()); err == nil {
		t.Error("the controller is not unplugged")
	}
	// Back again, the same state is confirmed, and shared.
	a.plug(t)
	time.Sleep(retryConnect)
	loaded := again.Snapshot()
	if s := refresh(t, again); &s.Templates[0] != &loaded.Templates[0] || !s.Taken.After(loaded.Taken) || again.seen.reading.invocation == "" {
		t.Errorf("the saved state is not that of the controller, or has no invocationId")
	}
}

func minorOf(d *Directory) int { return d.Snapshot().TemplateByName("LabV4").Minor }

func inForce(t *testing.T, d *Directory, minor string) {
	t.Helper()
	conn, v4 := admin(t), d.Snapshot().TemplateByName("LabV4")
	old := strconv.Itoa(v4.Minor)
	t.Cleanup(func() { set(t, conn, v4.DN, "msPKI-Template-Minor-Revision", old) })
	began := time.Now()
	set(t, conn, v4.DN, "msPKI-Template-Minor-Revision", minor)
	eventually(t, "the change in force", func() bool { return strconv.Itoa(minorOf(d)) == minor })
	t.Logf("in force after %v", time.Since(began))
}

func TestTheControllerTellsAboutAChange(t *testing.T) {
	config := sealedKerberos()
	config.Poll, config.FullRead = time.Hour, time.Hour // nobody asks
	d := open(t, config)
	run(t, d)
	eventually(t, "a snapshot", func() bool { return d.Snapshot() != nil })
	time.Sleep(time.Second) // until the searches stand
	inForce(t, d, "81")
	time.Sleep(time.Second)
	inForce(t, d, "82")
}

func TestAChangeIsInForceSoonWithoutNotifications(t *testing.T) {
	d := open(t, sealedKerberos()) // with the usual times
	connect := d.connectTo
	d.connectTo = func(ctx context.Context, t target) (*session, error) {
		s, err := connect(ctx, t)
		if err == nil {
			s.root.notifies = false
		}
		return s, err
	}
	run(t, d)
	eventually(t, "a snapshot", func() bool { return d.Snapshot() != nil })
	inForce(t, d, "91")
}

// What the controller's ranges look like is not invented here: it is asked for a part, and the rest must follow.
func TestARealControllersPartsAreCompleted(t *testing.T) {
	d := open(t, sealedKerberos())
	refresh(t, d)
	read := func(attribute string) []string {
		entries, err := d.session.search(d.session.root.domainDN, ldap.ScopeWholeSubtree, "(sAMAccountName=WS1$)", []string{attribute})
		if err != nil || len(entries) != 1 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		return attributesOf(entries[0]).Strings("servicePrincipalName")
	}
	whole := read("servicePrincipalName")
	if got := read("servicePrincipalName;range=0-0"); len(whole) < 2 || !slices.Equal(got, whole) {
		t.Errorf("from parts %v, at once %v", got, whole)
	}
}

// Names with everything that RFC 4514 escapes. Windows and Samba both keep them as they are.
func TestAccountsWithAwkwardNamesAreReadEndToEnd(t *testing.T) {
	d := open(t, sealedKerberos())
	conn := admin(t)
	for i, name := range []string{
		"Müller, Jürgen", "Bob + Alice", `back\slash`, " leading space", "trailing space ", "#hash", `"quoted" <x>; y=z`, "日本 語",
		`all: , + " \ < > ; = #`, "Łukasz 🦊", "a/b*c(d)", `C\,D`, `\2C`,
	} {
		account := fmt.Sprintf("awkward%d", i)
		want := [][]templates.RDN{{{Type: "CN", Value: name}}, {{Type: "OU", Value: `Büro, 1 + "2" `}}, {{Type: "DC", Value: "lab"}}, {{Type: "DC", Value: "test"}}}
		ou := "OU=" + ldap.EscapeDN(`Büro, 1 + "2" `) + ",DC=lab,DC=test"
		if i == 0 {
			add := ldap.NewAddRequest(ou, nil)
			add.Attribute("objectClass", []string{"organizationalUnit"})
			if err := conn.Add(add); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Del(ldap.NewDelRequest(ou, nil)) })
		}
		// RFC 4514 leaves = as it is; Samba does not read that.
		add := ldap.NewAddRequest("CN="+strings.ReplaceAll(ldap.EscapeDN(name), "=", `\=`)+","+ou, nil)
		add.Attribute("objectClass", []string{"user"})
		add.Attribute("sAMAccountName", []string{account})
		if err := conn.Add(add); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		t.Cleanup(func() { _ = conn.Del(ldap.NewDelRequest(add.DN, nil)) })
		u, err := d.SubjectByName(t.Context(), account)
		if err != nil || u.CN != name || !slices.EqualFunc(u.RDNs, want, slices.Equal) {
			t.Errorf("%q: CN %q, RDNs %q, DN %s, %v", name, u.CN, u.RDNs, u.DN, err)
			continue
		}
		byDN, err := d.SubjectByName(t.Context(), u.DN)
		if err != nil || byDN.SID != u.SID || len(byDN.Groups) == 0 {
			t.Errorf("by its DN %s: %v", u.DN, err)
		}
		if bySID, err := d.Subject(t.Context(), u.SID); err != nil || !slices.EqualFunc(bySID.RDNs, want, slices.Equal) {
			t.Errorf("by its SID: %q, %v", bySID.RDNs, err)
		}
	}
}
