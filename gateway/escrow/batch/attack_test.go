package batch_test

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// A gateway in foreign hands shows the worker and the agents a batch with an agent of its own among those that records are sealed to,
// with its own batch key, or with more records than the manager has ordered. The codes, which people tell each other, do not match.
func TestAttackCompromisedGatewayNamesAnAgentOfItsOwn(t *testing.T) {
	a := newArchive(t, 2)
	a.archive(t, "alice")
	one, two, three := a.agents[0], a.agents[1], a.agents[2]
	id, order := a.ordered(t, a.rewrap(two, three), "kra2")
	mallory := a.designate(t, "mallory")
	mine, err := recovery.NewCaseKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(o *recovery.Order){
		"its own agent too":          func(o *recovery.Order) { o.Targets = prints(two, three, mallory) },
		"its own agent in one place": func(o *recovery.Order) { o.Targets = prints(two, mallory) },
		"fewer agents":               func(o *recovery.Order) { o.Required = 1 },
		"another reason":             func(o *recovery.Order) { o.Reason = "routine" },
		"other records":              func(o *recovery.Order) { o.Pages = [][]byte{make([]byte, 32)} },
	} {
		info := a.info(t, id, "kra2")
		change(&info.Statement.Order)
		info.Targets = append(info.Targets, mallory.cert.Raw)
		if _, err := recovery.NewBatchFile(info, order.Code(), two.key); !errors.Is(err, recovery.ErrCode) {
			t.Errorf("the worker: %s: %v", name, err)
		}
	}
	f, err := recovery.NewBatchFile(a.info(t, id, "kra2"), order.Code(), two.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Take(background, who("kra2"), id, f.Statement); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(s *recovery.BatchStatement){
		"its own agent":     func(s *recovery.BatchStatement) { s.Order.Targets = prints(two, mallory) },
		"its own batch key": func(s *recovery.BatchStatement) { s.PublicKey = mine.Public() },
		"its own worker":    func(s *recovery.BatchStatement) { s.Agent = mallory.print() },
	} {
		info := a.info(t, id, "kra1")
		change(&info.Statement)
		if _, err := recovery.NewConsent(info, f.Statement.Code(), one.key, a.now); !errors.Is(err, recovery.ErrCode) {
			t.Errorf("an agent: %s: %v", name, err)
		}
	}
}

// The codes are right, and the gateway sends the certificate of its own agent under the fingerprint of another, or bob's record on the
// page.
func TestAttackCompromisedGatewaySendsOtherThingsThanOrdered(t *testing.T) {
	a := newArchive(t, 2)
	a.archive(t, "alice")
	_, bobs := a.archive(t, "bob")
	one, two, three := a.agents[0], a.agents[1], a.agents[2]
	s := a.rewrap(two, three)
	s.Records = []int64{1}
	id, f := a.taken(t, s, two)
	mallory := a.designate(t, "mallory")
	info := a.info(t, id, "kra2")
	info.Targets = [][]byte{two.cert.Raw, mallory.cert.Raw}
	if _, err := recovery.NewWorker(info, f, two.key, a.now); err == nil {
		t.Error("the worker took another certificate for an agent's")
	}
	c, err := recovery.NewConsent(a.info(t, id, "kra1"), f.Statement.Code(), one.key, a.now)
	if err != nil {
		t.Fatal(err)
	}
	page := a.page(t, id, "kra1", 0)
	bob := a.entry(t, bobs)
	page.Items[0].Record, page.Items[0].KeyID, page.Items[0].Owner, page.Items[0].Archived.Sealed = bob.ID, bob.KeyID, bob.Owner, bob.Sealed()
	if _, _, err := c.Page(page); err == nil || !strings.Contains(err.Error(), "another than was ordered") {
		t.Errorf("bob's record on alice's page: %v", err)
	}
	page = a.page(t, id, "kra1", 0)
	page.Items[0].Archived.Sealed = bob.Sealed()
	if parts, skipped, err := c.Page(page); err != nil || parts != nil || len(skipped) != 1 || !strings.Contains(skipped[0].Error(), "was changed") {
		t.Errorf("bob's sealed key in alice's record: %v, %v, %v", parts, skipped, err)
	}
}

// The worker has alice's key in hand, and sends something else for alice's record.
func TestAttackWorkerUploadsAnotherPersonsKeyUnderAlicesRecord(t *testing.T) {
	for _, required := range []int{1, 2} {
		a := newArchive(t, required)
		one, two, three := a.agents[0], a.agents[1], a.agents[2]
		key, alices := a.archive(t, "alice")
		bobKey, bobs := a.archive(t, "bob")
		b, f := a.taken(t, a.rewrap(two, three), two)
		a.consent(t, b, f, []*agent{one}[:required-1]...)
		good := a.results(t, b, f, two, 0)
		send := func(r recovery.Result) error {
			_, err := a.Results(background, who("kra2"), b, batch.Report{Results: []recovery.Result{r}})
			return err
		}
		bobs64 := good[1]
		bobs64.Record = alices
		wantCode(t, "bob's result", send(bobs64), hresult.AccessDenied)
		signed := good[0]
		signed.Signature = good[1].Signature
		wantCode(t, "signed with bob's key", send(signed), hresult.AccessDenied)
		replaced := good[0]
		replaced.Sealed = good[1].Sealed
		wantCode(t, "alice's signature for another record", send(replaced), hresult.AccessDenied)

		// What cannot be seen from outside: alice's binding and signature, and bob's key inside. It is found by who proves it, and nothing
		// is lost.
		evil := a.forged(t, f, alices, bobKey)
		sealed(t, &evil, f, a.page(t, b, "kra2", 0), key)
		if err := send(evil); err != nil {
			t.Fatal(err)
		}
		if err := send(good[1]); err != nil {
			t.Fatal(err)
		}
		v, vf := a.taken(t, batch.Selection{Purpose: recovery.Drill, Policy: "mail", Verifies: b}, three)
		a.consent(t, v, vf, []*agent{two}[:required-1]...)
		done := a.work(t, v, vf, three)
		if done.Batch.Records["failed"] != 1 || done.Batch.Records["done"] != 1 || a.count(t, audit.RecordFailed) != 1 {
			t.Fatalf("%d: %+v", required, done.Batch)
		}
		if !a.entry(t, alices).Proven.IsZero() || a.entry(t, bobs).Proven.IsZero() || a.number(t, "SELECT count(*) FROM escrow_previous WHERE record = ?", alices) != 1 {
			t.Error("what could not be opened counts as proven")
		}
		wantCode(t, "restored by an agent", a.Restore(background, who("kra3"), alices, "bad rewrap"), hresult.AccessDenied)
		if err := a.Restore(background, who("helpdesk"), alices, "bad rewrap"); err != nil {
			t.Fatal(err)
		}
		if !opens(t, a.entry(t, alices), key, []*agent{one, two}[:required]...) {
			t.Error("alice's key is lost")
		}
		wantCode(t, "restored twice", a.Restore(background, who("helpdesk"), alices, "again"), hresult.AccessDenied)
		wantCode(t, "a proven one", a.Restore(background, who("helpdesk"), bobs, "again"), hresult.AccessDenied)
	}
}

// forged has bob's key sealed as that of alice's record.
func (a *archive) forged(t testing.TB, f *recovery.BatchFile, record int64, bobs *rsa.PrivateKey) recovery.Result {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(bobs)
	if err != nil {
		t.Fatal(err)
	}
	id, err := hex.DecodeString(a.entry(t, record).KeyID)
	if err != nil {
		t.Fatal(err)
	}
	r, err := escrow.Reseal(pkcs8, id, "alice@LAB.TEST", "mail", f.Statement.Order.Required, quorum.Certificates(a.agents[1].cert, a.agents[2].cert))
	if err != nil {
		t.Fatal(err)
	}
	return recovery.Result{Record: record, Format: r.Format, Sealed: r.Sealed}
}

// sealed signs a result as a worker who has the key in hand can.
func sealed(t testing.TB, r *recovery.Result, f *recovery.BatchFile, p *recovery.Page, key *rsa.PrivateKey) {
	t.Helper()
	for i := range p.Items {
		if p.Items[i].Record != r.Record {
			continue
		}
		if err := r.Sign(&f.Statement, &p.Items[i], key); err != nil {
			t.Fatal(err)
		}
	}
}

// A consent is sent again: to another batch, for another page, by another person, by the agent of the same person.
func TestAttackReplayedBatchConsent(t *testing.T) {
	a := newArchive(t, 2)
	a.archive(t, "alice")
	one, two, three := a.agents[0], a.agents[1], a.agents[2]
	first, ff := a.taken(t, drill, two)
	old := a.parts(t, first, ff, one, 0)
	if _, err := a.Consent(background, who("kra1"), first, *old); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Consent(background, who("kra1"), first, *old); err != nil || a.count(t, audit.BatchConsented) != 1 {
		t.Errorf("the same message again: %v", err)
	}
	second, sf := a.taken(t, drill, two)
	replay := *old
	replay.Batch = second
	_, err := a.Consent(background, who("kra1"), second, replay)
	wantCode(t, "to another batch", err, hresult.AccessDenied)
	replay.Statement = a.parts(t, second, sf, one, 0).Statement
	_, err = a.Consent(background, who("kra1"), second, replay)
	wantCode(t, "with the other batch's statement", err, hresult.AccessDenied)
	_, err = a.Consent(background, who("kra3"), first, *old)
	wantCode(t, "by another person", err, hresult.BadRequestStatus)
	_, err = a.Consent(background, who("kra1"), first, *a.parts(t, first, ff, three, 0))
	wantCode(t, "by the same person with another agent's key", err, hresult.BadRequestStatus)
	named := *old
	named.Agent = three.print()
	_, err = a.Consent(background, who("kra3"), first, named)
	wantCode(t, "under another agent's name", err, hresult.AccessDenied)
	// The worker's machine does not believe what a gateway replays to it either.
	w, err := recovery.NewWorker(a.info(t, second, "kra2"), sf, two.key, a.now)
	if err != nil {
		t.Fatal(err)
	}
	page := a.page(t, second, "kra2", 0)
	page.Parts = []recovery.Parts{*old, replay}
	opened, err := w.Open(page)
	if err != nil || len(opened.Bad) != 2 {
		t.Fatalf("%+v, %v", opened, err)
	}
	if _, _, err := w.Do(opened, &page.Items[0]); !errors.Is(err, recovery.ErrWaits) {
		t.Errorf("with replayed consents only: %v", err)
	}
	// A proof of an earlier drill does not count in a later one.
	a.consent(t, second, sf, one)
	proofs := a.results(t, first, ff, two, 0)
	_, err = a.Results(background, who("kra2"), second, batch.Report{Results: proofs})
	wantCode(t, "an old proof", err, hresult.AccessDenied)
}

// Somebody who is no agent, or not the one of the order, wants to be the worker.
func TestAttackRewrapWorkerWhoIsNoAgent(t *testing.T) {
	a := newArchive(t, 2)
	a.archive(t, "alice")
	one, two, three := a.agents[0], a.agents[1], a.agents[2]
	id, order := a.ordered(t, a.rewrap(two, three), "outsider")
	file := func(n *agent) *recovery.BatchFile {
		f, err := recovery.NewBatchFile(a.info(t, id, n.name), order.Code(), n.key)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	outsider := &agent{name: "outsider"}
	outsider.key, outsider.cert = a.designate(t, "outsider").key, a.agents[3].cert
	f := file(outsider)
	_, err := a.Take(background, who("kra1"), id, file(one).Statement)
	wantCode(t, "another agent than the order's", err, hresult.AccessDenied)
	_, err = a.Take(background, who("helpdesk"), id, f.Statement)
	wantCode(t, "the manager", err, hresult.AccessDenied)
	_, err = a.Take(background, who("alice"), id, f.Statement)
	wantCode(t, "alice", err, hresult.AccessDenied)
	a.dismiss(t, outsider)
	_, err = a.Take(background, who("outsider"), id, f.Statement)
	wantCode(t, "with a certificate that is not designated", err, hresult.AccessDenied)
	a.holder["kra1"] = who("kra1").SID
	_, err = a.Take(background, who("outsider"), id, file(one).Statement)
	wantCode(t, "with another agent's certificate", err, hresult.AccessDenied)

	// Designated, but no recipient of the record: agents' machines give nothing away, whatever the gateway says.
	if err := a.escrow.AddAgent(background, outsider.cert, "test"); err != nil {
		t.Fatal(err)
	}
	_, err = a.Take(background, who("outsider"), id, f.Statement)
	wantCode(t, "with a certificate that no record is sealed to", err, hresult.NoValidKRA)
	text, err := json.Marshal(f.Statement)
	if err != nil {
		t.Fatal(err)
	}
	a.exec(t, "UPDATE escrow_batches SET state = 'open', statement = ? WHERE id = ?", string(text), id)
	c, err := recovery.NewConsent(a.info(t, id, "kra1"), f.Statement.Code(), one.key, a.now)
	if err != nil {
		t.Fatal(err)
	}
	if parts, skipped, err := c.Page(a.page(t, id, "kra1", 0)); err != nil || parts != nil || len(skipped) != 1 || !strings.Contains(skipped[0].Error(), "not sealed to the worker") {
		t.Errorf("an agent gave a part to somebody who has none: %v, %v, %v", parts, skipped, err)
	}
}

// Who orders does not work, and who works does not order; nobody but managers choose records, and nobody but the worker sends results.
func TestAttackOneBatchTwoRoles(t *testing.T) {
	a := newArchive(t, 2)
	a.archive(t, "alice")
	one, two := a.agents[0], a.agents[1]
	d, err := a.Draft(background, who("both"), drill)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Order(background, who("both"), d.Batch, *d.Order(drill, "both@LAB.TEST", "both@LAB.TEST", "alone"))
	wantCode(t, "manager and worker in one", err, hresult.AccessDenied)
	_, err = a.Draft(background, who("kra1"), drill)
	wantCode(t, "an agent orders", err, hresult.AccessDenied)
	// Only the worker sends results.
	b, bf := a.taken(t, drill, two)
	a.consent(t, b, bf, one)
	_, err = a.Results(background, who("kra1"), b, batch.Report{Results: a.results(t, b, bf, two, 0)})
	wantCode(t, "results of another", err, hresult.AccessDenied)
	if p := a.page(t, b, "kra3", 0); len(p.Parts) != 0 {
		t.Error("parts were shown to another agent than the worker")
	}
}

// Between the worker's download and upload somebody changes the record.
func TestAttackRecordChangedBetweenDownloadAndUpload(t *testing.T) {
	a := newArchive(t, 2)
	one, two, three := a.agents[0], a.agents[1], a.agents[2]
	_, alices := a.archive(t, "alice")
	_, bobs := a.archive(t, "bob")
	b, f := a.taken(t, a.rewrap(two, three), two)
	a.consent(t, b, f, one)
	results := a.results(t, b, f, two, 0)
	changed := a.entry(t, bobs).Sealed()
	a.exec(t, "UPDATE escrow_records SET sealed = ? WHERE id = ?", changed, alices)
	done, err := a.Results(background, who("kra2"), b, batch.Report{Results: results})
	if err != nil || done.Batch.Records["failed"] != 1 || done.Batch.Records["done"] != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if string(a.entry(t, alices).Sealed()) != string(changed) || a.number(t, "SELECT count(*) FROM escrow_previous WHERE record = ?", alices) != 0 {
		t.Error("a record that was changed meanwhile was overwritten")
	}
	s, err := a.Show(background, who("helpdesk"), b)
	if err != nil || len(s.Left) != 1 || s.Left[0].Record != alices || !strings.Contains(s.Left[0].Why, "was changed") {
		t.Errorf("%+v, %v", s, err)
	}
}

// A rewrap that would let fewer agents open what takes more: ordered so, sealed so, or written into the database.
func TestAttackLoweredQuorumOnRewrap(t *testing.T) {
	a := newArchive(t, 2)
	one, two, three := a.agents[0], a.agents[1], a.agents[2]
	key, alices := a.archive(t, "alice")
	a.policy.Required, a.policy.Minimum = 1, 1 // the policy is loosened; what was sealed to two stays so
	a.open(t)
	_, err := a.Draft(background, who("helpdesk"), a.rewrap(two))
	wantCode(t, "to one agent", err, hresult.InvalidArg)
	s := a.rewrap(two, three)
	d, err := a.Draft(background, who("helpdesk"), s)
	if err != nil || d.Required != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	o := d.Order(s, "helpdesk@LAB.TEST", "kra2@LAB.TEST", "cheaper")
	o.Required = 1
	_, err = a.Order(background, who("helpdesk"), d.Batch, *o)
	wantCode(t, "an order of one", err, hresult.BadRequestStatus)
	b, f := a.taken(t, s, two)
	a.consent(t, b, f, one)
	good := a.results(t, b, f, two, 0)[0]
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := hex.DecodeString(a.entry(t, alices).KeyID)
	certs := []*x509.Certificate{two.cert, three.cert}
	for name, make := range map[string]func() (*escrow.Record, error){
		"any one of them": func() (*escrow.Record, error) {
			return escrow.Reseal(pkcs8, id, "alice@LAB.TEST", "mail", 1, quorum.Certificates(certs...))
		},
		"another policy": func() (*escrow.Record, error) {
			return escrow.Reseal(pkcs8, id, "alice@LAB.TEST", "friends", 2, quorum.Certificates(certs...))
		},
		"another owner": func() (*escrow.Record, error) {
			return escrow.Reseal(pkcs8, id, "mallory@LAB.TEST", "mail", 2, quorum.Certificates(certs...))
		},
		"other agents": func() (*escrow.Record, error) {
			return escrow.Reseal(pkcs8, id, "alice@LAB.TEST", "mail", 2, quorum.Certificates(one.cert, two.cert))
		},
	} {
		r, err := make()
		if err != nil {
			t.Fatal(err)
		}
		bad := recovery.Result{Record: alices, Format: r.Format, Sealed: r.Sealed}
		sealed(t, &bad, f, a.page(t, b, "kra2", 0), key)
		_, err = a.Results(background, who("kra2"), b, batch.Report{Results: []recovery.Result{bad}})
		wantCode(t, name, err, hresult.AccessDenied)
	}
	a.exec(t, "UPDATE escrow_batches SET required = 1 WHERE id = ?", b)
	a.exec(t, "DELETE FROM escrow_batch_parts WHERE batch_id = ?", b)
	if _, err := a.Results(background, who("kra2"), b, batch.Report{Results: []recovery.Result{good}}); err != nil {
		t.Logf("with the row changed: %v", err)
	}
	if e := a.entry(t, alices); e.Format != escrow.FormatShared {
		t.Error("one agent opens it now")
	} else if r, err := quorum.Parse(e.Sealed()); err != nil || r.Required != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}
