package batch_test

import (
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// An agent leaves and another comes: what two of three could open, two of the new three can, and the old record goes when somebody
// else than the worker has proven the new one.
func TestRecordsAreSealedToTheNewAgentsAndProvenByAnother(t *testing.T) {
	for _, required := range []int{1, 2, 3} {
		a := newArchive(t, required)
		leaver, two, three := a.agents[0], a.agents[1], a.agents[2]
		key, id := a.archive(t, "alice")
		before := a.entry(t, id).Sealed()
		four := a.designate(t, "kra4")
		b, f := a.taken(t, a.rewrap(two, three, four), two)
		a.consent(t, b, f, []*agent{leaver, three}[:required-1]...)
		if done := a.work(t, b, f, two); done.Batch.State != batch.Done || done.Batch.Records["done"] != 1 {
			t.Fatalf("%d: %+v", required, done.Batch)
		}
		e := a.entry(t, id)
		if !opens(t, e, key, []*agent{four, three, two}[:required]...) || opens(t, e, key, []*agent{leaver, two, three}[:required]...) {
			t.Errorf("%d: the record is sealed to %v", required, e.Recipients)
		}
		if e.Required != required || !slices.Equal(e.Recipients, f.Statement.Order.Targets) || a.number(t, "SELECT count(*) FROM escrow_previous WHERE sealed = ?", before) != 1 {
			t.Errorf("%d: %+v", required, e)
		}
		a.dismiss(t, leaver)
		a.now = a.now.Add(25 * time.Hour)
		if h, err := a.escrow.Health(background, nil, 0, nil); err != nil || len(h.Warnings) != 1 || h.Warnings[0].Fix != fmt.Sprintf("enrollgate escrow rewrap verify %d", b) {
			t.Errorf("%d: %+v, %v", required, h, err)
		}
		verify := batch.Selection{Purpose: recovery.Drill, Policy: "mail", Verifies: b}
		v, vf := a.taken(t, verify, four)
		a.consent(t, v, vf, []*agent{two, three}[:required-1]...)
		a.now = a.now.Add(time.Minute)
		if done := a.work(t, v, vf, four); done.Batch.State != batch.Done {
			t.Fatalf("%d: %+v", required, done.Batch)
		}
		if e := a.entry(t, id); !e.Proven.Equal(a.now.UTC()) || a.number(t, "SELECT count(*) FROM escrow_previous") != 0 || a.number(t, "SELECT count(*) FROM escrow_batch_parts") != 0 {
			t.Errorf("%d: proven %v", required, e.Proven)
		}
		if a.count(t, audit.KeyRewrapped) != 1 || a.count(t, audit.KeyProven) != 1 || a.count(t, audit.BatchEnded) != 2 || a.count(t, audit.BatchConsented) != 2*(required-1) {
			t.Errorf("%d: the audit log lacks something", required)
		}
		// Nothing is left to do.
		_, err := a.Draft(background, who("helpdesk"), a.rewrap(two, three, four))
		wantCode(t, "again", err, hresult.InvalidArg)
	}
}

func TestAnyOtherAgentOpensARewrappedRecordAndOpenSSLToo(t *testing.T) {
	a := newArchive(t, 1)
	key, id := a.archive(t, "alice")
	four := a.designate(t, "kra4")
	b, f := a.taken(t, a.rewrap(a.agents[1], four), a.agents[1])
	a.work(t, b, f, a.agents[1])
	for _, n := range []*agent{a.agents[1], four} {
		if !opens(t, a.entry(t, id), key, n) {
			t.Errorf("OpenSSL with the key of %s does not open it", n.name)
		}
	}
}

// The worker's machine dies at any record, and the message about some records is lost or sent twice.
func TestWorkThatIsInterruptedGoesOnWhereItWasAndDoesNothingTwice(t *testing.T) {
	a := newArchive(t, 2)
	one, two := a.agents[0], a.agents[1]
	const records = recovery.PageSize + 3
	keys := map[int64]*rsa.PrivateKey{}
	for i := range records {
		key, id := a.archive(t, fmt.Sprintf("user%d", i))
		keys[id] = key
	}
	b, f := a.taken(t, a.rewrap(two, a.agents[2]), two)
	a.consent(t, b, f, one)
	first := a.results(t, b, f, two, 0)
	send := func(some []recovery.Result) *batch.Finished {
		t.Helper()
		done, err := a.Results(background, who("kra2"), b, batch.Report{Results: some})
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	if done := send(first[:7]); done.Batch.Records["done"] != 7 || done.Batch.State != batch.Open {
		t.Fatalf("%+v", done.Batch)
	}
	after := a.entry(t, first[0].Record).Sealed()
	// The same message again, and another made of the same record: both change nothing.
	send(first[:7])
	again := first[0]
	again.Sealed = first[1].Sealed
	send([]recovery.Result{again})
	if string(a.entry(t, first[0].Record).Sealed()) != string(after) || a.count(t, audit.KeyRewrapped) != 7 {
		t.Error("something was done twice")
	}
	a.work(t, b, f, two) // from the beginning, on a machine that has nothing but the file and the agent's key
	if a.count(t, audit.KeyRewrapped) != records || a.number(t, "SELECT count(*) FROM escrow_previous") != records {
		t.Errorf("%d records were rewrapped", a.count(t, audit.KeyRewrapped))
	}
	for id, key := range keys {
		if !opens(t, a.entry(t, id), key, two, a.agents[2]) {
			t.Errorf("record %d is lost", id)
		}
	}
}

func TestARecordThatTooFewAgentsCanOpenIsNamed(t *testing.T) {
	a := newArchive(t, 2)
	_, lost := a.archive(t, "alice")
	a.dismiss(t, a.agents[0])
	a.dismiss(t, a.agents[1])
	four, five := a.designate(t, "kra4"), a.designate(t, "kra5")
	_, good := a.archive(t, "both")
	d, err := a.Draft(background, who("helpdesk"), a.rewrap(a.agents[2], four))
	if err != nil || d.Records != 1 || len(d.Left) != 1 || d.Left[0].Record != lost || d.Left[0].Owner != "alice@LAB.TEST" || !strings.Contains(d.Left[0].Why, "it takes 2 agents, and 1") {
		t.Fatalf("%+v, %v", d, err)
	}
	o := d.Order(a.rewrap(a.agents[2], four), "helpdesk@LAB.TEST", "kra4@LAB.TEST", "kra1 and kra2 left")
	if _, err := a.Order(background, who("helpdesk"), d.Batch, *o); err != nil {
		t.Fatal(err)
	}
	s, err := a.Show(background, who("helpdesk"), d.Batch)
	if err != nil || len(s.Left) != 1 || s.Batch.Records["left"] != 1 || s.Batch.Records["open"] != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	_ = good
	_, err = a.Draft(background, who("helpdesk"), batch.Selection{Purpose: recovery.Rewrap, Policy: "mail", Records: []int64{lost}, Targets: prints(four, five)})
	wantCode(t, "only lost ones", err, hresult.NoValidKRA)
}

func TestASampleIsRandomAndOfItsSize(t *testing.T) {
	a := newArchive(t, 1)
	for i := range 12 {
		a.archive(t, fmt.Sprintf("user%d", i))
	}
	seen := map[int64]bool{}
	for range 12 {
		s := drill
		s.Size = 3
		id, f := a.taken(t, s, a.agents[0])
		if f.Statement.Order.Records != 3 {
			t.Fatalf("%d records", f.Statement.Order.Records)
		}
		for _, i := range a.page(t, id, "kra1", 0).Items {
			seen[i.Record] = true
		}
	}
	if len(seen) < 8 { // of 12 draws of 3 of 12 fewer than 8 different ones come about once in 10^7 times
		t.Errorf("only %d of 12 records were ever chosen", len(seen))
	}
	s := drill
	s.Percent = 10
	if d, err := a.Draft(background, who("helpdesk"), s); err != nil || d.Records != 2 {
		t.Errorf("10 percent of 12: %+v, %v", d, err)
	}
}

// When the policy takes more agents than the records were sealed for, a rewrap seals them for as many, with as many's consent.
func TestATightenedPolicyIsCarriedIntoOldRecords(t *testing.T) {
	a := newArchive(t, 1)
	key, id := a.archive(t, "alice")
	a.policy.Required, a.policy.Minimum = 2, 2
	a.open(t)
	b, f := a.taken(t, a.rewrap(a.agents...), a.agents[0])
	w, err := recovery.NewWorker(a.info(t, b, "kra1"), f, a.agents[0].key, a.now)
	if err != nil {
		t.Fatal(err)
	}
	p := a.page(t, b, "kra1", 0)
	opened, err := w.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Do(opened, &p.Items[0]); !errors.Is(err, recovery.ErrWaits) {
		t.Errorf("without the second agent's consent: %v", err)
	}
	a.consent(t, b, f, a.agents[1])
	a.work(t, b, f, a.agents[0])
	if e := a.entry(t, id); e.Required != 2 || e.Format != escrow.FormatShared || !opens(t, e, key, a.agents[1], a.agents[2]) || opens(t, e, key, a.agents[1]) {
		t.Errorf("%+v", e)
	}
}

func TestABatchExpiresAndItsPartsAreGone(t *testing.T) {
	a := newArchive(t, 2)
	a.archive(t, "alice")
	b, f := a.taken(t, drill, a.agents[0])
	a.consent(t, b, f, a.agents[1])
	unordered, err := a.Draft(background, who("helpdesk"), drill)
	if err != nil {
		t.Fatal(err)
	}
	results := a.results(t, b, f, a.agents[0], 0)
	a.now = a.now.Add(72 * time.Hour)
	_, err = a.Results(background, who("kra1"), b, batch.Report{Results: results})
	wantCode(t, "too late", err, hresult.BadRequestStatus)
	for range 2 {
		if err := a.Expire(background); err != nil {
			t.Fatal(err)
		}
	}
	s, err := a.Show(background, who("helpdesk"), b)
	if err != nil || s.Batch.State != batch.Expired || a.number(t, "SELECT count(*) FROM escrow_batch_parts") != 0 || a.count(t, audit.BatchEnded) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = a.Show(background, who("helpdesk"), unordered.Batch)
	wantCode(t, "a draft", err, hresult.NoRequest)
	if big.NewInt(0).SetBytes(f.Statement.Order.Nonce).Sign() == 0 || hex.EncodeToString(f.Statement.Order.Nonce) == hex.EncodeToString(unordered.Nonce) {
		t.Error("nonces are not random")
	}
}

// The agents' certificates are renewed with the same keys: what names the old ones is opened with the new ones, and sealed to them.
func TestAgentsWithRenewedCertificatesRewrapWhatTheOldOnesOpened(t *testing.T) {
	a := newArchive(t, 2)
	key, id := a.archive(t, "alice")
	var renewed []*agent
	for _, n := range a.agents {
		cert := testpki.Renewed(t, n.cert, n.key)
		if err := a.escrow.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
		a.dismiss(t, n)
		renewed = append(renewed, &agent{n.name, n.key, cert})
	}
	b, f := a.taken(t, a.rewrap(renewed...), renewed[0])
	a.consent(t, b, f, renewed[2])
	a.work(t, b, f, renewed[0])
	if e := a.entry(t, id); !slices.Equal(e.Recipients, prints(renewed...)) || !opens(t, e, key, renewed[1], renewed[2]) {
		t.Errorf("%+v", e)
	}
}

// What a record costs on the worker's machine, with the open of its own share and the sealing to three agents.
func BenchmarkRewrapOnTheWorkersMachine(b *testing.B) {
	for _, required := range []int{1, 2} {
		b.Run(fmt.Sprintf("%d of 3", required), func(b *testing.B) {
			a := newArchive(b, required)
			a.archive(b, "alice")
			four := a.designate(b, "kra4")
			id, f := a.taken(b, a.rewrap(a.agents[1], a.agents[2], four), a.agents[1])
			a.consent(b, id, f, []*agent{a.agents[0]}[:required-1]...)
			w, err := recovery.NewWorker(a.info(b, id, "kra2"), f, a.agents[1].key, a.now)
			if err != nil {
				b.Fatal(err)
			}
			page := a.page(b, id, "kra2", 0)
			opened, err := w.Open(page)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, _, err := w.Do(opened, &page.Items[0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
