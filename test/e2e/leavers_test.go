package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/leavers"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/world"
)

// shifted looks for leavers with a clock that is ahead.
func shifted(w *world.World, ahead time.Duration, change func(*leavers.Options)) *leavers.Checker {
	o := w.LeaverOptions()
	o.Now = func() time.Time { return time.Now().Add(ahead) }
	if change != nil {
		change(&o)
	}
	return leavers.New(o)
}

// check runs a search for leavers and requires how many accounts are gone and due, and how many certificates it revokes.
func check(t *testing.T, c *leavers.Checker, gone, due, revoked int) *leavers.Report {
	t.Helper()
	r, err := c.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Gone != gone || r.Due != due || r.Revoked != revoked {
		t.Errorf("gone, due, revoked: %d, %d, %d; want %d, %d, %d: %+v", r.Gone, r.Due, r.Revoked, gone, due, revoked, r)
	}
	return r
}

// crlText is the revocation list as OpenSSL reads it, after it has checked the signature.
func crlText(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.crl")
	if err := os.WriteFile(path, fetch(t, "http://"+world.Env("LAB_GATEWAY")+"/crl/LAB%20Issuing%20CA.crl"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command("openssl", "crl", "-inform", "DER", "-in", path, "-noout", "-text", "-CAfile", world.Env("LAB_ISSUING_CA_PEM")).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "verify OK") {
		t.Fatalf("openssl: %v\n%s", err, text)
	}
	return string(text)
}

const week = 7 * 24 * time.Hour

func TestTheCertificatesOfADisabledAccountAreRevokedAfterTheGracePeriod(t *testing.T) {
	dn := userDN(t, "Alice Archer")
	w := world.Start(t)
	alice := w.Client(t, "alice")
	cert := enrolled(t, alice, "LabUserSMIME")
	other := enrolled(t, alice, "LabUserAuth")
	eventually(t, "publication", func() bool { return has(t, dn, cert.Raw) })
	check(t, shifted(w, 0, nil), 0, 0, 0)

	setAccountControl(t, "CN=Alice Archer", "514")
	t.Cleanup(func() { setAccountControl(t, "CN=Alice Archer", "512") })
	if r, err := shifted(w, 0, nil).Look(t.Context()); err != nil || len(r.Leavers) != 1 || len(r.Leavers[0].Certificates) != 2 || r.Leavers[0].IsDue {
		t.Errorf("%+v, %v", r, err)
	}
	if recorded, err := w.Ledger.Leavers(t.Context()); err != nil || len(recorded) != 0 {
		t.Errorf("looking has recorded %v, %v", recorded, err)
	}
	check(t, shifted(w, 0, nil), 1, 0, 0)
	check(t, shifted(w, week-time.Minute, nil), 1, 0, 0)

	// Who comes back in time starts anew.
	setAccountControl(t, "CN=Alice Archer", "512")
	check(t, shifted(w, week-time.Minute, nil), 0, 0, 0)
	setAccountControl(t, "CN=Alice Archer", "514")
	check(t, shifted(w, week-time.Minute, nil), 1, 0, 0)
	check(t, shifted(w, week+time.Minute, nil), 1, 0, 0)
	if strings.Contains(crlText(t), "Serial Number") {
		t.Error("something was revoked already")
	}
	check(t, shifted(w, 2*week, nil), 1, 1, 2)
	check(t, shifted(w, 2*week, nil), 0, 0, 0)

	text := strings.ToLower(crlText(t))
	for _, serial := range []string{cert.SerialNumber.Text(16), other.SerialNumber.Text(16)} {
		if !strings.Contains(text, serial) {
			t.Errorf("%s is not in the revocation list:\n%s", serial, text)
		}
	}
	if strings.Count(text, "affiliation changed") != 2 {
		t.Errorf("another reason:\n%s", text)
	}
	eventually(t, "withdrawal", func() bool { return has(t, dn) })
	wantLeaverAudit(t, w, "alice@LAB.TEST is disabled")
	recoverable(t, w, "alice")
}

// wantLeaverAudit requires a revocation by the gateway for this reason in the audit log.
func wantLeaverAudit(t *testing.T, w *world.World, why string) {
	t.Helper()
	found := false
	if err := audit.Each(t.Context(), w.DB.SQL, 0, func(l audit.Line) error {
		found = found || l.Event == audit.CertRevoked && l.Actor == "gateway" && strings.Contains(string(l.Detail), why)
		return nil
	}); err != nil || !found {
		t.Errorf("no revocation because %q in the audit log: %v", why, err)
	}
}

// recoverable requires that the archived key of an account opens still.
func recoverable(t *testing.T, w *world.World, owner string) {
	t.Helper()
	entries, err := w.Escrow.List(background, owner, 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d archived keys, %v", len(entries), err)
	}
	if got, err := w.Escrow.Recover(background, &entries[0], w.AgentKey, w.Agent, "test", "the account left"); err != nil || got.Key == nil {
		t.Errorf("the archived key is lost: %v", err)
	}
}

// addUser creates an account of the group that may enroll for S/MIME, until the test deletes it.
func addUser(t *testing.T, name string) string {
	t.Helper()
	conn := world.Admin(t)
	dn := "CN=" + name + ",CN=Users," + world.Env("LAB_BASE_DN")
	add := ldap.NewAddRequest(dn, nil)
	var password []byte
	for _, u := range utf16.Encode([]rune(`"` + world.Env("LAB_PASSWORD") + `"`)) {
		password = append(password, byte(u), byte(u>>8))
	}
	for attribute, value := range map[string]string{"objectClass": "user", "sAMAccountName": name, "mail": name + "@lab.test", "unicodePwd": string(password),
		"userAccountControl": "512", "msDS-SupportedEncryptionTypes": "24"} {
		add.Attribute(attribute, []string{value})
	}
	if err := conn.Add(add); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = world.Admin(t).Del(ldap.NewDelRequest(dn, nil)) })
	m := ldap.NewModifyRequest("CN=SMIME Users,CN=Users,"+world.Env("LAB_BASE_DN"), nil)
	m.Add("member", []string{dn})
	if err := conn.Modify(m); err != nil {
		t.Fatal(err)
	}
	return dn
}

func TestTheCertificatesOfADeletedAccountAreRevoked(t *testing.T) {
	w := world.Start(t)
	dn := addUser(t, "leaver")
	cert := enrolled(t, w.Client(t, "leaver"), "LabUserSMIME")
	eventually(t, "publication", func() bool { return has(t, dn, cert.Raw) })
	if err := world.Admin(t).Del(ldap.NewDelRequest(dn, nil)); err != nil {
		t.Fatal(err)
	}
	if r := check(t, shifted(w, 0, nil), 1, 0, 0); r.Leavers[0].State != string(ldapsync.AccountDeleted) || r.Leavers[0].Why == "" {
		t.Errorf("%+v", r.Leavers[0])
	}
	check(t, shifted(w, week, nil), 1, 1, 1)
	if !strings.Contains(strings.ToLower(crlText(t)), cert.SerialNumber.Text(16)) {
		t.Error("it is not in the revocation list")
	}
	wantLeaverAudit(t, w, "leaver@LAB.TEST is deleted")
	recoverable(t, w, "leaver")
	eventually(t, "that nothing is left to publish", func() bool {
		wanted, failing, err := w.Ledger.PublicationCounts(t.Context())
		return err == nil && wanted == 0 && failing == 0
	})
}

// elsewhere is a directory that does not know what it is asked for.
type elsewhere struct{ err error }

func (e elsewhere) Accounts(_ context.Context, sids []security.SID) (map[security.SID]ldapsync.Account, error) {
	out := map[security.SID]ldapsync.Account{}
	for _, sid := range sids {
		out[sid] = ldapsync.Account{State: ldapsync.AccountUnknown, Why: "another domain"}
	}
	return out, e.err
}

func TestADirectoryThatGivesNoAnswerRevokesNothing(t *testing.T) {
	w := world.Start(t)
	enrolled(t, w.Client(t, "alice"), "LabUserAuth")
	setAccountControl(t, "CN=Alice Archer", "514")
	t.Cleanup(func() { setAccountControl(t, "CN=Alice Archer", "512") })
	check(t, shifted(w, 0, nil), 1, 0, 0)

	c, err := gateway.DirectoryConfig(w.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Servers, c.StateFile = []string{"ldap://dc1.lab.test:3"}, ""
	down, err := ldapsync.New(c, w.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	if r, err := shifted(w, 2*week, func(o *leavers.Options) { o.Directory = down }).Check(t.Context()); err == nil {
		t.Errorf("a controller that is down says %+v", r)
	}
	if _, err := shifted(w, 2*week, func(o *leavers.Options) { o.Directory = elsewhere{errors.New("x")} }).Check(t.Context()); err == nil {
		t.Error("no error")
	}
	if r := check(t, shifted(w, 2*week, func(o *leavers.Options) { o.Directory = elsewhere{} }), 0, 0, 0); r.Unknown != 1 {
		t.Errorf("%+v", r)
	}
	if _, err := w.Forest.Accounts(t.Context(), []security.SID{"S-1-5-21-1-2-3-1104"}); err != nil {
		t.Error(err)
	}
	accounts, err := w.Forest.Accounts(t.Context(), []security.SID{"S-1-5-21-1-2-3-1104", "S-1-5-18"})
	if err != nil || accounts["S-1-5-21-1-2-3-1104"].State != ldapsync.AccountUnknown || accounts["S-1-5-18"].State != ldapsync.AccountUnknown {
		t.Errorf("accounts of other domains: %+v, %v", accounts, err)
	}
	if strings.Contains(crlText(t), "Serial Number") {
		t.Error("something was revoked")
	}
	check(t, shifted(w, 2*week, nil), 1, 1, 1) // the clock did not start anew
}

func TestMoreLeaversThanTheLimitWaitForAnOperator(t *testing.T) {
	w, path := world.Prepare(t, "")
	appendTo(t, path, "leavers: {enabled: true, grace: 0s, max_per_run: 1, every: 1h}\n")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	for _, account := range []string{"alice", "bob"} {
		enrolled(t, w.Client(t, account), "LabUserAuth")
	}
	for _, cn := range []string{"CN=Alice Archer", "CN=Bob Baker"} {
		setAccountControl(t, cn, "514")
		t.Cleanup(func() { setAccountControl(t, cn, "512") })
	}
	if text := program(t, p, 0, "leavers", "--dry-run"); !strings.Contains(text, "HELD: 2 accounts are due at once") || !strings.Contains(text, "bob@LAB.TEST") || !strings.Contains(text, "disabled") {
		t.Errorf("%s", text)
	}
	program(t, p, 3, "leavers")
	if strings.Contains(crlText(t), "Serial Number") {
		t.Error("something was revoked")
	}
	var r leavers.Report
	if text := program(t, p, 0, "leavers", "--confirm", "--output", "json"); json.Unmarshal([]byte(text), &r) != nil || r.Revoked != 2 || r.Held != "" {
		t.Errorf("%s", text)
	}
	if n := strings.Count(crlText(t), "Serial Number"); n != 2 {
		t.Errorf("%d certificates are revoked", n)
	}
	if text := program(t, p, 0, "audit", "export"); !strings.Contains(text, "leavers-confirmed") || !strings.Contains(text, "local account") {
		t.Errorf("%s", text)
	}
	program(t, p, 0, "audit", "verify")
}
