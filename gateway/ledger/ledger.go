// Package ledger records every request and what became of it.
//
// A request that policy allows is opened with Begin before anything else happens, together with its archived key; it
// ends with Finish. What a crash leaves unfinished is in Unfinished. The states and the only ways between them:
//
//	(new) → open ──────────────→ issued | failed | denied | waiting
//	(new) → pending → approved → issued | failed | denied | waiting
//	                → denied              waiting → issued | failed | denied
//	(new) → denied
package ledger

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// State is where a request stands.
type State string

// The states. Issued, Denied and Failed are final.
const (
	Open     State = "open"     // allowed and, where demanded, archived; the CA has not answered yet
	Pending  State = "pending"  // a certificate manager has to decide
	Approved State = "approved" // a certificate manager has said yes; the CA has not answered yet
	Waiting  State = "waiting"  // the CA has taken the order and not finished it
	Issued   State = "issued"
	Denied   State = "denied"
	Failed   State = "failed"
)

// Row is one request.
type Row struct {
	ID          int64                        `json:"id"`
	State       State                        `json:"state"`
	Created     time.Time                    `json:"created"`
	Updated     time.Time                    `json:"updated"`
	Caller      string                       `json:"caller"`
	CallerSID   security.SID                 `json:"caller_sid"`
	SubjectSID  security.SID                 `json:"subject_sid"` // whom the certificate is for
	Template    string                       `json:"template"`
	CA          string                       `json:"ca"`
	Transport   string                       `json:"transport"`
	Archived    bool                         `json:"archived"`
	Fingerprint []byte                       `json:"-"`
	CSR         []byte                       `json:"-"` // PKCS#10
	Profile     templates.CertificateProfile `json:"profile"`
	Checks      []templates.Check            `json:"checks"`
	KeyHash     []byte                       `json:"-"`
	HResult     hresult.Code                 `json:"hresult"`
	Message     string                       `json:"message,omitempty"`
	DecidedBy   string                       `json:"decided_by,omitempty"`
	CAToken     string                       `json:"ca_token,omitempty"`
	Serial      string                       `json:"serial,omitempty"`
	Certificate []byte                       `json:"certificate,omitempty"` // DER
	NotAfter    time.Time                    `json:"not_after,omitzero"`
	Revoked     time.Time                    `json:"revoked,omitzero"` // through the gateway
}

// Ledger is the table of requests.
type Ledger struct {
	db  *store.DB
	now func() time.Time
}

// New returns the ledger in db.
func New(db *store.DB, now func() time.Time) *Ledger { return &Ledger{db: db, now: now} }

// ErrNotFound is a request that does not exist.
var ErrNotFound = errors.New("no such request")

// DuplicateError is a request that the same caller sent before, octet for octet: while the first one is unfinished, or
// a moment after it was answered. The answer to the second is that of the first.
type DuplicateError struct{ ID int64 }

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("the same request is recorded as %d", e.ID)
}

// duplicateWindow is how long after a certificate was issued the same octets are taken for a repetition. Later they are
// a new request: a client that renews with the same key sends just that.
const duplicateWindow = 15 * time.Second

// duplicate finds an earlier request with the same octets of the same caller.
func duplicate(tx *sql.Tx, r *Row, now time.Time) error {
	var id int64
	err := tx.QueryRow(`SELECT id FROM requests WHERE fingerprint = ? AND caller_sid = ? AND
		(state IN ('open', 'pending', 'approved', 'waiting') OR state = 'issued' AND updated > ?) ORDER BY id DESC LIMIT 1`,
		r.Fingerprint, string(r.CallerSID), now.Add(-duplicateWindow).UnixMilli()).Scan(&id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("ledger: %w", err)
	}
	return &DuplicateError{id}
}

// Begin records a new request in state Open, Pending or Denied and returns its number when it is durable. together runs
// in the same transaction: what it writes, the archived key, exists if and only if the row does. A repetition of a request
// that is under way is a *DuplicateError.
func (l *Ledger) Begin(ctx context.Context, r *Row, together func(tx *sql.Tx, id int64) error) (int64, error) {
	profile, err := json.Marshal(r.Profile)
	if err != nil {
		return 0, fmt.Errorf("ledger: %w", err)
	}
	checks, err := json.Marshal(r.Checks)
	if err != nil {
		return 0, fmt.Errorf("ledger: %w", err)
	}
	var id int64
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		if r.State != Denied {
			if err := duplicate(tx, r, now); err != nil {
				return err
			}
		}
		var claimed int64
		if r.State == Open { // who records a request works on it
			claimed = now.Add(ClaimTime).UnixMilli()
		}
		if err := tx.QueryRow(`INSERT INTO requests (state, created, updated, caller, caller_sid, subject_sid, template, ca, transport, archived, fingerprint,
			csr, profile, checks, key_hash, hresult, message, claimed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
			string(r.State), now.UnixMilli(), now.UnixMilli(), r.Caller, string(r.CallerSID), string(r.SubjectSID), r.Template, r.CA, r.Transport, r.Archived,
			r.Fingerprint, r.CSR, string(profile), string(checks), r.KeyHash, int64(r.HResult), r.Message, claimed).Scan(&id); err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
		if together != nil {
			if err := together(tx, id); err != nil {
				return err
			}
		}
		switch r.State {
		case Denied:
			return audit.Append(tx, now, r.Caller, audit.RequestDenied, map[string]any{"request": id, "template": r.Template, "hresult": r.HResult.String(), "reason": r.Message})
		case Pending:
			return audit.Append(tx, now, r.Caller, audit.RequestPending, map[string]any{"request": id, "template": r.Template, "subject": r.Profile.SubjectText})
		}
		return nil
	})
	return id, err
}

// Result is how a request ended, or that the CA still works on it (Waiting).
type Result struct {
	State       State
	Certificate *x509.Certificate
	HResult     hresult.Code
	Message     string
	CAToken     string
	Publish     []Target // where an issued certificate is wanted
}

// Finish moves a request that is Open, Approved or Waiting to the result's state. It fails if somebody else did so before.
func (l *Ledger) Finish(ctx context.Context, id int64, actor string, r Result) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		var serial string
		der, keyID := []byte(nil), []byte{}
		var notAfter int64
		if r.Certificate != nil {
			serial, der, notAfter = SerialText(r.Certificate), r.Certificate.Raw, r.Certificate.NotAfter.UnixMilli()
			sum := sha256.Sum256(r.Certificate.RawSubjectPublicKeyInfo)
			keyID = sum[:]
		}
		err := move(tx, id, now, []State{Open, Approved, Waiting}, r.State,
			"hresult = ?, message = ?, ca_token = ?, serial = ?, certificate = ?, not_after = ?, key_id = ?, claimed = 0",
			int64(r.HResult), r.Message, r.CAToken, serial, der, notAfter, keyID)
		if err != nil {
			return err
		}
		detail := map[string]any{"request": id}
		switch r.State {
		case Issued:
			if err := wantPublications(tx, id, now, r.Publish); err != nil {
				return err
			}
			detail["serial"], detail["not_after"] = serial, r.Certificate.NotAfter.UTC()
			return audit.Append(tx, now, actor, audit.CertIssued, detail)
		case Denied:
			detail["reason"] = r.Message
			return audit.Append(tx, now, actor, audit.RequestDenied, detail)
		case Failed:
			detail["reason"] = r.Message
			return audit.Append(tx, now, actor, audit.RequestFailed, detail)
		}
		return nil
	})
}

// SerialText is how serial numbers are written everywhere: hexadecimal, lower case.
func SerialText(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// Decide records a certificate manager's answer to a pending request.
func (l *Ledger) Decide(ctx context.Context, id int64, actor string, approve bool, reason string) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		to, code, event := Approved, hresult.OK, audit.RequestApproved
		if !approve {
			to, code, event = Denied, hresult.AdminDeniedRequest, audit.RequestRejected
		}
		if err := move(tx, id, now, []State{Pending}, to, "decided_by = ?, hresult = ?, message = ?", actor, int64(code), reason); err != nil {
			return err
		}
		return audit.Append(tx, now, actor, event, map[string]any{"request": id, "reason": reason})
	})
}

// move changes the state of one row, which must be in one of the states from.
func move(tx *sql.Tx, id int64, now time.Time, from []State, to State, set string, args ...any) error {
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(from)), ", ")
	all := append([]any{string(to), now.UnixMilli()}, args...)
	all = append(all, id)
	for _, s := range from {
		all = append(all, string(s))
	}
	res, err := tx.Exec("UPDATE requests SET state = ?, updated = ?, "+set+" WHERE id = ? AND state IN ("+marks+")", all...)
	if err != nil {
		return fmt.Errorf("ledger: request %d: %w", id, err)
	}
	if n, err := res.RowsAffected(); err == nil && n == 1 {
		return nil
	}
	var state string
	if err := tx.QueryRow("SELECT state FROM requests WHERE id = ?", id).Scan(&state); errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("request %d: %w", id, ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("ledger: request %d: %w", id, err)
	}
	return fmt.Errorf("request %d is %s, not %s", id, state, joinStates(from))
}

func joinStates(states []State) string {
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = string(s)
	}
	return strings.Join(names, " or ")
}

const columns = `id, state, created, updated, caller, caller_sid, subject_sid, template, ca, transport, archived, fingerprint, csr,
	profile, checks, key_hash, hresult, message, decided_by, ca_token, serial, certificate, not_after, revoked`

// Get returns one request, or ErrNotFound.
func (l *Ledger) Get(ctx context.Context, id int64) (*Row, error) {
	rows, err := l.query(ctx, "WHERE id = ?", id)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("request %d: %w", id, ErrNotFound)
	}
	return rows[0], nil
}

// BySerial returns the request that a certificate was issued for, or ErrNotFound.
func (l *Ledger) BySerial(ctx context.Context, ca, serial string) (*Row, error) {
	rows, err := l.query(ctx, "WHERE ca = ? AND serial = ?", ca, strings.ToLower(serial))
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("certificate %s of CA %q: %w", serial, ca, ErrNotFound)
	}
	return rows[0], nil
}

// Revoked records that a certificate was revoked at its CA, and why, which may be empty. The first time counts.
func (l *Ledger) Revoked(ctx context.Context, id int64, actor string, reason int, why string) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		res, err := tx.Exec("UPDATE requests SET revoked = ? WHERE id = ? AND revoked = 0", now.UnixMilli(), id)
		if err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		if err := hurryPublications(tx, id, now); err != nil {
			return err
		}
		detail := map[string]any{"request": id, "reason": reason}
		if why != "" {
			detail["why"] = why
		}
		return audit.Append(tx, now, actor, audit.CertRevoked, detail)
	})
}

// List returns the newest requests first, at most limit; state "" means every state.
func (l *Ledger) List(ctx context.Context, state State, limit int) ([]*Row, error) {
	if state == "" {
		return l.query(ctx, "ORDER BY id DESC LIMIT ?", limit)
	}
	return l.query(ctx, "WHERE state = ? ORDER BY id DESC LIMIT ?", string(state), limit)
}

// Unfinished returns the requests that a CA has yet to answer, oldest first.
func (l *Ledger) Unfinished(ctx context.Context, limit int) ([]*Row, error) {
	return l.query(ctx, "WHERE state IN ('open', 'approved', 'waiting') ORDER BY id LIMIT ?", limit)
}

// ClaimTime is how long one gateway has an unfinished request for itself. It ends with an answer of the CA, or that there is
// none; after it, another one takes the request over.
const ClaimTime = 30 * time.Second

// Claim takes an unfinished request, so that of several gateways only one asks the CA about it at a time. It tells whether the
// caller has got it: not where another has it, or it has ended. A claim that ends until void counts for nothing.
func (l *Ledger) Claim(ctx context.Context, id int64, void time.Time) (ok bool, err error) {
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("UPDATE requests SET claimed = ? WHERE id = ? AND state IN ('open', 'approved', 'waiting') AND claimed <= ?",
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

// Release gives a claim back: the request is as it was, for whoever comes next.
func (l *Ledger) Release(ctx context.Context, id int64) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.Exec("UPDATE requests SET claimed = 0 WHERE id = ?", id); err != nil {
			return fmt.Errorf("ledger: request %d: %w", id, err)
		}
		return nil
	})
}

func (l *Ledger) query(ctx context.Context, where string, args ...any) ([]*Row, error) {
	rows, err := l.db.SQL.QueryContext(ctx, "SELECT "+columns+" FROM requests "+where, args...)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	defer rows.Close()
	var out []*Row
	for rows.Next() {
		r := &Row{}
		var created, updated, code, notAfter, revoked int64
		var profile, checks string
		if err := rows.Scan(&r.ID, &r.State, &created, &updated, &r.Caller, &r.CallerSID, &r.SubjectSID, &r.Template, &r.CA, &r.Transport, &r.Archived,
			&r.Fingerprint, &r.CSR, &profile, &checks, &r.KeyHash, &code, &r.Message, &r.DecidedBy, &r.CAToken, &r.Serial, &r.Certificate, &notAfter, &revoked); err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		if err := errors.Join(json.Unmarshal([]byte(profile), &r.Profile), json.Unmarshal([]byte(checks), &r.Checks)); err != nil {
			return nil, fmt.Errorf("ledger: request %d: %w", r.ID, err)
		}
		r.Created, r.Updated, r.HResult = time.UnixMilli(created).UTC(), time.UnixMilli(updated).UTC(), hresult.Code(code)
		if notAfter != 0 {
			r.NotAfter = time.UnixMilli(notAfter).UTC()
		}
		if revoked != 0 {
			r.Revoked = time.UnixMilli(revoked).UTC()
		}
		out = append(out, r)
	}
	return out, rows.Err()
}
