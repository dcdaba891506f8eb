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
	// Issuer is the CA that signs, which may be another than the one that the client addressed. Sent is when it was about to get
	// the order; zero while it is certain that no CA has it.
	Issuer  string    `json:"issuer,omitempty"`
	Route   []string  `json:"route,omitempty"` // the CAs that may sign, in the order in which they are tried; empty: Issuer alone
	Sent    time.Time `json:"sent,omitzero"`
	CAToken string    `json:"ca_token,omitempty"` // how the CA names an order that it has not finished
	Due     time.Time `json:"due,omitzero"`       // when the CA is asked next
	// Attempts have failed in a row; Trouble is the last one's error.
	Attempts int    `json:"attempts,omitempty"`
	Trouble  string `json:"trouble,omitempty"`
	// Doubt says why nobody can tell whether the CA has issued: the order is left alone until somebody settles it.
	Doubt       string    `json:"doubt,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	Certificate []byte    `json:"certificate,omitempty"` // DER
	NotAfter    time.Time `json:"not_after,omitzero"`
	Revoked     time.Time `json:"revoked,omitzero"` // through the gateway
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
	route := ""
	if len(r.Route) > 1 {
		text, err := json.Marshal(r.Route)
		if err != nil {
			return 0, fmt.Errorf("ledger: %w", err)
		}
		route = string(text)
	}
	var id int64
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		if r.State != Denied {
			if err := duplicate(tx, r, now); err != nil {
				return err
			}
		}
		var claimed, sent int64
		if r.State == Open { // who records a request works on it, and is about to send it
			claimed, sent = now.Add(ClaimTime).UnixMilli(), now.UnixMilli()
		}
		if err := tx.QueryRow(`INSERT INTO requests (state, created, updated, caller, caller_sid, subject_sid, template, ca, transport, archived, fingerprint,
			csr, profile, checks, key_hash, hresult, message, claimed, issuer, sent, route) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
			string(r.State), now.UnixMilli(), now.UnixMilli(), r.Caller, string(r.CallerSID), string(r.SubjectSID), r.Template, r.CA, r.Transport, r.Archived,
			r.Fingerprint, r.CSR, string(profile), string(checks), r.KeyHash, int64(r.HResult), r.Message, claimed, r.Issuer, sent, route).Scan(&id); err != nil {
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
	Publish     []Target // where an issued certificate is wanted

	// Of an order that is Waiting:
	CAToken string
	Due     time.Time // when to ask next
	Unsent  bool      // it is certain that no CA has it
	Issuer  string    // in whose queue it is then
	Trouble string    // why there is no answer
	Doubt   string    // why nobody can tell whether there is a certificate
}

// Apply brings the row to what Finish records.
func (r *Row) Apply(result Result) {
	r.State, r.Message, r.HResult = result.State, result.Message, result.HResult
	if result.State == Waiting {
		r.Due, r.Doubt = result.Due, result.Doubt
		return
	}
	if result.Certificate != nil {
		r.Certificate, r.Serial = result.Certificate.Raw, SerialText(result.Certificate)
	}
}

// Finish moves a request that is Open, Approved or Waiting to the result's state. It fails if somebody else did so before.
func (l *Ledger) Finish(ctx context.Context, id int64, actor string, r Result) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		now := l.now()
		if r.State == Waiting {
			return wait(tx, id, actor, now, r)
		}
		var serial string
		der, keyID := []byte(nil), []byte{}
		var notAfter int64
		if r.Certificate != nil {
			serial, der, notAfter = SerialText(r.Certificate), r.Certificate.Raw, r.Certificate.NotAfter.UnixMilli()
			sum := sha256.Sum256(r.Certificate.RawSubjectPublicKeyInfo)
			keyID = sum[:]
		}
		err := move(tx, id, now, []State{Open, Approved, Waiting}, r.State,
			"hresult = ?, message = ?, serial = ?, certificate = ?, not_after = ?, key_id = ?, claimed = 0, doubt = '', trouble = '', "+setNames,
			append([]any{int64(r.HResult), r.Message, serial, der, notAfter, keyID}, namesOf(der)...)...)
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
	profile, checks, key_hash, hresult, message, decided_by, issuer, route, sent, ca_token, due,
	attempts, trouble, doubt, serial, certificate, not_after, revoked`

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

// BySerial returns the request that a certificate was issued for, or ErrNotFound. It may be one that was not handed
// out: the row's state says so.
func (l *Ledger) BySerial(ctx context.Context, issuer, serial string) (*Row, error) {
	rows, err := l.query(ctx, "WHERE serial = ? AND issuer = ?", strings.ToLower(serial), issuer)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("certificate %s of CA %q: %w", serial, issuer, ErrNotFound)
	}
	return rows[0], nil
}

// NewestOf returns the request whose certificate a CA has issued last, or ErrNotFound.
func (l *Ledger) NewestOf(ctx context.Context, issuer string) (*Row, error) {
	rows, err := l.query(ctx, "WHERE issuer = ? AND state = 'issued' ORDER BY id DESC LIMIT 1", issuer)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("CA %q: %w", issuer, ErrNotFound)
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

func (l *Ledger) query(ctx context.Context, where string, args ...any) ([]*Row, error) {
	rows, err := l.db.SQL.QueryContext(ctx, "SELECT "+columns+" FROM requests "+where, args...)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return scan(rows)
}

// scan reads rows of columns.
func scan(rows *sql.Rows) ([]*Row, error) {
	defer rows.Close()
	var out []*Row
	for rows.Next() {
		r := &Row{}
		var created, updated, code, sent, due, notAfter, revoked int64
		var profile, checks, route string
		if err := rows.Scan(&r.ID, &r.State, &created, &updated, &r.Caller, &r.CallerSID, &r.SubjectSID, &r.Template, &r.CA, &r.Transport, &r.Archived,
			&r.Fingerprint, &r.CSR, &profile, &checks, &r.KeyHash, &code, &r.Message, &r.DecidedBy, &r.Issuer, &route, &sent, &r.CAToken, &due,
			&r.Attempts, &r.Trouble, &r.Doubt, &r.Serial, &r.Certificate, &notAfter, &revoked); err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		if err := errors.Join(json.Unmarshal([]byte(profile), &r.Profile), json.Unmarshal([]byte(checks), &r.Checks)); err != nil {
			return nil, fmt.Errorf("ledger: request %d: %w", r.ID, err)
		}
		if route != "" {
			if err := json.Unmarshal([]byte(route), &r.Route); err != nil {
				return nil, fmt.Errorf("ledger: request %d: %w", r.ID, err)
			}
		}
		r.Created, r.Updated, r.HResult = time.UnixMilli(created).UTC(), time.UnixMilli(updated).UTC(), hresult.Code(code)
		r.Sent, r.Due, r.NotAfter, r.Revoked = at(sent), at(due), at(notAfter), at(revoked)
		out = append(out, r)
	}
	return out, rows.Err()
}

// at is a time in Unix milliseconds; the zero time where that is 0.
func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
