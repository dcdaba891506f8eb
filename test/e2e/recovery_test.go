package e2e

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// twoOfThree is a policy that takes two agents for the keys of S/MIME certificates.
func twoOfThree(c *config.Config) {
	c.Escrow.Policies = []config.RecoveryPolicy{{
		Name: "mail", Templates: []string{"LabUserSMIME"}, Groups: []string{`LAB\SMIME Users`}, Agents: []string{"Kra One", "Kra Two", "Kra Three"}, Required: 2,
		Managers: []string{`LAB\Certificate Managers`}, Approvers: []string{`LAB\Key Recovery Agents`},
	}}
}

type recoveryAgent struct {
	name string
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

// designate lets somebody enroll for the agents' template and makes the certificate an agent's.
func designate(t testing.TB, w *world.World, account string) *recoveryAgent {
	t.Helper()
	a := enrollAgent(t, w, account)
	if err := w.Escrow.AddAgent(background, a.cert, "test"); err != nil {
		t.Fatal(err)
	}
	return a
}

// enrollAgent lets somebody enroll for the agents' template.
func enrollAgent(t testing.TB, w *world.World, account string) *recoveryAgent {
	t.Helper()
	c := w.Client(t, account)
	der, key := world.Request(t, "LabKRA", nil)
	reply, err := c.Submit(t, der)
	if err != nil || !reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	if err := w.Ledger.Decide(background, parseID(t, reply.RequestID), "manager", true, ""); err != nil {
		t.Fatal(err)
	}
	if reply, err = c.Poll(t, reply.RequestID); err != nil {
		t.Fatal(err)
	}
	return &recoveryAgent{account, key, testpki.Cert(t, reply.Certificate)}
}

func parseID(t testing.TB, text string) (id int64) {
	t.Helper()
	if _, err := fmt.Sscan(text, &id); err != nil {
		t.Fatal(err)
	}
	return id
}

// archived enrolls alice's key under the policy.
func archived(t testing.TB, w *world.World) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	alice := w.Client(t, "alice")
	der, key := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	reply, err := alice.Submit(t, der)
	if err != nil {
		t.Fatal(err)
	}
	return key, testpki.Cert(t, reply.Certificate)
}

func casesOf(t testing.TB, w *world.World, account string) *cases.Client {
	t.Helper()
	return &cases.Client{Client: people.Client{HTTP: w.Client(t, account).HTTP, URL: "https://" + world.Env("LAB_GATEWAY"), Principal: account + "@" + world.Env("LAB_REALM")}}
}

// openCase opens a case for alice's newest key as an account.
func openCase(t testing.TB, c *cases.Client) (*cases.Done, *recovery.CaseFile) {
	t.Helper()
	keys, err := c.Keys(background, "alice")
	if err != nil || len(keys) == 0 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	file, err := recovery.NewCaseFile(recovery.Statement{Record: keys[0].Record, KeyID: keys[0].KeyID, Owner: keys[0].Owner, Manager: c.Principal, Recipient: "alice@LAB.TEST", Reason: "lost laptop"})
	if err != nil {
		t.Fatal(err)
	}
	done, err := c.Open(background, file.Statement)
	if err != nil {
		t.Fatal(err)
	}
	return done, file
}

// approval is what an agent makes of a case.
func approval(t testing.TB, c *cases.Client, id int64, code string, agent *recoveryAgent) *recovery.Approval {
	t.Helper()
	_, file, err := c.Show(background, id)
	if err != nil || file == nil {
		t.Fatalf("%v, %v", file, err)
	}
	a, err := recovery.Approve(file, code, agent.cert, agent.key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func events(t testing.TB, w *world.World) map[audit.Event]int {
	t.Helper()
	count := map[audit.Event]int{}
	if err := audit.Each(background, w.DB.SQL, 0, func(l audit.Line) error { count[l.Event]++; return nil }); err != nil {
		t.Fatal(err)
	}
	return count
}

func TestWithFewerAgentsThanThePolicyTakesNothingIsArchived(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	alice := w.Client(t, "alice")
	enroll := func() error {
		der, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
		_, err := alice.Submit(t, der)
		return err
	}
	designate(t, w, "kra1")
	wantFault(t, enroll(), hresult.NoValidKRA, "1 key recovery agents have a valid certificate, 2 are needed")
	e, err := w.Explain(background, "alice@LAB.TEST", "LabUserSMIME", "")
	if err != nil || e.Err() == nil || !strings.Contains(e.Err().Error(), "2 are needed") {
		t.Errorf("explain: %v, %v", e, err)
	}
	designate(t, w, "kra2")
	if err := enroll(); err != nil {
		t.Error(err)
	}
}

// The whole way, as people go it: the program on four machines, real tickets, an encrypted mail that opens again.
func TestARecoveryByTwoAgentsFromTicketToMail(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	kra1, kra2 := designate(t, w, "kra1"), designate(t, w, "kra2")
	designate(t, w, "kra3")
	key, cert := archived(t, w)
	sh := newShell(t)
	sh.openssl(nil, "cms", "-encrypt", "-aes256", "-in", sh.write("mail.txt", []byte("the offer\n")), "-out", "mail.p7m", sh.write("alice.pem", pemOf("CERTIFICATE", cert.Raw)))

	var opened struct {
		Case    int64
		Code    string
		File    string
		Receipt audit.Receipt
	}
	sh.run("helpdesk", &opened, "open", "--owner", "alice", "--for", "alice@LAB.TEST", "--reason", "lost laptop")
	number := fmt.Sprint(opened.Case)
	sh.listsAndEnds(opened.Case)

	// kra1 has the key in a PKCS#12 file, and is online; a wrong code is not approved.
	p12, err := pkcs12.Modern.Encode(kra1.key, kra1.cert, nil, world.Env("LAB_PASSWORD"))
	if err != nil {
		t.Fatal(err)
	}
	k1 := sh.write("kra1.p12", p12)
	if text := sh.refused("kra1", 3, "approve", number, "--key", k1, "--key-password-env", "LAB_PASSWORD", "--code", "0000-0000-0000-0000"); !strings.Contains(text, "not that of the case") {
		t.Errorf("a wrong code: %s", text)
	}
	sh.run("kra1", nil, "approve", number, "--key", k1, "--key-password-env", "LAB_PASSWORD", "--code", opened.Code)
	sh.refused("helpdesk", 3, "fetch", number, "--case-key", opened.File, "--out", "early.p12")

	// kra2 has it in PEM form, on a machine without a network.
	encrypted, err := local.EncryptKey(kra2.key, []byte(world.Env("LAB_PASSWORD")))
	if err != nil {
		t.Fatal(err)
	}
	sh.run("kra2", nil, "show", number, "--out", "case.json")
	sh.run("", nil, "approve", "case.json", "--key", sh.write("kra2.key", encrypted), "--key-password-env", "LAB_PASSWORD", "--code", strings.ToLower(opened.Code), "--out", "approval.json")
	sh.run("kra2", nil, "approve", number, "--approval", "approval.json")
	sh.refused("kra2", 3, "approve", number, "--approval", "approval.json")

	var fetched struct {
		Password string
		Receipt  audit.Receipt
	}
	// The gateway gives the shares out once: when the file cannot be written, they must not be lost.
	sh.refused("helpdesk", 1, "fetch", number, "--case-key", opened.File, "--out", "no/such/folder/user.p12")
	sh.run("helpdesk", &fetched, "fetch", number, "--case-key", opened.File, "--out", "user.p12")
	if _, err := os.Stat(filepath.Join(sh.dir, opened.File)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the case key is still there after its use")
	}
	sh.openssl(nil, "pkcs12", "-in", "user.p12", "-passin", "pass:"+fetched.Password, "-nodes", "-nocerts", "-out", "recovered.key")
	if text := sh.openssl(nil, "cms", "-decrypt", "-in", "mail.p7m", "-recip", "alice.pem", "-inkey", "recovered.key"); !strings.Contains(string(text), "the offer") {
		t.Errorf("the mail says %q", text)
	}
	sh.readByOthers("user.p12", fetched.Password, 1)
	if block, _ := pem.Decode(sh.openssl(nil, "pkey", "-in", "recovered.key", "-outform", "PEM", "-pubout")); block == nil || !bytes.Equal(block.Bytes, cert.RawSubjectPublicKeyInfo) || !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("another key was recovered")
	}

	for _, r := range []audit.Receipt{opened.Receipt, fetched.Receipt} {
		if err := r.Holds(background, w.DB.SQL); err != nil {
			t.Error(err)
		}
	}
	count := events(t, w)
	if count[audit.CaseOpened] != 3 || count[audit.CaseApproved] != 2 || count[audit.CaseFetched] != 1 || count[audit.RecoveryRefused] != 3 || count[audit.CaseDenied] != 1 || count[audit.CaseWithdrawn] != 1 {
		t.Errorf("audit log: %v", count)
	}
}

// refuser requires refusals.
func refuser(t testing.TB) func(what string, code hresult.Code, err error) {
	return func(what string, code hresult.Code, err error) {
		t.Helper()
		if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
	}
}

func TestEachRoleDoesItsPartOnlyAndAliceNone(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	kra1 := designate(t, w, "kra1")
	designate(t, w, "kra2")
	archived(t, w)
	helpdesk, alice, one := casesOf(t, w, "helpdesk"), casesOf(t, w, "alice"), casesOf(t, w, "kra1")
	done, file := openCase(t, helpdesk)
	id, code := done.Case.ID, file.Statement.Code()
	mine := approval(t, one, id, code, kra1)

	if again, err := helpdesk.Open(background, file.Statement); err != nil || again.Case.ID != id {
		t.Errorf("the same statement again: %+v, %v", again, err)
	}
	refuse := refuser(t)
	attempts := []struct {
		what string
		code hresult.Code
		do   func(c *cases.Client) error
	}{
		{"list", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.List(background); return err }},
		{"list keys", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.Keys(background, "alice"); return err }},
		{"show", hresult.AccessDenied, func(c *cases.Client) error { _, _, err := c.Show(background, id); return err }},
		{"open", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.Open(background, file.Statement); return err }},
		{"approve", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.Approve(background, mine); return err }},
		{"deny", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.Deny(background, id, "no"); return err }},
		{"withdraw", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.Withdraw(background, id, "no"); return err }},
		{"fetch", hresult.AccessDenied, func(c *cases.Client) error { _, err := c.Fetch(background, id); return err }},
	}
	for _, a := range attempts {
		refuse("alice: "+a.what, a.code, a.do(alice))
	}
	if got := events(t, w)[audit.RecoveryRefused]; got != len(attempts) {
		t.Errorf("%d of alice's %d attempts are in the audit log", got, len(attempts))
	}
	for _, i := range []int{1, 3, 6, 7} {
		refuse("an agent: "+attempts[i].what, attempts[i].code, attempts[i].do(one))
	}
	for _, i := range []int{4, 5} {
		refuse("a manager: "+attempts[i].what, attempts[i].code, attempts[i].do(helpdesk))
	}
	if _, f, err := helpdesk.Show(background, id); err != nil || f != nil {
		t.Errorf("a manager is shown the sealed shares: %v", err)
	}
	for range 30 { // nobody fills the audit log
		_, _ = alice.List(background)
	}
	if got := events(t, w)[audit.RecoveryRefused]; got > 30 {
		t.Errorf("%d refusals were logged", got)
	}
}

func TestEachAgentCountsOnceAndTheKeyIsFetchedOnce(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	kra1, kra2 := designate(t, w, "kra1"), designate(t, w, "kra2")
	archived(t, w)
	helpdesk, one, two := casesOf(t, w, "helpdesk"), casesOf(t, w, "kra1"), casesOf(t, w, "kra2")
	done, file := openCase(t, helpdesk)
	id, code := done.Case.ID, file.Statement.Code()
	mine := approval(t, one, id, code, kra1)
	refuse := refuser(t)
	if d, err := one.Approve(background, mine); err != nil || d.Case.State != cases.Open {
		t.Fatalf("%+v, %v", d, err)
	}
	_, err := one.Approve(background, mine)
	refuse("kra1 twice", hresult.BadRequestStatus, err)
	_, err = two.Approve(background, approval(t, two, id, code, kra1))
	refuse("kra2 with kra1's key", hresult.AccessDenied, err)
	_, err = helpdesk.Fetch(background, id)
	refuse("fetched with one approval", hresult.BadRequestStatus, err)
	if d, err := two.Approve(background, approval(t, two, id, code, kra2)); err != nil || d.Case.State != cases.Approved {
		t.Fatalf("%+v, %v", d, err)
	}
	d, err := helpdesk.Fetch(background, id)
	if err != nil || len(d.Approvals) != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	_, err = helpdesk.Fetch(background, id)
	refuse("fetched twice", hresult.BadRequestStatus, err)
	_, err = one.Deny(background, id, "too late")
	refuse("denied after the end", hresult.BadRequestStatus, err)

	denied, _ := openCase(t, helpdesk)
	if d, err := two.Deny(background, denied.Case.ID, "not convinced"); err != nil || d.Case.State != cases.Denied {
		t.Errorf("%+v, %v", d, err)
	}
	withdrawn, _ := openCase(t, helpdesk)
	if d, err := helpdesk.Withdraw(background, withdrawn.Case.ID, "found the laptop"); err != nil || d.Case.State != cases.Withdrawn {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestAnAgentWhoLeftTheGroupDoesNotCountAlthoughTheTicketSaysSo(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	kra1 := designate(t, w, "kra1")
	designate(t, w, "kra2")
	archived(t, w)
	one := casesOf(t, w, "kra1")
	done, file := openCase(t, casesOf(t, w, "helpdesk"))
	mine := approval(t, one, done.Case.ID, file.Statement.Code(), kra1)
	change := func(do func(r *ldap.ModifyRequest)) {
		r := ldap.NewModifyRequest("CN=Key Recovery Agents,CN=Users,"+world.Env("LAB_BASE_DN"), nil)
		do(r)
		if err := world.Admin(t).Modify(r); err != nil {
			t.Fatal(err)
		}
	}
	member := []string{"CN=Kra One,CN=Users," + world.Env("LAB_BASE_DN")}
	change(func(r *ldap.ModifyRequest) { r.Delete("member", member) })
	t.Cleanup(func() { change(func(r *ldap.ModifyRequest) { r.Add("member", member) }) })
	_, err := one.Approve(background, mine)
	refuser(t)("with the old ticket", hresult.AccessDenied, err)
}

func TestTheRecoveryInterfaceRefusesWhatItDoesNotUnderstand(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	url := "https://" + world.Env("LAB_GATEWAY") + people.Prefix + "cases"
	get, err := w.HTTP().Get(url)
	if err != nil {
		t.Fatal(err)
	}
	get.Body.Close()
	if get.StatusCode != http.StatusUnauthorized || get.Header.Get("WWW-Authenticate") != "Negotiate" {
		t.Errorf("without a ticket: %s", get.Status)
	}
	helpdesk := w.Client(t, "helpdesk").HTTP
	for name, c := range map[string]struct {
		body, kind, site string
		status           int
	}{
		"a page of another site":    {`{}`, "application/json", "cross-site", http.StatusForbidden},
		"a form":                    {`{}`, "application/x-www-form-urlencoded", "", http.StatusBadRequest},
		"an unknown field":          {`{"colour": "red"}`, "application/json", "", http.StatusBadRequest},
		"two values":                {`{} {}`, "application/json", "", http.StatusBadRequest},
		"too much":                  {`{"reason": "` + strings.Repeat("x", 70<<10) + `"}`, "application/json", "", http.StatusBadRequest},
		"an empty statement":        {`{}`, "application/json", "", http.StatusBadRequest},
		"a hidden line in a reason": {`{"record": 1, "key_id": "` + hex.EncodeToString(make([]byte, 32)) + `", "owner": "a", "recipient": "b", "reason": "x\u001b[2K"}`, "application/json", "", http.StatusBadRequest},
	} {
		r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", c.kind)
		if c.site != "" {
			r.Header.Set("Sec-Fetch-Site", c.site)
		}
		resp, err := helpdesk.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}
