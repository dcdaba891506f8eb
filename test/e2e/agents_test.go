package e2e

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// kraObject is an object in the KRA container with certificates in it, as somebody with the right to write there makes one.
func kraObject(t *testing.T, name string, ders ...[]byte) {
	t.Helper()
	dn := "CN=" + name + ",CN=KRA," + pkiBase()
	add := ldap.NewAddRequest(dn, nil)
	add.Attribute("objectClass", []string{"msPKI-PrivateKeyRecoveryAgent"})
	var values []string
	for _, der := range ders {
		values = append(values, string(der))
	}
	add.Attribute("userCertificate", values)
	if err := world.Admin(t).Add(add); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Admin(t).Del(ldap.NewDelRequest(dn, nil)); err != nil {
			t.Error(err)
		}
	})
}

func candidate(t *testing.T, w *world.World, fingerprint string) *gateway.Candidate {
	t.Helper()
	list, err := w.Candidates(background)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(list, func(c gateway.Candidate) bool { return c.Fingerprint == fingerprint }); i >= 0 {
		return &list[i]
	}
	return nil
}

func isAgent(t *testing.T, w *world.World, fingerprint string) bool {
	t.Helper()
	list, err := w.Escrow.Agents(background)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(list, func(a escrow.Agent) bool { return a.Fingerprint == fingerprint })
}

// An administrator of the directory writes a certificate of his own, with the right purpose, into the KRA container.
func TestAttackAnAgentIsSlippedIntoTheKRAContainer(t *testing.T) {
	_, forged := testpki.Agent(t, "Kra Four", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	kraObject(t, "mallory", forged.Raw, []byte("no certificate"))
	for _, mode := range []string{config.FromDirectoryOff, config.FromDirectoryDesignate} {
		t.Run(mode, func(t *testing.T) {
			w := world.StartChanged(t, "", func(c *config.Config) { c.Escrow.Agents.FromDirectory = mode })
			if err := w.DesignateFromDirectory(background); err != nil {
				t.Fatal(err)
			}
			if isAgent(t, w, escrow.Fingerprint(forged)) {
				t.Fatal("the certificate became an agent's")
			}
			c := candidate(t, w, escrow.Fingerprint(forged))
			if c == nil || c.Refused != "" || !strings.Contains(c.Not, "no CA of this gateway") || !slices.Equal(c.Objects, []string{"mallory"}) {
				t.Errorf("it is shown as %+v", c)
			}
		})
	}
}

func TestAnAgentWhoEnrolledIsTakenFromTheKRAContainerOnceAndNotAfterADismissal(t *testing.T) {
	w := world.StartChanged(t, "", func(c *config.Config) { c.Escrow.Agents.FromDirectory = config.FromDirectoryDesignate })
	t.Cleanup(func() { _ = world.Admin(t).Del(ldap.NewDelRequest("CN="+world.CAName+",CN=KRA,"+pkiBase(), nil)) })
	one := designate(t, w, "kra1")
	print1 := escrow.Fingerprint(one.cert)
	// It was designated by a person and dismissed: nobody but a person takes it back.
	if err := w.Escrow.RemoveAgent(background, print1, "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "publication", func() bool { return candidate(t, w, print1) != nil })
	if err := w.DesignateFromDirectory(background); err != nil {
		t.Fatal(err)
	}
	if c := candidate(t, w, print1); isAgent(t, w, print1) || c == nil || !strings.Contains(c.Not, "ended by a person") {
		t.Errorf("after a dismissal: %+v", c)
	}
	two := enrollAgent(t, w, "kra2")
	print2 := escrow.Fingerprint(two.cert)
	eventually(t, "publication", func() bool { return candidate(t, w, print2) != nil })
	before := events(t, w)["agent-added"]
	for range 2 {
		if err := w.DesignateFromDirectory(background); err != nil {
			t.Fatal(err)
		}
	}
	if !isAgent(t, w, print2) || events(t, w)["agent-added"] != before+1 {
		t.Errorf("an agent who enrolled: designated %t, %d lines in the audit log", isAgent(t, w, print2), events(t, w)["agent-added"]-before)
	}
}

// The program, as an operator runs it: candidates, designation from the directory, health with its exit codes.
func TestAgentsAreListedDesignatedAndWatchedByTheProgram(t *testing.T) {
	unpublished(t)
	_, offered := testpki.Agent(t, "Kra Five", time.Now().Add(-time.Hour), time.Now().AddDate(0, 0, 30))
	kraObject(t, "another CA", offered.Raw)
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	var shown struct {
		Agents     []escrow.AgentHealth
		Candidates []gateway.Candidate
	}
	list := func(args ...string) {
		t.Helper()
		out, code := p.Output(t, append(args, "--output", "json")...)
		if err := json.Unmarshal([]byte(out), &shown); err != nil || code != 0 {
			t.Fatalf("%v: exit code %d: %v\n%s", args, code, err, out)
		}
	}
	list("escrow", "agents", "list")
	if len(shown.Agents) != 1 || shown.Agents[0].Days < 360 || len(shown.Candidates) != 1 || shown.Candidates[0].Fingerprint != escrow.Fingerprint(offered) {
		t.Errorf("%+v", shown)
	}
	if out, code := p.Output(t, "escrow", "agents", "health"); code != 0 {
		t.Errorf("healthy: exit code %d\n%s", code, out)
	}
	list("escrow", "agents", "add", "--from-directory", strings.ToUpper(escrow.Fingerprint(offered)))
	if len(shown.Agents) != 2 || len(shown.Candidates) != 0 {
		t.Errorf("%+v", shown)
	}
	if out, code := p.Output(t, "escrow", "agents", "health", "--crl"); code != 6 || !strings.Contains(out, "expires in 29 days") {
		t.Errorf("29 days before an end: exit code %d\n%s", code, out)
	}
	if out, code := p.Output(t, "escrow", "agents", "add", "--serial", "77"); code != 1 {
		t.Errorf("a request that does not exist: exit code %d\n%s", code, out)
	}
}

// An administrator of the directory lets the agents' template issue by itself, enrolls, and the certificate is published: without a
// certificate manager's approval it is an offer all the same.
func TestAttackTheAgentsTemplateIssuesByItself(t *testing.T) {
	const enrollment, pendAll = "msPKI-Enrollment-Flag", 2
	dn := "CN=LabKRA,CN=Certificate Templates," + pkiBase()
	admin := world.Admin(t)
	found, err := admin.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{enrollment}, nil))
	if err != nil {
		t.Fatal(err)
	}
	before := found.Entries[0].GetAttributeValue(enrollment)
	set := func(value string) {
		m := ldap.NewModifyRequest(dn, nil)
		m.Replace(enrollment, []string{value})
		if err := admin.Modify(m); err != nil {
			t.Fatal(err)
		}
	}
	flags, err := strconv.Atoi(before)
	if err != nil || flags&pendAll == 0 {
		t.Fatalf("%s: %v", before, err)
	}
	set(strconv.Itoa(flags &^ pendAll))
	t.Cleanup(func() { set(before) })
	w := world.StartChanged(t, "", func(c *config.Config) { c.Escrow.Agents.FromDirectory = config.FromDirectoryDesignate })
	t.Cleanup(func() { _ = world.Admin(t).Del(ldap.NewDelRequest("CN="+world.CAName+",CN=KRA,"+pkiBase(), nil)) })
	reply, err := w.Client(t, "kra1").Submit(t, first(world.Request(t, "LabKRA", nil)))
	if err != nil || reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	print := escrow.Fingerprint(testpki.Cert(t, reply.Certificate))
	eventually(t, "publication", func() bool { return candidate(t, w, print) != nil })
	if err := w.DesignateFromDirectory(background); err != nil {
		t.Fatal(err)
	}
	if c := candidate(t, w, print); isAgent(t, w, print) || c == nil || c.Refused != "" || !strings.Contains(c.Not, "no certificate manager has approved") {
		t.Errorf("%+v", c)
	}
}

// One mistyped group closes the policy that names it; the gateway says which, and the other policies' people go on.
func TestAMistypedGroupClosesItsPolicyOnly(t *testing.T) {
	var log bytes.Buffer
	w := world.StartChanged(t, "", func(c *config.Config) {
		twoOfThree(c)
		board := c.Escrow.Policies[0]
		board.Name, board.Managers = "board", []string{`LAB\Certificate Mangers`}
		c.Escrow.Policies = append([]config.RecoveryPolicy{board}, c.Escrow.Policies...)
	})
	w.LogTo(&log)
	listed, err := casesOf(t, w, "helpdesk").List(background)
	if err != nil || len(listed.Unusable) != 1 || !strings.Contains(listed.Unusable["board"], "Certificate Mangers") {
		t.Errorf("%+v, %v", listed, err)
	}
	if _, err := casesOf(t, w, "alice").List(background); err == nil {
		t.Error("alice has a role")
	}
	if text := w.LogText(&log); !strings.Contains(text, "board") {
		t.Errorf("the log does not name the policy: %s", text)
	}
}
