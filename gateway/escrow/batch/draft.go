package batch

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Selection says which records a batch is about.
type Selection struct {
	Purpose  string   `json:"purpose"`
	Policy   string   `json:"policy"`
	Owner    string   `json:"owner,omitempty"`     // only this person's
	SealedTo string   `json:"sealed_to,omitempty"` // only those that this agent can open: fingerprint
	Records  []int64  `json:"records,omitempty"`   // only these
	Size     int      `json:"size,omitempty"`      // of a random sample
	Percent  float64  `json:"percent,omitempty"`   // of a random sample, instead of Size
	Verifies int64    `json:"verifies,omitempty"`  // those that this rewrap has replaced and nobody has proven
	Targets  []string `json:"targets,omitempty"`   // of a rewrap: agents to seal to. Records that are so already are not chosen
	Again    bool     `json:"again,omitempty"`     // but with this: agents have hybrid keys now, or the format has changed
}

// Draft is what the gateway has chosen. The manager's machine makes an Order of it.
type Draft struct {
	Batch    int64    `json:"batch"`
	Policy   string   `json:"policy"`
	Required int      `json:"required"`
	Hybrid   bool     `json:"hybrid"` // records are to be sealed to hybrid keys, as the policy requires
	Nonce    []byte   `json:"nonce"`
	Records  int      `json:"records"`
	Pages    [][]byte `json:"pages"`
	More     int      `json:"more"` // that fit, beyond what one batch can have
	Left     []Left   `json:"left"` // that nothing can be done to
}

// Order makes an order of the draft, on the manager's machine.
func (d *Draft) Order(s Selection, manager, worker, reason string) *recovery.Order {
	targets := slices.Clone(s.Targets)
	slices.Sort(targets)
	return &recovery.Order{Purpose: s.Purpose, Policy: d.Policy, Required: d.Required, Manager: manager, Worker: worker, Reason: reason, Verifies: s.Verifies,
		Nonce: d.Nonce, Records: d.Records, Pages: d.Pages, Targets: targets, Hybrid: d.Hybrid}
}

// draftValidity is how long a draft waits for its order.
const draftValidity = time.Hour

// Draft chooses records. A sample is chosen by the operating system's random numbers: nobody can know before what a drill will open.
func (b *Batches) Draft(ctx context.Context, caller templates.Caller, s Selection) (*Draft, error) {
	d, err := b.draft(ctx, caller, s)
	if err != nil {
		return nil, b.refused(ctx, caller, 0, "order a batch", err)
	}
	return d, nil
}

func (b *Batches) draft(ctx context.Context, caller templates.Caller, s Selection) (*Draft, error) {
	if s.Purpose != recovery.Rewrap && s.Purpose != recovery.Drill || (s.Purpose == recovery.Rewrap) != (len(s.Targets) > 0) ||
		s.Size < 0 || s.Percent < 0 || s.Percent > 100 || math.IsNaN(s.Percent) {
		return nil, hresult.New(hresult.InvalidArg, "a batch is a rewrap to named agents, or a drill; a sample has a size, or 0 to 100 percent")
	}
	role, p, err := b.o.Of(ctx, caller, s.Policy)
	if err == nil && !role.Manager {
		err = hresult.New(hresult.AccessDenied, "you are no manager of the recovery policy %q", s.Policy).
			WithFix("managers and approvers are named under escrow.policies in the gateway's configuration, where the policy \"default\" can be listed too")
	}
	if err != nil {
		return nil, err
	}
	if s.Purpose == recovery.Rewrap {
		slices.Sort(s.Targets)
		if err := b.checkTargets(ctx, p, s.Targets); err != nil {
			return nil, err
		}
	}
	chosen, err := b.choose(ctx, &s, p)
	if err != nil {
		return nil, err
	}
	w, err := b.examine(ctx, chosen, p, &s)
	if err != nil {
		return nil, err
	}
	if len(w.found) == 0 {
		return nil, b.nothing(w, &s)
	}
	if s.Purpose == recovery.Rewrap && len(s.Targets) < w.Required {
		return nil, hresult.New(hresult.InvalidArg, "the records take %d agents: %d are too few to seal them to", w.Required, len(s.Targets))
	}
	return b.insert(ctx, caller, &s, w)
}

// nothing says why nothing was chosen.
func (b *Batches) nothing(w *wanted, s *Selection) error {
	if len(w.Left) > 0 {
		return hresult.New(hresult.NoValidKRA, "nothing can be done to any of the %d records: archived key %d of %s: %s", len(w.Left), w.Left[0].Record, w.Left[0].Owner, w.Left[0].Why)
	}
	return hresult.New(hresult.InvalidArg, "no record of the recovery policy %q is to be done", s.Policy)
}

// checkTargets requires that keys may be sealed to the agents under the policy.
func (b *Batches) checkTargets(ctx context.Context, p *escrow.Policy, targets []string) error {
	valid, err := b.o.Escrow.ValidFor(ctx, p)
	if err != nil {
		return err
	}
	for i, f := range targets {
		if !slices.ContainsFunc(valid, func(a escrow.Agent) bool { return a.Fingerprint == f }) {
			return hresult.New(hresult.NoValidKRA, "%s is no agent with a valid certificate of the recovery policy %q, or a person's older one", f, p.Name).
				WithFix("enrollgate escrow agents list shows the agents")
		}
		if i > 0 && targets[i-1] == f {
			return hresult.New(hresult.InvalidArg, "the agent %s occurs twice", f)
		}
	}
	if need := max(p.Minimum, p.Required, 1); len(targets) < need {
		return hresult.New(hresult.NoValidKRA, "%d agents are named, recovery policy %q needs %d", len(targets), p.Name, need)
	}
	return nil
}

// choose finds the records that the selection is about.
func (b *Batches) choose(ctx context.Context, s *Selection, p *escrow.Policy) ([]escrow.Chosen, error) {
	of := map[int64]bool{}
	if s.Verifies != 0 {
		list, err := rows(ctx, b.o.DB.SQL, "SELECT record FROM escrow_previous WHERE batch = ?", []any{s.Verifies}, func(scan func(...any) error) (id int64, err error) { return id, scan(&id) })
		if err != nil {
			return nil, err
		}
		for _, id := range list {
			of[id] = true
		}
	}
	var all []escrow.Chosen
	err := b.o.Escrow.Choose(ctx, p.Name, s.Owner, func(c escrow.Chosen) {
		done := s.Purpose == recovery.Rewrap && !s.Again && slices.Equal(c.Recipients, s.Targets) && c.Required >= p.Required
		if (len(s.Records) == 0 || slices.Contains(s.Records, c.ID)) && (s.SealedTo == "" || slices.Contains(c.Recipients, s.SealedTo)) && (s.Verifies == 0 || of[c.ID]) && !done {
			all = append(all, c)
		}
	})
	if err != nil {
		return nil, err
	}
	size := s.Size
	if s.Percent > 0 {
		size = int(math.Ceil(float64(len(all)) * s.Percent / 100))
	}
	if size > 0 && size < len(all) {
		if err := shuffle(all, size); err != nil {
			return nil, err
		}
		all = all[:size]
	}
	slices.SortFunc(all, func(a, b escrow.Chosen) int { return int(a.ID - b.ID) })
	return all, nil
}

// shuffle puts a random choice of n in front.
func shuffle(all []escrow.Chosen, n int) error {
	for i := range n {
		j, err := rand.Int(rand.Reader, big.NewInt(int64(len(all)-i)))
		if err != nil {
			return err
		}
		k := i + int(j.Int64())
		all[i], all[k] = all[k], all[i]
	}
	return nil
}

// wanted is what a draft has found.
type wanted struct {
	Draft
	found []found
}

type found struct {
	recovery.Item
	hash []byte
}

// examine reads the records and finds out which can be opened. Those that cannot are named.
func (b *Batches) examine(ctx context.Context, chosen []escrow.Chosen, p *escrow.Policy, s *Selection) (*wanted, error) {
	w := &wanted{Draft: Draft{Policy: p.Name, Required: p.Required, Hybrid: p.Hybrid && s.Purpose == recovery.Rewrap, Left: []Left{}}}
	openers, err := b.o.Escrow.Openers(ctx)
	if err != nil {
		return nil, err
	}
	previous, err := rows(ctx, b.o.DB.SQL, "SELECT record, batch FROM escrow_previous", nil, func(scan func(...any) error) (out [2]int64, err error) { return out, scan(&out[0], &out[1]) })
	if err != nil {
		return nil, err
	}
	unproven := map[int64]int64{}
	for _, row := range previous {
		unproven[row[0]] = row[1]
	}
	for i, c := range chosen {
		if len(w.found) == recovery.MaxRecords {
			w.More = len(chosen) - i
			break
		}
		n, err := b.o.Escrow.Get(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		needed := max(n.Required, p.Required)
		able := openers.Of(n.Recipients)
		switch batch := unproven[n.ID]; {
		case len(able) < needed:
			w.Left = append(w.Left, Left{n.ID, n.Owner, "left", fmt.Sprintf("it takes %d agents, and %d that are designated can open it", needed, len(able))})
			continue
		case batch != 0 && s.Purpose == recovery.Rewrap:
			w.Left = append(w.Left, Left{n.ID, n.Owner, "left", fmt.Sprintf("rewrap %d has sealed it anew, and nobody has proven that yet: enrollgate escrow rewrap verify %d", batch, batch)})
			continue
		}
		w.Required = max(w.Required, needed)
		sum := sha256.Sum256(n.Sealed())
		w.found = append(w.found, found{recovery.Item{Record: n.ID, KeyID: n.KeyID, Owner: n.Owner, Format: n.Format, Required: n.Required, Sealed: fmt.Sprintf("%x", sum)}, sum[:]})
	}
	w.Records, w.Nonce = len(w.found), make([]byte, sha256.Size)
	rand.Read(w.Nonce)
	for page := range slices.Chunk(w.found, recovery.PageSize) {
		var items []recovery.Item
		for _, f := range page {
			items = append(items, f.Item)
		}
		w.Pages = append(w.Pages, recovery.PageHash(len(w.Pages), items))
	}
	return w, nil
}

// writeSize is how many rows share a transaction: others must not wait for a large draft.
const writeSize = 500

// insert writes the draft down.
func (b *Batches) insert(ctx context.Context, caller templates.Caller, s *Selection, w *wanted) (*Draft, error) {
	now := b.o.Now()
	statement, err := json.Marshal(recovery.BatchStatement{Order: recovery.Order{Purpose: s.Purpose, Policy: w.Policy, Required: w.Required, Manager: caller.Principal,
		Verifies: s.Verifies, Nonce: w.Nonce, Records: w.Records, Pages: w.Pages, Targets: s.Targets, Hybrid: w.Hybrid}})
	if err != nil {
		return nil, err
	}
	if err := b.o.DB.Write(ctx, func(tx *sql.Tx) error {
		return tx.QueryRow(`INSERT INTO escrow_batches (purpose, state, created, expires, policy, required, verifies, opened_by, opened_by_sid, statement)
			VALUES (?, 'draft', ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`, s.Purpose, now.UnixMilli(), now.Add(draftValidity).UnixMilli(), w.Policy, w.Required, s.Verifies,
			caller.Principal, caller.SID, string(statement)).Scan(&w.Batch)
	}); err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	const add = "INSERT INTO escrow_batch_records (batch_id, record, position, sealed_hash, required, format, state, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
	at := 0
	for rows := range slices.Chunk(w.found, writeSize) {
		if err := b.o.DB.Write(ctx, func(tx *sql.Tx) error {
			for i, f := range rows {
				if _, err := tx.Exec(add, w.Batch, f.Record, at+i, f.hash, f.Required, f.Format, recovery.ItemOpen, ""); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return nil, fmt.Errorf("batch %d: %w", w.Batch, err)
		}
		at += len(rows)
	}
	for rows := range slices.Chunk(w.Left, writeSize) {
		if err := b.o.DB.Write(ctx, func(tx *sql.Tx) error {
			for _, l := range rows {
				if _, err := tx.Exec(add, w.Batch, l.Record, -1, []byte{}, 0, 0, l.State, l.Why); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return nil, fmt.Errorf("batch %d: %w", w.Batch, err)
		}
	}
	return &w.Draft, nil
}

// targets are the agents of an order's fingerprints, in their order. They need not be valid any more.
func (b *Batches) targets(ctx context.Context, o *recovery.Order) ([]escrow.Agent, error) {
	if len(o.Targets) == 0 {
		return nil, nil
	}
	agents, err := b.o.Escrow.Agents(ctx)
	if err != nil {
		return nil, err
	}
	var out []escrow.Agent
	for _, f := range o.Targets {
		i := slices.IndexFunc(agents, func(a escrow.Agent) bool { return a.Fingerprint == f })
		if i < 0 {
			return nil, hresult.New(hresult.NoValidKRA, "the agent %s, to which records were to be sealed, is no longer designated: cancel the batch", f)
		}
		if agents[i].Revoked {
			return nil, hresult.New(hresult.NoValidKRA, "the certificate of the agent %s, to which records were to be sealed, is revoked: cancel the batch", f)
		}
		out = append(out, agents[i])
	}
	return out, nil
}

// PolicyInfo is a recovery policy as those see it who have a role in it.
type PolicyInfo struct {
	Policy   string      `json:"policy"`
	Required int         `json:"required"`
	Minimum  int         `json:"minimum_agents"`
	Records  int64       `json:"records"`
	Agents   []AgentInfo `json:"agents"` // that keys may be sealed to
}

// AgentInfo is an agent as the gateway knows it: compare the fingerprint with the agent.
type AgentInfo struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
}

// Policies are those of which the caller is a manager or an approver.
func (b *Batches) Policies(ctx context.Context, caller templates.Caller) ([]PolicyInfo, error) {
	mine, err := b.o.All(ctx, caller, func(r people.Role) bool { return r.Manager || r.Approver })
	if err != nil {
		return nil, b.refused(ctx, caller, 0, "list policies", err)
	}
	holdings, err := b.o.Escrow.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	out := []PolicyInfo{}
	for _, p := range b.o.Escrow.Policies() {
		if mine.Open[p.Name] == nil {
			continue
		}
		n := PolicyInfo{Policy: p.Name, Required: p.Required, Minimum: max(p.Minimum, p.Required, 1), Agents: []AgentInfo{}}
		for _, h := range holdings {
			if h.Policy == p.Name {
				n.Records += h.Records
			}
		}
		valid, err := b.o.Escrow.ValidFor(ctx, &p)
		if err != nil {
			return nil, err
		}
		for _, a := range valid {
			n.Agents = append(n.Agents, AgentInfo{dn.Show(a.Certificate.RawSubject), a.Fingerprint, a.Certificate.NotAfter.UTC()})
		}
		out = append(out, n)
	}
	return out, nil
}
