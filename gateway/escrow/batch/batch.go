// Package batch keeps the work on many archived keys that agents consent to: rewraps, which seal records to other agents, and
// drills, which prove that records can be opened. The gateway sees no key and no share.
//
// A manager lets the gateway choose records (Draft) and orders what is to be done to them (Order). The worker, an agent, takes the
// order with a batch key (Take). As many agents as it takes besides the worker seal their parts to that key, page by page
// (Consent). The worker's machine opens record after record, and sends what it has made of each (Results): a record sealed anew, or
// a signature with the recovered key. When nothing is left to do the batch is done:
//
//	draft ──▶ ordered ──▶ open ──▶ done
//	              │         │
//	              └─────────┴────▶ cancelled, expired
//
// What a rewrap replaces is kept (escrow_previous) until a drill by another worker has proven the new record; a manager can put it
// back (Restore). Each step, and each record, has its line in the audit log in the same transaction.
//
// # Who may do what harm
//
// Who runs the gateway cannot change who gets keys: the worker compares the order's code with the manager, agents the statement's
// code with the worker, and these cover the records, the worker's key and the agents that are sealed to. The worker sees every key of the
// batch, and could seal something else: that is why the previous record stays until somebody else has opened the new one. A
// proof is a signature with the archived key itself, over a nonce of the gateway's and the record's hash.
package batch

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Options configure New. All are needed.
type Options struct {
	people.Roles
}

// Batches is the register of batches. All methods are safe for concurrent use. Their errors are *hresult.Error where the caller is to be
// told the reason: AccessDenied, BadRequestStatus (the batch is in another state), NoRequest (there is no such batch), NoValidKRA,
// InvalidArg, InvalidData (the database was changed).
type Batches struct{ o Options }

// New returns the register.
func New(o Options) *Batches { return &Batches{o} }

// State is where a batch stands.
type State string

// The states.
const (
	Drafted   State = "draft"
	Ordered   State = "ordered"
	Open      State = "open"
	Done      State = "done"
	Cancelled State = "cancelled"
	Expired   State = "expired"
)

func (s State) live() bool { return s == Drafted || s == Ordered || s == Open }

// Batch is one batch as it is shown.
type Batch struct {
	ID       int64          `json:"batch"`
	Purpose  string         `json:"purpose"`
	State    State          `json:"state"`
	Created  time.Time      `json:"created"`
	Expires  time.Time      `json:"expires"`
	Ended    time.Time      `json:"ended,omitzero"`
	Policy   string         `json:"policy"`
	Required int            `json:"required"` // agents that it takes, the worker among them
	Verifies int64          `json:"verifies,omitzero"`
	OpenedBy string         `json:"opened_by"`
	Worker   string         `json:"worker"`
	Reason   string         `json:"reason"`
	Note     string         `json:"note,omitempty"` // why it was cancelled
	Records  map[string]int `json:"records"`        // how many are open, done, failed or left out
	Consents []Consenter    `json:"consents"`

	openedBySID, workerSID security.SID
	statement              recovery.BatchStatement
}

// Consenter is an agent who consented.
type Consenter struct {
	Agent    string    `json:"agent"` // fingerprint of the certificate
	Approver string    `json:"approver"`
	Created  time.Time `json:"created"`
	Pages    int       `json:"pages"` // of which the agent's parts are there

	sid security.SID
}

// Left is a record that nothing is done to, or that could not be opened, and why.
type Left struct {
	Record int64  `json:"record"`
	Owner  string `json:"owner"`
	State  string `json:"state"` // left or failed
	Why    string `json:"why"`
}

// Finished is the answer to a step: the batch as it is now, and the line of the audit log that tells of the step.
type Finished struct {
	Batch   *Batch        `json:"batch"`
	Receipt audit.Receipt `json:"receipt"`
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

const columns = `SELECT id, purpose, state, created, expires, ended, policy, required, verifies, opened_by, opened_by_sid, worker_sid, statement, note
	FROM escrow_batches `

func load(ctx context.Context, db querier, where string, args ...any) ([]*Batch, error) {
	out, err := rows(ctx, db, columns+where, args, func(scan func(...any) error) (*Batch, error) {
		b := &Batch{Records: map[string]int{}, Consents: []Consenter{}}
		var created, expires, ended int64
		var statement string
		if err := scan(&b.ID, &b.Purpose, &b.State, &created, &expires, &ended, &b.Policy, &b.Required, &b.Verifies, &b.OpenedBy, &b.openedBySID,
			&b.workerSID, &statement, &b.Note); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(statement), &b.statement); err != nil {
			return nil, fmt.Errorf("batch %d: %w", b.ID, err)
		}
		b.Worker, b.Reason = b.statement.Order.Worker, b.statement.Order.Reason
		b.Created, b.Expires = time.UnixMilli(created).UTC(), time.UnixMilli(expires).UTC()
		if ended != 0 {
			b.Ended = time.UnixMilli(ended).UTC()
		}
		return b, nil
	})
	for _, b := range out {
		if err := b.count(ctx, db); err != nil {
			return nil, err
		}
	}
	return out, err
}

// rows reads all rows of a query.
func rows[T any](ctx context.Context, db querier, query string, args []any, read func(scan func(...any) error) (T, error)) ([]T, error) {
	found, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("batches: %w", err)
	}
	defer found.Close()
	var out []T
	for found.Next() {
		row, err := read(found.Scan)
		if err != nil {
			return nil, fmt.Errorf("batches: %w", err)
		}
		out = append(out, row)
	}
	if err := found.Err(); err != nil {
		return nil, fmt.Errorf("batches: %w", err)
	}
	return out, nil
}

// count reads what was done, and who consented.
func (b *Batch) count(ctx context.Context, db querier) error {
	_, err := rows(ctx, db, "SELECT state, count(*) FROM escrow_batch_records WHERE batch_id = ? GROUP BY state", []any{b.ID}, func(scan func(...any) error) (int, error) {
		var state string
		var n int
		err := scan(&state, &n)
		b.Records[state] = n
		return n, err
	})
	if err != nil {
		return err
	}
	b.Consents, err = rows(ctx, db, `SELECT a.agent, a.approver, a.approver_sid, a.created, (SELECT count(*) FROM escrow_batch_parts p WHERE p.batch_id = a.batch_id AND p.agent = a.agent)
		FROM escrow_batch_agents a WHERE a.batch_id = ? ORDER BY a.created, a.agent`, []any{b.ID}, func(scan func(...any) error) (c Consenter, err error) {
		var created int64
		err = scan(&c.Agent, &c.Approver, &c.sid, &created, &c.Pages)
		c.Created = time.UnixMilli(created).UTC()
		return c, err
	})
	if b.Consents == nil {
		b.Consents = []Consenter{}
	}
	return err
}

func one(ctx context.Context, db querier, id int64) (*Batch, error) {
	list, err := load(ctx, db, "WHERE id = ?", id)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, hresult.New(hresult.NoRequest, "there is no batch %d", id)
	}
	return list[0], nil
}

// entry is a record of a batch as its row says.
type entry struct {
	record           int64
	position         int
	hash             []byte
	required, format int
	state, note      string
}

func entries(ctx context.Context, db querier, where string, args ...any) ([]entry, error) {
	return rows(ctx, db, "SELECT record, position, sealed_hash, required, format, state, note FROM escrow_batch_records WHERE batch_id = ? AND "+where, args,
		func(scan func(...any) error) (e entry, err error) {
			return e, scan(&e.record, &e.position, &e.hash, &e.required, &e.format, &e.state, &e.note)
		})
}

// item is what agents are shown of a record: what was chosen, and, while it is open and the same, the record itself.
func (b *Batches) item(ctx context.Context, e *entry) (*recovery.Item, error) {
	n, err := b.o.Escrow.Get(ctx, e.record)
	if err != nil {
		return nil, err
	}
	i := &recovery.Item{Record: e.record, KeyID: n.KeyID, Owner: n.Owner, Format: e.format, Required: e.required, Sealed: hex.EncodeToString(e.hash), State: e.state}
	if e.state != recovery.ItemOpen {
		return i, nil
	}
	cert, err := n.Certificate()
	if err != nil {
		return nil, hresult.New(hresult.InvalidData, "%v", err)
	}
	i.Archived = &recovery.Archived{Format: n.Format, Sealed: n.Sealed(), Certificate: cert.Raw}
	return i, nil
}

// visible requires that the caller has a role in the batch's policy.
func (b *Batches) visible(ctx context.Context, caller templates.Caller, id int64) (*Batch, people.Role, error) {
	k, err := one(ctx, b.o.DB.SQL, id)
	if err != nil {
		return nil, people.Role{}, err
	}
	role, _, err := b.o.Of(ctx, caller, k.Policy)
	if err == nil && !role.Manager && !role.Approver {
		err = people.ErrNone
	}
	return k, role, err
}

// List returns the batches of the caller's policies, newest first.
func (b *Batches) List(ctx context.Context, caller templates.Caller) ([]*Batch, error) {
	if err := b.Expire(ctx); err != nil {
		return nil, err
	}
	mine, err := b.o.All(ctx, caller, func(r people.Role) bool { return r.Manager || r.Approver })
	if err != nil {
		return nil, b.refused(ctx, caller, 0, "list batches", err)
	}
	all, err := load(ctx, b.o.DB.SQL, "WHERE state <> 'draft' ORDER BY id DESC LIMIT ?", maxList)
	if err != nil {
		return nil, err
	}
	out := []*Batch{}
	for _, k := range all {
		if mine.Open[k.Policy] != nil {
			out = append(out, k)
		}
	}
	return out, nil
}

const maxList = 200

// Shown is a batch with its order, for approvers also with what they need to work on it, and with what is left out and failed.
type Shown struct {
	Batch *Batch              `json:"batch"`
	Info  *recovery.BatchInfo `json:"info,omitempty"`
	Left  []Left              `json:"left"`
}

// Show returns one batch.
func (b *Batches) Show(ctx context.Context, caller templates.Caller, id int64) (*Shown, error) {
	if err := b.Expire(ctx); err != nil {
		return nil, err
	}
	k, role, err := b.visible(ctx, caller, id)
	if err != nil {
		return nil, b.refused(ctx, caller, id, "show a batch", err)
	}
	out := &Shown{Batch: k}
	if out.Left, err = b.left(ctx, id); err != nil || !role.Approver || !k.State.live() {
		return out, err
	}
	out.Info = &recovery.BatchInfo{Batch: k.ID, Expires: k.Expires, Statement: k.statement}
	openers, err := b.o.Escrow.Openers(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range openers.All() {
		out.Info.Agents = append(out.Info.Agents, a.Certificate.Raw)
	}
	targets, err := b.targets(ctx, &k.statement.Order)
	if err != nil {
		return nil, err
	}
	for i := range targets {
		out.Info.Targets = append(out.Info.Targets, targets[i].Certificate.Raw)
		if key := targets[i].HybridKey(); key != nil {
			out.Info.Hybrid = append(out.Info.Hybrid, *key)
		}
	}
	return out, nil
}

// left are the records that nothing is done to and those that failed.
func (b *Batches) left(ctx context.Context, id int64) ([]Left, error) {
	list, err := rows(ctx, b.o.DB.SQL, `SELECT b.record, e.owner, b.state, b.note FROM escrow_batch_records b JOIN escrow_records e ON e.id = b.record
		WHERE b.batch_id = ? AND b.state IN ('left', 'failed') ORDER BY b.record`, []any{id}, func(scan func(...any) error) (l Left, err error) {
		return l, scan(&l.Record, &l.Owner, &l.State, &l.Why)
	})
	if list == nil {
		list = []Left{}
	}
	return list, err
}

// refused writes the refusal of an attempt into the audit log and returns its reason. Other errors are returned as they are.
func (b *Batches) refused(ctx context.Context, caller templates.Caller, id int64, attempt string, err error) error {
	return b.o.Refused(ctx, caller, attempt, map[string]any{"batch": id}, err)
}
