package cases

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Done is the answer to a step: the case as it is now, and the line of the audit log that tells of the step.
type Done struct {
	Case    *Case         `json:"case"`
	Receipt audit.Receipt `json:"receipt"`
}

// record writes the line about a step, and fills in what the step is answered with.
func (d *Done) record(ctx context.Context, tx *sql.Tx, now time.Time, caller templates.Caller, id int64, event audit.Event, detail map[string]any) (err error) {
	if err := audit.Append(tx, now, caller.Principal, event, detail); err != nil {
		return err
	}
	if d.Receipt, err = audit.Last(tx); err != nil {
		return err
	}
	d.Case, err = one(ctx, tx, id)
	return err
}

// step does one step of a case: its change, its line in the audit log and nothing else are one transaction. Everything that
// needs the directory has been decided before; do decides by the state, and returns what the log says.
func (c *Cases) step(ctx context.Context, caller templates.Caller, id int64, event audit.Event, do func(tx *sql.Tx, k *Case) (map[string]any, error)) (*Done, error) {
	done := &Done{}
	err := c.o.DB.Write(ctx, func(tx *sql.Tx) error {
		k, err := one(ctx, tx, id)
		if err != nil {
			return err
		}
		if k.State.live() && !c.o.Now().Before(k.Expires) {
			k.State = Expired // Expire writes it down
		}
		if !k.State.live() {
			return hresult.New(hresult.BadRequestStatus, "recovery case %d is %s", id, k.State)
		}
		detail, err := do(tx, k)
		if err != nil {
			return err
		}
		for name, value := range map[string]any{"case": id, "sid": caller.SID, "record": k.Statement.Record, "owner": k.Statement.Owner} {
			detail[name] = value
		}
		return done.record(ctx, tx, c.o.Now(), caller, id, event, detail)
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// end moves a live case to its last state and deletes the sealed shares.
func (c *Cases) end(tx *sql.Tx, id int64, to State, note string) error {
	res, err := tx.Exec("UPDATE recovery_cases SET state = ?, ended = ?, note = ? WHERE id = ? AND state IN ('open', 'approved')", to, c.o.Now().UnixMilli(), note, id)
	if err != nil {
		return fmt.Errorf("recovery case %d: %w", id, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return hresult.New(hresult.BadRequestStatus, "recovery case %d has ended already", id)
	}
	if _, err := tx.Exec("UPDATE recovery_approvals SET approval = ? WHERE case_id = ?", []byte{}, id); err != nil {
		return fmt.Errorf("recovery case %d: %w", id, err)
	}
	return nil
}

// Approve adds an agent's approval. Each agent counts once, and so does each person.
func (c *Cases) Approve(ctx context.Context, caller templates.Caller, id int64, a recovery.Approval) (*Done, error) {
	done, err := c.approve(ctx, caller, id, a)
	if err != nil {
		return nil, c.refused(ctx, caller, id, "approve", err)
	}
	return done, nil
}

func (c *Cases) approve(ctx context.Context, caller templates.Caller, id int64, a recovery.Approval) (*Done, error) {
	k, err := c.approverOf(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	entry, archived, err := c.archived(ctx, &k.Statement)
	if err != nil {
		return nil, err
	}
	if a.Case != id {
		return nil, hresult.New(hresult.InvalidArg, "the approval is for recovery case %d", a.Case)
	}
	if err := a.Verify(&k.Statement, archived); err != nil {
		return nil, hresult.New(hresult.AccessDenied, "%v", err)
	}
	agent, err := c.agent(ctx, entry, a.Agent)
	if err != nil {
		return nil, err
	}
	if err := c.o.Holds(ctx, caller, agent.Certificate); err != nil {
		return nil, err
	}
	text, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	return c.step(ctx, caller, id, audit.CaseApproved, func(tx *sql.Tx, k *Case) (map[string]any, error) {
		for _, earlier := range k.Approvals {
			if earlier.Agent == a.Agent || earlier.sid == caller.SID {
				return nil, hresult.New(hresult.BadRequestStatus, "%s has approved recovery case %d already; each agent counts once", earlier.Approver, id)
			}
		}
		if _, err := tx.Exec("INSERT INTO recovery_approvals (case_id, agent, approver, approver_sid, created, approval) VALUES (?, ?, ?, ?, ?, ?)",
			id, a.Agent, caller.Principal, caller.SID, c.o.Now().UnixMilli(), text); err != nil {
			return nil, fmt.Errorf("recovery case %d: %w", id, err)
		}
		count := len(k.Approvals) + 1
		if count >= k.Required {
			if _, err := tx.Exec("UPDATE recovery_cases SET state = 'approved' WHERE id = ? AND state = 'open'", id); err != nil {
				return nil, fmt.Errorf("recovery case %d: %w", id, err)
			}
		}
		return map[string]any{"agent": dn.Show(agent.Certificate.RawSubject), "fingerprint": a.Agent, "approvals": count, "required": k.Required}, nil
	})
}

// agent finds a designated agent that the record is sealed to.
func (c *Cases) agent(ctx context.Context, entry *escrow.Entry, fingerprint string) (*escrow.Agent, error) {
	agents, err := c.o.Escrow.RecipientsOf(ctx, entry)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(agents, func(a escrow.Agent) bool { return a.Fingerprint == fingerprint })
	if i < 0 {
		return nil, hresult.New(hresult.AccessDenied, "%s is no designated recovery agent of archived key %d, or its certificate is revoked", fingerprint, entry.ID)
	}
	return &agents[i], nil
}

// approverOf requires that the caller may approve and deny, and has no other part in the case.
func (c *Cases) approverOf(ctx context.Context, caller templates.Caller, id int64) (*Case, error) {
	k, err := one(ctx, c.o.DB.SQL, id)
	if err != nil {
		return nil, err
	}
	r, _, err := c.o.Of(ctx, caller, k.Policy)
	switch {
	case err != nil:
		return nil, err
	case !r.Approver:
		return nil, hresult.New(hresult.AccessDenied, "you are no approver of the recovery policy %q", k.Policy)
	case caller.SID == k.openedBySID:
		return nil, hresult.New(hresult.AccessDenied, "you have opened recovery case %d: somebody else has to approve it", id)
	case caller.SID == k.recipientSID:
		return nil, hresult.New(hresult.AccessDenied, "the key of recovery case %d is for you: somebody else has to approve it", id)
	}
	return k, nil
}

// Deny ends a case; any approver can.
func (c *Cases) Deny(ctx context.Context, caller templates.Caller, id int64, note string) (*Done, error) {
	_, err := c.approverOf(ctx, caller, id)
	return c.close(ctx, caller, id, note, Denied, "deny", audit.CaseDenied, err)
}

// Withdraw ends a case; any manager of its policy can.
func (c *Cases) Withdraw(ctx context.Context, caller templates.Caller, id int64, note string) (*Done, error) {
	k, err := one(ctx, c.o.DB.SQL, id)
	if err == nil {
		var r people.Role
		if r, _, err = c.o.Of(ctx, caller, k.Policy); err == nil && !r.Manager {
			err = hresult.New(hresult.AccessDenied, "you are no manager of the recovery policy %q", k.Policy)
		}
	}
	return c.close(ctx, caller, id, note, Withdrawn, "withdraw", audit.CaseWithdrawn, err)
}

// close ends a case without handing anything out; mayNot is why the caller may not do that.
func (c *Cases) close(ctx context.Context, caller templates.Caller, id int64, note string, to State, attempt string, event audit.Event, mayNot error) (*Done, error) {
	if mayNot == nil {
		if err := recovery.CheckReason(note); err != nil {
			mayNot = hresult.New(hresult.InvalidArg, "%v", err)
		}
	}
	if mayNot != nil {
		return nil, c.refused(ctx, caller, id, attempt, mayNot)
	}
	done, err := c.step(ctx, caller, id, event, func(tx *sql.Tx, _ *Case) (map[string]any, error) {
		return map[string]any{"reason": note}, c.end(tx, id, to, note)
	})
	if err != nil {
		return nil, c.refused(ctx, caller, id, attempt, err)
	}
	return done, nil
}

// Expire ends the cases whose time is over.
func (c *Cases) Expire(ctx context.Context) error {
	const over = "WHERE state IN ('open', 'approved') AND expires <= ?"
	list, err := load(ctx, c.o.DB.SQL, over, c.o.Now().UnixMilli())
	if err != nil {
		return err
	}
	for _, k := range list {
		if err := c.o.DB.Write(ctx, func(tx *sql.Tx) error {
			err := c.end(tx, k.ID, Expired, "")
			if _, ended := errors.AsType[*hresult.Error](err); ended { // another process was first
				return nil
			}
			if err != nil {
				return err
			}
			return audit.Append(tx, c.o.Now(), "gateway", audit.CaseExpired, map[string]any{"case": k.ID, "record": k.Statement.Record, "owner": k.Statement.Owner, "approvals": len(k.Approvals)})
		}); err != nil {
			return err
		}
	}
	return nil
}

// certificates returns the DER of each.
func certificates(list []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range list {
		out = append(out, c.Raw)
	}
	return out
}
