package leavers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// bench has accounts whose states the test sets, and a clock that only the test moves.
type bench struct {
	*Checker
	states map[security.SID]ldapsync.AccountState
	down   error
	caDown error
	clock  time.Time
	why    []string
	held   bool
}

func (b *bench) Accounts(_ context.Context, sids []security.SID) (map[security.SID]ldapsync.Account, error) {
	out := map[security.SID]ldapsync.Account{}
	for _, sid := range sids {
		out[sid] = ldapsync.Account{State: b.states[sid]}
	}
	return out, b.down
}

func newBench(t *testing.T, accounts int, change func(*Options)) *bench {
	t.Helper()
	b := &bench{states: map[security.SID]ldapsync.AccountState{}, clock: time.Now()}
	log := logrus.New()
	log.SetOutput(io.Discard)
	l := ledger.New(testpki.DB(t), func() time.Time { return b.clock })
	o := Options{Ledger: l, Directory: b, Grace: 24 * time.Hour, MaxPerRun: 3, MaxPercent: 10, Reason: 3, Log: log, Now: func() time.Time { return b.clock },
		Count: func(_ int, held bool) { b.held = held },
		Revoke: func(ctx context.Context, row *ledger.Row, actor string, reason int, why string) error {
			if b.caDown != nil {
				return b.caDown
			}
			b.why = append(b.why, fmt.Sprintf("%s: %d: %s", actor, reason, why))
			return l.Revoked(ctx, row.ID, actor, reason, why)
		}}
	if change != nil {
		change(&o)
	}
	b.Checker = New(o)
	_, cert := testpki.Agent(t, "x", b.clock, b.clock.AddDate(1, 0, 0))
	for i := range accounts {
		b.states[sid(i)] = ldapsync.AccountEnabled
		b.issue(t, i, templates.CertificateProfile{}, ledger.Result{State: ledger.Issued, Certificate: cert})
	}
	return b
}

func sid(i int) security.SID { return security.SID(fmt.Sprintf("S-1-5-21-1-2-3-%d", 1000+i)) }

func (b *bench) issue(t *testing.T, i int, profile templates.CertificateProfile, r ledger.Result) {
	t.Helper()
	id, err := b.o.Ledger.Begin(t.Context(), &ledger.Row{State: ledger.Open, Caller: fmt.Sprintf("user%d@LAB.TEST", i), CallerSID: sid(i), SubjectSID: sid(i), Template: "T", CA: "C",
		Transport: "test", Fingerprint: []byte(rand.Text()), Profile: profile}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.o.Ledger.Finish(t.Context(), id, "test", r); err != nil {
		t.Fatal(err)
	}
}

// set changes the state of the first accounts.
func (b *bench) set(n int, s ldapsync.AccountState) {
	for i := range n {
		b.states[sid(i)] = s
	}
}

// check moves the clock, checks, and requires how many accounts are due and how many certificates were revoked.
func (b *bench) check(t *testing.T, after time.Duration, due, revoked int) *Report {
	t.Helper()
	b.clock = b.clock.Add(after)
	r, err := b.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Due != due || r.Revoked != revoked {
		t.Errorf("after %s: %d due, %d revoked; want %d, %d: %+v", after, r.Due, r.Revoked, due, revoked, r)
	}
	return r
}

func TestTheGracePeriodBeginsWhenAnAccountIsFirstSeenGone(t *testing.T) {
	b := newBench(t, 2, nil)
	b.check(t, 0, 0, 0)
	b.set(1, ldapsync.AccountDisabled)
	b.check(t, time.Hour, 0, 0)
	b.set(1, ldapsync.AccountDeleted) // still gone: the clock goes on
	b.check(t, 23*time.Hour+59*time.Minute, 0, 0)
	b.check(t, time.Minute, 1, 1)
	if len(b.why) != 1 || !strings.HasPrefix(b.why[0], "gateway: 3: the account user0@LAB.TEST is deleted since ") {
		t.Errorf("%v", b.why)
	}
	b.check(t, time.Hour, 0, 0)
}

func TestAnAccountThatReturnsHasANewClock(t *testing.T) {
	b := newBench(t, 1, nil)
	b.set(1, ldapsync.AccountDisabled)
	b.check(t, 0, 0, 0)
	b.set(1, ldapsync.AccountEnabled)
	b.check(t, 23*time.Hour, 0, 0)
	b.set(1, ldapsync.AccountDisabled)
	b.check(t, 2*time.Hour, 0, 0)
	b.check(t, 23*time.Hour, 0, 0)
	b.check(t, time.Hour, 1, 1)
}

func TestNoCertainAnswerMeansNothing(t *testing.T) {
	b := newBench(t, 1, nil)
	b.set(1, ldapsync.AccountDisabled)
	b.check(t, 0, 0, 0)
	b.set(1, ldapsync.AccountUnknown)
	if r := b.check(t, 48*time.Hour, 0, 0); r.Unknown != 1 {
		t.Errorf("%+v", r)
	}
	delete(b.states, sid(0))
	b.check(t, time.Hour, 0, 0)
	b.set(1, ldapsync.AccountDisabled)
	b.down = errors.New("no controller")
	if _, err := b.Check(t.Context()); !errors.Is(err, b.down) || len(b.why) != 0 {
		t.Errorf("%v, %v", err, b.why)
	}
	b.down = nil
	b.check(t, time.Hour, 1, 1)
}

func TestTooManyAtOnceAreAMistakeUntilSomebodyConfirms(t *testing.T) {
	b := newBench(t, 60, nil)
	b.set(4, ldapsync.AccountDisabled)
	b.check(t, 0, 0, 0)
	if r := b.check(t, 24*time.Hour, 4, 0); !strings.Contains(r.Held, "max_per_run (3)") || !b.held {
		t.Errorf("%+v", r)
	}
	b.check(t, time.Hour, 4, 0)
	r, err := b.Confirm(t.Context(), "operator")
	if err != nil || r.Revoked != 4 || r.Held != "" || b.held {
		t.Errorf("%+v, %v", r, err)
	}
}

// A wrong search base makes everybody vanish: also the one who was due holds back then.
func TestWhereAPartOfAllIsGoneNothingIsRevoked(t *testing.T) {
	b := newBench(t, 60, nil)
	b.set(1, ldapsync.AccountDisabled)
	b.check(t, 0, 0, 0)
	b.set(7, ldapsync.AccountDeleted)
	if r := b.check(t, time.Hour, 0, 0); r.Held == "" || !b.held { // in time to put it right
		t.Errorf("%+v", r)
	}
	if r := b.check(t, 23*time.Hour, 1, 0); !strings.Contains(r.Held, "7 of 60") {
		t.Errorf("%+v", r)
	}
	b.set(7, ldapsync.AccountEnabled)
	b.set(1, ldapsync.AccountDisabled)
	b.check(t, time.Hour, 1, 1)
}

func TestOfAFewAccountsEachIsALargePart(t *testing.T) {
	b := newBench(t, 3, nil)
	b.set(3, ldapsync.AccountDisabled)
	b.check(t, 0, 0, 0)
	b.check(t, 24*time.Hour, 3, 3)
}

func TestExpiredAccountsAreLeaversOnlyWhereTheConfigurationSaysSo(t *testing.T) {
	for _, expired := range []bool{false, true} {
		b := newBench(t, 1, func(o *Options) { o.Expired = expired })
		b.set(1, ldapsync.AccountExpired)
		b.check(t, 0, 0, 0)
		n := 0
		if expired {
			n = 1
		}
		b.check(t, 25*time.Hour, n, n)
	}
}

func TestACertificateThatNamesAnotherSubjectIsKept(t *testing.T) {
	b := newBench(t, 1, nil)
	_, cert := testpki.Agent(t, "www", b.clock, b.clock.AddDate(1, 0, 0))
	b.issue(t, 0, templates.CertificateProfile{EnrolleeSubject: true, SubjectText: "CN=www"}, ledger.Result{State: ledger.Issued, Certificate: cert})
	b.set(1, ldapsync.AccountDeleted)
	b.check(t, 0, 0, 0)
	if r := b.check(t, 25*time.Hour, 1, 1); len(r.Leavers[0].Certificates) != 2 || !strings.Contains(r.Leavers[0].Certificates[1].Keep, "CN=www") {
		t.Errorf("%+v", r)
	}
	b.check(t, 25*time.Hour, 0, 0)
	b.check(t, 25*time.Hour, 0, 0)
}

func TestACADownIsAskedAgain(t *testing.T) {
	b := newBench(t, 1, nil)
	b.set(1, ldapsync.AccountDeleted)
	b.check(t, 0, 0, 0)
	b.caDown = errors.New("no CA")
	if r := b.check(t, 25*time.Hour, 1, 0); r.Leavers[0].Error == "" {
		t.Errorf("%+v", r)
	}
	b.caDown = nil
	b.check(t, time.Hour, 1, 1)
}

func TestLookingRecordsNothing(t *testing.T) {
	b := newBench(t, 1, nil)
	b.set(1, ldapsync.AccountDeleted)
	for range 2 {
		r, err := b.Look(t.Context())
		if err != nil || r.Gone != 1 || r.Due != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		b.clock = b.clock.Add(48 * time.Hour)
	}
	if recorded, err := b.o.Ledger.Leavers(t.Context()); err != nil || len(recorded) != 0 {
		t.Errorf("%v, %v", recorded, err)
	}
}
