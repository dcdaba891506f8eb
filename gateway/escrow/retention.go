package escrow

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/sirupsen/logrus"
)

// Rule is how long archived keys are kept. The first rule that is for a key counts; one that none is for is kept for ever.
type Rule struct {
	Policies  []string      // names of recovery policies that it is for; empty: all
	Templates []string      // names of templates that it is for; empty: all, and imported keys
	Keep      time.Duration // after the end of the key's last certificate
}

// due is when a key may be destroyed whose last certificate ends at a time in Unix milliseconds; not ok where there is none.
func (r *Rule) due(until int64) (t time.Time, ok bool) {
	return time.UnixMilli(until).UTC().Add(r.Keep), until != 0
}

// rule is the one that is for a key; nil where none is.
func (e *Escrow) rule(policy, template string) *Rule {
	for i := range e.o.Retention {
		r := &e.o.Retention[i]
		if len(r.Policies) > 0 && !slices.Contains(r.Policies, policy) {
			continue
		}
		if len(r.Templates) > 0 && !slices.ContainsFunc(r.Templates, func(name string) bool { return strings.EqualFold(name, template) }) {
			continue
		}
		return r
	}
	return nil
}

// lastEnd is when the last certificate of a key ends: its own, or that of a renewal which has kept the key. 0: there is none.
const lastEnd = `CASE WHEN e.source = 'import' THEN
	(SELECT CASE WHEN coalesce(max(l.not_after), 0) > e.not_after THEN max(l.not_after) ELSE e.not_after END FROM requests l WHERE l.state = 'issued' AND l.key_id = e.key_id)
	ELSE (SELECT coalesce(max(l.not_after), 0) FROM requests l WHERE l.state = 'issued' AND l.key_id = e.key_id) END`

// fillKeyIDs looks at certificates whose key was never looked at: an earlier version has recorded them.
func (e *Escrow) fillKeyIDs(ctx context.Context) error {
	err := e.o.DB.Fill(ctx, func(tx *sql.Tx, id int64, der []byte) error {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("request %d: stored certificate: %w", id, err)
		}
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		_, err = tx.Exec("UPDATE requests SET key_id = ? WHERE id = ?", sum[:], id)
		return err
	}, "SELECT id, certificate FROM requests WHERE state = 'issued' AND key_id = ?", []byte{})
	if err != nil {
		return fmt.Errorf("keys of certificates: %w", err)
	}
	return nil
}

// RetentionOptions are what a Retention works with.
type RetentionOptions struct {
	Every     time.Duration
	MaxPerRun int // keys due at once
	Log       logrus.FieldLogger
}

// Retention destroys keys when the rules say that they are over. A mistake must not destroy everything: where more keys are due
// at once than the configuration allows, nothing at all is destroyed until an operator confirms it.
type Retention struct {
	e *Escrow
	o RetentionOptions
}

// NewRetention makes one for the escrow's rules.
func NewRetention(e *Escrow, o RetentionOptions) *Retention { return &Retention{e, o} }

// DueKey is a key that is due, and what became of it.
type DueKey struct {
	ID        int64     `json:"id"`
	Owner     string    `json:"owner"`
	Subject   string    `json:"subject"`
	Policy    string    `json:"policy"`
	Template  string    `json:"template,omitempty"`
	Ended     time.Time `json:"ended"` // the last certificate
	Due       time.Time `json:"due"`
	Kept      string    `json:"kept,omitempty"` // why it is not destroyed all the same
	Destroyed bool      `json:"destroyed"`
}

// RetentionReport is the result of a run.
type RetentionReport struct {
	Due       int      `json:"due"`
	Held      string   `json:"held,omitempty"` // why nothing is destroyed
	Destroyed int      `json:"destroyed"`
	Keys      []DueKey `json:"keys"`
}

// Run checks again and again until ctx ends.
func (r *Retention) Run(ctx context.Context) {
	for {
		if _, err := r.Check(ctx); err != nil && ctx.Err() == nil {
			r.o.Log.WithError(err).Error("archived keys that are over could not be destroyed; this is tried again")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(r.o.Every):
		}
	}
}

// Look tells what Check would find and do. It changes nothing.
func (r *Retention) Look(ctx context.Context) (*RetentionReport, error) { return r.find(ctx) }

// Check destroys the keys that are due, unless there are too many.
func (r *Retention) Check(ctx context.Context) (*RetentionReport, error) {
	return r.act(ctx, "gateway", false)
}

// Confirm is Check without a limit, by an operator who has looked.
func (r *Retention) Confirm(ctx context.Context, operator string) (*RetentionReport, error) {
	return r.act(ctx, operator, true)
}

func (r *Retention) act(ctx context.Context, actor string, confirmed bool) (*RetentionReport, error) {
	if err := r.e.fillKeyIDs(ctx); err != nil {
		return nil, err
	}
	report, err := r.find(ctx)
	if err != nil {
		return nil, err
	}
	if report.Held != "" && confirmed {
		if err := r.e.log(ctx, actor, audit.DestroyConfirmed, map[string]any{"due": report.Due, "held": report.Held}); err != nil {
			return nil, err
		}
		report.Held = ""
	}
	if report.Held != "" {
		r.o.Log.WithField("due", report.Due).Error("no archived key is destroyed: " + report.Held +
			"; look with enrollgate escrow retention --dry-run, then confirm with enrollgate escrow retention --confirm")
		return report, nil
	}
	for i := range report.Keys {
		k := &report.Keys[i]
		why := fmt.Sprintf("its last certificate has ended at %s, and escrow.retention keeps it until %s", k.Ended.Format(time.RFC3339), k.Due.Format(time.RFC3339))
		switch err := r.e.destroy(ctx, k.ID, actor, why, true); {
		case errors.Is(err, ErrKept):
			k.Kept = err.Error()
		case err != nil:
			return report, err
		default:
			k.Destroyed = true
			report.Destroyed++
		}
	}
	if report.Destroyed == 0 {
		return report, nil
	}
	r.o.Log.WithField("destroyed", report.Destroyed).Warn("archived keys that were kept long enough are destroyed")
	return report, r.e.o.DB.Scrub(ctx)
}

// find lists the keys that are due and not on hold, those that ended first first.
func (r *Retention) find(ctx context.Context) (*RetentionReport, error) {
	report := &RetentionReport{Keys: []DueKey{}}
	if len(r.e.o.Retention) == 0 {
		return report, nil
	}
	now := r.e.o.Now()
	shortest := slices.MinFunc(r.e.o.Retention, func(a, b Rule) int { return cmp.Compare(a.Keep, b.Keep) })
	before := now.Add(-shortest.Keep).UnixMilli()
	// Each by its own index: enrolled keys by the end of their certificate, imported ones are few.
	const columns = "SELECT e.id, e.owner, e.subject, e.policy, coalesce(r.template, ''), " + lastEnd
	const left = " AND e.destroyed = 0 AND e.held = 0"
	rows, err := r.e.o.DB.SQL.QueryContext(ctx, columns+` FROM requests r JOIN escrow_records e ON e.request_id = r.id
			WHERE r.archived = 1 AND r.state = 'issued' AND r.not_after <= ?`+left+
		" UNION ALL "+columns+fromRecords+"WHERE e.source = 'import' AND e.not_after > 0 AND e.not_after <= ?"+left, before, before)
	if err != nil {
		return nil, fmt.Errorf("escrow: keys that are due: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var k DueKey
		var until int64
		if err := rows.Scan(&k.ID, &k.Owner, &k.Subject, &k.Policy, &k.Template, &until); err != nil {
			return nil, fmt.Errorf("escrow: keys that are due: %w", err)
		}
		rule := r.e.rule(k.Policy, k.Template)
		if rule == nil {
			continue
		}
		var ok bool
		if k.Due, ok = rule.due(until); !ok || k.Due.After(now) {
			continue
		}
		k.Ended = time.UnixMilli(until).UTC()
		report.Keys = append(report.Keys, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("escrow: keys that are due: %w", err)
	}
	slices.SortFunc(report.Keys, func(a, b DueKey) int { return cmp.Or(a.Ended.Compare(b.Ended), cmp.Compare(a.ID, b.ID)) })
	if report.Due = len(report.Keys); report.Due > r.o.MaxPerRun {
		report.Held = fmt.Sprintf("%d keys are due at once, more than escrow.retention.max_per_run (%d)", report.Due, r.o.MaxPerRun)
	}
	return report, nil
}
