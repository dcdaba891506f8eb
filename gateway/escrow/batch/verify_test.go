package batch_test

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/verify"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"golang.org/x/mod/sumdb/note"
)

// found is what a verification finds.
func (a *archive) found(t testing.TB) (*verify.Report, []verify.Finding) {
	t.Helper()
	_, key, err := note.GenerateKey(bytes.NewReader(make([]byte, 64)), "test")
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	var out []verify.Finding
	report, err := verify.Run(background, verify.Options{DB: a.db, Escrow: a.escrow, Log: v, Now: func() time.Time { return a.now }, Actor: "test"},
		func(f verify.Finding) error { out = append(out, f); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return report, out
}

// enroll archives the key of a request, with its row in the ledger, as the journey does. Where it is not issued it ends without a certificate.
func (a *archive) enroll(t testing.TB, ca *local.CA, owner string, issued bool) {
	t.Helper()
	exchange, err := a.escrow.Exchange(background, "Test CA", ca.Identity())
	if err != nil {
		t.Fatal(err)
	}
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: testpki.RSA(t, 2048), Exchange: exchange})
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	record, err := a.escrow.Open("Test CA", r, escrow.Owner{Name: owner + "@LAB.TEST"})
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(a.db, func() time.Time { return a.now })
	fingerprint := sha256.Sum256(der)
	id, err := l.Begin(background, &ledger.Row{State: ledger.Open, Caller: owner + "@LAB.TEST", Template: "Mail", CA: "Test CA", Fingerprint: fingerprint[:], CSR: r.CSR.Raw},
		func(tx *sql.Tx, id int64) error {
			_, err := record.Insert(tx, a.now, id, "gateway", record.Owner, "CN=Alice")
			return err
		})
	if err != nil {
		t.Fatal(err)
	}
	result := ledger.Result{State: ledger.Failed}
	if issued {
		answer, err := ca.Submit(background, upstream.Order{ID: fmt.Sprint(id), PublicKey: r.CSR.PublicKey, Profile: templates.CertificateProfile{
			Subject: []byte{0x30, 0}, NotBefore: a.now, NotAfter: a.now.Add(time.Hour)}})
		if err != nil {
			t.Fatal(err)
		}
		result = ledger.Result{State: ledger.Issued, Certificate: answer.Certificate}
	}
	if err := l.Finish(background, id, "test", result); err != nil {
		t.Fatal(err)
	}
}

// Whatever is done by the gateway's own means, in whatever order: verify has nothing to say.
func TestVerifyIsSilentOnWhatNobodyHasTouched(t *testing.T) {
	for seed := range uint64(6) {
		required := 1 + int(seed%3)
		t.Run(fmt.Sprintf("seed %d, %d of 3", seed, required), func(t *testing.T) {
			a, dice := newArchive(t, required), rand.New(rand.NewPCG(seed, 1))
			ca := testpki.CA(t, a.db, func() time.Time { return a.now })
			four := a.designate(t, "kra4")
			for step := range 14 {
				a.now = a.now.Add(time.Minute)
				owner := fmt.Sprintf("user%d", step)
				switch what := dice.IntN(6); {
				case step < 2 || what == 0:
					a.archive(t, owner)
				case what == 1:
					a.enroll(t, ca, owner, dice.IntN(3) > 0)
				case what < 4:
					a.sealAnew(t, dice, four)
				case what == 4:
					a.proveAll(t)
				default:
					a.takeBack(t)
				}
			}
			report, found := a.found(t)
			if len(found) > 0 || report.Records != int64(a.number(t, "SELECT count(*) FROM escrow_records")) || report.Unhashed != 0 {
				t.Errorf("%+v\n%+v", report, found)
			}
			t.Logf("%d records: %d rewrapped, %d proven, %d taken back", report.Records, a.count(t, audit.KeyRewrapped), a.count(t, audit.KeyProven), a.count(t, audit.KeyRestored))
		})
	}
}

// What a rewrap has replaced would be put back by restore: it is compared, too.
func TestAttackSwappedPreviousRecordIsFoundByVerify(t *testing.T) {
	a := newArchive(t, 2)
	_, alices := a.archive(t, "alice")
	_, bobs := a.archive(t, "bob")
	a.through(t, a.rewrap(a.agents[0], a.agents[1], a.designate(t, "kra4")), a.agents[0])
	if _, found := a.found(t); len(found) != 0 {
		t.Fatalf("%+v", found)
	}
	a.exec(t, "UPDATE escrow_previous SET sealed = (SELECT sealed FROM escrow_previous WHERE record = ?) WHERE record = ?", bobs, alices)
	if report, found := a.found(t); report.Bad != 1 || len(found) != 1 || found[0].Record != alices {
		t.Errorf("%+v, %+v", report, found)
	}
}

// sealAnew rewraps to three of the four agents; nothing to do is no error.
func (a *archive) sealAnew(t testing.TB, dice *rand.Rand, four *agent) {
	t.Helper()
	targets := []*agent{a.agents[0], a.agents[1], four}
	if dice.IntN(2) == 0 {
		targets = a.agents[:3]
	}
	s := a.rewrap(targets...)
	if d, err := a.Draft(background, who("helpdesk"), s); err != nil {
		return
	} else if _, err := a.Cancel(background, who("helpdesk"), d.Batch, "only looked"); err != nil {
		t.Fatal(err)
	}
	a.through(t, s, a.agents[0])
}

// proveAll drills every record.
func (a *archive) proveAll(t testing.TB) {
	t.Helper()
	s := drill
	s.Percent = 100
	a.through(t, s, a.agents[1])
}

// through orders a batch and does it, with the consent of as many as it takes.
func (a *archive) through(t testing.TB, s batch.Selection, worker *agent) {
	t.Helper()
	id, f := a.taken(t, s, worker)
	var others []*agent
	for _, n := range a.agents[:3] {
		if n != worker && len(others) < a.policy.Required-1 {
			others = append(others, n)
		}
	}
	a.consent(t, id, f, others...)
	a.work(t, id, f, worker)
}

// takeBack restores the newest record that was sealed anew and not proven, if there is one.
func (a *archive) takeBack(t testing.TB) {
	t.Helper()
	if record := a.number(t, "SELECT coalesce(max(record), 0) FROM escrow_previous"); record != 0 {
		if err := a.Restore(background, who("helpdesk"), int64(record), "changed our minds"); err != nil {
			t.Fatal(err)
		}
	}
}
