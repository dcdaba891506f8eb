package gateway

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/limit"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/sirupsen/logrus"
	"pgregory.net/rapid"
)

// fakeCA issues for real, counts, and does with its answers what a test says.
type fakeCA struct {
	real       *local.CA
	repetition upstream.Repetition
	next       func() fate

	mu      sync.Mutex
	issued  map[string][]string // serial numbers by order
	revoked map[string]bool
}

// fate is what happens to a call.
type fate string

const (
	fine        fate = "answers"
	unreachable fate = "is not reached"
	lost        fate = "issues, and the answer is lost"
	swallowed   fate = "does not issue, and nobody knows"
	pending     fate = "lets it wait"
	refuses     fate = "refuses"
	crash       fate = "issues, and the gateway is killed"
	crashBefore fate = "the gateway is killed before"
)

// killed is the panic that stands for SIGKILL.
type killed struct{}

func (f *fakeCA) Traits() upstream.Traits {
	return upstream.Traits{Product: "fake", Repetition: f.repetition}
}

func (f *fakeCA) Submit(ctx context.Context, o upstream.Order) (upstream.Result, error) {
	switch what := f.next(); what {
	case unreachable:
		return upstream.Result{}, upstream.NotIssued(errors.New("connection refused"))
	case swallowed:
		return upstream.Result{}, errors.New("timeout")
	case refuses:
		return upstream.Result{State: upstream.Refused, Reason: "no"}, nil
	case crashBefore:
		panic(killed{})
	case lost, crash, pending, fine:
		r, err := f.issue(ctx, o)
		switch what {
		case lost:
			return upstream.Result{}, errors.New("timeout")
		case crash:
			panic(killed{})
		case pending:
			return upstream.Result{State: upstream.Pending, Token: "t-" + o.ID}, nil
		}
		return r, err
	}
	return upstream.Result{}, errors.New("?")
}

func (f *fakeCA) issue(ctx context.Context, o upstream.Order) (upstream.Result, error) {
	if f.repetition != upstream.RepeatSame { // another one each time
		o.ID += fmt.Sprint(len(f.issued[o.ID]))
	}
	r, err := f.real.Submit(ctx, o)
	if err != nil {
		return r, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.order(o)
	if serial := ledger.SerialText(r.Certificate); len(f.issued[id]) == 0 || f.issued[id][len(f.issued[id])-1] != serial {
		f.issued[id] = append(f.issued[id], serial)
	}
	return r, nil
}

// order is the row that an order is for, however often it is repeated.
func (f *fakeCA) order(o upstream.Order) string { return fmt.Sprintf("%x", o.Profile.Subject) }

func (f *fakeCA) Find(ctx context.Context, o upstream.Order, token string) (upstream.Result, error) {
	switch what := f.next(); what {
	case unreachable, lost, swallowed, refuses:
		return upstream.Result{}, upstream.NotIssued(errors.New("connection refused")) // of asking
	case crash, crashBefore:
		panic(killed{})
	}
	if f.repetition == upstream.RepeatSame {
		return f.issue(ctx, o)
	}
	f.mu.Lock()
	issued := len(f.issued[f.order(o)]) > 0
	f.mu.Unlock()
	switch {
	case f.repetition == upstream.RepeatBlind && token == "":
		return upstream.Result{State: upstream.Uncertain, Reason: "look for " + o.ID}, nil
	case !issued:
		return upstream.Result{State: upstream.Unknown}, nil
	}
	o.ID += "0"
	return f.real.Submit(ctx, o)
}

func (f *fakeCA) Revoke(_ context.Context, serial *big.Int, _ int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked[serial.Text(16)] = true
	return nil
}

func (f *fakeCA) Chain(context.Context) ([]*x509.Certificate, error) {
	return []*x509.Certificate{f.real.Certificate()}, nil
}

// everybody is a directory in which every account is there and enabled.
type everybody struct{ Directory }

func (everybody) Subject(_ context.Context, sid security.SID) (templates.Subject, error) {
	return templates.Subject{SID: sid}, nil
}

// desk is a gateway without a directory and listeners: a ledger and CAs.
type desk struct {
	*Gateway
	cas []*fakeCA
	key crypto.Signer
}

var deskKey = sync.OnceValue(func() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

func newDesk(t testing.TB, db *store.DB, now func() time.Time, cas ...*fakeCA) *desk {
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	g := &Gateway{Config: &config.Config{}, Log: log, DB: db, Ledger: ledger.New(db, now), now: now, started: now(), metrics: newMetrics(), Directory: everybody{}}
	for i, f := range cas {
		limits := limit.New(f, limit.Options{Name: fmt.Sprint("CA", i), Failures: 1 << 20})
		g.signers = append(g.signers, &CA{Name: fmt.Sprint("CA", i), Driver: "fake", Issuer: limits, Limits: limits, Identity: f.real.Identity()})
	}
	g.CAs = g.signers[:1]
	return &desk{g, cas, deskKey()}
}

// row is a request that policy allows.
func (d *desk) row(t testing.TB, n int, route []string) *ledger.Row {
	order := contract.WindowsOrder(t, "", d.key)
	order.Profile.Subject = []byte{0x30, 0x0d, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x03, 0x13, 0x02, byte('a' + n/26), byte('a' + n%26)}
	return &ledger.Row{State: ledger.Open, Caller: "alice", CallerSID: "S-1-5-21-1-2-3-1000", SubjectSID: "S-1-5-21-1-2-3-1000", Template: "T", CA: "CA0", Issuer: route[0], Route: route,
		Transport: "test", Fingerprint: []byte(fmt.Sprint("request ", n)), CSR: order.CSR, Profile: order.Profile}
}

// request records a request as Enroll does, and sends it; false: the gateway was killed.
func (d *desk) request(t testing.TB, n int, route []string) (alive bool) {
	row := d.row(t, n, route)
	return survives(func() {
		if err := d.begin(context.Background(), row, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := d.issue(context.Background(), d.CAs[0], row, true); err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Fatal(err)
			}
		}
	})
}

// approved records a request that a certificate manager has approved.
func (d *desk) approved(t testing.TB, n int, route []string) {
	row := d.row(t, n, route)
	row.State = ledger.Pending
	if err := d.begin(context.Background(), row, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Ledger.Decide(context.Background(), row.ID, "manager", true, ""); err != nil {
		t.Fatal(err)
	}
}

func survives(do func()) (alive bool) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case killed:
			alive = false
		default:
			panic(p)
		}
	}()
	do()
	return true
}

// Whatever CAs do with orders and wherever the gateway is killed: each certificate that a CA has issued is in the ledger, or its order
// is in doubt and an administrator knows; no order has two.
func TestNoCertificateIsLostOrIssuedTwice(t *testing.T) {
	real := testpki.CA(t, testpki.DB(t), time.Now)
	db := testpki.DB(t)
	rapid.Check(t, func(rt *rapid.T) {
		if err := db.Write(context.Background(), func(tx *sql.Tx) error { _, err := tx.Exec("DELETE FROM requests"); return err }); err != nil {
			rt.Fatal(err)
		}
		fates := []fate{fine, unreachable, lost, swallowed, pending, refuses, crash, crashBefore}
		calm := false
		next := func() fate {
			if calm {
				return fine
			}
			return rapid.SampledFrom(fates).Draw(rt, "fate")
		}
		now := time.Now()
		var cas []*fakeCA
		for range 2 {
			cas = append(cas, &fakeCA{real: real, next: next, issued: map[string][]string{}, revoked: map[string]bool{},
				repetition: rapid.SampledFrom([]upstream.Repetition{upstream.RepeatSame, upstream.RepeatFound, upstream.RepeatBlind}).Draw(rt, "repetition")})
		}
		start := func() *desk { return newDesk(t, db, func() time.Time { return now }, cas...) }
		d := start()
		resume := func() {
			now = now.Add(20 * time.Minute)
			if !survives(func() { _, _ = d.resumeAlone() }) {
				d = start()
			}
		}
		for n := range rapid.IntRange(1, 5).Draw(rt, "requests") {
			route := []string{"CA0", "CA1"}[:rapid.IntRange(1, 2).Draw(rt, "route")]
			if rapid.Bool().Draw(rt, "approval") {
				d.approved(t, n, route)
			} else if !d.request(t, n, route) {
				d = start()
			}
			if rapid.Bool().Draw(rt, "resume") {
				resume()
			}
		}
		calm = true
		for range 3 {
			resume()
		}
		reconcile(rt, d)
	})
}

// resumeAlone is Resume with one order at a time, so that a test can be killed in it.
func (d *desk) resumeAlone() (int, error) {
	n := 0
	for _, signer := range d.signers {
		for {
			rows, err := d.Ledger.ClaimDue(context.Background(), signer.Name, d.void(), 1, false)
			if err != nil || len(rows) == 0 || n > 50 {
				break
			}
			n++
			if _, err := d.claimed(context.Background(), d.CAs[0], rows[0]); err != nil {
				if _, ok := errors.AsType[*Refusal](err); !ok {
					return n, err
				}
			}
		}
	}
	return n, nil
}

// reconcile compares what the CAs have issued with the ledger.
func reconcile(rt *rapid.T, d *desk) {
	rows, err := d.Ledger.List(context.Background(), "", 100)
	if err != nil {
		rt.Fatal(err)
	}
	for _, r := range rows {
		subject := fmt.Sprintf("%x", r.Profile.Subject)
		var issued []string
		for _, f := range d.cas {
			issued = append(issued, f.issued[subject]...)
		}
		switch {
		case len(issued) > 1:
			rt.Errorf("request %d has the certificates %q", r.ID, issued)
		case r.State == ledger.Issued && (len(issued) != 1 || issued[0] != r.Serial):
			rt.Errorf("request %d has certificate %q; issued were %q", r.ID, r.Serial, issued)
		case r.State == ledger.Denied && len(issued) > 0:
			rt.Errorf("request %d is denied, and its CA has issued %q", r.ID, issued)
		case r.State == ledger.Waiting && r.Doubt == "", r.State == ledger.Open, r.State == ledger.Approved, r.State == ledger.Failed:
			rt.Errorf("request %d is %s, after everything answers again: %s", r.ID, r.State, r.Trouble)
		}
	}
}

// An order in doubt is left alone until somebody says what the CA has done with it.
func TestDoubtIsSettledByAPerson(t *testing.T) {
	real := testpki.CA(t, testpki.DB(t), time.Now)
	what := lost
	ca := &fakeCA{real: real, repetition: upstream.RepeatBlind, next: func() fate { return what }, issued: map[string][]string{}, revoked: map[string]bool{}}
	now := time.Now()
	d := newDesk(t, testpki.DB(t), func() time.Time { return now }, ca)
	ctx := context.Background()
	for n := range 3 {
		d.request(t, n, []string{"CA0"})
	}
	what = fine
	for range 3 {
		now = now.Add(time.Hour)
		if _, err := d.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := d.Ledger.InDoubt(ctx, 10)
	if err != nil || len(rows) != 3 || !strings.Contains(rows[0].Doubt, "look for") {
		t.Fatalf("%d rows in doubt, %v", len(rows), err)
	}
	if queues, err := d.Ledger.Queues(ctx); err != nil || len(queues) != 1 || queues[0].Doubt != 3 || queues[0].Waiting != 0 {
		t.Errorf("%+v, %v", queues, err)
	}
	// The certificate that the CA has issued; another one is refused.
	order, err := orderOf(rows[0])
	if err != nil {
		t.Fatal(err)
	}
	order.ID += "0"
	found, err := real.Submit(ctx, order)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := testpki.Agent(t, "foreign", now, now.Add(time.Hour))
	if _, err := d.Settle(ctx, rows[0].ID, foreign, false, "admin", "found"); err == nil {
		t.Error("a certificate of another CA settles the doubt")
	}
	if r, err := d.Settle(ctx, rows[0].ID, found.Certificate, false, "admin", "found"); err != nil || r.State != ledger.Issued || r.Serial != ledger.SerialText(found.Certificate) {
		t.Errorf("%+v, %v", r, err)
	}
	// None, and the order goes to the CA again.
	ca.issued = map[string][]string{}
	if r, err := d.Settle(ctx, rows[1].ID, nil, true, "admin", "the CA's log has none"); err != nil || r.State != ledger.Waiting || r.Doubt != "" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := d.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if r, err := d.Ledger.Get(ctx, rows[1].ID); err != nil || r.State != ledger.Issued {
		t.Errorf("%+v, %v", r, err)
	}
	// None, and the client shall ask anew.
	if r, err := d.Settle(ctx, rows[2].ID, nil, false, "admin", "no such request there"); err != nil || r.State != ledger.Denied {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := d.Settle(ctx, rows[2].ID, nil, true, "admin", "again"); err == nil {
		t.Error("what is settled is settled again")
	}
	lines, err := audit.Verify(ctx, d.DB.SQL)
	if err != nil || lines < 3+1+1+1+1 { // doubts, issued, settled, issued, denied
		t.Errorf("%d lines in the audit log, %v", lines, err)
	}
}
