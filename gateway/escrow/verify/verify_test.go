package verify_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/verify"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/test/testpki"
	"golang.org/x/mod/sumdb/note"
)

var background = context.Background()

// office is an escrow with three agents, of whom it takes required ones.
type office struct {
	*escrow.Escrow
	db     *store.DB
	agents []*x509.Certificate
}

func newOffice(t testing.TB, required int) *office {
	t.Helper()
	o := &office{db: testpki.DB(t)}
	var err error
	if o.Escrow, err = escrow.New(background, escrow.Options{DB: o.db, Secret: []byte("test secret"), Now: time.Now, Policies: []escrow.Policy{
		{Name: "mail", Agents: []string{escrow.AllAgents}, Required: required, Minimum: required, Managers: []string{"m"}, Approvers: []string{"a"}}}}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, cert := testpki.Agent(t, fmt.Sprintf("kra%d", i+1), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
		if err := o.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
		o.agents = append(o.agents, cert)
	}
	return o
}

func (o *office) archive(t testing.TB, owner string) int64 {
	t.Helper()
	key, cert := testpki.Agent(t, owner, time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	id, err := o.Import(background, key, cert, escrow.Owner{Name: owner + "@LAB.TEST"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// exec is what somebody who writes to the database does.
func (o *office) exec(t testing.TB, query string, args ...any) {
	t.Helper()
	if _, err := o.db.SQL.Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

func verifier(t testing.TB) note.Verifier {
	t.Helper()
	_, key, err := note.GenerateKey(bytes.NewReader(make([]byte, 64)), "test")
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (o *office) verify(t testing.TB, record int64) (*verify.Report, []verify.Finding) {
	t.Helper()
	var found []verify.Finding
	report, err := verify.Run(background, verify.Options{DB: o.db, Escrow: o.Escrow, Log: verifier(t), Now: time.Now, Actor: "test", Record: record},
		func(f verify.Finding) error { found = append(found, f); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return report, found
}

// want verifies, and requires exactly one finding, of a record.
func (o *office) want(t testing.TB, record int64, level verify.Level, what string) {
	t.Helper()
	report, found := o.verify(t, 0)
	if len(found) != 1 || found[0].Record != record || found[0].Level != level || !strings.Contains(found[0].What, what) || found[0].Fix == "" {
		t.Errorf("want %q of record %d, found %+v", what, record, found)
	}
	if report.Bad+report.Attention != 1 {
		t.Errorf("%+v", report)
	}
}

func TestAttackSwappedRecordIsFoundByVerify(t *testing.T) {
	for _, required := range []int{1, 2} {
		o := newOffice(t, required)
		alice, mallory := o.archive(t, "alice"), o.archive(t, "mallory")
		o.exec(t, "UPDATE escrow_records SET sealed = (SELECT sealed FROM escrow_records WHERE id = ?) WHERE id = ?", mallory, alice)
		o.want(t, alice, verify.Bad, "not the one of the audit log")
		// The certificate and the key's identifier, too: it is mallory's record as a whole, under alice's name.
		o.exec(t, `UPDATE escrow_records SET certificate = (SELECT certificate FROM escrow_records WHERE id = ?), key_id = (SELECT key_id FROM escrow_records WHERE id = ?) WHERE id = ?`, mallory, mallory, alice)
		o.want(t, alice, verify.Bad, "owner, policy or key is not that of the audit log")
	}
}

func TestAttackRecordGivenToAnotherOwnerIsFoundByVerify(t *testing.T) {
	for _, required := range []int{1, 2} {
		o := newOffice(t, required)
		id := o.archive(t, "alice")
		o.archive(t, "bob")
		o.exec(t, "UPDATE escrow_records SET owner = 'mallory@LAB.TEST' WHERE id = ?", id)
		o.want(t, id, verify.Bad, "owner, policy or key")
	}
}

func TestAttackLoweredRequiredIsFoundByVerify(t *testing.T) {
	o := newOffice(t, 2)
	id := o.archive(t, "alice")
	o.archive(t, "bob")
	o.exec(t, "UPDATE escrow_records SET required = 1 WHERE id = ?", id)
	o.want(t, id, verify.Bad, "takes 2 agents, not 1")
}

func TestAttackChangedRecipientsAreFoundByVerify(t *testing.T) {
	for _, required := range []int{1, 2} {
		o := newOffice(t, required)
		id := o.archive(t, "alice")
		_, stranger := testpki.Agent(t, "mallory", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
		o.exec(t, "UPDATE escrow_records SET recipients = ? WHERE id = ?", fmt.Sprintf(`[%q,%q,%q]`, escrow.Fingerprint(o.agents[0]), escrow.Fingerprint(o.agents[1]), escrow.Fingerprint(stranger)), id)
		o.want(t, id, verify.Bad, "was ever a recovery agent")
		// One that is an agent, and that it is not sealed to.
		if err := o.AddAgent(background, stranger, "test"); err != nil {
			t.Fatal(err)
		}
		o.want(t, id, verify.Bad, "sealed to")
	}
}

func TestAttackOneChangedOctetIsFoundByVerify(t *testing.T) {
	for _, required := range []int{1, 2} {
		o := newOffice(t, required)
		id := o.archive(t, "alice")
		e, err := o.Get(background, id)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, len(e.Sealed()) / 2, len(e.Sealed()) - 1} {
			changed := bytes.Clone(e.Sealed())
			changed[at] ^= 1
			o.exec(t, "UPDATE escrow_records SET sealed = ? WHERE id = ?", changed, id)
			o.want(t, id, verify.Bad, "not the one of the audit log")
		}
	}
}

func TestAttackDeletedAndEmptiedRecordsAreFoundByVerify(t *testing.T) {
	o := newOffice(t, 1)
	first, _, last := o.archive(t, "alice"), o.archive(t, "bob"), o.archive(t, "carol")
	o.exec(t, "DELETE FROM escrow_words WHERE record = ?", last)
	o.exec(t, "DELETE FROM escrow_records WHERE id = ?", last)
	o.want(t, last, verify.Bad, "is gone")
	if _, found := o.verify(t, last); len(found) != 1 || found[0].Owner != "carol@LAB.TEST" {
		t.Errorf("%+v", found)
	}
	o.exec(t, "UPDATE escrow_records SET sealed = ? WHERE id = ?", []byte{}, first)
	if report, found := o.verify(t, 0); len(found) != 2 || report.Bad != 2 || found[0].Record != first {
		t.Errorf("%+v", found)
	}
	// The log says who has destroyed it: then it is as it has to be.
	if err := o.db.Write(background, func(tx *sql.Tx) error {
		return audit.Append(tx, time.Now(), "test", "key-destroyed", map[string]any{"record": first})
	}); err != nil {
		t.Fatal(err)
	}
	if report, found := o.verify(t, 0); len(found) != 1 || report.Destroyed != 1 || report.Records != 3 {
		t.Errorf("%+v, %+v", report, found)
	}
	o.exec(t, "DELETE FROM escrow_words")
	o.exec(t, "DELETE FROM escrow_records")
	if report, found := o.verify(t, 0); len(found) != 2 || report.Bad != 2 {
		t.Errorf("%+v, %+v", report, found)
	}
}

func TestAttackRecordFromNowhereAndForgedProofAreFoundByVerify(t *testing.T) {
	o := newOffice(t, 1)
	id := o.archive(t, "alice")
	o.exec(t, `INSERT INTO escrow_records (id, created, source, owner, subject, key_id, algorithm, bits, recipients, sealed, certificate, policy, required, format)
		SELECT 5000000, created, source, owner, subject, key_id, algorithm, bits, recipients, sealed, certificate, policy, required, format FROM escrow_records WHERE id = ?`, id)
	o.want(t, 5000000, verify.Bad, "no line")
	o.exec(t, "DELETE FROM escrow_records WHERE id = 5000000")
	o.exec(t, "UPDATE escrow_records SET proven = 1700000000000 WHERE id = ?", id)
	o.want(t, id, verify.Bad, "it was proven")
}

func TestAttackChangedAuditLogEndsAVerification(t *testing.T) {
	o := newOffice(t, 1)
	o.archive(t, "alice")
	storetest.Unlock(t, o.db)
	o.exec(t, "UPDATE audit SET detail = replace(detail, 'alice', 'mallory') WHERE event = 'key-imported'")
	_, err := verify.Run(background, verify.Options{DB: o.db, Escrow: o.Escrow, Log: verifier(t), Now: time.Now}, func(verify.Finding) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "audit log") {
		t.Error(err)
	}
}

func TestARecordThatTooFewAgentsOpenNeedsAttention(t *testing.T) {
	o := newOffice(t, 2)
	id := o.archive(t, "alice")
	for _, cert := range o.agents[:2] {
		if err := o.RemoveAgent(background, escrow.Fingerprint(cert), "test"); err != nil {
			t.Fatal(err)
		}
	}
	o.want(t, id, verify.Attention, "takes 2 agents")
}

func TestRecordsFromBeforeTheLogHadHashesAreCountedNotBad(t *testing.T) {
	o := newOffice(t, 1)
	id := o.archive(t, "alice")
	e, err := o.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Unlock(t, o.db)
	for _, table := range []string{"audit", "audit_tree"} {
		o.exec(t, "DELETE FROM "+table)
	}
	if err := o.db.Write(background, func(tx *sql.Tx) error {
		return audit.Append(tx, time.Now(), "test", audit.KeyImported, map[string]any{"record": id, "owner": e.Owner, "key_id": e.KeyID, "policy": e.Policy})
	}); err != nil {
		t.Fatal(err)
	}
	if report, found := o.verify(t, 0); len(found) != 0 || report.Unhashed != 1 || report.Records != 1 {
		t.Errorf("%+v, %+v", report, found)
	}
}

// More records than a page, archived while a verification goes on.
func TestVerifyIsSilentWhileKeysAreArchived(t *testing.T) {
	o := newOffice(t, 1)
	r := o.record(t)
	if err := o.many(1200, r); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
				if err := o.many(3, r); err != nil {
					ended <- err
					return
				}
			}
		}
	}()
	for range 3 {
		report, found := o.verify(t, 0)
		if len(found) != 0 || report.Records < 1200 {
			t.Errorf("%+v, %+v", report, found[:min(3, len(found))])
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if report, _ := o.verify(t, 7); report.Records != 1 {
		t.Errorf("%+v", report)
	}
	var lines int
	if err := audit.Each(background, o.db.SQL, 0, func(l audit.Line) error {
		if l.Event == audit.EscrowVerified {
			lines++
		}
		return nil
	}); err != nil || lines != 3 {
		t.Errorf("%d lines in the audit log, %v", lines, err)
	}
}

// many archives so many copies of a record, as fast as the database takes them.
func (o *office) many(n int, r escrow.Record) error {
	return o.db.Write(background, func(tx *sql.Tx) error {
		for range n {
			if _, err := r.Insert(tx, time.Now(), 0, "test", r.Owner, "CN=Alice"); err != nil {
				return err
			}
		}
		return nil
	})
}

// record is one that many copies.
func (o *office) record(t testing.TB) escrow.Record {
	t.Helper()
	key, cert := testpki.Agent(t, "alice", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	agents, err := o.ValidFor(background, &o.Policies()[0])
	if err != nil {
		t.Fatal(err)
	}
	var to []quorum.Recipient
	for i := range agents {
		to = append(to, agents[i].Recipient())
	}
	keyID := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	r, err := escrow.Reseal(pkcs8, keyID[:], "alice@LAB.TEST", "mail", o.Policies()[0].Required, to)
	if err != nil {
		t.Fatal(err)
	}
	r.Source, r.Certificate = "import", cert.Raw
	r.Algorithm, r.Bits = escrow.DescribeKey(cert.PublicKey)
	return *r
}
