package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Place is the kind of object that certificates are written to.
type Place string

// The places ([MS-WCCE] 3.2.2.1.5 and 3.2.2.1.4).
const (
	PlaceAccount Place = "account" // userCertificate of the subject's account
	PlaceKRA     Place = "kra"     // userCertificate of the CA's object in the KRA container
)

// Target is one object of the directory: an account by its SID, or a CA by its name.
type Target struct {
	Place Place  `json:"place"`
	Name  string `json:"target"`
}

// PublicationState is where a publication stands.
type PublicationState string

// The states. None is that of certificates whose template does not ask for publication.
const (
	None      PublicationState = ""
	Wanted    PublicationState = "wanted"
	Published PublicationState = "published"
	Withdrawn PublicationState = "withdrawn" // over: expired, revoked or superseded
)

// Publication is an issued certificate, seen as something that its target has or should have.
type Publication struct {
	Request     int64
	Caller      string
	Template    string
	CA          string
	Serial      string
	Certificate []byte // DER
	NotAfter    time.Time
	Revoked     time.Time
	State       PublicationState
	Due         time.Time
	Attempts    int    // that failed since the last success
	Error       string // of the last one
}

// wantPublications is a part of Finish: there is no certificate without the rows that will bring it to the directory.
func wantPublications(tx *sql.Tx, id int64, now time.Time, targets []Target) error {
	for _, t := range targets {
		if _, err := tx.Exec("INSERT INTO publications (request_id, place, target, state, due) VALUES (?, ?, ?, ?, ?)",
			id, string(t.Place), t.Name, string(Wanted), now.UnixMilli()); err != nil {
			return fmt.Errorf("ledger: request %d: publication: %w", id, err)
		}
	}
	return nil
}

// hurryPublications makes a certificate that was revoked the next to be looked at.
func hurryPublications(tx *sql.Tx, id int64, now time.Time) error {
	if _, err := tx.Exec("UPDATE publications SET due = ? WHERE request_id = ? AND state <> 'withdrawn'", now.UnixMilli(), id); err != nil {
		return fmt.Errorf("ledger: request %d: publication: %w", id, err)
	}
	return nil
}

// DueTargets returns the targets that have to be looked at now, the longest overdue first.
func (l *Ledger) DueTargets(ctx context.Context, now time.Time, limit int) ([]Target, error) {
	return l.targets(ctx, "SELECT place, target FROM publications WHERE state <> 'withdrawn' AND due <= ? GROUP BY place, target ORDER BY min(due) LIMIT ?",
		now.UnixMilli(), limit)
}

// LiveTargets returns, in an order of their own, at most limit targets after a given one that have or should have certificates.
func (l *Ledger) LiveTargets(ctx context.Context, after Target, limit int) ([]Target, error) {
	return l.targets(ctx, "SELECT DISTINCT place, target FROM publications WHERE state <> 'withdrawn' AND (place, target) > (?, ?) ORDER BY place, target LIMIT ?",
		string(after.Place), after.Name, limit)
}

func (l *Ledger) targets(ctx context.Context, query string, args ...any) ([]Target, error) {
	rows, err := l.db.SQL.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("ledger: publications: %w", err)
	}
	defer rows.Close()
	var out []Target
	for rows.Next() {
		var t Target
		if err := rows.Scan(&t.Place, &t.Name); err != nil {
			return nil, fmt.Errorf("ledger: publications: %w", err)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// Publications returns the certificates of a target, oldest first: of an account every one that was issued for it, also
// those that are not to be published; of a CA those that were published.
func (l *Ledger) Publications(ctx context.Context, t Target) ([]Publication, error) {
	where := "JOIN publications p ON p.request_id = r.id AND p.place = 'kra' WHERE p.target = ?"
	if t.Place == PlaceAccount {
		where = "LEFT JOIN publications p ON p.request_id = r.id AND p.place = 'account' WHERE r.subject_sid = ?"
	}
	rows, err := l.db.SQL.QueryContext(ctx, `SELECT r.id, r.caller, r.template, r.ca, r.serial, r.certificate, r.not_after, r.revoked,
		coalesce(p.state, ''), coalesce(p.due, 0), coalesce(p.attempts, 0), coalesce(p.error, '') FROM requests r `+where+" AND r.state = 'issued' ORDER BY r.id", t.Name)
	if err != nil {
		return nil, fmt.Errorf("ledger: publications: %w", err)
	}
	defer rows.Close()
	var out []Publication
	for rows.Next() {
		var p Publication
		var notAfter, revoked, due int64
		if err := rows.Scan(&p.Request, &p.Caller, &p.Template, &p.CA, &p.Serial, &p.Certificate, &notAfter, &revoked, &p.State, &due, &p.Attempts, &p.Error); err != nil {
			return nil, fmt.Errorf("ledger: publications: %w", err)
		}
		p.NotAfter, p.Due = time.UnixMilli(notAfter).UTC(), time.UnixMilli(due).UTC()
		if revoked != 0 {
			p.Revoked = time.UnixMilli(revoked).UTC()
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// PublicationsDone records that a target has what it should: the certificates with these request numbers are published, and
// to be looked at again when they end; those with the others are withdrawn.
func (l *Ledger) PublicationsDone(ctx context.Context, t Target, published, withdrawn []int64) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		for state, ids := range map[PublicationState][]int64{Published: published, Withdrawn: withdrawn} {
			for _, id := range ids {
				if _, err := tx.Exec(`UPDATE publications SET state = ?, attempts = 0, error = '', due = (SELECT not_after FROM requests WHERE id = request_id)
					WHERE request_id = ? AND place = ?`, string(state), id, string(t.Place)); err != nil {
					return fmt.Errorf("ledger: publication of request %d: %w", id, err)
				}
			}
		}
		return nil
	})
}

// PublicationFailed records that a target could not be written now. What was due is due again after a while: first, twice
// that, and so on, at most most.
func (l *Ledger) PublicationFailed(ctx context.Context, t Target, now time.Time, reason string, first, most time.Duration) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		failed, err := failures(tx, t, now)
		if err != nil {
			return fmt.Errorf("ledger: publications: %w", err)
		}
		for id, attempts := range failed {
			wait := min(first<<min(attempts, 16), most)
			if _, err := tx.Exec("UPDATE publications SET attempts = attempts + 1, error = ?, due = ? WHERE request_id = ? AND place = ?",
				reason, now.Add(wait).UnixMilli(), id, string(t.Place)); err != nil {
				return fmt.Errorf("ledger: publication of request %d: %w", id, err)
			}
		}
		return nil
	})
}

// failures are the publications that a failed attempt is about: how often each has failed before.
func failures(tx *sql.Tx, t Target, now time.Time) (map[int64]int, error) {
	rows, err := tx.Query(`SELECT request_id, attempts FROM publications WHERE place = ? AND target = ? AND state <> 'withdrawn'
		AND (due <= ? OR state = 'wanted')`, string(t.Place), t.Name, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[int64]int{}
	for rows.Next() {
		var id int64
		var attempts int
		if err := rows.Scan(&id, &attempts); err != nil {
			return nil, err
		}
		out[id] = attempts
	}
	return out, rows.Err()
}

// PublicationCounts are how many certificates are not in the directory yet, and for how many the last attempt to add or
// remove them failed.
func (l *Ledger) PublicationCounts(ctx context.Context) (wanted, failing int64, err error) {
	err = l.db.SQL.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM publications WHERE state = 'wanted'),
		(SELECT count(*) FROM publications WHERE attempts > 0)`).
		Scan(&wanted, &failing)
	if err != nil {
		return 0, 0, fmt.Errorf("ledger: publications: %w", err)
	}
	return wanted, failing, nil
}
