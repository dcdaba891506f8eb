package e2e

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// asked is what orders and work print.
type asked struct {
	Batch    json.RawMessage // of an order: all of it; of work: its number
	Code     string
	Waiting  int
	State    batch.State
	Records  map[string]int
	Left     []batch.Left
	Receipt  audit.Receipt
	exitCode int
	offline  bool
}

// escrow runs enrollgate escrow as an account and returns what it printed; it may end with one of the exit codes.
func (s *shell) escrow(account string, codes []int, args ...string) (out asked) {
	s.t.Helper()
	cmd := s.command(account, args...)
	cmd.Args[1] = "escrow"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		out.exitCode = exit.ExitCode()
	} else if err != nil {
		s.t.Fatal(err)
	}
	if !slices.Contains(codes, out.exitCode) {
		s.t.Fatalf("escrow %v: exit code %d, want %v\n%s", args, out.exitCode, codes, stderr.String())
	}
	if len(text) > 0 && text[0] == '[' { // a batch for each policy
		var list []asked
		if err := json.Unmarshal(text, &list); err != nil || len(list) != 1 {
			s.t.Fatalf("escrow %v: %v: %s", args, err, text)
		}
		return list[0]
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &out); err != nil {
			s.t.Fatalf("escrow %v: %v: %s", args, err, text)
		}
	}
	return out
}

// number is that of the ordered batch.
func (a *asked) number(t testing.TB) string {
	t.Helper()
	var k batch.Batch
	if err := json.Unmarshal(a.Batch, &k); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(k.ID)
}

// keyFile writes an agent's PKCS#12 file.
func (s *shell) keyFile(a *recoveryAgent) []string {
	s.t.Helper()
	p12, err := pkcs12.Modern.Encode(a.key, a.cert, nil, world.Env("LAB_PASSWORD"))
	if err != nil {
		s.t.Fatal(err)
	}
	return []string{"--key", s.write(a.name+".p12", p12), "--key-password-env", "LAB_PASSWORD"}
}

// together lets a worker take an ordered batch, another agent consent, and the worker do it.
func (s *shell) together(ordered asked, worker *recoveryAgent, others ...*recoveryAgent) asked {
	s.t.Helper()
	n := ordered.number(s.t)
	if text := s.escrow(worker.name, []int{3}, append([]string{"batch", "work", n, "--code", "0000-0000-0000-0000", "--batch-key", "wrong.key"}, s.keyFile(worker)...)...); text.Code != "" {
		s.t.Errorf("a wrong code: %+v", text)
	}
	taken := s.escrow(worker.name, []int{4}, append([]string{"batch", "work", n, "--code", ordered.Code}, s.keyFile(worker)...)...)
	if taken.Waiting == 0 || taken.Code == ordered.Code {
		s.t.Errorf("%+v", taken)
	}
	for i, o := range others {
		if i == 0 && ordered.offline { // the agent's key is on a machine without a network
			s.escrow(o.name, []int{0}, "batch", "show", n, "--out", "batch.json")
			s.escrow("", []int{3}, append([]string{"batch", "consent", "batch.json", "--code", ordered.Code, "--out", "no.json"}, s.keyFile(o)...)...)
			s.escrow("", []int{0}, append([]string{"batch", "consent", "batch.json", "--code", taken.Code, "--out", "parts.json"}, s.keyFile(o)...)...)
			s.escrow(o.name, []int{0}, "batch", "consent", n, "--parts", "parts.json")
			continue
		}
		s.escrow(o.name, []int{3}, append([]string{"batch", "consent", n, "--code", ordered.Code}, s.keyFile(o)...)...) // that of the order is another
		s.escrow(o.name, []int{0}, append([]string{"batch", "consent", n, "--code", taken.Code}, s.keyFile(o)...)...)
		s.escrow(o.name, []int{0}, append([]string{"batch", "consent", n, "--code", taken.Code}, s.keyFile(o)...)...)
	}
	return s.escrow(worker.name, []int{0}, append([]string{"batch", "work", n}, s.keyFile(worker)...)...)
}

// The whole way, as people go it: the program on five machines, real tickets; kra1 leaves and kra4 comes. Afterwards OpenSSL opens the
// new agent's share with its key, and a case recovers the key with the new agents.
func TestARewrapADrillAndARecoveryByTheNewAgents(t *testing.T) {
	w := world.StartChanged(t, "", func(c *config.Config) {
		twoOfThree(c)
		c.Escrow.Policies[0].Agents = []string{"all"}
	})
	t.Cleanup(func() { _ = world.Admin(t).Del(ldap.NewDelRequest("CN="+world.CAName+",CN=KRA,"+pkiBase(), nil)) })
	if err := w.Escrow.RemoveAgent(background, escrow.Fingerprint(w.Agent), "test"); err != nil {
		t.Fatal(err)
	}
	kra1, kra2 := designate(t, w, "kra1"), designate(t, w, "kra2")
	key, cert := archived(t, w)
	kra3 := designate(t, w, "kra3")
	sh := newShell(t)
	to := strings.ToUpper(escrow.Fingerprint(kra2.cert)) + "," + escrow.Fingerprint(kra3.cert)
	ordered := sh.escrow("helpdesk", []int{0}, "rewrap", "open", "--policy", "mail", "--to", to, "--worker", "kra2@LAB.TEST", "--reason", "kra1 leaves")
	sh.escrow("alice", []int{3}, "rewrap", "open", "--policy", "mail", "--to", to, "--worker", "kra2@LAB.TEST", "--reason", "curious")
	if done := sh.together(ordered, kra2, kra1); done.State != batch.Done || done.Records["done"] != 1 {
		t.Fatalf("%+v", done)
	}
	if err := w.Escrow.RemoveAgent(background, escrow.Fingerprint(kra1.cert), "test"); err != nil {
		t.Fatal(err)
	}
	entry := sh.opensShare(w, cert, kra3, kra1)

	// Another agent than the worker proves it.
	n := ordered.number(t)
	sh.escrow("helpdesk", []int{3}, "rewrap", "verify", n, "--worker", "kra2@LAB.TEST", "--reason", "by the same")
	verify := sh.escrow("helpdesk", []int{0}, "rewrap", "verify", n, "--worker", "kra3@LAB.TEST", "--reason", "prove it")
	verify.offline = true
	sh.together(verify, kra3, kra2)
	if entry, err := w.Escrow.Get(background, entry.ID); err != nil || time.Since(entry.Proven) > time.Minute {
		t.Errorf("%+v, %v", entry, err)
	}
	drilled := sh.escrow("helpdesk", []int{0}, "drill", "open", "--percent", "50", "--worker", "kra2@LAB.TEST", "--reason", "quarterly")
	if done := sh.together(drilled, kra2, kra3); done.Records["done"] != 1 {
		t.Errorf("%+v", done)
	}
	if !recoveredBy(t, w, kra2, kra3).Equal(key) {
		t.Error("another key is recovered")
	}
	count := events(t, w)
	if count[audit.KeyRewrapped] != 1 || count[audit.KeyProven] != 2 || count[audit.BatchOrdered] != 3 || count[audit.BatchTaken] != 3 || count[audit.BatchConsented] != 3 || count[audit.BatchEnded] != 3 {
		t.Errorf("audit log: %v", count)
	}
	if _, err := audit.Verify(background, w.DB.SQL); err != nil {
		t.Error(err)
	}
}

// opensShare lets OpenSSL open the share of an agent who has one, and requires that another has none. It returns the certificate's record.
func (s *shell) opensShare(w *world.World, cert *x509.Certificate, has, gone *recoveryAgent) *escrow.Entry {
	s.t.Helper()
	entry, err := w.Escrow.BySerial(background, cert.SerialNumber.Text(16))
	if err != nil {
		s.t.Fatal(err)
	}
	record, err := quorum.Parse(entry.Sealed())
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("share.der", record.SealedShare(escrow.Fingerprint(has.cert)))
	s.keyFile(has)
	s.openssl(nil, "pkcs12", "-in", has.name+".p12", "-passin", "env:LAB_PASSWORD", "-nodes", "-out", "agent.pem")
	share, err := quorum.ParseShare(s.openssl(nil, "cms", "-decrypt", "-inform", "DER", "-in", "share.der", "-inkey", "agent.pem", "-recip", "agent.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := record.Check(share, escrow.Fingerprint(has.cert)); err != nil || record.SealedShare(escrow.Fingerprint(gone.cert)) != nil {
		s.t.Errorf("the new agent's share: %v", err)
	}
	return entry
}

// The worker's machine loses power in the middle: nothing is lost, nothing is done twice. One agent is the whole quorum here.
func TestARewrapWhoseWorkerIsKilledGoesOn(t *testing.T) {
	w := world.StartChanged(t, "", func(c *config.Config) {
		twoOfThree(c)
		c.Escrow.Policies[0].Agents, c.Escrow.Policies[0].Required, c.Escrow.Policies[0].Templates, c.Escrow.Policies[0].Groups = []string{"all"}, 1, nil, nil
	})
	t.Cleanup(func() { _ = world.Admin(t).Del(ldap.NewDelRequest("CN="+world.CAName+",CN=KRA,"+pkiBase(), nil)) })
	kra1 := designate(t, w, "kra1")
	const records = 120
	for i := range records {
		key, cert := testpki.Agent(t, fmt.Sprintf("user%d", i), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
		if _, err := w.Escrow.Import(background, key, cert, escrow.Owner{Name: "alice@LAB.TEST"}, "test"); err != nil {
			t.Fatal(err)
		}
	}
	kra2 := designate(t, w, "kra2")
	sh := newShell(t)
	ordered := sh.escrow("helpdesk", []int{0}, "rewrap", "open", "--policy", "mail", "--to-file", sh.write("new.pem", append(pemOf("CERTIFICATE", kra1.cert.Raw), pemOf("CERTIFICATE", kra2.cert.Raw)...)),
		"--worker", "kra1@LAB.TEST", "--reason", "kra2 comes")
	n := ordered.number(t)
	done := func() (n int) {
		if err := w.DB.SQL.QueryRow("SELECT count(*) FROM escrow_previous").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	args := append([]string{"batch", "work", n, "--code", ordered.Code}, sh.keyFile(kra1)...)
	kills := 0
	for done() < records {
		before := done()
		cmd := sh.command("kra1", args...)
		cmd.Args[1] = "escrow"
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for deadline := time.Now().Add(30 * time.Second); done() < min(before+20, records) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		}
		if before+20 < records {
			kills++
			_ = cmd.Process.Kill()
			<-ended
		} else if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if done() == before {
			t.Fatal("the work does not go on")
		}
	}
	count := events(t, w)
	if kills == 0 || count[audit.KeyRewrapped] != records || count[audit.BatchTaken] != 1 || count[audit.BatchEnded] != 1 {
		t.Errorf("killed %d times; audit log: %v", kills, count)
	}
	verify := sh.escrow("helpdesk", []int{0}, "rewrap", "verify", n, "--worker", "kra2@LAB.TEST", "--reason", "prove it")
	if d := sh.escrow("kra2", []int{0}, append([]string{"batch", "work", verify.number(t), "--code", verify.Code}, sh.keyFile(kra2)...)...); d.Records["done"] != records || done() != 0 {
		t.Errorf("%+v, %d records are unproven", d, done())
	}
}

// recoveredBy is alice's newest key, as some agents recover it for a manager.
func recoveredBy(t testing.TB, w *world.World, agents ...*recoveryAgent) *rsa.PrivateKey {
	t.Helper()
	done, file := openCase(t, casesOf(t, w, "helpdesk"))
	for _, a := range agents {
		c := casesOf(t, w, a.name)
		if _, err := c.Approve(background, approval(t, c, done.Case.ID, file.Statement.Code(), a)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := casesOf(t, w, "helpdesk").Fetch(background, done.Case.ID)
	if err != nil {
		t.Fatal(err)
	}
	caseKey, err := file.Key()
	if err != nil {
		t.Fatal(err)
	}
	der, _, _, err := recovery.Combine(&file.Statement, &d.Archived, d.Approvals, caseKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}
