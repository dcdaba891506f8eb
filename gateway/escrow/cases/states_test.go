package cases_test

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
)

// ways are the moves that a case may make.
var ways = map[cases.State][]cases.State{
	cases.Open:     {cases.Open, cases.Approved, cases.Denied, cases.Withdrawn, cases.Expired},
	cases.Approved: {cases.Approved, cases.Fetched, cases.Denied, cases.Withdrawn, cases.Expired},
}

// Whatever people try, in whatever order, a case moves along its ways, is delivered at most once and only with two approvals,
// and the audit log has one line for each step that happened and for each attempt that did not.
func TestACaseMovesOnlyAlongItsWays(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	rapid.Check(t, func(rt *rapid.T) {
		id, file := o.open(t, e)
		var approvals []recovery.Approval
		for _, a := range o.agents {
			approvals = append(approvals, o.approval(t, id, file.Statement.Code(), a))
		}
		begin, state, delivered, approved := o.lines(t), cases.Open, 0, map[int]bool{}
		steps := rapid.IntRange(1, 12).Draw(rt, "steps")
		for range steps {
			person := rapid.SampledFrom([]string{"helpdesk", "boss", "both", "kra1", "kra2", "kra3", "alice"}).Draw(rt, "person")
			var err error
			switch act := rapid.SampledFrom([]string{"approve", "approve", "approve", "approve", "fetch", "fetch", "deny", "withdraw", "wait"}).Draw(rt, "act"); act {
			case "approve":
				i := rapid.IntRange(0, 2).Draw(rt, "agent")
				if _, err = o.Approve(background, who(person), id, approvals[i]); err == nil {
					approved[i] = true
				}
			case "fetch":
				if _, err = o.Fetch(background, who(person), id); err == nil {
					if delivered++; len(approved) < 2 || person != "helpdesk" {
						rt.Fatalf("delivered to %s with %d approvals", person, len(approved))
					}
				}
			case "deny":
				_, err = o.Deny(background, who(person), id, "no")
			case "withdraw":
				_, err = o.Withdraw(background, who(person), id, "no")
			case "wait":
				o.now = o.now.Add(30 * time.Hour)
				before := o.count(t, audit.CaseExpired)
				err = o.Expire(background)
				begin += o.count(t, audit.CaseExpired) - before - 1 // waiting alone is no step
			}
			if begin++; o.lines(t) != begin {
				rt.Fatalf("%d lines in the audit log, want %d, after %v", o.lines(t), begin, err)
			}
			k, _, err := o.Show(background, who("helpdesk"), id)
			if err != nil {
				rt.Fatal(err)
			}
			if k.State != state && !slices.Contains(ways[state], k.State) {
				rt.Fatalf("from %s to %s", state, k.State)
			}
			state = k.State
		}
		if delivered > 1 {
			rt.Fatalf("delivered %d times", delivered)
		}
		o.now = o.now.Add(100 * time.Hour) // the next case begins alone
		if err := o.Expire(background); err != nil {
			rt.Fatal(err)
		}
	})
}

// lines is the length of the audit log.
func (o *office) lines(t testing.TB) (n int) {
	t.Helper()
	if err := o.db.SQL.QueryRow("SELECT count(*) FROM audit").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestManyFetchesAtOnceDeliverOnce(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	first, second := o.approval(t, id, file.Statement.Code(), o.agents[0]), o.approval(t, id, file.Statement.Code(), o.agents[1])
	var counted, delivered atomic.Int32
	atOnce := func(do func()) {
		var group sync.WaitGroup
		for range 16 {
			group.Go(do)
		}
		group.Wait()
	}
	atOnce(func() {
		if _, err := o.Approve(background, who("kra1"), id, first); err == nil {
			counted.Add(1)
		}
	})
	if counted.Load() != 1 {
		t.Errorf("one approval counted %d times", counted.Load())
	}
	if _, err := o.Approve(background, who("kra2"), id, second); err != nil {
		t.Fatal(err)
	}
	atOnce(func() {
		if _, err := o.Fetch(background, who("helpdesk"), id); err == nil {
			delivered.Add(1)
		}
	})
	if delivered.Load() != 1 || o.count(t, audit.CaseFetched) != 1 {
		t.Errorf("delivered %d times", delivered.Load())
	}
	if _, err := audit.Verify(background, o.db.SQL); err != nil {
		t.Error(err)
	}
}
