package batch

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Report is what a worker sends: what was made of some records, and whose parts could not be used.
type Report struct {
	Results []recovery.Result `json:"results"`
	Bad     []Bad             `json:"bad,omitempty"`
}

// Bad is an agent whose parts could not be used.
type Bad struct {
	Agent string `json:"agent"` // fingerprint
	Cause string `json:"cause"`
}

// work is a result that was checked, on its way into the database.
type work struct {
	recovery.Result
	item     *recovery.Item
	agents   []string // fingerprints: the worker's and those who gave parts
	old, new []byte   // SHA-256 of the sealed record
}

// Results takes what the worker has made of records. A record that is done already stays as it is: sending again does nothing. The
// last one ends the batch.
func (b *Batches) Results(ctx context.Context, caller templates.Caller, id int64, r Report) (*Finished, error) {
	done, err := b.results(ctx, caller, id, r)
	if err != nil {
		return nil, b.refused(ctx, caller, id, "work on a batch", err)
	}
	return done, nil
}

func (b *Batches) results(ctx context.Context, caller templates.Caller, id int64, r Report) (*Finished, error) {
	if len(r.Results) > recovery.MaxResults {
		return nil, hresult.New(hresult.InvalidArg, "%d results in one message, %d are taken", len(r.Results), recovery.MaxResults)
	}
	k, err := one(ctx, b.o.DB.SQL, id)
	if err != nil {
		return nil, err
	}
	if k.workerSID != caller.SID {
		return nil, hresult.New(hresult.AccessDenied, "batch %d was ordered from %s", id, k.Worker)
	}
	if _, _, err := b.approver(ctx, caller, id, k.statement.Agent); err != nil {
		return nil, err
	}
	if k.State != Open {
		return nil, hresult.New(hresult.BadRequestStatus, "batch %d is %s", id, k.State)
	}
	agents, err := b.targets(ctx, &k.statement.Order)
	if err != nil {
		return nil, err
	}
	var targets []quorum.Recipient
	for i := range agents {
		targets = append(targets, agents[i].Recipient())
	}
	openers, err := b.o.Escrow.Openers(ctx)
	if err != nil {
		return nil, err
	}
	var list []work
	for _, result := range r.Results {
		w, err := b.check(ctx, k, result, targets, openers)
		if err != nil {
			return nil, err
		}
		if w != nil {
			list = append(list, *w)
		}
	}
	return b.step(ctx, caller, id, audit.BatchEnded, func(tx *sql.Tx, k *Batch) (map[string]any, error) {
		for _, bad := range r.Bad {
			if err := b.bad(tx, caller, k, bad); err != nil {
				return nil, err
			}
		}
		for i := range list {
			if err := b.apply(ctx, tx, caller, k, &list[i]); err != nil {
				return nil, err
			}
		}
		if after, err := one(ctx, tx, id); err != nil || after.Records[recovery.ItemOpen] > 0 {
			return nil, err
		} else if after.State == Open {
			return map[string]any{"state": Done, "records": after.Records}, b.end(tx, id, Done, "")
		}
		return nil, nil
	})
}

// check verifies a result as far as it can be without opening anything; nil where the record is done already.
func (b *Batches) check(ctx context.Context, k *Batch, r recovery.Result, targets []quorum.Recipient, openers *escrow.Openers) (*work, error) {
	found, err := entries(ctx, b.o.DB.SQL, "record = ? AND position >= 0", k.ID, r.Record)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, hresult.New(hresult.InvalidArg, "archived key %d is not in batch %d", r.Record, k.ID)
	}
	e := found[0]
	if e.state != recovery.ItemOpen {
		return nil, nil
	}
	w := &work{Result: r, old: e.hash}
	if w.item, err = b.item(ctx, &e); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(w.item.Archived.Sealed); string(sum[:]) != string(e.hash) {
		w.Failed = "it was changed by another than this batch since the batch was ordered"
	}
	if w.Failed != "" {
		if err := recovery.CheckReason(w.Failed); err != nil {
			return nil, hresult.New(hresult.InvalidArg, "%v", err)
		}
		return w, nil
	}
	if w.agents, err = b.consented(ctx, k, &e, openers); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(w.item.Archived.Certificate)
	if err != nil {
		return nil, err
	}
	if err := r.Verify(&k.statement, w.item, cert); err != nil {
		return nil, hresult.New(hresult.AccessDenied, "%v", err)
	}
	if k.Purpose == recovery.Rewrap {
		if err := r.CheckSealed(&k.statement.Order, w.item, targets); err != nil {
			return nil, hresult.New(hresult.AccessDenied, "%v", err)
		}
		sum := sha256.Sum256(r.Sealed)
		w.new = sum[:]
	}
	return w, nil
}

// consented requires that as many agents as it takes have consented to the record, with the worker, and names them. Where a record can
// be opened by any one agent only this stands between the worker and it. An agent that was dismissed since does not count.
func (b *Batches) consented(ctx context.Context, k *Batch, e *entry, openers *escrow.Openers) ([]string, error) {
	list, err := parts(ctx, b.o.DB.SQL, k.ID, e.position/recovery.PageSize)
	if err != nil {
		return nil, err
	}
	agents := []string{k.statement.Agent}
	for _, p := range list {
		if openers.Find(p.Agent) != nil && slices.ContainsFunc(p.Parts, func(part recovery.Part) bool { return part.Record == e.record }) {
			agents = append(agents, p.Agent)
		}
	}
	if needed := k.statement.Order.Required; len(agents) < needed {
		return nil, hresult.New(hresult.AccessDenied, "archived key %d: %d of %d agents have consented", e.record, len(agents), needed)
	}
	return agents, nil
}

// apply writes down one result, if the record is still as it was.
func (b *Batches) apply(ctx context.Context, tx *sql.Tx, caller templates.Caller, k *Batch, w *work) error {
	state, now := "done", b.o.Now()
	if w.Failed != "" {
		state = "failed"
	}
	res, err := tx.Exec("UPDATE escrow_batch_records SET state = ?, note = ? WHERE batch_id = ? AND record = ? AND state = 'open'", state, w.Failed, k.ID, w.Record)
	if err != nil {
		return fmt.Errorf("batch %d: %w", k.ID, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 { // the same result was sent twice at a time
		return err
	}
	detail := map[string]any{"batch": k.ID, "record": w.Record, "owner": w.item.Owner, "policy": k.Policy, "sid": caller.SID}
	switch {
	case w.Failed != "":
		detail["cause"] = w.Failed
		return audit.Append(tx, now, caller.Principal, audit.RecordFailed, detail)
	case k.Purpose == recovery.Drill:
		return b.prove(ctx, tx, caller, k, w, detail)
	}
	recipients, err := json.Marshal(k.statement.Order.Targets)
	if err != nil {
		return err
	}
	if err := keep(tx, k.ID, w.Record, now.UnixMilli()); err != nil {
		return fmt.Errorf("archived key %d: what it was cannot be kept: %w", w.Record, err)
	}
	if err := swap(tx, w, "sealed = ?, recipients = ?, required = ?, format = ?, proven = 0", w.Sealed, string(recipients), k.statement.Order.Required, w.Format); err != nil {
		return err
	}
	detail["old"], detail["new"] = hex.EncodeToString(w.old), hex.EncodeToString(w.new)
	detail["recipients"], detail["required"] = k.statement.Order.Targets, k.statement.Order.Required
	return audit.Append(tx, now, caller.Principal, audit.KeyRewrapped, detail)
}

// keep copies a record to where it stays until what takes its place is proven.
func keep(tx *sql.Tx, batch, record, now int64) error {
	var required, format, proven int64
	var recipients string
	var sealed []byte
	if err := tx.QueryRow("SELECT recipients, sealed, required, format, proven FROM escrow_records WHERE id = ?", record).Scan(&recipients, &sealed, &required, &format, &proven); err != nil {
		return err
	}
	_, err := tx.Exec("INSERT INTO escrow_previous (record, batch, replaced, recipients, sealed, required, format, proven) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		record, batch, now, recipients, sealed, required, format, proven)
	return err
}

// swap changes a record that is still as the batch has chosen it.
func swap(tx *sql.Tx, w *work, set string, args ...any) error {
	res, err := tx.Exec("UPDATE escrow_records SET "+set+" WHERE id = ? AND sealed = ?", append(args, w.Record, w.item.Archived.Sealed)...)
	if err != nil {
		return fmt.Errorf("archived key %d: %w", w.Record, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return hresult.New(hresult.BadRequestStatus, "archived key %d was changed meanwhile", w.Record)
	}
	return nil
}

// prove writes down that the key has signed. What a rewrap has replaced is deleted, if another person than its worker has proven
// what took its place.
func (b *Batches) prove(ctx context.Context, tx *sql.Tx, caller templates.Caller, k *Batch, w *work, detail map[string]any) error {
	now := b.o.Now()
	if err := swap(tx, w, "proven = ?", now.UnixMilli()); err != nil {
		return err
	}
	detail["sealed"], detail["signature"], detail["agents"] = hex.EncodeToString(w.old), w.Signature, w.agents
	var rewrap int64
	switch err := tx.QueryRow("SELECT batch FROM escrow_previous WHERE record = ?", w.Record).Scan(&rewrap); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return fmt.Errorf("archived key %d: %w", w.Record, err)
	default:
		by, err := one(ctx, tx, rewrap)
		if err != nil {
			return err
		}
		if by.workerSID != k.workerSID && by.statement.Agent != k.statement.Agent {
			if _, err := tx.Exec("DELETE FROM escrow_previous WHERE record = ?", w.Record); err != nil {
				return fmt.Errorf("archived key %d: %w", w.Record, err)
			}
			detail["proves_rewrap"] = rewrap
		}
	}
	return audit.Append(tx, now, caller.Principal, audit.KeyProven, detail)
}

// bad writes down whose parts could not be used. The agent can consent again.
func (b *Batches) bad(tx *sql.Tx, caller templates.Caller, k *Batch, bad Bad) error {
	for _, c := range k.Consents {
		if c.Agent != bad.Agent {
			continue
		}
		if err := recovery.CheckReason(bad.Cause); err != nil {
			return hresult.New(hresult.InvalidArg, "%v", err)
		}
		return audit.Append(tx, b.o.Now(), caller.Principal, audit.BadShare, map[string]any{"batch": k.ID, "sid": caller.SID, "fingerprint": bad.Agent, "approver": c.Approver, "cause": bad.Cause})
	}
	return hresult.New(hresult.InvalidArg, "the agent %s has not consented to batch %d", bad.Agent, k.ID)
}

// Restore puts back what a rewrap has replaced, while it is not proven; any manager of the policy can.
func (b *Batches) Restore(ctx context.Context, caller templates.Caller, record int64, reason string) error {
	err := b.restore(ctx, caller, record, reason)
	return b.o.Refused(ctx, caller, "restore a record", map[string]any{"record": record}, err)
}

func (b *Batches) restore(ctx context.Context, caller templates.Caller, record int64, reason string) error {
	if err := recovery.CheckReason(reason); err != nil {
		return hresult.New(hresult.InvalidArg, "%v", err)
	}
	n, err := b.o.Escrow.Get(ctx, record)
	if err != nil && !errors.Is(err, escrow.ErrNotFound) {
		return err
	}
	none := hresult.New(hresult.AccessDenied, "there is no archived key %d that was sealed anew and not proven, or you are no manager of its recovery policy", record)
	if err != nil {
		return none
	}
	role, _, err := b.o.Of(ctx, caller, n.Policy)
	if err != nil {
		return err
	}
	if !role.Manager {
		return none
	}
	return b.o.DB.Write(ctx, func(tx *sql.Tx) error {
		var batch, required, format, proven int64
		var recipients string
		var sealed []byte
		err := tx.QueryRow("SELECT batch, recipients, sealed, required, format, proven FROM escrow_previous WHERE record = ?", record).Scan(&batch, &recipients, &sealed, &required, &format, &proven)
		if errors.Is(err, sql.ErrNoRows) {
			return none
		}
		if err != nil {
			return fmt.Errorf("archived key %d: %w", record, err)
		}
		if _, err := tx.Exec("UPDATE escrow_records SET sealed = ?, recipients = ?, required = ?, format = ?, proven = ? WHERE id = ?", sealed, recipients, required, format, proven, record); err != nil {
			return fmt.Errorf("archived key %d: %w", record, err)
		}
		if _, err := tx.Exec("DELETE FROM escrow_previous WHERE record = ?", record); err != nil {
			return fmt.Errorf("archived key %d: %w", record, err)
		}
		old, put := sha256.Sum256(n.Sealed()), sha256.Sum256(sealed)
		return audit.Append(tx, b.o.Now(), caller.Principal, audit.KeyRestored, map[string]any{"record": record, "owner": n.Owner, "batch": batch, "reason": reason, "sid": caller.SID,
			"old": hex.EncodeToString(old[:]), "new": hex.EncodeToString(put[:])})
	})
}
