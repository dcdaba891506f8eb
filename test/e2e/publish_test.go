package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/publish"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

const userCertificate = "userCertificate"

// values reads userCertificate with OpenLDAP's ldapsearch.
func values(t *testing.T, dn string) [][]byte {
	t.Helper()
	var out [][]byte
	for line := range strings.Lines(openLDAP(t, "", "ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-s", "base", "-b", dn, userCertificate)) {
		if text, ok := strings.CutPrefix(line, userCertificate+":: "); ok {
			b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b)
		}
	}
	return out
}

// has tells whether exactly these certificates are in userCertificate.
func has(t *testing.T, dn string, want ...[]byte) bool {
	t.Helper()
	got := values(t, dn)
	return len(got) == len(want) && !slices.ContainsFunc(want, func(w []byte) bool {
		return !slices.ContainsFunc(got, func(g []byte) bool { return bytes.Equal(g, w) })
	})
}

// unpublished empties what other tests, and what they started, have published in the domain: accounts' certificates, and the
// certificates of recovery agents.
func unpublished(t *testing.T) {
	t.Helper()
	admin := world.Admin(t)
	find := func(base, filter string) []*ldap.Entry {
		found, err := admin.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, []string{"1.1"}, nil))
		if err != nil {
			t.Fatal(err)
		}
		return found.Entries
	}
	for _, e := range find(world.Env("LAB_BASE_DN"), "(userCertificate=*)") {
		m := ldap.NewModifyRequest(e.DN, nil)
		m.Replace(userCertificate, nil)
		if err := admin.Modify(m); err != nil {
			t.Error(err)
		}
	}
	for _, e := range find("CN=KRA,"+pkiBase(), "(objectClass=msPKI-PrivateKeyRecoveryAgent)") {
		if err := admin.Del(ldap.NewDelRequest(e.DN, nil)); err != nil {
			t.Error(err)
		}
	}
}

// userDN is an account whose userCertificate is empty before and after the test.
func userDN(t *testing.T, cn string) string {
	t.Helper()
	dn := "CN=" + cn + ",CN=Users," + world.Env("LAB_BASE_DN")
	empty := func() {
		m := ldap.NewModifyRequest(dn, nil)
		m.Replace(userCertificate, nil)
		if err := world.Admin(t).Modify(m); err != nil {
			t.Error(err)
		}
	}
	empty()
	t.Cleanup(empty)
	return dn
}

// foreign writes the certificate of another CA with ldapmodify.
func foreign(t *testing.T, dn string, from, to time.Time) []byte {
	t.Helper()
	_, cert := testpki.Agent(t, "foreign", from, to)
	openLDAP(t, "dn: "+dn+"\nchangetype: modify\nadd: "+userCertificate+"\n"+userCertificate+":: "+b64(cert.Raw)+"\n", "ldapmodify")
	return cert.Raw
}

// enrolled is a new S/MIME certificate, with its key archived.
func enrolled(t *testing.T, c *world.Client, template string) *x509.Certificate {
	t.Helper()
	var exchange *x509.Certificate
	if template == "LabUserSMIME" {
		exchange = c.Exchange(t)
	}
	reply, err := c.Submit(t, first(world.Request(t, template, exchange)))
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, reply.Certificate)
}

func TestACertificateIsPublishedAndItsRenewalTakesItsPlace(t *testing.T) {
	dn := userDN(t, "Alice Archer")
	now := time.Now()
	theirs := [][]byte{foreign(t, dn, now.Add(-time.Hour), now.Add(time.Hour)), foreign(t, dn, now.Add(-2*time.Hour), now.Add(-time.Hour))}
	metrics := world.Env("LAB_GW_IP") + ":9464"
	w := world.StartChanged(t, "", func(c *config.Config) { c.Listen.Metrics = metrics })
	alice := w.Client(t, "alice")
	old := enrolled(t, alice, "LabUserSMIME")
	eventually(t, "publication", func() bool { return has(t, dn, append(theirs, old.Raw)...) })
	for _, v := range values(t, dn) {
		if !bytes.Equal(v, old.Raw) {
			continue
		}
		text, err := testpki.OpenSSL(t, v, "x509", "-inform", "DER", "-noout", "-subject", "-issuer", "-ext", "extendedKeyUsage")
		if err != nil || !strings.Contains(string(text), "Alice Archer") || !strings.Contains(string(text), "LAB Issuing CA") || !strings.Contains(string(text), "E-mail Protection") {
			t.Errorf("OpenSSL reads %s, %v", text, err)
		}
	}
	enrolled(t, alice, "LabUserAuth") // whose template does not ask for it
	renewed := enrolled(t, alice, "LabUserSMIME")
	eventually(t, "replacement", func() bool { return has(t, dn, append(theirs, renewed.Raw)...) })

	row, err := w.Ledger.BySerial(t.Context(), world.CAName, renewed.SerialNumber.Text(16))
	if err != nil || !row.Profile.PublishToDS {
		t.Fatalf("%+v, %v", row, err)
	}
	if err := w.Revoke(t.Context(), row, "test", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "withdrawal", func() bool { return has(t, dn, theirs...) })
	eventually(t, "counting", func() bool {
		text := string(fetch(t, "http://"+metrics+"/"))
		return strings.Contains(text, `enrollgate_publications_total{outcome="added"} 2`) && strings.Contains(text, `enrollgate_publications_total{outcome="removed"} 2`) &&
			strings.Contains(text, "enrollgate_publications_wanted 0") && strings.Contains(text, "enrollgate_publications_failing 0")
	})
}

func TestExpiredCertificatesOfOthersGoOnlyWhereTheConfigurationSaysSo(t *testing.T) {
	dn := userDN(t, "Alice Archer")
	now := time.Now()
	valid := foreign(t, dn, now.Add(-time.Hour), now.Add(time.Hour))
	foreign(t, dn, now.Add(-2*time.Hour), now.Add(-time.Hour))
	w := world.StartChanged(t, "", func(c *config.Config) { c.Publish.CleanForeign = true })
	cert := enrolled(t, w.Client(t, "alice"), "LabUserSMIME")
	eventually(t, "cleaning", func() bool { return has(t, dn, valid, cert.Raw) })
}

func TestACertificateOnBehalfOfOthersIsPublishedToTheSubject(t *testing.T) {
	bob, helpdesk := userDN(t, "Bob Baker"), userDN(t, "Help Desk")
	w := world.StartChanged(t, "", func(c *config.Config) {
		c.EnrollmentAgents = []config.AgentRule{{Agents: []string{`LAB\Certificate Managers`}, Subjects: []string{"Domain Users"}, Templates: []string{"Badge"}}}
	})
	copyTemplate(t, w, "LabOnBehalf", "Badge", map[string]string{"mspki-cert-template-oid": "1.3.6.1.4.1.99999.77.8",
		"mspki-enrollment-flag": strconv.Itoa(int(templates.EnrollAllowOnBehalfOf | templates.EnrollPublishToDS))})
	o := client.Options{PolicyURL: "https://" + world.Env("LAB_GATEWAY") + soap.Kerberos.CEPPath, HTTP: w.Client(t, "helpdesk").HTTP, Template: "LabEnrollmentAgent"}
	agent := mustEnroll(t, o)
	o.Template, o.Signers, o.OnBehalfOf = "Badge", []wcce.RequestSigner{{Certificate: agent.Certificate, Key: agent.Key}}, `LAB\bob`
	r := mustEnroll(t, o)
	eventually(t, "publication", func() bool { return has(t, bob, r.Certificate.Raw) })
	if !has(t, helpdesk) {
		t.Error("the agent's own account has certificates")
	}
}

func TestTheKRAContainerGetsTheAgentsCertificate(t *testing.T) {
	dn := "CN=" + world.CAName + ",CN=KRA," + pkiBase()
	gone := func() { _ = world.Admin(t).Del(ldap.NewDelRequest(dn, nil)) }
	gone() // agents of other tests are in it
	w := world.Start(t)
	t.Cleanup(gone)
	issue := func(account string) []byte {
		c := w.Client(t, account)
		reply, err := c.Submit(t, first(world.Request(t, "LabKRA", nil)))
		if err != nil || !reply.Pending {
			t.Fatalf("%+v, %v", reply, err)
		}
		id, _ := strconv.ParseInt(reply.RequestID, 10, 64)
		if err := w.Ledger.Decide(t.Context(), id, "manager", true, ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "issuing", func() bool { reply, err = c.Poll(t, reply.RequestID); return err == nil && !reply.Pending })
		return reply.Certificate
	}
	exists := func() bool {
		_, err := world.Admin(t).Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=msPKI-PrivateKeyRecoveryAgent)", nil, nil))
		return err == nil
	}
	one := issue("kra1")
	eventually(t, "creation", func() bool { return exists() && has(t, dn, one) })
	two := issue("kra2")
	eventually(t, "publication", func() bool { return has(t, dn, one, two) })
	text, err := testpki.OpenSSL(t, one, "x509", "-inform", "DER", "-noout", "-subject")
	if err != nil || !strings.Contains(string(text), "Kra One") {
		t.Errorf("%s, %v", text, err)
	}
	serial := new(big.Int).Set(testpki.Cert(t, one).SerialNumber).Text(16)
	row, err := w.Ledger.BySerial(t.Context(), world.CAName, serial)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Revoke(t.Context(), row, "test", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "withdrawal", func() bool { return has(t, dn, two) })
}

// appendTo adds to a configuration file.
func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// program runs a command of the installed program beside the service.
func program(t *testing.T, p *world.Process, code int, args ...string) string {
	t.Helper()
	out, got := p.Output(t, args...)
	if got != code {
		t.Fatalf("%v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return out
}

func reports(t *testing.T, text string) []publish.Report {
	t.Helper()
	var out []publish.Report
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

// grant gives an account the right with Samba's own tool, by the entry that the program proposes.
func grant(t *testing.T, dn, account string) {
	t.Helper()
	conn := world.Admin(t)
	res, err := conn.Search(ldap.NewSearchRequest(world.Env("LAB_BASE_DN"), ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, "(sAMAccountName="+account+")", []string{"objectSid"}, nil))
	if err != nil || len(res.Entries) != 1 {
		t.Fatalf("%s: %v", account, err)
	}
	sid, err := security.ParseSID(res.Entries[0].GetRawAttributeValue("objectSid"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("samba-tool", "dsacl", "set", "-s", world.Env("LAB_DIR")+"/smb.conf", "-H", world.Env("LAB_LDAP_URL"), "-U", "Administrator%"+world.Env("LAB_PASSWORD"),
		"--objectdn="+dn, "--sddl=(OA;;RPWP;bf967a7f-0de6-11d0-a285-00aa003049e2;;"+string(sid)+")").CombinedOutput()
	if err != nil {
		t.Fatalf("samba-tool: %v\n%s", err, out)
	}
}

func TestAMissingRightIsShownAndItsGrantIsEnoughAlsoAfterARestart(t *testing.T) {
	dn := userDN(t, "Alice Archer")
	w, path := world.Prepare(t, "")
	appendTo(t, path, "publish: {retry: 300ms, max_retry: 1s, bind: {principal: kra3, password: {env: LAB_PASSWORD}}}\n")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	cert := enrolled(t, w.Client(t, "alice"), "LabUserSMIME")

	dry := reports(t, program(t, p, 0, "publish", "--dry-run", "--output", "json"))
	if len(dry) != 1 || dry[0].DN != dn || len(dry[0].Add) != 1 || dry[0].Add[0].Serial != cert.SerialNumber.Text(16) || len(dry[0].Remove) != 0 {
		t.Errorf("dry run: %+v", dry)
	}
	if text := program(t, p, 0, "publish", "--dry-run"); !strings.Contains(text, "would add") || !strings.Contains(text, dn) {
		t.Errorf("dry run: %s", text)
	}
	eventually(t, "a second attempt of the service", func() bool {
		r := reports(t, program(t, p, 0, "publish", "--dry-run", "--output", "json"))
		return r[0].Attempts >= 2 && r[0].Next != nil && strings.Contains(r[0].LastError, "no right to write userCertificate") && r[0].Error == ""
	})
	if r := reports(t, program(t, p, 1, "publish", "--output", "json")); !strings.Contains(r[0].Error, "no right") || !strings.Contains(r[0].Fix, `/G "kra3:RPWP;userCertificate;user"`) {
		t.Errorf("%+v", r)
	}
	if text := program(t, p, 1, "publish"); !strings.Contains(text, "FAILED") || !strings.Contains(text, "dsacls") || !has(t, dn) {
		t.Errorf("%s", text)
	}
	_, log := p.Stop(t)
	if n := strings.Count(log, "a right is missing"); n != 1 {
		t.Errorf("the missing right is reported %d times:\n%s", n, log)
	}
	grant(t, dn, "kra3")
	p.Start(t)
	eventually(t, "publication", func() bool { return has(t, dn, cert.Raw) })
	eventually(t, "that nothing is left to do", func() bool {
		r := reports(t, program(t, p, 0, "publish", "--dry-run", "--output", "json"))
		return len(r) == 1 && r[0].Error == "" && r[0].Attempts == 0 && len(r[0].Add) == 0
	})
}

func TestADryRunChangesNothing(t *testing.T) {
	dn := userDN(t, "Alice Archer")
	w := world.StartChanged(t, "", func(c *config.Config) { c.Publish.Retry = time.Hour; c.Publish.MaxRetry = time.Hour })
	old := enrolled(t, w.Client(t, "alice"), "LabUserSMIME")
	eventually(t, "publication", func() bool { return has(t, dn, old.Raw) })
	// What is to be removed is put there behind the gateway's back, and looked at as if a year had passed.
	before := values(t, dn)
	reports, err := w.Publisher.Pass(t.Context(), true)
	if err != nil || len(reports) != 1 || len(reports[0].Add)+len(reports[0].Remove) != 0 {
		t.Errorf("%+v, %v", reports, err)
	}
	if _, err := w.DB.SQL.Exec("UPDATE requests SET not_after = 1"); err != nil {
		t.Fatal(err)
	}
	reports, err = w.Publisher.Pass(t.Context(), true)
	if err != nil || len(reports) != 1 || len(reports[0].Remove) != 1 || reports[0].Remove[0].Why != "expired" {
		t.Errorf("%+v, %v", reports, err)
	}
	if !has(t, dn, before...) {
		t.Error("the dry run has removed it")
	}
	if _, err = w.Publisher.Pass(t.Context(), false); err != nil || !has(t, dn) {
		t.Errorf("it is still there, %v", err)
	}
}
