package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/security"
)

// Kind is how a certificate manager sees requests.
type Kind string

// The kinds. Each request is of one.
const (
	KindQueued  Kind = "queued"  // decided; the CA has not answered yet
	KindPending Kind = "pending" // a certificate manager has to decide
	KindIssued  Kind = "issued"
	KindRevoked Kind = "revoked"
	KindFailed  Kind = "failed"
	KindDenied  Kind = "denied"
)

// KindOf is the kind of a request.
func (r *Row) KindOf() Kind {
	switch {
	case r.State == Issued && !r.Revoked.IsZero():
		return KindRevoked
	case r.State == Open || r.State == Approved || r.State == Waiting:
		return KindQueued
	}
	return Kind(r.State)
}

// kinds are conditions for the database. Those of sparse kinds repeat the condition of the index that has them.
var kinds = map[Kind]string{
	KindQueued:  "state IN ('open', 'pending', 'approved', 'waiting') AND state <> 'pending'",
	KindPending: "state IN ('open', 'pending', 'approved', 'waiting') AND state = 'pending'",
	KindIssued:  "state = 'issued' AND revoked = 0",
	KindRevoked: "state = 'issued' AND revoked <> 0",
	KindFailed:  "state IN ('denied', 'failed') AND state = 'failed'",
	KindDenied:  "state IN ('denied', 'failed') AND state = 'denied'",
}

// pairs are kinds that an index has together.
var pairs = []struct {
	of        [2]Kind
	condition string
}{
	{[2]Kind{KindQueued, KindPending}, "state IN ('open', 'pending', 'approved', 'waiting')"},
	{[2]Kind{KindFailed, KindDenied}, "state IN ('denied', 'failed')"},
}

// oneOf is the condition for some kinds.
func oneOf(list []Kind) string {
	for _, p := range pairs {
		if len(list) == 2 && slices.Contains(list, p.of[0]) && slices.Contains(list, p.of[1]) {
			return p.condition
		}
	}
	if len(list) == 0 {
		return "1 = 0"
	}
	var out []string
	for _, k := range list {
		out = append(out, kinds[k])
	}
	if len(out) == 1 { // without brackets, so that the condition of its index is found
		return out[0]
	}
	return "(" + strings.Join(out, " OR ") + ")"
}

// Query says which requests a page has: those that are all that it names.
type Query struct {
	CA          string
	Kinds       []Kind // one of these; nil: any
	First, Last int64  // numbers; Last 0: up to the newest
	Caller      security.SID
	Template    string
	Serial      string // hexadecimal
	// Of issued certificates, in any case of letters:
	CommonName, UPN string
	Hash            string // SHA-1 of the certificate, hexadecimal
	SubjectKeyID    string // hexadecimal
	// Times are inclusive; the zero time is none.
	SubmittedFrom, SubmittedTo time.Time
	EndFrom, EndTo             time.Time // of the certificate's validity

	Descending bool // newest first
	Skip       int
	Limit      int
}

// Page returns requests by number.
func (l *Ledger) Page(ctx context.Context, q Query) ([]*Row, error) {
	conditions, args := q.named()
	if len(conditions) > 0 {
		if err := l.FillNames(ctx); err != nil {
			return nil, err
		}
	}
	conditions, args = append(conditions, "ca = ?", "id >= ?"), append(args, q.CA, q.First)
	add := func(when bool, condition string, arg any) {
		if when {
			conditions, args = append(conditions, condition), append(args, arg)
		}
	}
	add(q.Last != 0, "id <= ?", q.Last)
	add(q.Caller != "", "caller_sid = ?", string(q.Caller))
	add(q.Template != "", "template = ?", q.Template)
	add(q.Serial != "", "serial = ?", strings.ToLower(q.Serial))
	add(!q.SubmittedFrom.IsZero(), "created >= ?", q.SubmittedFrom.UnixMilli())
	add(!q.SubmittedTo.IsZero(), "created <= ?", q.SubmittedTo.UnixMilli())
	add(!q.EndFrom.IsZero(), "not_after >= ?", q.EndFrom.UnixMilli())
	add(!q.EndTo.IsZero(), "not_after > 0 AND not_after <= ?", q.EndTo.UnixMilli())
	if q.Kinds != nil {
		conditions = append(conditions, oneOf(q.Kinds))
	}
	order := "id"
	if q.Descending {
		order = "id DESC"
	}
	args = append(args, q.Limit, q.Skip)
	return l.query(ctx, "WHERE "+strings.Join(conditions, " AND ")+" ORDER BY "+order+" LIMIT ? OFFSET ?", args...)
}

// LastID is the number of the newest request; 0 where there is none.
func (l *Ledger) LastID(ctx context.Context) (id int64, err error) {
	if err := l.db.SQL.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM requests").Scan(&id); err != nil {
		return 0, fmt.Errorf("ledger: %w", err)
	}
	return id, nil
}
