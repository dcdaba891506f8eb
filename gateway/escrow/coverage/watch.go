package coverage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
)

// Watched is what a service shows of the escrow.
type Watched struct {
	Taken    time.Time
	Coverage Summary
	Unproven int64     // records of which it was never proven that they can be opened
	Oldest   time.Time // of the others, the proof that is longest ago; zero where there is none
	Verified time.Time // when every record was last verified; zero where that was never done
	Bad      int64     // records that were bad then
}

// restWatching makes the pass take a quarter of one processor.
const restWatching = 3

// Watcher computes it again and again. It is for one goroutine.
type Watcher struct {
	Options
	seq      int64 // up to which the audit log was searched
	verified time.Time
	bad      int64
}

// Pass reads the ledger, the records' proofs and what is new in the audit log.
func (w *Watcher) Pass(ctx context.Context, now time.Time) (*Watched, error) {
	o := w.Options
	o.Now, o.Rest = now, restWatching
	sum, err := Run(ctx, o, func(Certificate) error { return nil })
	if err != nil {
		return nil, err
	}
	out := &Watched{Taken: now, Coverage: *sum}
	if out.Unproven, out.Oldest, err = w.proofs(ctx); err != nil {
		return nil, err
	}
	if err := w.search(ctx); err != nil {
		return nil, err
	}
	out.Verified, out.Bad = w.verified, w.bad
	return out, nil
}

// proofs counts records that were never proven, and finds the oldest proof of the others.
func (w *Watcher) proofs(ctx context.Context) (unproven int64, oldest time.Time, err error) {
	var last, first int64
	for {
		begin := time.Now()
		before := last
		rows, err := w.DB.SQL.QueryContext(ctx, "SELECT id, proven FROM escrow_records WHERE length(sealed) > 0 AND id > ? ORDER BY id LIMIT ?", last, 10*page)
		if err != nil {
			return 0, oldest, fmt.Errorf("escrow: %w", err)
		}
		for rows.Next() {
			var proven int64
			if err := rows.Scan(&last, &proven); err != nil {
				return 0, oldest, errors.Join(fmt.Errorf("escrow: %w", err), rows.Close())
			}
			if proven == 0 {
				unproven++
			} else if first == 0 || proven < first {
				first = proven
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return 0, oldest, fmt.Errorf("escrow: %w", err)
		}
		if last == before {
			break
		}
		if err := rest(ctx, restWatching, begin); err != nil {
			return 0, oldest, err
		}
	}
	if first != 0 {
		oldest = time.UnixMilli(first).UTC()
	}
	return unproven, oldest, nil
}

// search finds the newest verification in those lines of the audit log that it has not seen yet.
func (w *Watcher) search(ctx context.Context) error {
	var end, at int64
	if err := w.DB.SQL.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM audit").Scan(&end); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	var detail string
	err := w.DB.SQL.QueryRowContext(ctx, "SELECT time, detail FROM audit WHERE seq > ? AND seq <= ? AND event = ? ORDER BY seq DESC LIMIT 1", w.seq, end, string(audit.EscrowVerified)).Scan(&at, &detail)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		w.seq = end
		return nil
	case err != nil:
		return fmt.Errorf("audit: %w", err)
	}
	var counts struct{ Bad int64 }
	if err := json.Unmarshal([]byte(detail), &counts); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	w.seq, w.verified, w.bad = end, time.UnixMilli(at).UTC(), counts.Bad
	return nil
}
