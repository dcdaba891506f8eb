package cases

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Delivery is what Fetch hands out: still closed to everybody but the holder of the case key.
type Delivery struct {
	Done
	recovery.Archived
	Approvals []recovery.Approval `json:"approvals"`
	Chain     [][]byte            `json:"chain"` // the certificates above the key's, DER
}

// Fetch hands an approved case to the manager who opened it, once, and ends it. If the answer is lost, a new case is needed:
// the log may say that a key went out which did not, never the reverse.
func (c *Cases) Fetch(ctx context.Context, caller templates.Caller, id int64) (*Delivery, error) {
	d, err := c.fetch(ctx, caller, id)
	if err != nil {
		return nil, c.refused(ctx, caller, id, "fetch", err)
	}
	return d, nil
}

func (c *Cases) fetch(ctx context.Context, caller templates.Caller, id int64) (*Delivery, error) {
	k, err := one(ctx, c.o.DB.SQL, id)
	if err != nil {
		return nil, err
	}
	r, _, err := c.o.Of(ctx, caller, k.Policy)
	if err != nil {
		return nil, err
	}
	if !r.Manager || caller.SID != k.openedBySID {
		return nil, hresult.New(hresult.AccessDenied, "only the manager who opened recovery case %d fetches the key", id)
	}
	entry, archived, err := c.archived(ctx, &k.Statement)
	if err != nil {
		return nil, err
	}
	needed, err := c.o.Escrow.Needed(entry)
	if err != nil {
		return nil, err
	}
	agents, err := c.o.Escrow.RecipientsOf(ctx, entry)
	if err != nil {
		return nil, err
	}
	d := &Delivery{Archived: *archived, Chain: certificates(c.o.Chain(entry.CA()))}
	done, err := c.step(ctx, caller, id, audit.CaseFetched, func(tx *sql.Tx, k *Case) (map[string]any, error) {
		if d.Approvals, err = k.good(archived, agents); err != nil {
			return nil, err
		}
		if needed = max(needed, k.Required); len(d.Approvals) < needed {
			return nil, hresult.New(hresult.BadRequestStatus, "recovery case %d has %d approvals of agents, %d are needed", id, len(d.Approvals), needed)
		}
		if err := neverFetched(tx, id); err != nil {
			return nil, err
		}
		s := &k.Statement
		detail := map[string]any{"recipient": s.Recipient, "reason": s.Reason, "code": s.Code(), "approvals": len(d.Approvals), "required": needed}
		return detail, c.end(tx, id, Fetched, "")
	})
	if err != nil {
		return nil, err
	}
	d.Done = *done
	return d, nil
}

// good are the approvals that still count: the state in the database is not believed. An agent that was dismissed since does
// not count, nor does an approval that is not signed, nor a second one of the same person.
func (k *Case) good(archived *recovery.Archived, agents []escrow.Agent) ([]recovery.Approval, error) {
	designated := map[string]bool{}
	for _, a := range agents {
		designated[a.Fingerprint] = true
	}
	people := map[string]bool{}
	for _, a := range k.Approvals {
		if people[string(a.sid)] || a.sid == k.openedBySID || a.sid == k.recipientSID {
			return nil, hresult.New(hresult.InvalidData, "the approvals of recovery case %d were changed in the database: %s counts twice", k.ID, a.Approver)
		}
		people[string(a.sid)] = true
	}
	var out []recovery.Approval
	for _, a := range k.approvals {
		if err := a.Verify(&k.Statement, archived); err != nil {
			return nil, hresult.New(hresult.InvalidData, "the approvals of recovery case %d were changed in the database: agent %s: %v", k.ID, a.Agent, err)
		}
		if designated[a.Agent] {
			out = append(out, a)
		}
	}
	return out, nil
}

// neverFetched asks the audit log, not the case, whether a key went out already: the log is chained, the case is a row that
// somebody with the database in hand can set back.
func neverFetched(tx *sql.Tx, id int64) error {
	var count int
	// The event stands in the text, so that the index on such lines is used.
	const query = "SELECT count(*) FROM audit WHERE event = '" + string(audit.CaseFetched) + "' AND json_extract(detail, '$.case') = ?"
	if err := tx.QueryRow(query, id).Scan(&count); err != nil {
		return fmt.Errorf("recovery case %d: %w", id, err)
	}
	if count > 0 {
		return hresult.New(hresult.InvalidData, "recovery case %d was fetched before, as the audit log says; its row in the database was set back", id)
	}
	return nil
}

// Bad is a share that could not be used.
type Bad struct {
	Agent string `json:"agent"` // fingerprint
	Cause string `json:"cause"`
}

// Report says which agents' shares of a fetched case were bad. Only the manager who fetched can know, and says so once.
func (c *Cases) Report(ctx context.Context, caller templates.Caller, id int64, bad []Bad) error {
	err := c.report(ctx, caller, id, bad)
	return c.refused(ctx, caller, id, "report", err)
}

func (c *Cases) report(ctx context.Context, caller templates.Caller, id int64, bad []Bad) error {
	return c.o.DB.Write(ctx, func(tx *sql.Tx) error {
		k, err := one(ctx, tx, id)
		switch {
		case err != nil:
			return err
		case caller.SID != k.openedBySID:
			return hresult.New(hresult.AccessDenied, "only the manager who opened recovery case %d reports what became of it", id)
		case k.State != Fetched || k.Note != "":
			return hresult.New(hresult.BadRequestStatus, "recovery case %d is %s, or was reported on before", id, k.State)
		case len(bad) == 0 || len(bad) > len(k.Approvals):
			return hresult.New(hresult.InvalidArg, "name the agents of recovery case %d whose shares were bad", id)
		}
		for _, b := range bad {
			i := slices.IndexFunc(k.Approvals, func(a Approver) bool { return a.Agent == b.Agent })
			if err := recovery.CheckReason(b.Cause); err != nil || i < 0 {
				return hresult.New(hresult.InvalidArg, "%q has not approved recovery case %d, or the cause cannot be read", b.Agent, id)
			}
			if err := audit.Append(tx, c.o.Now(), caller.Principal, audit.BadShare, map[string]any{"case": id, "sid": caller.SID, "fingerprint": b.Agent,
				"approver": k.Approvals[i].Approver, "cause": b.Cause}); err != nil {
				return err
			}
		}
		_, err = tx.Exec("UPDATE recovery_cases SET note = ? WHERE id = ?", fmt.Sprintf("%d bad shares", len(bad)), id)
		return err
	})
}
