// Package audit is the append-only log of decisions, issuance and recovery. Each line carries the hash of the one
// before, so that a line that was changed or removed later shows.
//
// Append writes a line inside the caller's transaction: what it tells about and the line become durable together, or
// neither does. Verify recomputes the chain.
package audit

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Event is what happened.
type Event string

// The events.
const (
	RequestDenied    Event = "request-denied"
	RequestPending   Event = "request-pending"
	RequestApproved  Event = "request-approved"
	RequestRejected  Event = "request-rejected" // by a certificate manager
	RequestFailed    Event = "request-failed"
	CertIssued       Event = "certificate-issued"
	CertRevoked      Event = "certificate-revoked"
	LeaversConfirmed Event = "leavers-confirmed" // by an operator, past the limits
	KeyArchived      Event = "key-archived"
	KeyImported      Event = "key-imported"
	KeyRecovered     Event = "key-recovered"
	RecoveryRefused  Event = "recovery-refused"
	AgentAdded       Event = "agent-added"
	AgentRemoved     Event = "agent-removed"
	ExchangeCreated  Event = "exchange-key-created"
	ExchangeImported Event = "exchange-key-imported"
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
	line := Line{Seq: seq + 1, Time: now.UTC().Truncate(time.Millisecond), Actor: actor, Event: event, Detail: text}
	_, err = tx.Exec("INSERT INTO audit (seq, time, actor, event, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
		line.Seq, line.Time.UnixMilli(), actor, string(event), string(text), previous, line.hash(previous))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
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

// Verify reads the whole log and checks the chain. It returns the number of lines; an error names the first bad one.
func Verify(ctx context.Context, db *sql.DB) (int64, error) {
	var count int64
	last := make([]byte, sha256.Size)
	err := each(ctx, db, func(l Line, previous, hash []byte) error {
		count++
		switch {
		case l.Seq != count:
			return fmt.Errorf("line %d is missing", count)
		case subtle.ConstantTimeCompare(previous, last) != 1, subtle.ConstantTimeCompare(hash, l.hash(previous)) != 1:
			return fmt.Errorf("line %d has been changed", l.Seq)
		}
		last = hash
		return nil
	})
	return count, err
}

// Lines returns the log in order.
func Lines(ctx context.Context, db *sql.DB) ([]Line, error) {
	var out []Line
	err := each(ctx, db, func(l Line, _, _ []byte) error {
		out = append(out, l)
		return nil
	})
	return out, err
}

func each(ctx context.Context, db *sql.DB, do func(l Line, previous, hash []byte) error) error {
	rows, err := db.QueryContext(ctx, "SELECT seq, time, actor, event, detail, previous, hash FROM audit ORDER BY seq")
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var l Line
		var ms int64
		var detail string
		var previous, hash []byte
		if err := rows.Scan(&l.Seq, &ms, &l.Actor, &l.Event, &detail, &previous, &hash); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		l.Time, l.Detail = time.UnixMilli(ms).UTC(), json.RawMessage(detail)
		if err := do(l, previous, hash); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	return rows.Err()
}
