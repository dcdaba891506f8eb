package escrow_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/sirupsen/logrus"
)

func sha(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

const day = 24 * time.Hour

// newArchive is a vault with rules.
func newArchive(t testing.TB, rules ...escrow.Rule) *vault {
	t.Helper()
	v := &vault{db: testpki.DB(t), now: time.Now().Truncate(time.Second)}
	var err error
	if v.Escrow, err = escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: func() time.Time { return v.now }, Retention: rules}); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vault) entry(t testing.TB, id int64) *escrow.Entry {
	t.Helper()
	e, err := v.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// count is how many lines of an event the audit log has; the log must be intact.
func (v *vault) count(t testing.TB, event audit.Event) (n int) {
	t.Helper()
	if err := audit.Each(background, v.db.SQL, 0, func(l audit.Line) error {
		if l.Event == event {
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(background, v.db.SQL); err != nil {
		t.Error(err)
	}
	return n
}

func (v *vault) retention(most int) *escrow.Retention {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return escrow.NewRetention(v.Escrow, escrow.RetentionOptions{Every: time.Hour, MaxPerRun: most, Log: log})
}

func TestADestroyedKeyIsGoneAndItsRowSaysSo(t *testing.T) {
	v := newArchive(t)
	id := v.put(t, "alice@LAB.TEST", "CN=Alice", "default", v.now.Add(day))
	before := v.entry(t, id)
	if !bytes.Contains(storetest.Files(t, v.db), before.Sealed()[200:264]) {
		t.Fatal("the database's files were not read")
	}
	if err := v.Destroy(background, id, "admin", " "); err == nil {
		t.Error("destroyed without a reason")
	}
	if err := v.Destroy(background, id, "admin", "court order 7"); err != nil {
		t.Fatal(err)
	}
	e := v.entry(t, id)
	if len(e.Sealed()) != 0 || e.Owner != before.Owner || e.KeyID != before.KeyID || e.Destroyed == nil || *e.Destroyed != (escrow.Note{Time: v.now.UTC(), By: "admin", Reason: "court order 7"}) {
		t.Errorf("%+v", e)
	}
	if v.db.Kind == store.SQLite { // PostgreSQL frees the place, and writes over it when it needs it
		if bytes.Contains(storetest.Files(t, v.db), before.Sealed()[200:264]) {
			t.Error("the files of the database still have what was sealed")
		}
	}
	key, agent := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.Add(day))
	if _, err := v.Recover(background, e, key, agent, "admin", "reason"); !errors.Is(err, escrow.ErrRefused) || !strings.Contains(err.Error(), "was destroyed at") || !strings.Contains(err.Error(), "court order 7") {
		t.Errorf("recovering it: %v", err)
	}
	for name, err := range map[string]error{"destroyed twice": v.Destroy(background, id, "admin", "again"), "put on hold": v.Hold(background, id, "admin", "x")} {
		if err == nil || !strings.Contains(err.Error(), "was destroyed at") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cert, err := e.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if has, err := v.Has(background, cert.RawSubjectPublicKeyInfo); has || err != nil {
		t.Errorf("the key counts as archived, %v: a renewal would not enclose it", err)
	}
	if n := v.count(t, audit.KeyDestroyed); n != 1 {
		t.Errorf("%d lines say that it was destroyed", n)
	}
}

func TestAKeyOnHoldIsNotDestroyed(t *testing.T) {
	v := newArchive(t, escrow.Rule{Keep: day})
	id := v.put(t, "alice@LAB.TEST", "CN=Alice", "default", v.now.Add(day))
	if err := v.Hold(background, id, "counsel", "case 12"); err != nil {
		t.Fatal(err)
	}
	v.now = v.now.Add(10 * day)
	if err := v.Destroy(background, id, "admin", "reason"); !errors.Is(err, escrow.ErrKept) || !strings.Contains(err.Error(), "case 12") {
		t.Errorf("by hand: %v", err)
	}
	if r, err := v.retention(10).Check(background); err != nil || r.Due != 0 || r.Destroyed != 0 {
		t.Errorf("by a rule: %+v, %v", r, err)
	}
	if err := v.Hold(background, id, "counsel", "twice"); err == nil {
		t.Error("held twice: the first reason would be lost")
	}
	if e := v.entry(t, id); e.Held == nil || e.Held.Reason != "case 12" || len(e.Sealed()) == 0 {
		t.Errorf("%+v", e)
	}
	if err := v.Release(background, id, "counsel", "settled"); err != nil {
		t.Fatal(err)
	}
	if err := v.Release(background, id, "counsel", "settled"); err == nil {
		t.Error("released twice")
	}
	if r, err := v.retention(10).Check(background); err != nil || r.Destroyed != 1 {
		t.Errorf("after the hold: %+v, %v", r, err)
	}
	if held, released := v.count(t, audit.KeyHeld), v.count(t, audit.KeyReleased); held != 1 || released != 1 {
		t.Errorf("%d and %d lines", held, released)
	}
}

func TestTheFirstRuleThatIsForAKeyCounts(t *testing.T) {
	v := newArchive(t, escrow.Rule{Policies: []string{"executives"}, Keep: 100 * day}, escrow.Rule{Templates: []string{"mail"}, Keep: 10 * day})
	executive := v.put(t, "boss@LAB.TEST", "CN=Boss", "executives", v.now.Add(day))
	soon, late := v.put(t, "alice@LAB.TEST", "CN=Alice", "default", v.now.Add(day)), v.put(t, "bob@LAB.TEST", "CN=Bob", "default", v.now.Add(5*day))
	start := v.now
	for _, step := range []struct {
		days int
		want []int64 // due
	}{{10, nil}, {11, []int64{soon}}, {15, []int64{soon, late}}, {100, []int64{soon, late}}, {101, []int64{executive, soon, late}}} {
		v.now = start.Add(time.Duration(step.days) * day)
		r, err := v.retention(10).Look(background)
		if err != nil || len(r.Keys) != len(step.want) {
			t.Fatalf("after %d days: %+v, %v, want %v", step.days, r, err, step.want)
		}
		for i, id := range step.want {
			if r.Keys[i].ID != id {
				t.Errorf("after %d days: %+v, want %v", step.days, r.Keys, step.want)
			}
		}
	}
	v.now = start.Add(50 * day)
	if err := v.Destroy(background, executive, "admin", "reason"); !errors.Is(err, escrow.ErrKept) || !strings.Contains(err.Error(), "is kept until") {
		t.Errorf("by hand, before its time: %v", err)
	}
	if r, err := v.retention(10).Check(background); err != nil || r.Destroyed != 2 || v.entry(t, soon).Destroyed == nil || v.entry(t, executive).Destroyed != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := v.retention(10).Check(background); err != nil || r.Due != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
}

// A renewal may keep its key and need not enclose it again: the key is kept by the end of the last certificate.
func TestAKeyIsKeptForItsLastCertificate(t *testing.T) {
	v := newArchive(t, escrow.Rule{Keep: day})
	id := v.put(t, "alice@LAB.TEST", "CN=Alice", "default", v.now.Add(day))
	cert, err := v.entry(t, id).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(v.db, func() time.Time { return v.now })
	renewal, err := l.Begin(background, &ledger.Row{State: ledger.Open, CallerSID: "S-1-5-21-1", Template: "Mail", CA: "Test CA", Fingerprint: []byte("renewal")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	renewed := *cert
	renewed.NotAfter = v.now.Add(100 * day)
	if err := l.Finish(background, renewal, "gateway", ledger.Result{State: ledger.Issued, Certificate: &renewed}); err != nil {
		t.Fatal(err)
	}
	// As a version that did not look at keys has left it.
	if _, err := v.db.SQL.Exec("UPDATE requests SET key_id = ?", []byte{}); err != nil {
		t.Fatal(err)
	}
	v.now = v.now.Add(50 * day)
	if r, err := v.retention(10).Check(background); err != nil || r.Due != 0 || r.Destroyed != 0 {
		t.Errorf("while the renewed certificate is valid: %+v, %v", r, err)
	}
	v.now = v.now.Add(52 * day)
	if r, err := v.retention(10).Check(background); err != nil || r.Destroyed != 1 {
		t.Errorf("after it: %+v, %v", r, err)
	}
}

func TestTooManyKeysAtOnceAreAMistakeUntilSomebodyConfirms(t *testing.T) {
	v := newArchive(t, escrow.Rule{Keep: day})
	for range 3 {
		v.put(t, "alice@LAB.TEST", "CN=Alice", "default", v.now.Add(day))
	}
	v.now = v.now.Add(3 * day)
	r, err := v.retention(2).Check(background)
	if err != nil || r.Held == "" || r.Destroyed != 0 || r.Due != 3 || v.count(t, audit.KeyDestroyed) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = v.retention(2).Confirm(background, "admin")
	if err != nil || r.Destroyed != 3 || v.count(t, audit.KeyDestroyed) != 3 || v.count(t, audit.DestroyConfirmed) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestImportedKeysHaveRulesToo(t *testing.T) {
	v := newArchive(t, escrow.Rule{Templates: []string{"Mail"}, Keep: day}, escrow.Rule{Keep: 10 * day})
	_, agent := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.Add(day))
	if err := v.AddAgent(background, agent, "test"); err != nil {
		t.Fatal(err)
	}
	key, cert := testpki.Agent(t, "old", v.now.Add(-time.Hour), v.now.Add(time.Hour))
	id, err := v.Import(background, key, cert, escrow.Owner{Name: "carol@LAB.TEST"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	v.now = v.now.Add(5 * day)
	if r, err := v.retention(10).Check(background); err != nil || r.Due != 0 {
		t.Errorf("by a rule for a template: %+v, %v", r, err)
	}
	v.now = v.now.Add(6 * day)
	if r, err := v.retention(10).Check(background); err != nil || r.Destroyed != 1 || v.entry(t, id).Destroyed == nil {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := v.Import(background, key, cert, escrow.Owner{Name: "carol@LAB.TEST"}, "test"); err == nil || strings.Contains(err.Error(), "archived already") {
		t.Errorf("a destroyed key stands in the way of the same key: %v", err) // here the agent is over
	}
}
