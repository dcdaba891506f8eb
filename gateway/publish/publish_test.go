package publish

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
)

const alice security.SID = "S-1-5-21-1-2-3-1104"

// fake is a directory with one account, which fails as it is told to.
type fake struct {
	account    ldapsync.Account
	kra        map[string][][]byte
	silent     error // to whoever asks
	refusal    error // to whoever writes
	writes     int
	reconnects int
}

func (f *fake) AccountsWithCertificates(_ context.Context, sids []security.SID) (map[security.SID]ldapsync.Account, error) {
	out := map[security.SID]ldapsync.Account{}
	for _, sid := range sids {
		out[sid] = f.account
	}
	return out, f.silent
}

func (f *fake) ChangeCertificates(_ context.Context, _ security.SID, add, remove [][]byte) error {
	f.writes++
	if f.refusal == nil {
		f.account.Certificates = changed(f.account.Certificates, add, remove)
	}
	return f.refusal
}

func (f *fake) KRACertificates(_ context.Context, name string) ([][]byte, error) {
	return f.kra[name], f.silent
}

func (f *fake) ChangeKRACertificates(_ context.Context, name string, add, remove [][]byte) error {
	f.kra[name] = changed(f.kra[name], add, remove)
	return f.refusal
}

func (f *fake) Reconnect() { f.reconnects++ }

func changed(values, add, remove [][]byte) [][]byte {
	values = append(values, add...)
	var out [][]byte
	for _, v := range values {
		gone := false
		for _, r := range remove {
			gone = gone || bytes.Equal(r, v)
		}
		if !gone {
			out = append(out, v)
		}
	}
	return out
}

// bench is a publisher with a database, a fake directory and a clock that only the test moves.
type bench struct {
	*Publisher
	db    *store.DB
	fake  *fake
	clock time.Time
	log   bytes.Buffer
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{db: testpki.DB(t), clock: time.Now(), fake: &fake{kra: map[string][][]byte{},
		account: ldapsync.Account{State: ldapsync.AccountEnabled, DN: "CN=Alice,DC=lab,DC=test"}}}
	b.restart()
	return b
}

// restart makes another publisher with the same database, as the next process does.
func (b *bench) restart() {
	log := logrus.New()
	log.SetOutput(&b.log)
	b.Publisher = New(Options{Ledger: ledger.New(b.db, func() time.Time { return b.clock }), Directory: b.fake, Snapshot: func() *templates.Snapshot { return &templates.Snapshot{} },
		Retry: time.Minute, MaxRetry: 4 * time.Minute, Account: "svc", Log: log, Now: func() time.Time { return b.clock }, Count: func(string, int) {}})
}

// issue records a certificate that is valid for a day.
func (b *bench) issue(t *testing.T, targets ...ledger.Target) []byte {
	t.Helper()
	id, err := b.o.Ledger.Begin(t.Context(), &ledger.Row{State: ledger.Open, Caller: "alice@LAB.TEST", CallerSID: alice, SubjectSID: alice, Template: "Mail", CA: "CA", Transport: "test",
		Fingerprint: []byte(rand.Text())}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, cert := testpki.Agent(t, "alice", b.clock, b.clock.Add(24*time.Hour))
	if err := b.o.Ledger.Finish(t.Context(), id, "test", ledger.Result{State: ledger.Issued, Certificate: cert, Publish: targets}); err != nil {
		t.Fatal(err)
	}
	return cert.Raw
}

// step works off what is due after a while, and requires how many objects that were and whether they failed.
func (b *bench) step(t *testing.T, after time.Duration, due int, fails bool) {
	t.Helper()
	b.clock = b.clock.Add(after)
	n, err := b.due(t.Context())
	if err != nil && b.fake.silent == nil || n != due {
		t.Errorf("after %s: %d due, %v; want %d", after, n, err, due)
	}
	if _, failing, err := b.o.Ledger.PublicationCounts(t.Context()); err != nil || (failing > 0) != fails {
		t.Errorf("after %s: %d fail, %v", after, failing, err)
	}
}

var account = ledger.Target{Place: ledger.PlaceAccount, Name: string(alice)}

func TestWhatFailsIsTriedAgainLessAndLessOftenAlsoByTheNextProcess(t *testing.T) {
	b := newBench(t)
	b.fake.refusal = errors.New("busy")
	b.issue(t, account)
	b.step(t, 0, 1, true)
	b.step(t, 59*time.Second, 0, true)
	b.step(t, time.Second, 1, true) // after a minute
	b.step(t, time.Minute, 0, true)
	b.restart()
	b.step(t, time.Minute, 1, true) // after two
	b.step(t, 4*time.Minute, 1, true)
	b.step(t, 4*time.Minute, 1, true) // never more than four
	b.fake.refusal = nil
	b.step(t, 4*time.Minute, 1, false)
	if len(b.fake.account.Certificates) != 1 {
		t.Error("not published")
	}
	b.step(t, time.Hour, 0, false)
	b.step(t, 23*time.Hour, 1, false) // it has expired
	if len(b.fake.account.Certificates) != 0 {
		t.Error("not removed")
	}
	b.step(t, 1000*time.Hour, 0, false)
}

func TestAMissingRightIsReportedOnceWithTheGrant(t *testing.T) {
	b := newBench(t)
	b.fake.refusal = &ldapsync.RightError{DN: "CN=Alice,OU=People,DC=lab,DC=test"}
	b.issue(t, account)
	b.step(t, 0, 1, true)
	b.step(t, time.Minute, 1, true)
	if n := strings.Count(b.log.String(), "a right is missing"); n != 1 || !strings.Contains(b.log.String(), `dsacls \"DC=lab,DC=test\" /I:S /G`) {
		t.Errorf("reported %d times: %s", n, b.log.String())
	}
	if b.fake.reconnects != 2 {
		t.Errorf("%d new connections: rights of new groups need one", b.fake.reconnects)
	}
}

func TestADirectoryThatIsDownDelaysNothingForHours(t *testing.T) {
	b := newBench(t)
	b.fake.silent = errors.New("no controller")
	b.issue(t, account)
	for range 10 {
		b.step(t, time.Minute, 1, true)
	}
	b.fake.silent = nil
	b.step(t, time.Minute, 1, false)
}

func TestAnAccountThatIsGoneOrElsewhereIsAFailure(t *testing.T) {
	for state, want := range map[ldapsync.AccountState]string{ldapsync.AccountDeleted: "does not exist", ldapsync.AccountUnknown: "cannot be found"} {
		b := newBench(t)
		b.fake.account = ldapsync.Account{State: state, Why: "x"}
		b.issue(t, account)
		reports, err := b.Pass(t.Context(), false)
		if err != nil || len(reports) != 1 || !strings.Contains(reports[0].Error, want) || b.fake.writes != 0 {
			t.Errorf("%s: %+v, %v", state, reports, err)
		}
	}
}

func TestAPassLooksAtEveryObjectAndADryOneChangesNothing(t *testing.T) {
	b := newBench(t)
	cert := b.issue(t, account, ledger.Target{Place: ledger.PlaceKRA, Name: "Größe"})
	for range 2 {
		reports, err := b.Pass(t.Context(), true)
		if err != nil || len(reports) != 2 || len(reports[0].Add) != 1 || len(reports[1].Add) != 1 || b.fake.writes != 0 || len(b.fake.kra) != 0 {
			t.Fatalf("%+v, %v", reports, err)
		}
	}
	if _, err := b.Pass(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.fake.account.Certificates[0], cert) || !bytes.Equal(b.fake.kra["Gr!00f6!00dfe"][0], cert) {
		t.Errorf("%+v", b.fake)
	}
	for i := range 60 {
		b.issue(t, ledger.Target{Place: ledger.PlaceAccount, Name: string(alice) + strings.Repeat("0", i%3) + string(rune('0'+i%10))})
	}
	if reports, err := b.Pass(t.Context(), true); err != nil || len(reports) != 32 {
		t.Errorf("%d objects, %v", len(reports), err)
	}
}

func TestARevokedCertificateIsTheNextToBeLookedAt(t *testing.T) {
	b := newBench(t)
	b.issue(t, account)
	b.step(t, 0, 1, false)
	if err := b.o.Ledger.Revoked(t.Context(), 1, "test", 1, "why"); err != nil {
		t.Fatal(err)
	}
	b.step(t, 0, 1, false)
	if len(b.fake.account.Certificates) != 0 {
		t.Error("not removed")
	}
}

func TestASweepFindsWhatReplicationBroughtBackAndWritesNothingElse(t *testing.T) {
	b := newBench(t)
	old := b.issue(t, account)
	b.step(t, 0, 1, false)
	renewed := b.issue(t, account)
	b.step(t, 0, 1, false)
	b.fake.account.Certificates = append(b.fake.account.Certificates, old)
	b.step(t, time.Hour, 0, false)
	b.o.Sweep = time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	time.Sleep(200 * time.Millisecond)
	stop()
	<-done
	if c := b.fake.account.Certificates; len(c) != 1 || !bytes.Equal(c[0], renewed) || b.fake.writes != 3 {
		t.Errorf("%d certificates, %d writes", len(c), b.fake.writes)
	}
}
