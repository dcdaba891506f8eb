package verify

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
)

// events are the lines that say what a record has to be.
var events = []any{string(audit.KeyArchived), string(audit.KeyImported), string(audit.KeyRewrapped), string(audit.KeyRestored), string(audit.KeyProven), string(audit.KeyDestroyed)}

// digest is half a SHA-256: nobody finds another text with the same.
type digest [16]byte

// past is what the audit log says of one record.
type past struct {
	identity digest // of owner, key and policy, which never change
	sealed   digest // SHA-256 of the sealed key, by the newest line that has it
	replaced digest // of what the newest rewrap has replaced, which is kept until somebody proves the new form
	proven   int64  // Unix milliseconds; 0 where it was not since it was sealed
	line     int64  // of the log, about its beginning
	flags    uint8
}

const (
	archived  = 1 << iota // there is a line about its beginning
	hashed                // sealed is known
	destroyed             // on purpose
	restored              // the proof is that of what was put back, which is not known
	seen                  // the record was read
)

// trail is what the audit log says of the records with numbers from first to before end.
type trail struct {
	first, end int64
	past       []*[block]past // by number, from first; nil where the log has none of a block
	seq        int64          // the line up to which the log was read
	beyond     int64          // the lowest number from end on in any line; math.MaxInt64 where there is none
}

// block is how many numbers of records get their memory together.
const block = 4096

func newTrail(first, end int64) *trail { return &trail{first: first, end: end, beyond: math.MaxInt64} }

// of is what is known of a record; nil where the log has nothing.
func (t *trail) of(id int64) *past {
	i := id - t.first
	if n := i / block; i < 0 || n >= int64(len(t.past)) || t.past[n] == nil || t.past[n][i%block].flags&^seen == 0 {
		return nil
	}
	return &t.past[i/block][i%block]
}

// querier reads: *sql.DB or *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

const linesAtOnce = 5000

// follow reads the lines that were appended since it was called last.
func (t *trail) follow(ctx context.Context, db querier) error {
	var end int64
	if err := db.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM audit").Scan(&end); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	for t.seq < end {
		n, err := t.lines(ctx, db, end)
		if err != nil {
			return err
		}
		if n < linesAtOnce {
			t.seq = end
		}
	}
	return nil
}

func (t *trail) lines(ctx context.Context, db querier, end int64) (n int, err error) {
	rows, err := db.QueryContext(ctx, "SELECT seq, time, event, detail FROM audit WHERE seq > ? AND seq <= ? AND event IN (?"+strings.Repeat(", ?", len(events)-1)+") ORDER BY seq LIMIT ?",
		append(append([]any{t.seq, end}, events...), linesAtOnce)...)
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var ms int64
		var event audit.Event
		var detail []byte
		if err := rows.Scan(&t.seq, &ms, &event, &detail); err != nil {
			return 0, fmt.Errorf("audit: %w", err)
		}
		var l line
		if err := json.Unmarshal(detail, &l); err != nil {
			return 0, fmt.Errorf("audit: line %d: %w", t.seq, err)
		}
		if l.Record < t.first || l.Record >= t.end {
			if l.Record >= t.end {
				t.beyond = min(t.beyond, l.Record)
			}
		} else if err := l.tell(t.grow(l.Record), event, t.seq, ms); err != nil {
			return 0, fmt.Errorf("audit: line %d: %w", t.seq, err)
		}
		n++
	}
	return n, rows.Err()
}

// grow is the place of a record.
func (t *trail) grow(id int64) *past {
	i := int(id - t.first)
	for len(t.past) <= i/block {
		t.past = append(t.past, nil)
	}
	if t.past[i/block] == nil {
		t.past[i/block] = &[block]past{}
	}
	return &t.past[i/block][i%block]
}

// line has the members of the lines' details that matter here.
type line struct {
	Record   int64  `json:"record"`
	Owner    string `json:"owner"`
	KeyID    string `json:"key_id"`
	Policy   string `json:"policy"`
	Archived string `json:"sealed_sha256"` // of key-archived and key-imported
	Old      string `json:"old"`           // of key-rewrapped
	New      string `json:"new"`           // of key-rewrapped and key-restored
	Sealed   string `json:"sealed"`        // of key-proven
}

// tell applies a line to what is known.
func (l *line) tell(p *past, event audit.Event, seq, ms int64) (err error) {
	sealed := ""
	switch event {
	case audit.KeyArchived, audit.KeyImported:
		keyID, err := hex.DecodeString(l.KeyID)
		if err != nil {
			return err
		}
		if l.Policy == "" {
			l.Policy = "default" // before there were others
		}
		*p = past{identity: identity(l.Owner, l.Policy, keyID), line: seq, flags: archived | p.flags&seen}
		sealed = l.Archived
	case audit.KeyRewrapped:
		sealed, p.proven, p.flags = l.New, 0, p.flags&^restored
		if p.replaced, err = digestOf(l.Old); err != nil {
			return err
		}
	case audit.KeyRestored:
		sealed, p.flags = l.New, p.flags|restored
	case audit.KeyProven:
		sealed, p.proven, p.flags = l.Sealed, ms, p.flags&^restored
	case audit.KeyDestroyed:
		p.flags |= destroyed
	}
	if sealed == "" {
		return nil
	}
	p.flags |= hashed
	p.sealed, err = digestOf(sealed)
	return err
}

// digestOf reads a SHA-256 in hexadecimal.
func digestOf(text string) (d digest, err error) {
	sum, err := hex.DecodeString(text)
	if err != nil || len(sum) != sha256.Size {
		return d, errors.New("the hash of the record is none")
	}
	return digest(sum[:16]), nil
}

func digestFor(sealed []byte) digest {
	sum := sha256.Sum256(sealed)
	return digest(sum[:16])
}

func identity(owner, policy string, keyID []byte) digest {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %d %s %x", len(owner), owner, len(policy), policy, keyID))
	return digest(sum[:16])
}

// unseen calls do with the numbers of records that the log has, that nobody has destroyed and that were not read.
func (t *trail) unseen(do func(id int64) error) error {
	for n, some := range t.past {
		if some == nil {
			continue
		}
		for i := range some {
			if some[i].flags&(archived|seen|destroyed) == archived {
				if err := do(t.first + int64(n*block+i)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// owner is whose a record was that is gone: the line about its beginning says so.
func (t *trail) owner(ctx context.Context, db querier, id int64) string {
	var detail []byte
	var l line
	err := db.QueryRowContext(ctx, "SELECT detail FROM audit WHERE seq = ?", t.of(id).line).Scan(&detail)
	if errors.Join(err, json.Unmarshal(detail, &l)) != nil {
		return ""
	}
	return l.Owner
}
