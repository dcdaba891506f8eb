package escrow

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
)

// ErrKept is an archived key that must not be destroyed now.
var ErrKept = errors.New("the key is kept")

// Destroy destroys an archived key for good: what is sealed is overwritten; the row stays, with when, by whom and why, and so
// does a line in the audit log. ErrKept is the error where the key is on hold, in a live recovery case, or to be kept by a rule
// of the retention; then nothing has happened. Backups that were made before still have the key.
func (e *Escrow) Destroy(ctx context.Context, id int64, actor, reason string) error {
	if strings.TrimSpace(reason) == "" {
		return errors.New("a key is destroyed with a written reason only")
	}
	if err := e.fillKeyIDs(ctx); err != nil {
		return err
	}
	if err := e.destroy(ctx, id, actor, reason, false); err != nil {
		return err
	}
	return e.o.DB.Scrub(ctx)
}

// kept is what destroying depends on.
type kept struct {
	id                          int64
	owner, subject, policy      string
	template                    string // "" for imported keys
	keyID, sealed               []byte
	held, destroyed, until      int64 // until: the end of the last certificate; 0: there is none
	heldBy, heldWhy, gone, goes string
}

func loadKept(tx *sql.Tx, id int64) (*kept, error) {
	k := &kept{id: id}
	err := tx.QueryRow(`SELECT e.owner, e.subject, e.policy, coalesce(r.template, ''), e.key_id, e.sealed, e.held, e.held_by, e.held_why,
		e.destroyed, e.destroyed_by, e.destroyed_why, `+lastEnd+fromRecords+"WHERE e.id = ?", id).
		Scan(&k.owner, &k.subject, &k.policy, &k.template, &k.keyID, &k.sealed, &k.held, &k.heldBy, &k.heldWhy, &k.destroyed, &k.gone, &k.goes, &k.until)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, fmt.Errorf("archived key %d: %w", id, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("archived key %d: %w", id, err)
	}
	return k, nil
}

// exists is the error that the key was destroyed before.
func (k *kept) exists() error {
	return (&Entry{ID: k.id, Destroyed: Note{By: k.gone, Reason: k.goes}.at(k.destroyed)}).Gone()
}

// Keep is the error that a key was destroyed, inside the transaction that needs it.
func Keep(tx *sql.Tx, id int64) error {
	k, err := loadKept(tx, id)
	if err != nil {
		return err
	}
	return k.exists()
}

// destroy destroys one key, if nothing is against it at the moment in which it happens. byRule: only where a rule says so.
func (e *Escrow) destroy(ctx context.Context, id int64, actor, reason string, byRule bool) error {
	return e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := e.o.Now()
		k, err := loadKept(tx, id)
		if err != nil {
			return err
		}
		if err := k.exists(); err != nil {
			return err
		}
		if k.held != 0 {
			return fmt.Errorf("%w: archived key %d is on hold since %s by %s: %s; end that with enrollgate escrow release", ErrKept, id,
				time.UnixMilli(k.held).UTC().Format(time.RFC3339), k.heldBy, k.heldWhy)
		}
		var live int64
		switch err := tx.QueryRow("SELECT id FROM recovery_cases WHERE record = ? AND state IN ('open', 'approved') LIMIT 1", id).Scan(&live); {
		case err == nil:
			return fmt.Errorf("%w: recovery case %d is about archived key %d; end it first", ErrKept, live, id)
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("archived key %d: %w", id, err)
		}
		rule := e.rule(k.policy, k.template)
		if rule == nil && byRule {
			return fmt.Errorf("%w: no rule of escrow.retention is for archived key %d", ErrKept, id)
		}
		if rule != nil {
			if due, ok := rule.due(k.until); !ok {
				return fmt.Errorf("%w: archived key %d is kept until %s after the end of its certificate, and there is none", ErrKept, id, rule.Keep)
			} else if due.After(now) {
				return fmt.Errorf("%w: archived key %d is kept until %s, by escrow.retention", ErrKept, id, due.Format(time.RFC3339))
			}
		}
		if _, err := tx.Exec("UPDATE escrow_records SET sealed = ?, destroyed = ?, destroyed_by = ?, destroyed_why = ? WHERE id = ?",
			[]byte{}, now.UnixMilli(), actor, reason, id); err != nil {
			return fmt.Errorf("archived key %d: %w", id, err)
		}
		// What it was before a rewrap that is not proven yet.
		if _, err := tx.Exec("DELETE FROM escrow_previous WHERE record = ?", id); err != nil {
			return fmt.Errorf("archived key %d: %w", id, err)
		}
		sum := sha256.Sum256(k.sealed)
		return audit.Append(tx, now, actor, audit.KeyDestroyed, map[string]any{"record": id, "owner": k.owner, "subject": k.subject,
			"key_id": hex.EncodeToString(k.keyID), "policy": k.policy, "reason": reason, "sealed_sha256": hex.EncodeToString(sum[:])})
	})
}

// Hold keeps a key from being destroyed, by anybody, until it is released.
func (e *Escrow) Hold(ctx context.Context, id int64, actor, reason string) error {
	if strings.TrimSpace(reason) == "" {
		return errors.New("a hold needs a written reason")
	}
	return e.hold(ctx, id, actor, reason, audit.KeyHeld, func(k *kept) (int64, string, string, error) {
		if k.held != 0 {
			return 0, "", "", fmt.Errorf("archived key %d is on hold already, by %s: %s", id, k.heldBy, k.heldWhy)
		}
		return e.o.Now().UnixMilli(), actor, reason, nil
	})
}

// Release ends a hold.
func (e *Escrow) Release(ctx context.Context, id int64, actor, reason string) error {
	if strings.TrimSpace(reason) == "" {
		return errors.New("the end of a hold needs a written reason")
	}
	return e.hold(ctx, id, actor, reason, audit.KeyReleased, func(k *kept) (int64, string, string, error) {
		if k.held == 0 {
			return 0, "", "", fmt.Errorf("archived key %d is not on hold", id)
		}
		return 0, "", "", nil
	})
}

// hold changes the hold of a key to what next says, and logs it.
func (e *Escrow) hold(ctx context.Context, id int64, actor, reason string, event audit.Event, next func(*kept) (at int64, by, why string, err error)) error {
	return e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		k, err := loadKept(tx, id)
		if err != nil {
			return err
		}
		if err := k.exists(); err != nil {
			return err
		}
		at, by, why, err := next(k)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE escrow_records SET held = ?, held_by = ?, held_why = ? WHERE id = ?", at, by, why, id); err != nil {
			return fmt.Errorf("archived key %d: %w", id, err)
		}
		return audit.Append(tx, e.o.Now(), actor, event, map[string]any{"record": id, "owner": k.owner, "key_id": hex.EncodeToString(k.keyID), "reason": reason})
	})
}
