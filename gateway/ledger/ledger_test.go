package ledger_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

func begin(t testing.TB, l *ledger.Ledger, state ledger.State) int64 {
	t.Helper()
	id, err := l.Begin(background, &ledger.Row{State: state, Caller: "alice@LAB.TEST", CallerSID: "S-1-5-21-1", Template: "T", CA: "C", Transport: "test",
		Fingerprint: []byte(rand.Text()), Profile: templates.CertificateProfile{SubjectText: "CN=alice"}, Checks: []templates.Check{{Name: "x", Pass: true}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestStatesChangeOnlyAlongTheirWays(t *testing.T) {
	db := testpki.DB(t)
	l := ledger.New(db, time.Now)
	_, cert := testpki.Agent(t, "x", time.Now(), time.Now().Add(time.Hour))
	finish := func(s ledger.State) func(int64) error {
		return func(id int64) error {
			r := ledger.Result{State: s, Message: "m"}
			if s == ledger.Issued {
				r.Certificate = cert
			}
			return l.Finish(background, id, "test", r)
		}
	}
	approve := func(id int64) error { return l.Decide(background, id, "test", true, "") }
	deny := func(id int64) error { return l.Decide(background, id, "test", false, "no") }
	for _, c := range []struct {
		name  string
		from  ledger.State
		steps []func(int64) error
		want  ledger.State
		fails bool // the last step
	}{
		{"open to issued", ledger.Open, []func(int64) error{finish(ledger.Issued)}, ledger.Issued, false},
		{"issued stays issued", ledger.Open, []func(int64) error{finish(ledger.Issued), finish(ledger.Failed)}, ledger.Issued, true},
		{"pending cannot be issued without approval", ledger.Pending, []func(int64) error{finish(ledger.Issued)}, ledger.Pending, true},
		{"pending, approved, issued", ledger.Pending, []func(int64) error{approve, finish(ledger.Issued)}, ledger.Issued, false},
		{"pending, denied", ledger.Pending, []func(int64) error{deny}, ledger.Denied, false},
		{"denied cannot be approved", ledger.Pending, []func(int64) error{deny, approve}, ledger.Denied, true},
		{"open cannot be approved", ledger.Open, []func(int64) error{approve}, ledger.Open, true},
		{"open, waiting, issued", ledger.Open, []func(int64) error{finish(ledger.Waiting), finish(ledger.Issued)}, ledger.Issued, false},
		{"refused at once is final", ledger.Denied, []func(int64) error{finish(ledger.Issued)}, ledger.Denied, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := begin(t, l, c.from)
			var err error
			for _, step := range c.steps {
				err = step(id)
			}
			if (err != nil) != c.fails {
				t.Errorf("last step: %v", err)
			}
			r, err := l.Get(background, id)
			if err != nil || r.State != c.want {
				t.Errorf("state %v, %v, want %v", r.State, err, c.want)
			}
		})
	}
	if _, err := audit.Verify(background, db.SQL); err != nil {
		t.Error(err)
	}
}

func TestARowAndWhatBelongsToItExistTogether(t *testing.T) {
	l := ledger.New(testpki.DB(t), time.Now)
	_, err := l.Begin(background, &ledger.Row{State: ledger.Open, Fingerprint: []byte{1}}, func(*sql.Tx, int64) error { return errors.New("escrow is full") })
	if err == nil {
		t.Fatal("no error")
	}
	rows, err := l.List(background, "", 10)
	if err != nil || len(rows) != 0 {
		t.Errorf("%d rows, %v: the row must not exist without its key", len(rows), err)
	}
}

func TestRowsComeBackWhole(t *testing.T) {
	l := ledger.New(testpki.DB(t), time.Now)
	id := begin(t, l, ledger.Open)
	if err := l.Finish(background, id, "test", ledger.Result{State: ledger.Denied, HResult: hresult.TemplateDenied, Message: "no right"}); err != nil {
		t.Fatal(err)
	}
	r, err := l.Get(background, id)
	if err != nil || r.HResult != hresult.TemplateDenied || r.Message != "no right" || r.Profile.SubjectText != "CN=alice" || len(r.Checks) != 1 || r.Created.IsZero() {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := l.Get(background, id+1); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("unknown request: %v", err)
	}
	open := begin(t, l, ledger.Open)
	begin(t, l, ledger.Pending)
	rows, err := l.Unfinished(background, 10)
	if err != nil || len(rows) != 1 || rows[0].ID != open {
		t.Errorf("unfinished: %v, %v", rows, err)
	}
}

func TestARepeatedRequestIsTheSameRequestForAMoment(t *testing.T) {
	now := time.Now()
	l := ledger.New(testpki.DB(t), func() time.Time { return now })
	send := func(sid security.SID) (int64, error) {
		return l.Begin(background, &ledger.Row{State: ledger.Open, CallerSID: sid, Fingerprint: []byte("same octets")}, nil)
	}
	first, err := send("S-1-5-21-1")
	if err != nil {
		t.Fatal(err)
	}
	again := func(want string) {
		t.Helper()
		_, err := send("S-1-5-21-1")
		if d, ok := errors.AsType[*ledger.DuplicateError](err); !ok || d.ID != first {
			t.Errorf("%s: %v", want, err)
		}
	}
	again("while the first is under way")
	if _, err := send("S-1-5-21-2"); err != nil {
		t.Errorf("another caller: %v", err)
	}
	_, cert := testpki.Agent(t, "x", now, now.Add(time.Hour))
	if err := l.Finish(background, first, "test", ledger.Result{State: ledger.Issued, Certificate: cert}); err != nil {
		t.Fatal(err)
	}
	again("just after it was issued")
	now = now.Add(time.Minute)
	if _, err := send("S-1-5-21-1"); err != nil {
		t.Errorf("a minute later it is a new request: %v", err)
	}
}
