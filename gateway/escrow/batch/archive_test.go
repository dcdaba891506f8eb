package batch_test

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

// archive is a gateway's escrow and batches, with people, and a clock that the test moves.
type archive struct {
	*batch.Batches
	escrow *escrow.Escrow
	db     *store.DB
	now    time.Time
	policy escrow.Policy
	agents []*agent
	people map[string][]string // groups by account
	holder map[string]security.SID
}

type agent struct {
	name string
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

func (a *agent) print() string { return escrow.Fingerprint(a.cert) }

func who(name string) templates.Caller {
	return templates.Caller{Principal: name + "@LAB.TEST", Realm: "LAB.TEST", SID: security.SID("S-1-5-21-1-2-3-" + name)}
}

// newArchive has three agents, of whom it takes required ones.
func newArchive(t testing.TB, required int) *archive {
	t.Helper()
	a := &archive{db: testpki.DB(t), now: time.Now().Truncate(time.Millisecond), holder: map[string]security.SID{}, people: map[string][]string{
		"helpdesk": {"managers"}, "both": {"managers", "agents"}, "kra1": {"agents"}, "kra2": {"agents"}, "kra3": {"agents"}, "kra4": {"agents"}, "outsider": {"agents"}, "alice": nil,
	}}
	a.policy = escrow.Policy{Name: "mail", Agents: []string{escrow.AllAgents}, Required: required, Minimum: required, Managers: []string{"managers"}, Approvers: []string{"agents"}, CaseValidity: 72 * time.Hour}
	a.open(t)
	for i := range 3 {
		a.designate(t, fmt.Sprintf("kra%d", i+1))
	}
	return a
}

// open makes the escrow and the register with the policy as it is now.
func (a *archive) open(t testing.TB) {
	t.Helper()
	clock := func() time.Time { return a.now }
	var err error
	if a.escrow, err = escrow.New(background, escrow.Options{DB: a.db, Secret: []byte("secret"), Now: clock, Policies: []escrow.Policy{a.policy}}); err != nil {
		t.Fatal(err)
	}
	a.Batches = batch.New(batch.Options{Roles: people.Roles{DB: a.db, Escrow: a.escrow, Now: clock,
		IsOneOf: func(_ context.Context, c templates.Caller, names []string) (bool, error) {
			account, _, _ := strings.Cut(c.Principal, "@")
			return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(a.people[account], n) }), nil
		},
		Account: func(_ context.Context, name string) (templates.Subject, error) {
			account, _, _ := strings.Cut(name, "@")
			if _, ok := a.people[account]; !ok {
				return templates.Subject{}, hresult.New(hresult.NoSuchUser, "there is no account %q", name)
			}
			return templates.Subject{SAMAccount: account, SID: who(account).SID}, nil
		},
		HolderOf: func(_ context.Context, cert *x509.Certificate) (security.SID, error) {
			return a.holder[cert.Subject.CommonName], nil
		}},
	})
}

func (a *archive) designate(t testing.TB, name string) *agent {
	t.Helper()
	key, cert := testpki.Agent(t, name, a.now.Add(-time.Hour), a.now.AddDate(1, 0, 0))
	if err := a.escrow.AddAgent(background, cert, "test"); err != nil {
		t.Fatal(err)
	}
	n := &agent{name, key, cert}
	a.agents = append(a.agents, n)
	return n
}

func (a *archive) dismiss(t testing.TB, n *agent) {
	t.Helper()
	if err := a.escrow.RemoveAgent(background, n.print(), "test"); err != nil {
		t.Fatal(err)
	}
}

// archive puts somebody's key into escrow.
func (a *archive) archive(t testing.TB, owner string) (*rsa.PrivateKey, int64) {
	t.Helper()
	key, cert := testpki.Agent(t, owner, a.now.Add(-time.Hour), a.now.AddDate(1, 0, 0))
	id, err := a.escrow.Import(background, key, cert, escrow.Owner{Name: owner + "@LAB.TEST"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

func (a *archive) entry(t testing.TB, id int64) *escrow.Entry {
	t.Helper()
	e, err := a.escrow.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func prints(agents ...*agent) []string {
	var out []string
	for _, n := range agents {
		out = append(out, n.print())
	}
	slices.Sort(out)
	return out
}

func (a *archive) rewrap(targets ...*agent) batch.Selection {
	return batch.Selection{Purpose: recovery.Rewrap, Policy: "mail", Targets: prints(targets...)}
}

var drill = batch.Selection{Purpose: recovery.Drill, Policy: "mail"}

// ordered lets helpdesk order a batch from a worker.
func (a *archive) ordered(t testing.TB, s batch.Selection, worker string) (int64, *recovery.Order) {
	t.Helper()
	d, err := a.Draft(background, who("helpdesk"), s)
	if err != nil {
		t.Fatal(err)
	}
	o := d.Order(s, "helpdesk@LAB.TEST", worker+"@LAB.TEST", "kra1 leaves")
	if _, err := a.Order(background, who("helpdesk"), d.Batch, *o); err != nil {
		t.Fatal(err)
	}
	return d.Batch, o
}

func (a *archive) info(t testing.TB, id int64, name string) *recovery.BatchInfo {
	t.Helper()
	s, err := a.Show(background, who(name), id)
	if err != nil || s.Info == nil {
		t.Fatalf("%+v, %v", s, err)
	}
	return s.Info
}

// taken also lets the worker take it.
func (a *archive) taken(t testing.TB, s batch.Selection, worker *agent) (int64, *recovery.BatchFile) {
	t.Helper()
	id, o := a.ordered(t, s, worker.name)
	f, err := recovery.NewBatchFile(a.info(t, id, worker.name), o.Code(), worker.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Take(background, who(worker.name), id, f.Statement); err != nil {
		t.Fatal(err)
	}
	return id, f
}

func (a *archive) page(t testing.TB, id int64, name string, number int) *recovery.Page {
	t.Helper()
	p, err := a.Page(background, who(name), id, number)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// parts is what an agent's machine makes of a page.
func (a *archive) parts(t testing.TB, id int64, f *recovery.BatchFile, n *agent, page int) *recovery.Parts {
	t.Helper()
	c, err := recovery.NewConsent(a.info(t, id, n.name), f.Statement.Code(), n.key, a.now)
	if err != nil {
		t.Fatal(err)
	}
	p, skipped, err := c.Page(a.page(t, id, n.name, page))
	if err != nil || p == nil || len(skipped) > 0 {
		t.Fatalf("%+v, %v, %v", p, skipped, err)
	}
	return p
}

func (a *archive) consent(t testing.TB, id int64, f *recovery.BatchFile, agents ...*agent) {
	t.Helper()
	for _, n := range agents {
		for page := range f.Statement.Order.Pages {
			if _, err := a.Consent(background, who(n.name), id, *a.parts(t, id, f, n, page)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// results is what the worker's machine makes of a page.
func (a *archive) results(t testing.TB, id int64, f *recovery.BatchFile, n *agent, page int) []recovery.Result {
	t.Helper()
	w, err := recovery.NewWorker(a.info(t, id, n.name), f, n.key, a.now)
	if err != nil {
		t.Fatal(err)
	}
	p := a.page(t, id, n.name, page)
	opened, err := w.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Wipe()
	var out []recovery.Result
	for i := range p.Items {
		if p.Items[i].State != recovery.ItemOpen {
			continue
		}
		r, bad, err := w.Do(opened, &p.Items[i])
		if err != nil || len(bad) > 0 {
			t.Fatalf("%v, %v", bad, err)
		}
		out = append(out, *r)
	}
	return out
}

// work does all of a batch.
func (a *archive) work(t testing.TB, id int64, f *recovery.BatchFile, n *agent) *batch.Finished {
	t.Helper()
	var done *batch.Finished
	for page := range f.Statement.Order.Pages {
		for some := range slices.Chunk(a.results(t, id, f, n, page), recovery.MaxResults) {
			var err error
			if done, err = a.Results(background, who(n.name), id, batch.Report{Results: some}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return done
}

// opens tells whether some agents together open a record.
func opens(t testing.TB, e *escrow.Entry, want *rsa.PrivateKey, agents ...*agent) bool {
	t.Helper()
	if e.Format != escrow.FormatShared {
		der, err := testpki.OpenSSL(t, e.Sealed(), "cms", "-decrypt", "-inform", "DER", "-inkey", testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(agents[0].key)), "-recip", testpki.PEM(t, "CERTIFICATE", agents[0].cert.Raw))
		if err != nil {
			return false
		}
		if der, err = wcce.PrivateKeyDER(der); err != nil {
			return false
		}
		got, err := x509.ParsePKCS8PrivateKey(der)
		return err == nil && want.Equal(got)
	}
	r, err := quorum.Parse(e.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	var shares []*quorum.Share
	for _, n := range agents {
		s, err := r.OpenShare(n.cert, n.key)
		if err != nil {
			return false
		}
		shares = append(shares, s)
	}
	der, err := r.Combine(shares)
	if err != nil {
		return false
	}
	got, err := x509.ParsePKCS8PrivateKey(der)
	return err == nil && want.Equal(got)
}

func (a *archive) count(t testing.TB, event audit.Event) (n int) {
	t.Helper()
	if err := audit.Each(background, a.db.SQL, 0, func(l audit.Line) error {
		if l.Event == event {
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func (a *archive) number(t testing.TB, query string, args ...any) (n int) {
	t.Helper()
	if err := a.db.SQL.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (a *archive) exec(t testing.TB, query string, args ...any) {
	t.Helper()
	if _, err := a.db.SQL.Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, what string, err error, code hresult.Code) {
	t.Helper()
	if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != code {
		t.Errorf("%s: %v, want %v", what, err, code)
	}
}
