package cases_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Whoever has every file of the gateway, in the middle of a case with enough approvals, has nothing in the clear that opens the
// key: not the key, not a share, not the case key.
func TestAttackStolenDatabaseAndGatewayMachine(t *testing.T) {
	o := newOffice(t, 2)
	key, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[0], o.agents[1])
	secrets := map[string][]byte{"the case key": file.Private, "a prime of the key": key.Primes[0].Bytes(), "the private exponent": key.D.Bytes()}
	record, err := quorum.Parse(e.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range o.agents {
		share, err := record.OpenShare(a.cert, a.key)
		if err != nil {
			t.Fatal(err)
		}
		der, err := share.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		secrets["the share of "+a.name] = der[len(der)-32:]
	}
	stolen := storetest.Files(t, o.db)
	if !bytes.Contains(stolen, []byte("lost laptop")) {
		t.Fatal("the database was not read")
	}
	for name, secret := range secrets {
		for how, form := range map[string][]byte{"": secret, " in hexadecimal": []byte(hex.EncodeToString(secret))} {
			if bytes.Contains(stolen, form) {
				t.Errorf("the database holds %s%s", name, how)
			}
		}
	}
	// A case key of the thief's own does not open the approvals.
	mine, err := recovery.NewCaseKey()
	if err != nil {
		t.Fatal(err)
	}
	d, err := o.Fetch(background, who("helpdesk"), id)
	if err != nil {
		t.Fatal(err)
	}
	forged := file.Statement
	forged.PublicKey = mine.Public()
	if _, _, _, err := recovery.Combine(&forged, &d.Archived, d.Approvals, mine); err == nil {
		t.Error("another case key opened the approvals")
	}
	if _, _, _, err := recovery.Combine(&file.Statement, &d.Archived, d.Approvals, mine); err == nil {
		t.Error("another case key was taken")
	}
}

// When a case has ended, the sealed shares are gone: a case key that leaks later opens nothing.
func TestAttackStolenCaseKeyAfterTheEnd(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	for name, end := range map[string]func(id int64) error{
		"fetched":   func(id int64) error { _, err := o.Fetch(background, who("helpdesk"), id); return err },
		"denied":    func(id int64) error { _, err := o.Deny(background, who("kra3"), id, "no"); return err },
		"withdrawn": func(id int64) error { _, err := o.Withdraw(background, who("boss"), id, "no"); return err },
		"expired": func(int64) error {
			o.now = o.now.Add(73 * time.Hour)
			return o.Expire(background)
		},
	} {
		id, file := o.open(t, e)
		o.approve(t, id, file, o.agents[0], o.agents[1])
		if err := end(id); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := o.db.SQL.QueryRow("SELECT sum(length(approval)) FROM recovery_approvals WHERE case_id = ?", id).Scan(&left); err != nil || left != 0 {
			t.Errorf("%s: %d octets of shares are left, %v", name, left, err)
		}
	}
}

// A gateway in foreign hands shows the agent a case that differs from the manager's: with its own case key, for another person,
// for another reason. The code, which the agent has from the manager, does not match.
func TestAttackCompromisedGatewayChangesTheCase(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	mine, err := recovery.NewCaseKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(f *recovery.File){
		"its own case key": func(f *recovery.File) { f.Statement.PublicKey = mine.Public() },
		"another person":   func(f *recovery.File) { f.Statement.Recipient = "mallory@LAB.TEST" },
		"another reason":   func(f *recovery.File) { f.Statement.Reason = "routine" },
		"another manager":  func(f *recovery.File) { f.Statement.Manager = "mallory@LAB.TEST" },
		"another key":      func(f *recovery.File) { f.Statement.Record++ },
	} {
		f := o.file(t, id)
		change(f)
		if _, err := recovery.Approve(f, file.Statement.Code(), o.agents[0].cert, o.agents[0].key, o.now); !errors.Is(err, recovery.ErrCode) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := o.file(t, id)
	f.Policy, f.Required = "harmless", 9
	if _, err := recovery.Approve(f, file.Statement.Code(), o.agents[0].cert, o.agents[0].key, o.now); err == nil {
		t.Error("the agent was told of another policy than the key's")
	}
}

// One agent knows what is sealed to it and to nobody else.
func TestAttackOneBadAgentOpensAlone(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	bad := o.agents[0]
	key := bad.key.(card).key
	if _, err := o.escrow.Recover(background, e, key, bad.cert, "kra1", "alone"); !errors.Is(err, escrow.ErrRefused) {
		t.Errorf("on the gateway: %v", err)
	}
	record, err := quorum.Parse(e.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	share, err := record.OpenShare(bad.cert, bad.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := record.Combine([]*quorum.Share{share}); err == nil {
		t.Error("one share opened the record")
	}
	// The agent counts once, as a person and as a certificate.
	id, file := o.open(t, e)
	o.approve(t, id, file, bad)
	_, err = o.Approve(background, who("kra1"), id, o.approval(t, id, file.Statement.Code(), bad))
	wantCode(t, "the same agent again", err, hresult.BadRequestStatus)
	_, err = o.Approve(background, who("kra1"), id, o.approval(t, id, file.Statement.Code(), o.agents[1]))
	wantCode(t, "the same person with a second agent's key", err, hresult.BadRequestStatus)
	_, err = o.Approve(background, who("kra2"), id, o.approval(t, id, file.Statement.Code(), bad))
	wantCode(t, "another person with the same key", err, hresult.BadRequestStatus)
	o.holder["kra2"] = who("kra2").SID
	_, err = o.Approve(background, who("kra3"), id, o.approval(t, id, file.Statement.Code(), o.agents[1]))
	wantCode(t, "a stolen key", err, hresult.AccessDenied)
}

// An agent seals something else than its share to the case key, and signs it properly. The manager's machine names the agent,
// and goes on without it where enough others have approved.
func TestAttackOneBadAgentSendsABadShare(t *testing.T) {
	o := newOffice(t, 2)
	key, e := o.archive(t, "alice")
	for name, help := range map[string]bool{"alone with a good one": false, "with two good ones": true} {
		id, file := o.open(t, e)
		bad := badApproval(t, o, id, file)
		if _, err := o.Approve(background, who("kra1"), id, bad); err != nil {
			t.Fatal(err) // the gateway cannot see it
		}
		o.approve(t, id, file, o.agents[1])
		if help {
			o.approve(t, id, file, o.agents[2])
		}
		d, err := o.Fetch(background, who("helpdesk"), id)
		if err != nil {
			t.Fatal(err)
		}
		got, named, err := combine(t, d, file)
		if len(named) != 1 || named[0].Agent != escrow.Fingerprint(o.agents[0].cert) {
			t.Errorf("%s: named %v", name, named)
		}
		report := []cases.Bad{{Agent: named[0].Agent, Cause: named[0].Err.Error()}}
		wantCode(t, "an agent reports", o.Report(background, who("kra2"), id, report), hresult.AccessDenied)
		wantCode(t, "an agent who did not approve is named", o.Report(background, who("helpdesk"), id, []cases.Bad{{Agent: "x", Cause: "y"}}), hresult.InvalidArg)
		if err := o.Report(background, who("helpdesk"), id, report); err != nil {
			t.Error(err)
		}
		wantCode(t, "reported twice", o.Report(background, who("helpdesk"), id, report), hresult.BadRequestStatus)
		if help != (err == nil) || help && !key.Equal(got) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := o.count(t, audit.BadShare); n != 2 {
		t.Errorf("%d bad shares are in the audit log", n)
	}
}

// badApproval is signed by kra1, who has opened the right share, around a share of another key.
func badApproval(t *testing.T, o *office, id int64, file *recovery.CaseFile) recovery.Approval {
	t.Helper()
	agent := o.agents[0]
	other, err := recovery.NewCaseKey()
	if err != nil {
		t.Fatal(err)
	}
	// Sealed to a key that nobody has: an approval for a statement that differs in the case key, moved to the real one.
	f := o.file(t, id)
	f.Statement.PublicKey = other.Public()
	moved, err := recovery.Approve(f, f.Statement.Code(), agent.cert, agent.key, o.now)
	if err != nil {
		t.Fatal(err)
	}
	record, err := quorum.Parse(f.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	share, err := record.OpenShare(agent.cert, agent.key)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := share.Signer()
	if err != nil {
		t.Fatal(err)
	}
	moved.Statement = hex.EncodeToString(file.Statement.Hash())
	if err := moved.Sign(signer); err != nil {
		t.Fatal(err)
	}
	return *moved
}

// A share that was sealed to a case key is of no use in another case, nor is an approval that somebody made up.
func TestAttackReplayedAndForgedApprovals(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	_, bobs := o.archive(t, "both")
	first, file := o.open(t, e)
	good := o.approval(t, first, file.Statement.Code(), o.agents[0])
	second, _ := o.open(t, e)
	third, _ := o.open(t, bobs)
	for name, c := range map[string]struct {
		id     int64
		change func(a *recovery.Approval)
		code   hresult.Code
	}{
		"as it is, in another case of the same key": {second, func(*recovery.Approval) {}, hresult.InvalidArg},
		"renumbered, in another case of it":         {second, func(a *recovery.Approval) { a.Case = second }, hresult.AccessDenied},
		"renumbered, in a case of another key":      {third, func(a *recovery.Approval) { a.Case = third }, hresult.AccessDenied},
		"as another agent's":                        {first, func(a *recovery.Approval) { a.Agent = escrow.Fingerprint(o.agents[1].cert) }, hresult.AccessDenied},
		"with other contents":                       {first, func(a *recovery.Approval) { a.Sealed = append([]byte{}, a.Sealed[1:]...) }, hresult.AccessDenied},
		"without a signature":                       {first, func(a *recovery.Approval) { a.Signature = nil }, hresult.AccessDenied},
		"of an agent that does not exist":           {first, func(a *recovery.Approval) { a.Agent = strings.Repeat("0", 64) }, hresult.AccessDenied},
	} {
		a := good
		c.change(&a)
		_, err := o.Approve(background, who("kra1"), c.id, a)
		wantCode(t, name, err, c.code)
	}
	if n := o.count(t, audit.RecoveryRefused); n != 7 {
		t.Errorf("%d of 7 refusals are in the audit log", n)
	}
	if k, _, err := o.Show(background, who("helpdesk"), first); err != nil || len(k.Approvals) != 0 {
		t.Errorf("%+v, %v", k, err)
	}
}

// The same statement a second time is the same case; it does nothing, also when the case has ended, and for nobody else.
func TestAttackReplayedCase(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[0], o.agents[1])
	if _, err := o.Fetch(background, who("helpdesk"), id); err != nil {
		t.Fatal(err)
	}
	lines := o.count(t, audit.CaseOpened)
	again, err := o.Open(background, who("helpdesk"), file.Statement)
	if err != nil || again.Case.ID != id || again.Case.State != cases.Fetched || o.count(t, audit.CaseOpened) != lines {
		t.Errorf("%+v, %v", again, err)
	}
	_, err = o.Open(background, who("boss"), file.Statement)
	wantCode(t, "another manager", err, hresult.AccessDenied)
	_, err = o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "a second delivery", err, hresult.BadRequestStatus)
}

// A manager can ask, and nothing else; who is manager and agent at once has to choose for each case.
func TestAttackMaliciousManager(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	_, err := o.Approve(background, who("helpdesk"), id, recovery.Approval{Case: id})
	wantCode(t, "a manager approves", err, hresult.AccessDenied)
	_, err = o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "a manager fetches without approvals", err, hresult.BadRequestStatus)
	if _, f, err := o.Show(background, who("helpdesk"), id); err != nil || f != nil {
		t.Errorf("a manager sees the sealed shares: %v", err)
	}
	o.approve(t, id, file, o.agents[0], o.agents[1])
	_, err = o.Fetch(background, who("boss"), id)
	wantCode(t, "another manager fetches", err, hresult.AccessDenied)

	s := statement(e, "both")
	mine, err := recovery.NewCaseFile(s)
	if err != nil {
		t.Fatal(err)
	}
	done, err := o.Open(background, who("both"), mine.Statement)
	if err != nil {
		t.Fatal(err)
	}
	own := done.Case.ID
	_, err = o.Approve(background, who("both"), own, o.approval(t, own, mine.Statement.Code(), o.agents[0]))
	wantCode(t, "who opened a case approves it", err, hresult.AccessDenied)
	_, err = o.Deny(background, who("both"), own, "no")
	wantCode(t, "who opened a case denies it", err, hresult.AccessDenied)

	s.Manager, s.Recipient = "boss@LAB.TEST", "kra1@LAB.TEST"
	if mine, err = recovery.NewCaseFile(s); err != nil {
		t.Fatal(err)
	}
	_, err = o.Open(background, who("helpdesk"), mine.Statement)
	wantCode(t, "in another manager's name", err, hresult.AccessDenied)
	if done, err = o.Open(background, who("boss"), mine.Statement); err != nil {
		t.Fatal(err)
	}
	_, err = o.Approve(background, who("kra1"), done.Case.ID, o.approval(t, done.Case.ID, mine.Statement.Code(), o.agents[0]))
	wantCode(t, "who is given the key approves", err, hresult.AccessDenied)
	s.Recipient = "nobody@LAB.TEST"
	if mine, err = recovery.NewCaseFile(s); err != nil {
		t.Fatal(err)
	}
	_, err = o.Open(background, who("boss"), mine.Statement)
	wantCode(t, "for nobody", err, hresult.NoSuchUser)
}

// An agent that was dismissed after approving does not count any more.
func TestAttackDismissedAgentsApproval(t *testing.T) {
	o := newOffice(t, 2)
	key, e := o.archive(t, "alice")
	id, file := o.open(t, e)
	o.approve(t, id, file, o.agents[0], o.agents[1])
	if err := o.escrow.RemoveAgent(background, escrow.Fingerprint(o.agents[0].cert), "test"); err != nil {
		t.Fatal(err)
	}
	_, err := o.Fetch(background, who("helpdesk"), id)
	wantCode(t, "with a dismissed agent's approval", err, hresult.BadRequestStatus)
	o.approve(t, id, file, o.agents[2])
	d, err := o.Fetch(background, who("helpdesk"), id)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := combine(t, d, file); err != nil || !key.Equal(got) {
		t.Error(err)
	}
	o.people["kra2"] = nil
	id, file = o.open(t, e)
	_, err = o.Approve(background, who("kra2"), id, o.approval(t, id, file.Statement.Code(), o.agents[1]))
	wantCode(t, "out of the group", err, hresult.AccessDenied)
}
