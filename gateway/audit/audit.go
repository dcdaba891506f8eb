// Package audit is the append-only log of decisions, issuance and recovery: a transparency log. Its lines are the leaves of a
// Merkle tree (RFC 6962 2.1), of which the gateway signs checkpoints; each line also carries the hash of the one before.
// A line that was changed or removed shows, and who has kept a checkpoint elsewhere sees also that the whole log was put back
// to an earlier state, or written anew.
//
// Append writes a line inside the caller's transaction: what it tells about and the line become durable together, or
// neither does. Sign makes a checkpoint, Prove a proof that a line is in the log, which Check verifies with nothing but the
// log's public key; Verify recomputes everything.
package audit

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/store"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Event is what happened.
type Event string

// The events.
const (
	RequestDenied     Event = "request-denied"
	RequestPending    Event = "request-pending"
	RequestApproved   Event = "request-approved"
	RequestRejected   Event = "request-rejected" // by a certificate manager
	RequestFailed     Event = "request-failed"
	OrderUncertain    Event = "order-uncertain" // nobody can tell whether the CA has issued
	OrderSettled      Event = "order-settled"
	CertIssued        Event = "certificate-issued"
	CertsImported     Event = "certificates-imported"
	CertRevoked       Event = "certificate-revoked"
	LeaversConfirmed  Event = "leavers-confirmed" // by an operator, past the limits
	KeyArchived       Event = "key-archived"
	KeyImported       Event = "key-imported"
	KeyRecovered      Event = "key-recovered"
	KeyExported       Event = "key-exported" // still closed
	RecoveryRefused   Event = "recovery-refused"
	CaseOpened        Event = "recovery-opened"
	CaseApproved      Event = "recovery-approved"
	CaseDenied        Event = "recovery-denied"
	CaseWithdrawn     Event = "recovery-withdrawn"
	CaseExpired       Event = "recovery-expired"
	CaseFetched       Event = "recovery-fetched"
	BadShare          Event = "recovery-bad-share" // as the manager who fetched reports
	BatchOrdered      Event = "batch-ordered"      // work on many archived keys
	BatchTaken        Event = "batch-taken"        // by the agent who does the work
	BatchConsented    Event = "batch-consented"
	BatchEnded        Event = "batch-ended"
	RecordFailed      Event = "batch-record-failed"
	KeyRewrapped      Event = "key-rewrapped"   // sealed to other agents
	KeyProven         Event = "key-proven"      // it was opened, and has signed
	KeyRestored       Event = "key-restored"    // a rewrap was taken back
	EscrowVerified    Event = "escrow-verified" // every record was compared with this log
	AgentAdded        Event = "agent-added"
	AgentRemoved      Event = "agent-removed"
	ExchangeCreated   Event = "exchange-key-created"
	ExchangeImported  Event = "exchange-key-imported"
	ExchangeDestroyed Event = "exchange-key-destroyed"
	ConfigChanged     Event = "configuration-changed"
	KeyDestroyed      Event = "key-destroyed"
	KeyHeld           Event = "key-held"
	KeyReleased       Event = "key-released"
	Restored          Event = "database-restored"
	DestroyConfirmed  Event = "retention-confirmed" // by an operator, past the limit
)

// Line is one entry.
type Line struct {
	Seq    int64           `json:"seq"`
	Time   time.Time       `json:"time"`
	Actor  string          `json:"actor"`
	Event  Event           `json:"event"`
	Detail json.RawMessage `json:"detail"`
}

// Append adds a line. detail is encoded as JSON and must hold no secret.
func Append(tx *sql.Tx, now time.Time, actor string, event Event, detail any) error {
	text, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("audit: encode detail: %w", err)
	}
	var seq int64
	previous := make([]byte, sha256.Size)
	switch err := tx.QueryRow("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").Scan(&seq, &previous); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return fmt.Errorf("audit: %w", err)
	}
	actor = store.Text(actor) // what the hash is of is what every database gives back
	line := Line{Seq: seq + 1, Time: now.UTC().Truncate(time.Millisecond), Actor: actor, Event: event, Detail: text}
	_, err = tx.Exec("INSERT INTO audit (seq, time, actor, event, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
		line.Seq, line.Time.UnixMilli(), actor, string(event), string(text), previous, line.hash(previous))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// Receipt names a line by its number and hash. Who keeps one can show later that a log which lacks the line was rolled back.
type Receipt struct {
	Seq  int64  `json:"line"`
	Hash string `json:"hash"` // hexadecimal
}

// Last is the receipt of the line that was appended last.
func Last(tx *sql.Tx) (r Receipt, err error) {
	var hash []byte
	if err := tx.QueryRow("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").Scan(&r.Seq, &hash); err != nil {
		return r, fmt.Errorf("audit: %w", err)
	}
	r.Hash = hex.EncodeToString(hash)
	return r, nil
}

// Holds tells whether the log has the line of a receipt, unchanged; nil means yes.
func (r Receipt) Holds(ctx context.Context, db *sql.DB) error {
	var hash []byte
	switch err := db.QueryRowContext(ctx, "SELECT hash FROM audit WHERE seq = ?", r.Seq).Scan(&hash); {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("audit: line %d does not exist any more: the database was rolled back", r.Seq)
	case err != nil:
		return fmt.Errorf("audit: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(hash)), []byte(r.Hash)) != 1 {
		return fmt.Errorf("audit: line %d is another than the receipt's: the database was rolled back, or the log written anew", r.Seq)
	}
	return nil
}

// hash covers every field, each with its length, and the hash of the line before.
func (l *Line) hash(previous []byte) []byte {
	h := sha256.New()
	h.Write(previous)
	var n [8]byte
	for _, v := range []int64{l.Seq, l.Time.UnixMilli()} {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		h.Write(n[:])
	}
	for _, s := range []string{l.Actor, string(l.Event), string(l.Detail)} {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	return h.Sum(nil)
}

// Verify reads the whole log and checks the chain and the tree. It returns the number of lines; an error names the first bad
// one.
func Verify(ctx context.Context, db *sql.DB) (int64, error) { return verify(ctx, db, nil, nil) }

// VerifySigned is Verify, and also checks every checkpoint that the database has, and those that the caller has kept elsewhere,
// which show a log that was put back to an earlier state or written anew.
func VerifySigned(ctx context.Context, db *sql.DB, v note.Verifier, elsewhere ...string) (int64, error) {
	return verify(ctx, db, v, elsewhere)
}

// verify looks at everything in one state of the database. Without a verifier no checkpoint is looked at.
func verify(ctx context.Context, db *sql.DB, v note.Verifier, elsewhere []string) (int64, error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	defer tx.Rollback()
	tree, err := newTreeChecker(ctx, tx)
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	count, err := verifyLines(ctx, tx, tree)
	if err != nil || v == nil {
		return count, err
	}
	kept, err := checkpoints(ctx, tx)
	if err != nil {
		return count, err
	}
	for _, text := range append(kept, elsewhere...) {
		c, err := OpenCheckpoint(text, v)
		if err == nil {
			err = c.begins(count, tree)
		}
		if err != nil {
			return count, fmt.Errorf("audit: %w", err)
		}
	}
	return count, nil
}

// checkpoints are the signed notes that the database has.
func checkpoints(ctx context.Context, db querier) (out []string, err error) {
	rows, err := db.QueryContext(ctx, "SELECT note FROM audit_checkpoints ORDER BY size")
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		out = append(out, text)
	}
	return out, rows.Err()
}

// State is the log as a whole at one moment.
type State struct {
	Lines int64     `json:"lines"`
	Root  tlog.Hash `json:"root"`          // of the tree over all lines, also of those that are not signed yet
	Last  Receipt   `json:"last,omitzero"` // of the last line
	Time  time.Time `json:"time,omitzero"` // of the last line
}

// Recompute checks the chain and the tree, and tells what they make.
func Recompute(ctx context.Context, tx *sql.Tx) (s State, err error) {
	tree, err := newTreeChecker(ctx, tx)
	if err != nil {
		return s, fmt.Errorf("audit: %w", err)
	}
	if s.Lines, err = verifyLines(ctx, tx, tree); err != nil {
		return s, err
	}
	if s.Root, err = tlog.TreeHash(s.Lines, tree); err != nil {
		return s, fmt.Errorf("audit: %w", err)
	}
	if s.Lines == 0 {
		return s, nil
	}
	if s.Last, err = Last(tx); err != nil {
		return s, err
	}
	var ms int64
	if err := tx.QueryRowContext(ctx, "SELECT time FROM audit WHERE seq = ?", s.Lines).Scan(&ms); err != nil {
		return s, fmt.Errorf("audit: %w", err)
	}
	s.Time = time.UnixMilli(ms).UTC()
	return s, nil
}

func verifyLines(ctx context.Context, tx *sql.Tx, tree *treeChecker) (int64, error) {
	var count int64
	last := make([]byte, sha256.Size)
	err := each(ctx, tx, 0, func(l Line, previous, hash []byte) error {
		count++
		switch {
		case l.Seq != count:
			return fmt.Errorf("line %d is missing", count)
		case subtle.ConstantTimeCompare(previous, last) != 1, subtle.ConstantTimeCompare(hash, l.hash(previous)) != 1:
			return fmt.Errorf("line %d has been changed", l.Seq)
		}
		last = hash
		return tree.line(&l)
	})
	if err != nil {
		return count, err
	}
	if err := tree.end(); err != nil {
		return count, fmt.Errorf("audit: %w", err)
	}
	return count, nil
}

// Each calls do with every line after the one with the number after, in order.
func Each(ctx context.Context, db *sql.DB, after int64, do func(Line) error) error {
	return each(ctx, db, after, func(l Line, _, _ []byte) error { return do(l) })
}

// page is how many lines are read at once: none is held in memory for longer, and nothing else waits for the reader.
const page = 1000

func each(ctx context.Context, db querier, after int64, do func(l Line, previous, hash []byte) error) error {
	for {
		n, last, err := eachOfPage(ctx, db, after, do)
		if err != nil || n < page {
			return err
		}
		after = last
	}
}

func eachOfPage(ctx context.Context, db querier, after int64, do func(l Line, previous, hash []byte) error) (n int, last int64, err error) {
	type full struct {
		Line
		previous, hash []byte
	}
	var lines []full
	rows, err := db.QueryContext(ctx, "SELECT seq, time, actor, event, detail, previous, hash FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", after, page)
	if err != nil {
		return 0, 0, fmt.Errorf("audit: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var l full
		var ms int64
		var detail string
		if err := rows.Scan(&l.Seq, &ms, &l.Actor, &l.Event, &detail, &l.previous, &l.hash); err != nil {
			return 0, 0, fmt.Errorf("audit: %w", err)
		}
		l.Time, l.Detail = time.UnixMilli(ms).UTC(), json.RawMessage(detail)
		lines = append(lines, l)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, 0, fmt.Errorf("audit: %w", err)
	}
	for i := range lines {
		if err := do(lines[i].Line, lines[i].previous, lines[i].hash); err != nil {
			return 0, 0, fmt.Errorf("audit: %w", err)
		}
		last = lines[i].Seq
	}
	return len(lines), last, nil
}
