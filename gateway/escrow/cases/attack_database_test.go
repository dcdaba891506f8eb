package cases_test

import (
	"bytes"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Somebody who writes to the database puts bob's sealed key where alice's is, so that agents who approve alice's case open bob's.
func TestAttackSwappedRecord(t *testing.T) {
	o := newOffice(t, 2)
	_, alices := o.archive(t, "alice")
	_, bobs := o.archive(t, "both")
	id, _ := o.open(t, alices)
	before := o.file(t, id)
	code := before.Statement.Code()
	columns := []string{"sealed", "certificate", "key_id"}
	for n := 1; n <= len(columns); n++ { // ever more of the row is bob's
		column := columns[n-1]
		o.exec(t, "UPDATE escrow_records SET "+column+" = (SELECT "+column+" FROM escrow_records WHERE id = ?) WHERE id = ?", bobs.ID, alices.ID)
		if _, _, err := o.Show(background, who("kra1"), id); err == nil {
			t.Errorf("with %v of bob's key the case is shown to agents", columns[:n])
		}
		if n == len(columns) { // now the row agrees with itself, and a manager opens a case for it
			file, err := recovery.NewCaseFile(statement(o.entry(t, alices.ID), "helpdesk"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = o.Open(background, who("helpdesk"), file.Statement)
			wantCode(t, "bob's key under alice's name", err, hresult.InvalidData)
		}
	}
	// The gateway may be the attacker's; the agent's machine checks for itself.
	f := *before
	f.Sealed, f.Certificate = bobs.Sealed(), certOf(t, bobs)
	if _, err := recovery.Approve(&f, code, o.agents[0].cert, o.agents[0].key, o.now); err == nil {
		t.Error("the agent's machine opened bob's share for alice's case")
	}
	f.Certificate = before.Certificate
	if _, err := recovery.Approve(&f, code, o.agents[0].cert, o.agents[0].key, o.now); err == nil {
		t.Error("the agent's machine opened bob's share under alice's certificate")
	}
}

func certOf(t testing.TB, e *escrow.Entry) []byte {
	t.Helper()
	cert, err := e.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return cert.Raw
}

// Somebody who writes to the database lowers what a key takes, moves it to a policy of friends, or adds approvals.
func TestAttackLoweredQuorumInTheDatabase(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[0])
	o.exec(t, "UPDATE recovery_cases SET required = 1, state = 'approved' WHERE id = ?", id)
	_, err := o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "a case that takes one", err, hresult.BadRequestStatus)
	o.exec(t, `INSERT INTO recovery_approvals SELECT case_id, ?, 'kra2@LAB.TEST', 'S-1-5-21-9', created, approval FROM recovery_approvals WHERE case_id = ?`, escrow.Fingerprint(o.agents[1].cert), id)
	if d, err := o.Fetch(background, who("helpdesk"), id); err == nil {
		if _, _, err := combine(t, d, file); err == nil {
			t.Error("a copied approval counted")
		}
	}
	id, file = o.open(t, e)
	o.approve(t, id, file, o.agents[0])
	first, second := escrow.Fingerprint(o.agents[0].cert), escrow.Fingerprint(o.agents[1].cert)
	var approval []byte
	if err := o.db.SQL.QueryRow("SELECT approval FROM recovery_approvals WHERE case_id = ?", id).Scan(&approval); err != nil {
		t.Fatal(err)
	}
	o.exec(t, `INSERT INTO recovery_approvals SELECT case_id, ?, 'kra2@LAB.TEST', approver_sid || '9', created, ? FROM recovery_approvals WHERE case_id = ?`,
		second, bytes.ReplaceAll(approval, []byte(first), []byte(second)), id)
	o.exec(t, "UPDATE recovery_cases SET state = 'approved' WHERE id = ?", id)
	_, err = o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "an approval that was made up", err, hresult.InvalidData)
	o.exec(t, "UPDATE escrow_records SET required = 1 WHERE id = ?", e.ID)
	_, _, err = o.Show(background, who("kra1"), id)
	wantCode(t, "a key that takes one", err, hresult.InvalidData)
	o.exec(t, "UPDATE escrow_records SET required = 2, policy = 'default' WHERE id = ?", e.ID)
	_, _, err = o.Show(background, who("kra1"), id)
	wantCode(t, "a key under another policy", err, hresult.InvalidData)
}

// A case that was fetched is set back, alone or with the whole database. Alone, the audit log knows; with the whole database,
// the receipts that people keep do.
func TestAttackRolledBackDatabase(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[0], o.agents[1])
	approvals := map[string][]byte{}
	for _, a := range o.agents[:2] {
		var text []byte
		if err := o.db.SQL.QueryRow("SELECT approval FROM recovery_approvals WHERE case_id = ? AND agent = ?", id, escrow.Fingerprint(a.cert)).Scan(&text); err != nil {
			t.Fatal(err)
		}
		approvals[escrow.Fingerprint(a.cert)] = text
	}
	old := storetest.Copy(t, o.db)
	d, err := o.Fetch(background, who("helpdesk"), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Receipt.Holds(background, o.db.SQL); err != nil {
		t.Error(err)
	}
	o.exec(t, "UPDATE recovery_cases SET state = 'approved', ended = 0 WHERE id = ?", id)
	for agent, text := range approvals {
		o.exec(t, "UPDATE recovery_approvals SET approval = ? WHERE case_id = ? AND agent = ?", text, id, agent)
	}
	_, err = o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "a case that was set back", err, hresult.InvalidData)

	if err := d.Receipt.Holds(background, old.SQL); err == nil || !strings.Contains(err.Error(), "rolled back") {
		t.Errorf("the receipt of the delivery against the backup: %v", err)
	}
	if err := old.Write(background, func(tx *sql.Tx) error { // the log goes on from there, with other lines
		for range 3 {
			if err := audit.Append(tx, time.Now(), "mallory", audit.CertIssued, "x"); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := d.Receipt.Holds(background, old.SQL); err == nil {
		t.Error("a log that was written anew holds the receipt")
	}
}
