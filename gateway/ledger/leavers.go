package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Holder is an account that valid certificates were issued for.
type Holder struct {
	SID     security.SID
	Account string // as its newest request named it
}

// Leaver is an account that the directory says is gone.
type Leaver struct {
	Holder
	State string // disabled, deleted or expired
	Since time.Time
}

// Holders returns every account with a certificate that is valid at a time: neither over nor revoked.
func (l *Ledger) Holders(ctx context.Context, now time.Time) ([]Holder, error) {
	rows, err := l.db.SQL.QueryContext(ctx, `SELECT subject_sid, CASE WHEN caller_sid = subject_sid THEN caller ELSE subject_sid END FROM requests
		WHERE id IN (SELECT max(id) FROM requests WHERE state = 'issued' AND revoked = 0 AND not_after > ? AND subject_sid <> '' GROUP BY subject_sid)
		ORDER BY requests.subject_sid`, now.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("ledger: holders of certificates: %w", err)
	}
	defer rows.Close()
	var out []Holder
	for rows.Next() {
		var h Holder
		if err := rows.Scan(&h.SID, &h.Account); err != nil {
			return nil, fmt.Errorf("ledger: holders of certificates: %w", err)
		}
		out = append(out, h)
	}
	return out, rows.Err()
}

// ValidOf returns the requests whose certificates for an account are valid at a time.
func (l *Ledger) ValidOf(ctx context.Context, sid security.SID, now time.Time) ([]*Row, error) {
	return l.query(ctx, "WHERE state = 'issued' AND revoked = 0 AND subject_sid = ? AND not_after > ? ORDER BY id", string(sid), now.UnixMilli())
}

// Leavers returns the accounts that were found gone.
func (l *Ledger) Leavers(ctx context.Context) (map[security.SID]Leaver, error) {
	rows, err := l.db.SQL.QueryContext(ctx, "SELECT sid, account, state, since FROM leavers")
	if err != nil {
		return nil, fmt.Errorf("ledger: leavers: %w", err)
	}
	defer rows.Close()
	out := map[security.SID]Leaver{}
	for rows.Next() {
		var v Leaver
		var since int64
		if err := rows.Scan(&v.SID, &v.Account, &v.State, &since); err != nil {
			return nil, fmt.Errorf("ledger: leavers: %w", err)
		}
		v.Since = time.UnixMilli(since).UTC()
		out[v.SID] = v
	}
	return out, rows.Err()
}

// RecordLeavers records accounts that are gone, where they are not recorded yet, and forgets those that are back.
func (l *Ledger) RecordLeavers(ctx context.Context, gone []Leaver, back []security.SID) error {
	if len(gone)+len(back) == 0 {
		return nil
	}
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		for _, v := range gone {
			if _, err := tx.Exec(`INSERT INTO leavers (sid, account, state, since) VALUES (?, ?, ?, ?) ON CONFLICT (sid) DO UPDATE SET state = excluded.state, account = excluded.account`,
				string(v.SID), v.Account, v.State, v.Since.UnixMilli()); err != nil {
				return fmt.Errorf("ledger: leaver %s: %w", v.SID, err)
			}
		}
		for _, sid := range back {
			if _, err := tx.Exec("DELETE FROM leavers WHERE sid = ?", string(sid)); err != nil {
				return fmt.Errorf("ledger: leaver %s: %w", sid, err)
			}
		}
		return nil
	})
}

// LeaversConfirmed records who let more certificates be revoked at once than the configuration allows.
func (l *Ledger) LeaversConfirmed(ctx context.Context, actor string, accounts []security.SID, held string) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		return audit.Append(tx, l.now(), actor, audit.LeaversConfirmed, map[string]any{"accounts": accounts, "held": held})
	})
}
