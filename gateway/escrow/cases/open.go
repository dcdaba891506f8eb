package cases

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Open begins a case. The same statement again, from the same manager, is the same case.
func (c *Cases) Open(ctx context.Context, caller templates.Caller, s recovery.Statement) (*Done, error) {
	done, err := c.open(ctx, caller, s)
	if err != nil {
		return nil, c.refused(ctx, caller, 0, "open", err)
	}
	return done, nil
}

func (c *Cases) open(ctx context.Context, caller templates.Caller, s recovery.Statement) (*Done, error) {
	if err := s.Check(); err != nil {
		return nil, hresult.New(hresult.InvalidArg, "%v", err)
	}
	if !strings.EqualFold(s.Manager, caller.Principal) {
		return nil, hresult.New(hresult.AccessDenied, "the statement is %s's, and the ticket %s's", s.Manager, caller.Principal)
	}
	entry, p, err := c.manages(ctx, caller, &s)
	if err != nil {
		return nil, err
	}
	recipient, err := c.o.Account(ctx, s.Recipient)
	if err != nil {
		return nil, err
	}
	if recipient.Disabled {
		return nil, hresult.New(hresult.AccountDisabled, "the recipient %s is disabled", s.Recipient)
	}
	needed, err := c.o.Escrow.Needed(entry)
	if err != nil {
		return nil, err
	}
	agents, err := c.o.Escrow.RecipientsOf(ctx, entry)
	if err != nil {
		return nil, err
	}
	if len(agents) < needed {
		return nil, hresult.New(hresult.NoValidKRA, "archived key %d takes %d recovery agents, and %d of those that it is sealed to are still designated", entry.ID, needed, len(agents))
	}
	return c.insert(ctx, caller, s, p, entry.ID, needed, recipient.SID)
}

// insert writes the case down, unless the statement is that of one already.
func (c *Cases) insert(ctx context.Context, caller templates.Caller, s recovery.Statement, p *escrow.Policy, record int64, needed int, recipient security.SID) (*Done, error) {
	now, done := c.o.Now(), &Done{}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	err = c.o.DB.Write(ctx, func(tx *sql.Tx) error {
		if again, err := load(ctx, tx, "WHERE fingerprint = ?", s.Hash()); err != nil {
			return err
		} else if len(again) > 0 {
			if done.Case = again[0]; done.Case.openedBySID != caller.SID {
				return hresult.New(hresult.AccessDenied, "the statement is that of recovery case %d of %s", done.Case.ID, done.Case.OpenedBy)
			}
			done.Receipt, err = audit.Last(tx)
			return err
		}
		if err := escrow.Keep(tx, record); err != nil { // it may have been destroyed since it was looked at
			return hresult.New(hresult.InvalidArg, "%v", err)
		}
		var id int64
		err := tx.QueryRow(`INSERT INTO recovery_cases (state, created, expires, record, policy, required, opened_by, opened_by_sid, recipient_sid, statement, fingerprint)
			VALUES ('open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`, now.UnixMilli(), now.Add(p.CaseValidity).UnixMilli(), record, p.Name, needed,
			caller.Principal, caller.SID, recipient, string(text), s.Hash()).Scan(&id)
		if err != nil {
			return fmt.Errorf("recovery case: %w", err)
		}
		return done.record(ctx, tx, now, caller, id, audit.CaseOpened, map[string]any{"case": id, "sid": caller.SID, "record": record, "owner": s.Owner,
			"recipient": s.Recipient, "recipient_sid": recipient, "reason": s.Reason, "policy": p.Name, "required": needed, "code": s.Code()})
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// manages requires that the caller may open cases about the key.
func (c *Cases) manages(ctx context.Context, caller templates.Caller, s *recovery.Statement) (*escrow.Entry, *escrow.Policy, error) {
	entry, err := c.o.Escrow.Get(ctx, s.Record)
	if err != nil && !errors.Is(err, escrow.ErrNotFound) {
		return nil, nil, err
	}
	// Who may not open cases does not learn which keys there are.
	none := hresult.New(hresult.AccessDenied, "there is no archived key %d, or you are no manager of its recovery policy", s.Record)
	if err != nil {
		return nil, nil, none
	}
	r, p, err := c.o.Of(ctx, caller, entry.Policy)
	if err != nil {
		return nil, nil, err
	}
	if !r.Manager {
		return nil, nil, none
	}
	_, _, err = c.archived(ctx, s)
	return entry, p, err
}
