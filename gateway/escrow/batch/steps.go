package batch

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// step does one step of a batch: its change, its line in the audit log and nothing else are one transaction. do decides by the
// state, and returns what the log says; nil means that nothing was left to do, and nothing is logged.
func (b *Batches) step(ctx context.Context, caller templates.Caller, id int64, event audit.Event, do func(tx *sql.Tx, k *Batch) (map[string]any, error)) (*Finished, error) {
	done := &Finished{}
	err := b.o.DB.Write(ctx, func(tx *sql.Tx) error {
		k, err := one(ctx, tx, id)
		if err != nil {
			return err
		}
		if k.State.live() && !b.o.Now().Before(k.Expires) {
			k.State = Expired // Expire writes it down
		}
		if !k.State.live() {
			return hresult.New(hresult.BadRequestStatus, "batch %d is %s", id, k.State)
		}
		detail, err := do(tx, k)
		if err != nil {
			return err
		}
		if detail != nil {
			maps.Copy(detail, map[string]any{"batch": id, "sid": caller.SID, "purpose": k.Purpose, "policy": k.Policy})
			if err := audit.Append(tx, b.o.Now(), caller.Principal, event, detail); err != nil {
				return err
			}
		}
		if done.Receipt, err = audit.Last(tx); err != nil {
			return err
		}
		done.Batch, err = one(ctx, tx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// Order fixes what is to be done. The order must be of the draft, and the worker another person than the manager.
func (b *Batches) Order(ctx context.Context, caller templates.Caller, id int64, o recovery.Order) (*Finished, error) {
	done, err := b.order(ctx, caller, id, o)
	if err != nil {
		return nil, b.refused(ctx, caller, id, "order a batch", err)
	}
	return done, nil
}

func (b *Batches) order(ctx context.Context, caller templates.Caller, id int64, o recovery.Order) (*Finished, error) {
	if err := o.Check(); err != nil {
		return nil, hresult.New(hresult.InvalidArg, "%v", err)
	}
	k, role, err := b.visible(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	if !role.Manager || caller.SID != k.openedBySID || !strings.EqualFold(o.Manager, caller.Principal) {
		return nil, hresult.New(hresult.AccessDenied, "only the manager who has drafted batch %d orders it", id)
	}
	worker, err := b.o.Account(ctx, o.Worker)
	if err != nil {
		return nil, err
	}
	switch {
	case worker.Disabled:
		return nil, hresult.New(hresult.AccountDisabled, "the worker %s is disabled", o.Worker)
	case worker.SID == caller.SID:
		return nil, hresult.New(hresult.AccessDenied, "you order the batch: another has to do the work")
	}
	if o.Verifies != 0 {
		rewrap, err := one(ctx, b.o.DB.SQL, o.Verifies)
		if err != nil {
			return nil, err
		}
		if rewrap.workerSID == worker.SID {
			return nil, hresult.New(hresult.AccessDenied, "%s has done the rewrap %d: another agent has to prove it", o.Worker, o.Verifies)
		}
	}
	_, p, err := b.o.Of(ctx, caller, k.Policy)
	if err != nil {
		return nil, err
	}
	return b.step(ctx, caller, id, audit.BatchOrdered, func(tx *sql.Tx, k *Batch) (map[string]any, error) {
		drafted := k.statement.Order
		drafted.Manager, drafted.Worker, drafted.Reason = o.Manager, o.Worker, o.Reason
		if k.State != Drafted || !bytes.Equal(drafted.Hash(), o.Hash()) {
			return nil, hresult.New(hresult.BadRequestStatus, "batch %d was ordered already, or the order is of another draft", id)
		}
		text, err := json.Marshal(recovery.BatchStatement{Order: o})
		if err != nil {
			return nil, err
		}
		if _, err := tx.Exec("UPDATE escrow_batches SET state = 'ordered', statement = ?, worker_sid = ?, expires = ? WHERE id = ?", string(text), worker.SID,
			b.o.Now().Add(p.CaseValidity).UnixMilli(), id); err != nil {
			return nil, fmt.Errorf("batch %d: %w", id, err)
		}
		return map[string]any{"worker": o.Worker, "worker_sid": worker.SID, "reason": o.Reason, "required": o.Required, "records": o.Records, "left": k.Records["left"],
			"targets": o.Targets, "verifies": o.Verifies, "code": o.Code()}, nil
	})
}

// approver requires that the caller is an approver with a part in the batch that he may have: not who ordered it. The agent's
// certificate must be one that was issued to nobody else.
func (b *Batches) approver(ctx context.Context, caller templates.Caller, id int64, fingerprint string) (*Batch, *escrow.Agent, error) {
	k, role, err := b.visible(ctx, caller, id)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !role.Approver:
		return nil, nil, hresult.New(hresult.AccessDenied, "you are no approver of the recovery policy %q", k.Policy)
	case caller.SID == k.openedBySID:
		return nil, nil, hresult.New(hresult.AccessDenied, "you have ordered batch %d: others have to do it", id)
	}
	openers, err := b.o.Escrow.Openers(ctx)
	if err != nil {
		return nil, nil, err
	}
	agent := openers.Find(fingerprint)
	if agent == nil {
		return nil, nil, hresult.New(hresult.AccessDenied, "%s is no designated recovery agent, or its certificate is revoked", fingerprint)
	}
	if err := b.o.Holds(ctx, caller, agent.Certificate); err != nil {
		return nil, nil, err
	}
	return k, agent, nil
}

// Take makes an ordered batch the worker's, with the worker's batch key. The same statement again is answered in the same way.
func (b *Batches) Take(ctx context.Context, caller templates.Caller, id int64, s recovery.BatchStatement) (*Finished, error) {
	done, err := b.take(ctx, caller, id, s)
	if err != nil {
		return nil, b.refused(ctx, caller, id, "take a batch", err)
	}
	return done, nil
}

func (b *Batches) take(ctx context.Context, caller templates.Caller, id int64, s recovery.BatchStatement) (*Finished, error) {
	if err := s.Check(); err != nil {
		return nil, hresult.New(hresult.InvalidArg, "%v", err)
	}
	_, agent, err := b.approver(ctx, caller, id, s.Agent)
	if err != nil {
		return nil, err
	}
	if err := b.canOpen(ctx, id, agent); err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return b.step(ctx, caller, id, audit.BatchTaken, func(tx *sql.Tx, k *Batch) (map[string]any, error) {
		switch {
		case k.workerSID != caller.SID:
			return nil, hresult.New(hresult.AccessDenied, "batch %d was ordered from %s", id, k.Worker)
		case k.State == Open && bytes.Equal(k.statement.Hash(), s.Hash()):
			return nil, nil
		case k.State != Ordered || !bytes.Equal(k.statement.Order.Hash(), s.Order.Hash()):
			return nil, hresult.New(hresult.BadRequestStatus, "batch %d is %s, with another key or another order", id, k.State).
				WithFix("work with the file that was written first; if it is lost, let the batch be cancelled and ordered again")
		}
		if _, err := tx.Exec("UPDATE escrow_batches SET state = 'open', statement = ?, fingerprint = ? WHERE id = ?", string(text), s.Hash(), id); err != nil {
			return nil, fmt.Errorf("batch %d: %w", id, err)
		}
		return map[string]any{"agent": dn.Show(agent.Certificate.RawSubject), "fingerprint": s.Agent, "code": s.Code()}, nil
	})
}

// canOpen requires that some record of the batch is sealed to the agent: one who has just come opens none.
func (b *Batches) canOpen(ctx context.Context, id int64, agent *escrow.Agent) error {
	sets, err := rows(ctx, b.o.DB.SQL, "SELECT DISTINCT e.recipients FROM escrow_batch_records b JOIN escrow_records e ON e.id = b.record WHERE b.batch_id = ? AND b.position >= 0", []any{id},
		func(scan func(...any) error) (text string, err error) { return text, scan(&text) })
	if err != nil {
		return err
	}
	openers, err := b.o.Escrow.Openers(ctx)
	if err != nil {
		return err
	}
	for _, text := range sets {
		var recipients []string
		if err := json.Unmarshal([]byte(text), &recipients); err != nil {
			return fmt.Errorf("batch %d: %w", id, err)
		}
		if slices.ContainsFunc(openers.Of(recipients), func(a escrow.Agent) bool {
			return bytes.Equal(a.Certificate.RawSubjectPublicKeyInfo, agent.Certificate.RawSubjectPublicKeyInfo)
		}) {
			return nil
		}
	}
	return hresult.New(hresult.NoValidKRA, "no record of batch %d is sealed to %s", id, dn.Show(agent.Certificate.RawSubject)).
		WithFix("let the batch be cancelled and ordered from an agent to whom its records are sealed")
}

// page reads a page of a batch that is open, with what is still to be done.
func (b *Batches) page(ctx context.Context, k *Batch, number int) (*recovery.Page, error) {
	if k.State != Open {
		return nil, hresult.New(hresult.BadRequestStatus, "batch %d is %s", k.ID, k.State)
	}
	list, err := entries(ctx, b.o.DB.SQL, "position >= ? AND position < ? ORDER BY position", k.ID, number*recovery.PageSize, (number+1)*recovery.PageSize)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || number < 0 {
		return nil, hresult.New(hresult.InvalidArg, "batch %d has no page %d", k.ID, number)
	}
	p := &recovery.Page{Number: number, Items: []recovery.Item{}, Consented: []string{}}
	for i := range list {
		item, err := b.item(ctx, &list[i])
		if err != nil {
			return nil, err
		}
		p.Items = append(p.Items, *item)
	}
	p.Parts, err = parts(ctx, b.o.DB.SQL, k.ID, number)
	for _, part := range p.Parts {
		p.Consented = append(p.Consented, part.Agent)
	}
	return p, err
}

func parts(ctx context.Context, db querier, id int64, page int) ([]recovery.Parts, error) {
	return rows(ctx, db, "SELECT parts FROM escrow_batch_parts WHERE batch_id = ? AND page = ? ORDER BY agent", []any{id, page}, func(scan func(...any) error) (p recovery.Parts, err error) {
		var text []byte
		if err := scan(&text); err != nil {
			return p, err
		}
		return p, json.Unmarshal(text, &p)
	})
}

// Page returns some of a batch's records to its agents; to the worker also the parts that others have sealed to the batch key.
func (b *Batches) Page(ctx context.Context, caller templates.Caller, id int64, number int) (*recovery.Page, error) {
	k, role, err := b.visible(ctx, caller, id)
	if err == nil && !role.Approver {
		err = hresult.New(hresult.AccessDenied, "you are no approver of the recovery policy %q", k.Policy)
	}
	if err != nil {
		return nil, b.refused(ctx, caller, id, "read a batch", err)
	}
	p, err := b.page(ctx, k, number)
	if err != nil {
		return nil, b.refused(ctx, caller, id, "read a batch", err)
	}
	if caller.SID != k.workerSID {
		p.Parts = nil
	}
	return p, nil
}

// Consent adds an agent's parts of a page. Each agent consents once, and so does each person; the first page is the consent in the
// audit log.
func (b *Batches) Consent(ctx context.Context, caller templates.Caller, id int64, p recovery.Parts) (*Finished, error) {
	done, err := b.consent(ctx, caller, id, p)
	if err != nil {
		return nil, b.refused(ctx, caller, id, "consent to a batch", err)
	}
	return done, nil
}

func (b *Batches) consent(ctx context.Context, caller templates.Caller, id int64, p recovery.Parts) (*Finished, error) {
	k, agent, err := b.approver(ctx, caller, id, p.Agent)
	if err != nil {
		return nil, err
	}
	switch {
	case p.Batch != id:
		return nil, hresult.New(hresult.InvalidArg, "the consent is to batch %d", p.Batch)
	case caller.SID == k.workerSID || p.Agent == k.statement.Agent:
		return nil, hresult.New(hresult.AccessDenied, "the worker's own part of batch %d stays on the worker's machine", id)
	}
	page, err := b.page(ctx, k, p.Page)
	if err != nil {
		return nil, err
	}
	records, err := p.Verify(&k.statement, page.Items)
	if err != nil {
		return nil, hresult.New(hresult.AccessDenied, "%v", err)
	}
	if len(records) == 0 {
		return nil, hresult.New(hresult.InvalidArg, "the consent is to no record of page %d that is still to be done", p.Page)
	}
	if err := b.holds(ctx, agent, &p); err != nil {
		return nil, err
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return b.step(ctx, caller, id, audit.BatchConsented, func(tx *sql.Tx, k *Batch) (map[string]any, error) {
		if k.State != Open {
			return nil, hresult.New(hresult.BadRequestStatus, "batch %d is %s", id, k.State)
		}
		at := slices.IndexFunc(k.Consents, func(c Consenter) bool { return c.Agent == p.Agent || c.sid == caller.SID })
		if at >= 0 && (k.Consents[at].Agent != p.Agent || k.Consents[at].sid != caller.SID) {
			return nil, hresult.New(hresult.BadRequestStatus, "%s has consented to batch %d with %s; each agent and each person counts once", k.Consents[at].Approver, id, k.Consents[at].Agent)
		}
		if _, err := tx.Exec(`INSERT INTO escrow_batch_parts (batch_id, page, agent, parts) VALUES (?, ?, ?, ?)
			ON CONFLICT (batch_id, page, agent) DO UPDATE SET parts = excluded.parts`, id, p.Page, p.Agent, text); err != nil {
			return nil, fmt.Errorf("batch %d: %w", id, err)
		}
		if at >= 0 {
			return nil, nil
		}
		if _, err := tx.Exec("INSERT INTO escrow_batch_agents (batch_id, agent, approver, approver_sid, created) VALUES (?, ?, ?, ?, ?)",
			id, p.Agent, caller.Principal, caller.SID, b.o.Now().UnixMilli()); err != nil {
			return nil, fmt.Errorf("batch %d: %w", id, err)
		}
		return map[string]any{"agent": dn.Show(agent.Certificate.RawSubject), "fingerprint": p.Agent, "consents": len(k.Consents) + 1, "required": k.Required}, nil
	})
}

// holds requires that every part is of a record that the agent, and not another one, can open.
func (b *Batches) holds(ctx context.Context, agent *escrow.Agent, p *recovery.Parts) error {
	openers, err := b.o.Escrow.Openers(ctx)
	if err != nil {
		return err
	}
	for _, part := range p.Parts {
		n, err := b.o.Escrow.Get(ctx, part.Record)
		if err != nil {
			return err
		}
		holder := openers.Find(part.Holder)
		if holder == nil || !slices.Contains(n.Recipients, part.Holder) || !holder.SamePerson(agent) {
			return hresult.New(hresult.AccessDenied, "archived key %d is not sealed to %s", part.Record, dn.Show(agent.Certificate.RawSubject))
		}
	}
	return nil
}

// Cancel ends a batch; any manager of its policy can. What was done stays done.
func (b *Batches) Cancel(ctx context.Context, caller templates.Caller, id int64, note string) (*Finished, error) {
	k, role, err := b.visible(ctx, caller, id)
	if err == nil && !role.Manager {
		err = hresult.New(hresult.AccessDenied, "you are no manager of the recovery policy %q", k.Policy)
	}
	if err == nil {
		if bad := recovery.CheckReason(note); bad != nil {
			err = hresult.New(hresult.InvalidArg, "%v", bad)
		}
	}
	var done *Finished
	if err == nil {
		done, err = b.step(ctx, caller, id, audit.BatchEnded, func(tx *sql.Tx, k *Batch) (map[string]any, error) {
			return map[string]any{"state": Cancelled, "reason": note, "records": k.Records}, b.end(tx, id, Cancelled, note)
		})
	}
	if err != nil {
		return nil, b.refused(ctx, caller, id, "cancel a batch", err)
	}
	return done, nil
}

// end moves a batch to its last state and deletes the sealed parts.
func (b *Batches) end(tx *sql.Tx, id int64, to State, note string) error {
	if _, err := tx.Exec("UPDATE escrow_batches SET state = ?, ended = ?, note = ? WHERE id = ?", string(to), b.o.Now().UnixMilli(), note, id); err != nil {
		return fmt.Errorf("batch %d: %w", id, err)
	}
	if _, err := tx.Exec("DELETE FROM escrow_batch_parts WHERE batch_id = ?", id); err != nil {
		return fmt.Errorf("batch %d: %w", id, err)
	}
	return nil
}

// Expire ends the batches whose time is over, and forgets drafts that were never ordered.
func (b *Batches) Expire(ctx context.Context) error {
	over, err := rows(ctx, b.o.DB.SQL, "SELECT id FROM escrow_batches WHERE state IN ('draft', 'ordered', 'open') AND expires <= ?", []any{b.o.Now().UnixMilli()},
		func(scan func(...any) error) (id int64, err error) { return id, scan(&id) })
	if err != nil {
		return err
	}
	for _, id := range over {
		if err := b.o.DB.Write(ctx, func(tx *sql.Tx) error { return b.expire(ctx, tx, id) }); err != nil {
			return err
		}
	}
	return nil
}

func (b *Batches) expire(ctx context.Context, tx *sql.Tx, id int64) error {
	k, err := one(ctx, tx, id)
	if err != nil || !k.State.live() { // another process was first
		return err
	}
	if k.State == Drafted {
		for _, table := range []string{"escrow_batch_records WHERE batch_id = ?", "escrow_batches WHERE id = ?"} {
			if _, err := tx.Exec("DELETE FROM "+table, id); err != nil {
				return fmt.Errorf("batch %d: %w", id, err)
			}
		}
		return nil
	}
	if err := b.end(tx, id, Expired, ""); err != nil {
		return err
	}
	return audit.Append(tx, b.o.Now(), "gateway", audit.BatchEnded, map[string]any{"batch": id, "purpose": k.Purpose, "policy": k.Policy, "state": Expired, "records": k.Records})
}
