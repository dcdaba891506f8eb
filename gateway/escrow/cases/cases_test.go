package cases_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

// office is a gateway's escrow and cases, with people, and a clock that the test moves.
type office struct {
	*cases.Cases
	escrow *escrow.Escrow
	db     *store.DB
	now    time.Time
	agents []*agent
	people map[string][]string // groups by account
	holder map[string]security.SID
}

type agent struct {
	name string
	key  crypto.Decrypter
	cert *x509.Certificate
}

// card is a key that only decrypts, as one in a smart card does.
type card struct{ key *rsa.PrivateKey }

func (c card) Public() crypto.PublicKey { return c.key.Public() }
func (c card) Decrypt(random io.Reader, msg []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return c.key.Decrypt(random, msg, opts)
}

func who(name string) templates.Caller {
	return templates.Caller{Principal: name + "@LAB.TEST", Realm: "LAB.TEST", SID: security.SID("S-1-5-21-1-2-3-" + name)}
}

// newOffice has three agents, of whom it takes required ones.
func newOffice(t testing.TB, required int) *office {
	t.Helper()
	o := &office{db: testpki.DB(t), now: time.Now().Truncate(time.Millisecond), holder: map[string]security.SID{}, people: map[string][]string{
		"helpdesk": {"managers"}, "boss": {"managers"}, "both": {"managers", "agents"}, "kra1": {"agents"}, "kra2": {"agents"}, "kra3": {"agents"}, "alice": nil,
	}}
	clock := func() time.Time { return o.now }
	var err error
	o.escrow, err = escrow.New(background, escrow.Options{DB: o.db, Secret: []byte("secret"), Now: clock, Policies: []escrow.Policy{{
		Name: "mail", Agents: []string{escrow.AllAgents}, Required: required, Minimum: required, Managers: []string{"managers"}, Approvers: []string{"agents"}, CaseValidity: 72 * time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		name := fmt.Sprintf("kra%d", i+1)
		key, cert := testpki.Agent(t, name, o.now.Add(-time.Hour), o.now.AddDate(1, 0, 0))
		o.agents = append(o.agents, &agent{name, card{key}, cert})
		if err := o.escrow.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
	}
	o.Cases = cases.New(cases.Options{Roles: people.Roles{DB: o.db, Escrow: o.escrow, Now: clock, IsOneOf: o.isOneOf,
		Account: func(_ context.Context, name string) (templates.Subject, error) {
			account, _, _ := strings.Cut(name, "@")
			if _, ok := o.people[account]; !ok {
				return templates.Subject{}, hresult.New(hresult.NoSuchUser, "there is no account %q", name)
			}
			return templates.Subject{SAMAccount: account, SID: who(account).SID}, nil
		},
		HolderOf: func(_ context.Context, cert *x509.Certificate) (security.SID, error) {
			return o.holder[cert.Subject.CommonName], nil
		}},
		Chain: func(string) []*x509.Certificate { return nil },
	})
	return o
}

func (o *office) isOneOf(_ context.Context, c templates.Caller, names []string) (bool, error) {
	if slices.Contains(names, "mistyped") {
		return false, hresult.New(hresult.ServerUnavailable, `the account or group "mistyped" cannot be found`)
	}
	account, _, _ := strings.Cut(c.Principal, "@")
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(o.people[account], n) }), nil
}

// archive puts somebody's key into escrow.
func (o *office) archive(t testing.TB, owner string) (*rsa.PrivateKey, *escrow.Entry) {
	t.Helper()
	key, cert := testpki.Agent(t, owner, o.now.Add(-time.Hour), o.now.AddDate(1, 0, 0))
	id, err := o.escrow.Import(background, key, cert, escrow.Owner{Name: owner + "@LAB.TEST"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	return key, o.entry(t, id)
}

func (o *office) entry(t testing.TB, id int64) *escrow.Entry {
	t.Helper()
	e, err := o.escrow.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func statement(e *escrow.Entry, manager string) recovery.Statement {
	return recovery.Statement{Record: e.ID, KeyID: e.KeyID, Owner: e.Owner, Manager: manager + "@LAB.TEST", Recipient: "alice@LAB.TEST", Reason: "lost laptop"}
}

// open opens a case as helpdesk.
func (o *office) open(t testing.TB, e *escrow.Entry) (int64, *recovery.CaseFile) {
	t.Helper()
	file, err := recovery.NewCaseFile(statement(e, "helpdesk"))
	if err != nil {
		t.Fatal(err)
	}
	done, err := o.Open(background, who("helpdesk"), file.Statement)
	if err != nil {
		t.Fatal(err)
	}
	return done.Case.ID, file
}

func (o *office) file(t testing.TB, id int64) *recovery.File {
	t.Helper()
	_, f, err := o.Show(background, who("kra1"), id)
	if err != nil || f == nil {
		t.Fatalf("%v, %v", f, err)
	}
	return f
}

// approval is what an agent's machine makes of a case.
func (o *office) approval(t testing.TB, id int64, code string, a *agent) recovery.Approval {
	t.Helper()
	out, err := recovery.Approve(o.file(t, id), code, a.cert, a.key, o.now)
	if err != nil {
		t.Fatal(err)
	}
	return *out
}

func (o *office) approve(t testing.TB, id int64, file *recovery.CaseFile, agents ...*agent) {
	t.Helper()
	for _, a := range agents {
		if _, err := o.Approve(background, who(a.name), id, o.approval(t, id, file.Statement.Code(), a)); err != nil {
			t.Fatal(err)
		}
	}
}

// combine is what the manager's machine makes of a delivery.
func combine(t testing.TB, d *cases.Delivery, file *recovery.CaseFile) (*rsa.PrivateKey, []recovery.BadShare, error) {
	t.Helper()
	key, err := file.Key()
	if err != nil {
		t.Fatal(err)
	}
	der, _, bad, err := recovery.Combine(&file.Statement, &d.Archived, d.Approvals, key)
	if err != nil {
		return nil, bad, err
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return private.(*rsa.PrivateKey), bad, nil
}

func (o *office) count(t testing.TB, event audit.Event) (n int) {
	t.Helper()
	if err := audit.Each(background, o.db.SQL, 0, func(l audit.Line) error {
		if l.Event == event {
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func (o *office) exec(t testing.TB, query string, args ...any) {
	t.Helper()
	if _, err := o.db.SQL.Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, what string, err error, code hresult.Code) {
	t.Helper()
	if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != code {
		t.Errorf("%s: %v, want %v", what, err, code)
	}
}

func TestAnyTwoOfThreeAgentsRecoverAKeyAtDifferentTimes(t *testing.T) {
	o := newOffice(t, 2)
	key, e := o.archive(t, "alice")
	for _, pair := range [][]*agent{{o.agents[0], o.agents[1]}, {o.agents[2], o.agents[0]}, {o.agents[1], o.agents[2]}} {
		id, file := o.open(t, e)
		o.approve(t, id, file, pair[0])
		o.now = o.now.Add(48 * time.Hour)
		o.approve(t, id, file, pair[1])
		d, err := o.Fetch(background, who("helpdesk"), id)
		if err != nil {
			t.Fatal(err)
		}
		if got, bad, err := combine(t, d, file); err != nil || len(bad) > 0 || !key.Equal(got) {
			t.Errorf("%v, %v", bad, err)
		}
	}
}

func TestAKeyThatOneAgentOpensCanBeRecoveredByACaseToo(t *testing.T) {
	o := newOffice(t, 1)
	key, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[1])
	d, err := o.Fetch(background, who("helpdesk"), id)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := combine(t, d, file); err != nil || !key.Equal(got) {
		t.Error(err)
	}
}

func TestAPolicyThatWasTightenedHoldsForOldKeys(t *testing.T) {
	o := newOffice(t, 1)
	_, e := o.archive(t, "alice")
	two, err := escrow.New(background, escrow.Options{DB: o.db, Secret: []byte("secret"), Now: time.Now, Policies: []escrow.Policy{{
		Name: "mail", Agents: []string{escrow.AllAgents}, Required: 2, Minimum: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := two.Needed(e); err != nil || n != 2 {
		t.Errorf("%d agents are needed, %v", n, err)
	}
	key, _ := o.agents[0].key.(card)
	if _, err := two.Recover(background, e, key.key, o.agents[0].cert, "test", "alone"); !errors.Is(err, escrow.ErrRefused) || !strings.Contains(err.Error(), "takes 2 recovery agents") {
		t.Errorf("one agent alone, on the gateway: %v", err)
	}
}

func TestACaseExpiresAndSaysSo(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[0], o.agents[1])
	late := o.approval(t, id, file.Statement.Code(), o.agents[2])
	o.now = o.now.Add(72 * time.Hour)
	if _, err := recovery.Approve(&recovery.File{Case: id, Expires: o.now.Add(-time.Second), Statement: file.Statement}, file.Statement.Code(), o.agents[2].cert, o.agents[2].key, o.now); !errors.Is(err, recovery.ErrExpired) {
		t.Errorf("on the agent's machine: %v", err)
	}
	_, err := o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "fetched too late", err, hresult.BadRequestStatus)
	_, err = o.Approve(background, who("kra3"), id, late)
	wantCode(t, "approved too late", err, hresult.BadRequestStatus)
	for range 2 {
		if err := o.Expire(background); err != nil {
			t.Fatal(err)
		}
	}
	if k, _, err := o.Show(background, who("helpdesk"), id); err != nil || k.State != cases.Expired {
		t.Errorf("%+v, %v", k, err)
	}
	if n := o.count(t, audit.CaseExpired); n != 1 {
		t.Errorf("%d lines say that it expired", n)
	}
}

func TestAStepThatCannotBeLoggedDoesNotHappen(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	first, second := o.approval(t, id, file.Statement.Code(), o.agents[0]), o.approval(t, id, file.Statement.Code(), o.agents[1])
	ready, other := o.open(t, e)
	o.approve(t, ready, other, o.agents[0], o.agents[1])
	undo := storetest.Fill(t, o.db, "audit")
	more, err := recovery.NewCaseFile(statement(e, "helpdesk"))
	if err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"open":     func() error { _, err := o.Open(background, who("helpdesk"), more.Statement); return err },
		"approve":  func() error { _, err := o.Approve(background, who("kra1"), id, first); return err },
		"deny":     func() error { _, err := o.Deny(background, who("kra1"), id, "no"); return err },
		"withdraw": func() error { _, err := o.Withdraw(background, who("helpdesk"), id, "no"); return err },
		"fetch": func() error {
			d, err := o.Fetch(background, who("helpdesk"), ready)
			if d != nil {
				return nil
			}
			return err
		},
	} {
		if err := do(); err == nil {
			t.Errorf("%s happened without a line in the audit log", name)
		}
	}
	undo()
	k, _, err := o.Show(background, who("helpdesk"), id)
	if err != nil || k.State != cases.Open || len(k.Approvals) != 0 {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := o.Approve(background, who("kra2"), id, second); err != nil {
		t.Error(err)
	}
	if _, err := o.Fetch(background, who("helpdesk"), ready); err != nil {
		t.Error(err)
	}
}

// OpenSSL, with nothing but two agents' keys and the record's parts, reads the shares; the key itself needs the gateway's format.
func TestOpenSSLReadsTheSharesOfAStoredRecord(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	record, err := quorum.Parse(e.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range o.agents {
		keyFile := testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(a.key.(card).key))
		der, err := testpki.OpenSSL(t, record.SealedShare(escrow.Fingerprint(a.cert)), "cms", "-decrypt", "-inform", "DER", "-inkey", keyFile, "-recip", testpki.PEM(t, "CERTIFICATE", a.cert.Raw))
		if err != nil {
			t.Fatal("OpenSSL cannot open the share")
		}
		share, err := quorum.ParseShare(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := record.Check(share, escrow.Fingerprint(a.cert)); err != nil {
			t.Error(err)
		}
	}
}

func TestKeysOfCurvesAreRecoveredToo(t *testing.T) {
	for _, required := range []int{1, 2} {
		o := newOffice(t, required)
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "alice"}, NotAfter: o.now.Add(time.Hour)},
			&x509.Certificate{Subject: pkix.Name{CommonName: "alice"}}, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		number, err := o.escrow.Import(background, key, testpki.Cert(t, der), escrow.Owner{Name: "alice@LAB.TEST"}, "test")
		if err != nil {
			t.Fatal(err)
		}
		id, file := o.open(t, o.entry(t, number))
		o.approve(t, id, file, o.agents[:required]...)
		d, err := o.Fetch(background, who("helpdesk"), id)
		if err != nil {
			t.Fatal(err)
		}
		caseKey, err := file.Key()
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, _, _, err := recovery.Combine(&file.Statement, &d.Archived, d.Approvals, caseKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := x509.ParsePKCS8PrivateKey(pkcs8); err != nil || !key.Equal(got) {
			t.Errorf("%d: %v", required, err)
		}
	}
}

// One mistyped group closes the policy that names it, and no other.
func TestAMistypedGroupInOnePolicyClosesThatPolicyOnly(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, _ := o.open(t, e)
	mail := o.escrow.Policies()[0]
	both, err := escrow.New(background, escrow.Options{DB: o.db, Secret: []byte("secret"), Now: time.Now, Policies: []escrow.Policy{
		{Name: "board", Agents: []string{escrow.AllAgents}, Required: 2, Minimum: 2, Managers: []string{"managers", "mistyped"}, Approvers: []string{"agents"}}, mail}})
	if err != nil {
		t.Fatal(err)
	}
	c := cases.New(cases.Options{Roles: people.Roles{DB: o.db, Escrow: both, Now: time.Now, IsOneOf: o.isOneOf}})
	listed, err := c.List(background, who("helpdesk"))
	if err != nil || len(listed.Cases) != 1 || listed.Cases[0].ID != id || !strings.Contains(listed.Unusable["board"], `"mistyped" cannot be found`) {
		t.Errorf("list: %+v, %v", listed, err)
	}
	if keys, err := c.Keys(background, who("helpdesk"), "alice"); err != nil || len(keys) != 1 {
		t.Errorf("keys: %+v, %v", keys, err)
	}
	// The policy itself is closed, for those too whose group is not the mistyped one; and who has no role elsewhere learns of none.
	o.exec(t, "UPDATE recovery_cases SET policy = 'board' WHERE id = ?", id)
	for _, name := range []string{"helpdesk", "kra1"} {
		if listed, err := c.List(background, who(name)); err != nil || len(listed.Cases) != 0 {
			t.Errorf("%s: a case of the closed policy is shown: %+v, %v", name, listed, err)
		}
		if _, _, err := c.Show(background, who(name), id); err == nil {
			t.Errorf("%s: a case of the closed policy is shown", name)
		}
	}
	_, err = c.List(background, who("alice"))
	wantCode(t, "alice", err, hresult.ServerUnavailable)
}

// An agent's certificate was renewed with the same key: the case of a record that names the old one is approved all the same.
func TestAnAgentWithARenewedCertificateApprovesCasesOfOldRecords(t *testing.T) {
	o := newOffice(t, 2)
	key, e := o.archive(t, "alice")
	first := o.agents[0]
	if err := o.escrow.AddAgent(background, testpki.Renewed(t, first.cert, first.key.(card).key), "test"); err != nil {
		t.Fatal(err)
	}
	if err := o.escrow.RemoveAgent(background, escrow.Fingerprint(first.cert), "test"); err != nil {
		t.Fatal(err)
	}
	id, file := o.open(t, e)
	cert, err := recovery.CertificateOf(o.file(t, id).Agents, first.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	o.approve(t, id, file, &agent{first.name, first.key, cert}, o.agents[1])
	d, err := o.Fetch(background, who("helpdesk"), id)
	if err != nil {
		t.Fatal(err)
	}
	if got, bad, err := combine(t, d, file); err != nil || len(bad) > 0 || !key.Equal(got) {
		t.Errorf("%v, %v", bad, err)
	}
}
