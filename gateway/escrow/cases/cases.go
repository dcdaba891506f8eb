// Package cases keeps recovery cases: who asked for which archived key, for whom and why, which agents approved, and that the
// key was handed out once.
//
// A case is opened by a manager (Open), approved or denied by agents (Approve, Deny), taken back (Withdraw), and ends with the
// one Fetch by the manager who opened it, or when its time is over (Expire):
//
//	open ──approvals──▶ approved ──▶ fetched
//	  │                   │
//	  └───────────────────┴────────▶ denied, withdrawn, expired
//
// Each step and its line in the audit log are one transaction; a refused attempt has a line too. What is kept opens nothing:
// the shares in approvals are sealed to a case key that only the manager's machine has, and are deleted when the case ends.
// Handler serves this to people with Kerberos tickets, Client is the other end.
package cases

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Options configure New. All are needed.
type Options struct {
	people.Roles
	// Chain returns the certificates above what a CA issues.
	Chain func(ca string) []*x509.Certificate
}

// Cases is the register of cases. All methods are safe for concurrent use. Their errors are *hresult.Error where the caller is
// to be told the reason: AccessDenied, BadRequestStatus (the case is in another state), NoRequest (there is no such case),
// InvalidArg.
type Cases struct{ o Options }

// New returns the register.
func New(o Options) *Cases { return &Cases{o} }

// State is where a case stands.
type State string

// The states.
const (
	Open      State = "open"
	Approved  State = "approved" // by as many agents as it takes
	Fetched   State = "fetched"
	Denied    State = "denied"
	Withdrawn State = "withdrawn"
	Expired   State = "expired"
)

func (s State) live() bool { return s == Open || s == Approved }

// Case is one case as it is shown.
type Case struct {
	ID        int64              `json:"case"`
	State     State              `json:"state"`
	Created   time.Time          `json:"created"`
	Expires   time.Time          `json:"expires"`
	Ended     *time.Time         `json:"ended,omitempty"`
	Policy    string             `json:"policy"`
	Required  int                `json:"required"` // approvals that it takes
	OpenedBy  string             `json:"opened_by"`
	Statement recovery.Statement `json:"statement"`
	Note      string             `json:"note,omitempty"` // why it was denied or withdrawn
	Approvals []Approver         `json:"approvals"`

	openedBySID, recipientSID security.SID
	approvals                 []recovery.Approval
}

// Approver is who approved, with which agent's share.
type Approver struct {
	Agent    string    `json:"agent"` // fingerprint of the certificate
	Approver string    `json:"approver"`
	Created  time.Time `json:"created"`

	sid security.SID
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

const caseColumns = `SELECT id, state, created, expires, ended, policy, required, opened_by, opened_by_sid, recipient_sid, statement, note
	FROM recovery_cases `

func load(ctx context.Context, db querier, where string, args ...any) ([]*Case, error) {
	rows, err := db.QueryContext(ctx, caseColumns+where, args...)
	if err != nil {
		return nil, fmt.Errorf("recovery cases: %w", err)
	}
	defer rows.Close()
	var out []*Case
	for rows.Next() {
		k := &Case{Approvals: []Approver{}}
		var created, expires, ended int64
		var statement string
		if err := rows.Scan(&k.ID, &k.State, &created, &expires, &ended, &k.Policy, &k.Required, &k.OpenedBy, &k.openedBySID, &k.recipientSID,
			&statement, &k.Note); err != nil {
			return nil, fmt.Errorf("recovery cases: %w", err)
		}
		if err := json.Unmarshal([]byte(statement), &k.Statement); err != nil {
			return nil, fmt.Errorf("recovery case %d: %w", k.ID, err)
		}
		k.Created, k.Expires = time.UnixMilli(created).UTC(), time.UnixMilli(expires).UTC()
		if ended != 0 {
			t := time.UnixMilli(ended).UTC()
			k.Ended = &t
		}
		out = append(out, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("recovery cases: %w", err)
	}
	for _, k := range out {
		if err := k.loadApprovals(ctx, db); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (k *Case) loadApprovals(ctx context.Context, db querier) error {
	rows, err := db.QueryContext(ctx, "SELECT agent, approver, approver_sid, created, approval FROM recovery_approvals WHERE case_id = ? ORDER BY created, agent", k.ID)
	if err != nil {
		return fmt.Errorf("recovery case %d: %w", k.ID, err)
	}
	defer rows.Close()
	for rows.Next() {
		var a Approver
		var created int64
		var text []byte
		if err := rows.Scan(&a.Agent, &a.Approver, &a.sid, &created, &text); err != nil {
			return fmt.Errorf("recovery case %d: %w", k.ID, err)
		}
		a.Created = time.UnixMilli(created).UTC()
		k.Approvals = append(k.Approvals, a)
		if len(text) == 0 { // the case has ended
			continue
		}
		var approval recovery.Approval
		if err := json.Unmarshal(text, &approval); err != nil {
			return fmt.Errorf("recovery case %d: %w", k.ID, err)
		}
		k.approvals = append(k.approvals, approval)
	}
	return rows.Err()
}

func one(ctx context.Context, db querier, id int64) (*Case, error) {
	list, err := load(ctx, db, "WHERE id = ?", id)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, hresult.New(hresult.NoRequest, "there is no recovery case %d", id)
	}
	return list[0], nil
}

// Listed are cases, and by name the recovery policies that cannot be used and why: cases of those are not shown.
type Listed struct {
	Cases    []*Case           `json:"cases"`
	Unusable map[string]string `json:"unusable,omitempty"`
}

func whys(p *people.Policies) map[string]string {
	out := map[string]string{}
	for name, err := range p.Unusable {
		out[name] = hresult.From(err).Text
	}
	return out
}

// List returns the cases that the caller has to do with by role, newest first.
func (c *Cases) List(ctx context.Context, caller templates.Caller) (*Listed, error) {
	if err := c.Expire(ctx); err != nil {
		return nil, err
	}
	all, err := load(ctx, c.o.DB.SQL, "ORDER BY id DESC LIMIT ?", maxList)
	if err != nil {
		return nil, err
	}
	mine, err := c.o.All(ctx, caller, func(r people.Role) bool { return r.Manager || r.Approver })
	if err != nil {
		return nil, c.refused(ctx, caller, 0, "list", err)
	}
	out := []*Case{}
	for _, k := range all {
		if mine.Open[k.Policy] != nil {
			out = append(out, k)
		}
	}
	return &Listed{out, whys(mine)}, nil
}

const maxList = 500

// Show returns one case; for an approver with what is needed to approve it.
func (c *Cases) Show(ctx context.Context, caller templates.Caller, id int64) (*Case, *recovery.File, error) {
	if err := c.Expire(ctx); err != nil {
		return nil, nil, err
	}
	k, err := one(ctx, c.o.DB.SQL, id)
	if err != nil {
		return nil, nil, c.refused(ctx, caller, id, "show", err)
	}
	r, _, err := c.o.Of(ctx, caller, k.Policy)
	if err == nil && !r.Manager && !r.Approver {
		err = people.ErrNone
	}
	if err != nil {
		return nil, nil, c.refused(ctx, caller, id, "show", err)
	}
	if !r.Approver || !k.State.live() {
		return k, nil, nil
	}
	f, err := c.file(ctx, k)
	return k, f, err
}

func (c *Cases) file(ctx context.Context, k *Case) (*recovery.File, error) {
	entry, archived, err := c.archived(ctx, &k.Statement)
	if err != nil {
		return nil, err
	}
	f := &recovery.File{Case: k.ID, Created: k.Created, Expires: k.Expires, Policy: k.Policy, Required: k.Required,
		Statement: k.Statement, Archived: *archived}
	agents, err := c.o.Escrow.RecipientsOf(ctx, entry)
	if err != nil {
		return nil, err
	}
	for _, a := range agents {
		f.Agents = append(f.Agents, a.Certificate.Raw)
	}
	return f, nil
}

// archived reads the record and requires that it is what the statement says.
func (c *Cases) archived(ctx context.Context, s *recovery.Statement) (*escrow.Entry, *recovery.Archived, error) {
	entry, err := c.o.Escrow.Get(ctx, s.Record)
	if errors.Is(err, escrow.ErrNotFound) {
		return nil, nil, hresult.New(hresult.InvalidArg, "%v", err)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := entry.Gone(); err != nil {
		return nil, nil, hresult.New(hresult.InvalidArg, "%v", err)
	}
	cert, err := entry.Certificate()
	if err != nil {
		return nil, nil, hresult.New(hresult.InvalidArg, "%v", err)
	}
	a := &recovery.Archived{Format: entry.Format, Sealed: entry.Sealed(), Certificate: cert.Raw}
	if entry.KeyID != s.KeyID || entry.Owner != s.Owner {
		return nil, nil, hresult.New(hresult.InvalidArg, "archived key %d is another key, or another person's, than the statement says", entry.ID)
	}
	if err := a.Check(s); err != nil {
		return nil, nil, hresult.New(hresult.InvalidData, "%v", err)
	}
	if policy, required, bound := a.Terms(); bound && (policy != entry.Policy || required != entry.Required) {
		return nil, nil, hresult.New(hresult.InvalidData, "archived key %d was sealed to %d agents under policy %q; its row in the database was changed", entry.ID, required, policy)
	}
	return entry, a, nil
}

// refused writes the refusal of an attempt into the audit log and returns its reason. Other errors are returned as they are.
func (c *Cases) refused(ctx context.Context, caller templates.Caller, id int64, attempt string, err error) error {
	return c.o.Refused(ctx, caller, attempt, map[string]any{"case": id}, err)
}
