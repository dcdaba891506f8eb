package ldapsync

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/inlab"
)

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// Configurations of the lab.
func ldapsSimple() Config {
	return Config{Servers: []string{os.Getenv("LAB_LDAPS_URL")}, CAFile: os.Getenv("LAB_CA_PEM"),
		Auth: Auth{Method: Simple, User: os.Getenv("LAB_BIND_USER"), Password: os.Getenv("LAB_PASSWORD")}}
}

func startTLSSimple() Config {
	c := ldapsSimple()
	c.Servers, c.StartTLS = []string{os.Getenv("LAB_LDAP_URL")}, true
	return c
}

func sealedKerberos() Config {
	return Config{Servers: []string{os.Getenv("LAB_LDAP_URL")},
		Auth: Auth{Method: GSSAPI, Principal: "svc-enroll@LAB.TEST", Keytab: os.Getenv("LAB_KEYTAB_SVC")}}
}

func open(t *testing.T, c Config) *Directory {
	t.Helper()
	inlab.Need(t)
	d, err := New(c, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func refresh(t *testing.T, d *Directory) *templates.Snapshot {
	t.Helper()
	if err := d.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d.Snapshot()
}

// labTemplates are all that the lab adds, and the one Windows default that it has.
var labTemplates = []string{"LabEnrollmentAgent", "LabKRA", "LabMachine", "LabOnBehalf", "LabUserAuth", "LabUserSMIME",
	"LabV4", "LabVulnESC1", "LabVulnESC13", "LabVulnESC15", "LabVulnESC2", "LabVulnESC3", "LabVulnESC4", "LabVulnESC9", "LabWebServer", "User"}

func TestEveryWayToConnectReadsTheWholeConfiguration(t *testing.T) {
	for name, config := range map[string]func() Config{
		"LDAPS, simple bind": ldapsSimple, "StartTLS, simple bind": startTLSSimple, "Kerberos, sealed": sealedKerberos,
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, config())
			if d.Snapshot() != nil {
				t.Error("a snapshot before the first reading")
			}
			s := refresh(t, d)
			var names []string
			for _, template := range s.Templates {
				names = append(names, template.Name)
			}
			if !slices.Equal(names, labTemplates) || len(s.Unusable) > 0 {
				t.Errorf("templates %v, unusable %v", names, s.Unusable)
			}
			if s.Controller != "dc1.lab.test" || s.ForestRoot != "lab.test" || s.USN == 0 || s.ConfigDN != os.Getenv("LAB_CONFIG_DN") {
				t.Errorf("controller %q, forest %q, USN %d, configuration %q", s.Controller, s.ForestRoot, s.USN, s.ConfigDN)
			}
			if want := []templates.Domain{{DN: "DC=lab,DC=test", DNS: "lab.test", NetBIOS: "LAB"}}; !slices.Equal(s.Domains, want) {
				t.Errorf("domains %v", s.Domains)
			}
			ca := s.Service("lab issuing ca")
			if ca == nil || len(ca.Certificates) != 1 || ca.DNSHostName != "enroll.lab.test" || ca.Offers("User") || !ca.Offers("labusersmime") {
				t.Errorf("enrollment service %+v", ca)
			}
			if len(s.NTAuth) == 0 || !strings.HasPrefix(s.ForestOID, "1.3.6.1.4.1.311.21.8.") {
				t.Errorf("%d NTAuth certificates, forest OID %q", len(s.NTAuth), s.ForestOID)
			}
			if smime := s.TemplateByName("LabUserSMIME"); !smime.Archives() || s.OIDs[smime.OID].DisplayName == "" {
				t.Errorf("LabUserSMIME: archives %v, OID %+v", smime.Archives(), s.OIDs[smime.OID])
			}
			if status := d.Status(); status.Err != nil || status.Server != config().Servers[0] || status.Controller != s.Controller || status.Age > time.Minute {
				t.Errorf("status %+v", status)
			}
		})
	}
}

func TestRightsOfAccountsComeFromTheirGroups(t *testing.T) {
	d := open(t, sealedKerberos())
	s := refresh(t, d)
	rights := func(name, template string) string {
		u, err := d.SubjectByName(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		token := security.NewToken(append(u.Groups, u.SID)...)
		text, sd := "", s.TemplateByName(template).Security
		if sd.ControlAccess(token, security.RightEnroll).Granted {
			text = "E"
		}
		if sd.ControlAccess(token, security.RightAutoEnroll).Granted {
			text += "A"
		}
		return text
	}
	for _, tt := range []struct{ account, template, want string }{ // test/lab/README.md
		{"alice", "LabUserSMIME", "EA"}, {"bob", "LabUserSMIME", ""}, {"erin", "LabUserSMIME", "EA"}, {"carol", "LabUserSMIME", "EA"},
		{"alice", "User", "E"}, {"bob", "LabUserAuth", "EA"}, {"bob", "LabMachine", ""}, {"WS1$", "LabMachine", "EA"},
		{"WS1$", "LabUserAuth", ""}, {"kra1", "LabKRA", "E"}, {"alice", "LabKRA", ""}, {"helpdesk", "LabWebServer", "E"},
		{"Administrator", "LabWebServer", ""}, {"Administrator", "LabUserSMIME", "E"}, {"bob", "LabVulnESC1", "E"}, {"alice", "LabV4", "E"},
	} {
		if got := rights(tt.account, tt.template); got != tt.want {
			t.Errorf("%s on %s: %q, want %q", tt.account, tt.template, got, tt.want)
		}
	}
}

func TestAccountsAreFoundByEachOfTheirNames(t *testing.T) {
	d := open(t, sealedKerberos())
	alice, err := d.SubjectByName(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ALICE", "alice@lab.test", `LAB\alice`, `lab.test\Alice`, alice.DN, "cn=alice archer,cn=users,dc=lab,dc=test", string(alice.SID)} {
		if got, err := d.SubjectByName(t.Context(), name); err != nil || got.SID != alice.SID {
			t.Errorf("%s: %v, %v", name, got.DN, err)
		}
	}
	wantRDNs := [][]templates.RDN{{{Type: "CN", Value: "Alice Archer"}}, {{Type: "CN", Value: "Users"}}, {{Type: "DC", Value: "lab"}}, {{Type: "DC", Value: "test"}}}
	if !slices.EqualFunc(alice.RDNs, wantRDNs, slices.Equal) || alice.CN != "Alice Archer" || alice.Mail != "alice@lab.test" ||
		alice.UPN != "alice@lab.test" || alice.Machine || alice.Disabled || alice.GUID == (security.GUID{}) || alice.Domain.NetBIOS != "LAB" {
		t.Errorf("alice: %+v", alice)
	}
	if carol, err := d.SubjectByName(t.Context(), "carol"); err != nil || carol.Mail != "" {
		t.Errorf("carol has mail %q, %v", carol.Mail, err)
	}
	if dave, err := d.SubjectByName(t.Context(), "dave"); err != nil || !dave.Disabled {
		t.Errorf("dave is disabled: %v, %v", dave.Disabled, err)
	}
	ws1, err := d.SubjectByName(t.Context(), "WS1$")
	if err != nil || !ws1.Machine || ws1.DNSHostName != "ws1.lab.test" || ws1.UPNExplicit || ws1.UPN != "WS1$@lab.test" || !slices.Contains(ws1.SPNs, "HOST/ws1.lab.test") {
		t.Errorf("WS1$: %+v, %v", ws1, err)
	}
	bySID, err := d.Subject(t.Context(), ws1.SID)
	if err != nil || bySID.DN != ws1.DN || bySID.Groups != nil {
		t.Errorf("by SID: %+v, %v", bySID, err)
	}
	names := d.NamesOf(t.Context(), append(alice.Groups, alice.SID, "S-1-5-21-1-1-1-1", "S-1-5-32-544"))
	for _, want := range []string{`LAB\alice`, `LAB\SMIME Users`, `LAB\Domain Users`, `BUILTIN\Administrators`, "Everyone"} {
		if !slices.Contains(slices.Collect(mapValues(names)), want) {
			t.Errorf("no %s in %v", want, names)
		}
	}
	if _, known := names["S-1-5-21-1-1-1-1"]; known {
		t.Error("a SID of nobody has a name")
	}
}

func mapValues[K comparable, V any](m map[K]V) func(yield func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

func TestAccountsThatDoNotExist(t *testing.T) {
	d := open(t, sealedKerberos())
	names := []string{"nobody", "*", "alice)(objectClass=*", "nobody@lab.test", "alice@elsewhere.test", `OTHER\alice`, "WS1",
		"CN=Nobody,CN=Users,DC=lab,DC=test", "CN=Users,DC=lab,DC=test", "DC=elsewhere,DC=test", "Domain Users", "S-1-5-21-1-2-3-4", ""}
	for _, name := range names {
		_, err := d.SubjectByName(t.Context(), name)
		if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != hresult.NoSuchUser {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := d.Subject(t.Context(), "S-1-5-21-1-2-3-4"); hresult.From(err).Code != hresult.NoSuchUser {
		t.Errorf("by SID: %v", err)
	}
	if d.Status().Server == "" {
		t.Error("asking for an unknown account cost the connection")
	}
}

// admin is a connection that may change the directory.
func admin(t *testing.T) *ldap.Conn {
	t.Helper()
	c := ldapsSimple()
	c.Auth.User = "Administrator@lab.test"
	c, err := c.complete()
	if err != nil {
		t.Fatal(err)
	}
	target, err := c.target(c.Servers[0])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.bind(t.Context(), (&net.Dialer{}).DialContext, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func set(t *testing.T, conn *ldap.Conn, dn, attribute string, values ...string) {
	t.Helper()
	request := ldap.NewModifyRequest(dn, nil)
	request.Replace(attribute, values)
	if err := conn.Modify(request); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestAChangeIsInForceSoonAndOldSnapshotsStayAsTheyWere(t *testing.T) {
	config := sealedKerberos()
	config.Poll = 50 * time.Millisecond
	d := open(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx) }()
	eventually(t, "first snapshot", func() bool { return d.Snapshot() != nil })
	conn, old := admin(t), d.Snapshot()
	v4 := old.TemplateByName("LabV4")
	minor := v4.Minor
	t.Cleanup(func() { set(t, conn, v4.DN, "msPKI-Template-Minor-Revision", strconv.Itoa(minor)) })

	set(t, conn, v4.DN, "msPKI-Template-Minor-Revision", "77")
	eventually(t, "new minor revision", func() bool { return d.Snapshot().TemplateByName("LabV4").Minor == 77 })
	if old.TemplateByName("LabV4").Minor != minor || minor == 77 {
		t.Error("the old snapshot has changed")
	}

	// A template that cannot be understood goes, alone, with its reason; and comes back.
	set(t, conn, v4.DN, "pKIKeyUsage", "abc")
	eventually(t, "unusable template", func() bool { return d.Snapshot().Unusable[v4.DN] != "" })
	broken := d.Snapshot()
	if broken.TemplateByName("LabV4") != nil || len(broken.Templates) != len(labTemplates)-1 || !strings.Contains(broken.Unusable[v4.DN], "pKIKeyUsage") {
		t.Errorf("%d templates, unusable: %v", len(broken.Templates), broken.Unusable)
	}
	set(t, conn, v4.DN, "pKIKeyUsage", "\x80\x00")

	// Two templates with one OID: neither is served.
	set(t, conn, v4.DN, "msPKI-Cert-Template-OID", old.TemplateByName("LabKRA").OID)
	eventually(t, "doubled OID", func() bool { return len(d.Snapshot().Unusable) == 2 })
	set(t, conn, v4.DN, "msPKI-Cert-Template-OID", v4.OID)
	eventually(t, "repaired", func() bool { return len(d.Snapshot().Templates) == len(labTemplates) })

	// A change elsewhere does not make a new snapshot; a deletion does.
	same := d.Snapshot()
	set(t, conn, "CN=Bob Baker,CN=Users,DC=lab,DC=test", "description", time.Now().String())
	time.Sleep(300 * time.Millisecond)
	if d.Snapshot() != same {
		t.Error("a change of an account made a new snapshot")
	}
	add := ldap.NewAddRequest("CN=Short,"+strings.SplitN(v4.DN, ",", 2)[1], nil)
	add.Attribute("objectClass", []string{"pKICertificateTemplate"})
	if err := conn.Add(add); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new object", func() bool { return len(d.Snapshot().Unusable)+len(d.Snapshot().Templates) == len(labTemplates)+1 })
	if err := conn.Del(ldap.NewDelRequest(add.DN, nil)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "deletion", func() bool { return len(d.Snapshot().Unusable)+len(d.Snapshot().Templates) == len(labTemplates) })

	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Run does not end")
	}
	if d.Snapshot() == nil {
		t.Error("the snapshot is gone with the connection")
	}
}

func TestTheNextServerTakesOver(t *testing.T) {
	config := sealedKerberos()
	config.Servers = []string{"ldap://dc9.lab.test", config.Servers[0]}
	d := open(t, config)
	refresh(t, d)
	if s := d.Status(); s.Server != config.Servers[1] {
		t.Errorf("connected to %q", s.Server)
	}
	// A connection that dies is replaced, for accounts too.
	d.mu.Lock()
	d.session.close()
	d.mu.Unlock()
	if _, err := d.SubjectByName(t.Context(), "alice"); err != nil {
		t.Error(err)
	}
}

func TestControllersAreFoundInDNS(t *testing.T) {
	config := sealedKerberos()
	config.Servers, config.Domain = nil, "lab.test"
	d := open(t, config)
	refresh(t, d)
	if s := d.Status(); s.Server != "ldap://dc1.lab.test:389" {
		t.Errorf("connected to %q", s.Server)
	}
}

func TestPagesAreReadToTheEnd(t *testing.T) {
	config := ldapsSimple()
	config.PageSize = 3
	if s := refresh(t, open(t, config)); len(s.Templates) != len(labTemplates) {
		t.Errorf("%d templates with pages of 3", len(s.Templates))
	}
}

func TestAnAccountIsReadAnewAfterAShortTime(t *testing.T) {
	config := sealedKerberos()
	config.SubjectTTL = 100 * time.Millisecond
	d := open(t, config)
	bob, err := d.SubjectByName(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	conn := admin(t)
	t.Cleanup(func() { set(t, conn, bob.DN, "mail", bob.Mail) })
	mail := func() string {
		s, err := d.Subject(t.Context(), bob.SID)
		if err != nil {
			t.Fatal(err)
		}
		return s.Mail
	}
	if got := mail(); got != bob.Mail {
		t.Errorf("mail %q by SID, %q by name", got, bob.Mail)
	}
	set(t, conn, bob.DN, "mail", "robert@lab.test")
	eventually(t, "new mail address", func() bool { return mail() == "robert@lab.test" })
	// Names that need escaping, in DNs and in filters.
	const name = `Ünal, Bob (Jr.) * + "x"`
	if err := conn.ModifyDN(ldap.NewModifyDNRequest(bob.DN, "CN="+ldap.EscapeDN(name), true, "")); err != nil {
		t.Fatal(err)
	}
	set(t, conn, "CN="+ldap.EscapeDN(name)+",CN=Users,DC=lab,DC=test", "userPrincipalName", "b(o)*b@lab.test")
	renamed, err := d.SubjectByName(t.Context(), "b(o)*b@lab.test")
	if err != nil || renamed.CN != name || renamed.RDNs[0][0].Value != name || renamed.SID != bob.SID || !renamed.UPNExplicit {
		t.Errorf("renamed: %+v, %v", renamed, err)
	}
	if again, err := d.SubjectByName(t.Context(), renamed.DN); err != nil || again.SID != bob.SID {
		t.Errorf("%s: %v", renamed.DN, err)
	}
	if err := conn.ModifyDN(ldap.NewModifyDNRequest(renamed.DN, "CN="+bob.CN, true, "")); err != nil {
		t.Fatal(err)
	}
	set(t, conn, bob.DN, "userPrincipalName", bob.UPN)
}

func TestManyAskForOneAccountAtOnce(t *testing.T) {
	d := open(t, sealedKerberos())
	alice, err := d.SubjectByName(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.session.close() // they share the new connection too
	d.mu.Unlock()
	failures := make(chan error, 100)
	for range cap(failures) {
		go func() {
			_, err := d.Subject(t.Context(), alice.SID)
			failures <- err
		}()
	}
	for range cap(failures) {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Subject(gone, "S-1-5-21-9-9-9-9"); !errors.Is(err, context.Canceled) && hresult.From(err).Code != hresult.NoSuchUser {
		t.Errorf("who went away: %v", err)
	}
}
