package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
)

// The journal of orders. Before a CA hears of an order its row says so (Begin, Send); what it answers is Finish. An order that was
// sent and has no answer is asked about; one about which the CA cannot tell is in doubt, until Settle.

// ClaimTime is how long one gateway has an unfinished request for itself. It ends with an answer of the CA, or that there is
// none; after it, another one takes the request over.
const ClaimTime = time.Minute

const unfinished = "state IN ('open', 'approved', 'waiting') AND doubt = ''"

// wait records that there is no final answer.
func wait(tx *sql.Tx, id int64, actor string, now time.Time, r Result) error {
	var fails int
	if r.Trouble != "" {
		fails = 1
	}
	set := "message = ?, ca_token = ?, due = ?, trouble = ?, doubt = ?, attempts = CASE WHEN ? = 1 THEN attempts + 1 ELSE 0 END, claimed = 0"
	args := []any{r.Message, r.CAToken, milli(r.Due), r.Trouble, r.Doubt, fails}
	if r.Unsent {
		set, args = set+", sent = 0, issuer = ?", append(args, r.Issuer)
	}
	if err := move(tx, id, now, []State{Open, Approved, Waiting}, Waiting, set, args...); err != nil {
		return err
	}
	if r.Doubt != "" {
		return audit.Append(tx, now, actor, audit.OrderUncertain, map[string]any{"request": id, "reason": r.Doubt})
	}
	return nil
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Send records, durably, that a CA is about to get the order.
func (l *Ledger) Send(ctx context.Context, id int64, issuer string) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now().UnixMilli()
		res, err := tx.Exec("UPDATE requests SET issuer = ?, sent = ? WHERE id = ? AND "+unfinished, issuer, now, id)
		if err != nil {
			return fmt.Errorf("ledger: request %d: %w", id, err)
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("request %d is not to be sent any more", id))
		}
		return nil
	})
}

// Settlement is what an administrator found out about an order in doubt.
type Settlement struct {
	Resend bool   // the CA has not issued: the order goes to it again
	Reason string // how that is known; kept in the audit log
}

// Hurry makes an order due now.
func (l *Ledger) Hurry(ctx context.Context, id int64) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("UPDATE requests SET due = 0 WHERE id = ? AND "+unfinished, id)
		if err != nil {
			return fmt.Errorf("ledger: request %d: %w", id, err)
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("request %d waits for no CA; one in doubt is settled with: enrollgate requests settle %d", id, id))
		}
		return nil
	})
}

// Settle ends the doubt about an order.
func (l *Ledger) Settle(ctx context.Context, id int64, actor string, s Settlement) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		set := "doubt = '', due = 0, attempts = 0, updated = ?"
		if s.Resend {
			set += ", sent = 0, ca_token = ''"
		}
		res, err := tx.Exec("UPDATE requests SET "+set+" WHERE id = ? AND state = 'waiting' AND doubt <> ''", now.UnixMilli(), id)
		if err != nil {
			return fmt.Errorf("ledger: request %d: %w", id, err)
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("request %d is not in doubt", id))
		}
		return audit.Append(tx, now, actor, audit.OrderSettled, map[string]any{"request": id, "resend": s.Resend, "reason": s.Reason})
	})
}

// Unfinished returns the requests that a CA has yet to answer, oldest first, without those in doubt.
func (l *Ledger) Unfinished(ctx context.Context, limit int) ([]*Row, error) {
	return l.query(ctx, "WHERE "+unfinished+" ORDER BY id LIMIT ?", limit)
}

// InDoubt returns the orders of which nobody can tell whether there is a certificate, oldest first.
func (l *Ledger) InDoubt(ctx context.Context, limit int) ([]*Row, error) {
	return l.query(ctx, "WHERE state = 'waiting' AND doubt <> '' ORDER BY id LIMIT ?", limit)
}

// Queue is how many orders wait for a CA.
type Queue struct {
	Issuer  string    `json:"ca"`
	Waiting int64     `json:"waiting"`
	Doubt   int64     `json:"in_doubt"`
	Oldest  time.Time `json:"oldest,omitzero"` // when the one that waits longest was made
}

// Queues counts what waits, by CA.
func (l *Ledger) Queues(ctx context.Context) ([]Queue, error) {
	rows, err := l.db.SQL.QueryContext(ctx, `SELECT issuer, sum(CASE WHEN doubt = '' THEN 1 ELSE 0 END), sum(CASE WHEN doubt <> '' THEN 1 ELSE 0 END), min(created)
		FROM requests WHERE state IN ('open', 'approved', 'waiting') GROUP BY issuer ORDER BY issuer`)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	defer rows.Close()
	var out []Queue
	for rows.Next() {
		var q Queue
		var oldest int64
		if err := rows.Scan(&q.Issuer, &q.Waiting, &q.Doubt, &oldest); err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		q.Oldest = at(oldest)
		out = append(out, q)
	}
	return out, rows.Err()
}

// Claim takes an unfinished request, so that of several gateways only one asks the CA about it at a time. It tells whether the
// caller has got it: not where another has it, or it has ended. A claim that ends until void counts for nothing.
func (l *Ledger) Claim(ctx context.Context, id int64, void time.Time) (ok bool, err error) {
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("UPDATE requests SET claimed = ? WHERE id = ? AND "+unfinished+" AND claimed <= ?",
			l.now().Add(ClaimTime).UnixMilli(), id, void.UnixMilli())
		if err != nil {
			return fmt.Errorf("ledger: request %d: %w", id, err)
		}
		n, err := res.RowsAffected()
		ok = n == 1
		return err
	})
	return ok && err == nil, err
}

// ClaimDue takes up to limit unfinished requests of a CA that are due, those first that have been due longest. Several gateways on
// one database never get the same one. routed takes only those that may go to another CA.
func (l *Ledger) ClaimDue(ctx context.Context, issuer string, void time.Time, limit int, routed bool) (out []*Row, err error) {
	which := unfinished
	if routed {
		which += " AND route <> '' AND sent = 0"
	}
	lock := ""
	if l.db.Kind == store.Postgres {
		lock = " FOR UPDATE SKIP LOCKED"
	}
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		rows, err := tx.Query("UPDATE requests SET claimed = ? WHERE id IN (SELECT id FROM requests WHERE "+which+
			" AND issuer = ? AND due <= ? AND claimed <= ? ORDER BY due, id LIMIT ?"+lock+") RETURNING "+columns,
			now.Add(ClaimTime).UnixMilli(), issuer, now.UnixMilli(), void.UnixMilli(), limit)
		if err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
		out, err = scan(rows)
		return err
	})
	slices.SortFunc(out, func(a, b *Row) int {
		if c := a.Due.Compare(b.Due); c != 0 {
			return c
		}
		return int(a.ID - b.ID)
	})
	return out, err
}

// Release gives a claim back: the request is as it was, for whoever comes next, from due on.
func (l *Ledger) Release(ctx context.Context, id int64, due time.Time) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.Exec("UPDATE requests SET claimed = 0, due = ? WHERE id = ? AND "+unfinished, milli(due), id); err != nil {
			return fmt.Errorf("ledger: request %d: %w", id, err)
		}
		return nil
	})
}
