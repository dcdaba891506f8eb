// Package verify re-checks every archived key against itself, its certificate and the audit log, without opening it.
//
// Who can write to the database can lose keys, and put one person's record in the place of another's. Neither goes unseen: the
// audit log has the hash of what was archived, by whom and under which policy, and cannot be changed without its checkpoints.
package verify

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/store"
	"golang.org/x/mod/sumdb/note"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	Bad       Level = "bad"       // the record is not what was archived
	Attention Level = "attention" // it is, and something has to be done
)

// Finding is what is wrong with a record.
type Finding struct {
	Record int64  `json:"record"`
	Owner  string `json:"owner"`
	Level  Level  `json:"level"`
	What   string `json:"what"`
	Fix    string `json:"fix"`
}

// Report counts records.
type Report struct {
	Records   int64 `json:"records"`
	Bad       int64 `json:"bad"`
	Attention int64 `json:"attention"`
	Unhashed  int64 `json:"unhashed"`  // archived before the audit log had the hash of what was sealed, and not changed since
	Destroyed int64 `json:"destroyed"` // on purpose, as the audit log says
	Lines     int64 `json:"audit_lines"`
}

// Options say what to verify.
type Options struct {
	DB     *store.DB
	Escrow *escrow.Escrow
	// Log verifies the checkpoints of the audit log.
	Log   note.Verifier
	Now   func() time.Time
	Actor string
	// Record is the one to verify; 0: all, which the audit log then has a line of.
	Record int64
	// Progress is told after each page how many records were verified; nil: nobody.
	Progress func(done int64)
}

const (
	page = 500     // records that are read together
	span = 1 << 19 // numbers of records for which the audit log is read in one pass: 72 octets are kept of each
)

// run is one verification.
type run struct {
	Options
	report Report
	yield  func(Finding) error
	log    *trail
	agents *escrow.Openers
	terms  map[string]terms // of a page, by how they are stored: most records have the same
}

// Run verifies the audit log, then the records, and calls yield with what is wrong. An error means that not everything could be
// verified: the audit log was changed, the database cannot be read, or yield's.
func Run(ctx context.Context, o Options, yield func(Finding) error) (*Report, error) {
	r := &run{Options: o, yield: yield, terms: map[string]terms{}}
	var err error
	if r.report.Lines, err = audit.VerifySigned(ctx, o.DB.SQL, o.Log); err != nil {
		return nil, fmt.Errorf("the audit log, with which records are compared, is not intact: %w", err)
	}
	if o.Record != 0 {
		_, err := r.window(ctx, o.Record, o.Record+1)
		return &r.report, err
	}
	first, err := lowest(ctx, o.DB.SQL, math.MinInt64)
	if err != nil {
		return nil, err
	}
	for first = min(first, 1); first != math.MaxInt64; { // the log may have records where none is left
		if first, err = r.window(ctx, first, first+span); err != nil {
			return nil, err
		}
	}
	return &r.report, o.DB.Write(ctx, func(tx *sql.Tx) error {
		return audit.Append(tx, o.Now(), o.Actor, audit.EscrowVerified, r.report)
	})
}

// window verifies the records with numbers from first to before end. It returns the lowest number from there on, of a record or
// in the log; math.MaxInt64 where there is none.
func (r *run) window(ctx context.Context, first, end int64) (next int64, err error) {
	r.log = newTrail(first, end)
	if err := r.log.follow(ctx, r.DB.SQL); err != nil {
		return 0, err
	}
	after := first - 1
	for {
		n, last, err := r.page(ctx, after, end)
		if err != nil {
			return 0, err
		}
		if r.Progress != nil {
			r.Progress(r.report.Records)
		}
		if after = last; n < page {
			break
		}
	}
	next, err = lowest(ctx, r.DB.SQL, end)
	return min(next, r.log.beyond), err
}

// page verifies the records after a number. They and the log are read in one state of the database: somebody may be archiving.
func (r *run) page(ctx context.Context, after, end int64) (n int, last int64, err error) {
	tx, err := r.DB.SQL.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return 0, 0, fmt.Errorf("escrow: %w", err)
	}
	defer tx.Rollback()
	list, err := records(ctx, tx, "e.id > ? AND e.id < ? ORDER BY e.id LIMIT ?", after, end, page)
	if err != nil {
		return 0, 0, err
	}
	if err := r.log.follow(ctx, tx); err != nil {
		return 0, 0, err
	}
	if r.agents, err = r.Escrow.Openers(ctx); err != nil {
		return 0, 0, err
	}
	clear(r.terms)
	last = after
	for i := range list {
		if err := r.judge(&list[i]); err != nil {
			return 0, 0, err
		}
		last = list[i].id
	}
	if len(list) < page {
		err = r.gone(ctx, tx)
	}
	return len(list), last, err
}

// gone looks for records that the log has and that were not among those read.
func (r *run) gone(ctx context.Context, tx *sql.Tx) error {
	return r.log.unseen(func(id int64) error {
		list, err := records(ctx, tx, "e.id = ?", id) // one with a lower number may have become durable later
		if err != nil {
			return err
		}
		if len(list) == 1 {
			return r.judge(&list[0])
		}
		r.report.Records++
		r.report.Bad++
		return r.yield(Finding{id, r.log.owner(ctx, tx, id), Bad, "the record is gone: the audit log has it, and nobody has destroyed its key", restore})
	})
}

// restore is what can be done about a record that was changed.
const restore = "take it from a backup, or let the owner enroll again while the key is still on the machine; find out who writes to the database"

// lowest is the lowest number of a record from a number on.
func lowest(ctx context.Context, db *sql.DB, from int64) (id int64, err error) {
	if err := db.QueryRowContext(ctx, "SELECT coalesce(min(id), ?) FROM escrow_records WHERE id >= ?", int64(math.MaxInt64), from).Scan(&id); err != nil {
		return 0, fmt.Errorf("escrow: %w", err)
	}
	return id, nil
}
