package escrow

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/dn"
)

// Held is what is kept of a private key, as far as it matters for opening it.
type Held struct {
	Record  int64
	Owner   string
	Policy  string
	Proven  time.Time // when it was last proven that agents can open it; zero where it never was
	Opening Opening
}

// Opening is who opens a record.
type Opening struct {
	Required int      // agents that it takes
	Agents   []string // names of those that can: designated and not revoked, each person once
	Why      string   // why nobody can open it now; "" where they can
}

// Opening judges the terms of records.
func (e *Escrow) Opening(o *Openers, policy string, required int, recipients []string) Opening {
	out := Opening{Required: required, Agents: []string{}}
	for _, a := range o.Of(recipients) {
		out.Agents = append(out.Agents, dn.Show(a.Certificate.RawSubject))
	}
	p, err := e.Policy(policy)
	if err != nil {
		out.Why = err.Error()
		return out
	}
	if out.Required = max(required, p.Required); len(out.Agents) < out.Required {
		out.Why = fmt.Sprintf("it takes %d agents, and of those that it is sealed to %d are designated", out.Required, len(out.Agents))
	}
	return out
}

// Holder finds records by their keys, many at a time. It is for one goroutine.
type Holder struct {
	escrow  *Escrow
	openers *Openers
	terms   map[string]Opening // few records have terms of their own
}

const maxTerms = 4096

// NewHolder reads the agents once.
func (e *Escrow) NewHolder(ctx context.Context) (*Holder, error) {
	o, err := e.Openers(ctx)
	return &Holder{e, o, map[string]Opening{}}, err
}

// Find looks up what is kept of keys, by the SHA-256 of their SubjectPublicKeyInfo. Of several records of a key it returns the
// newest that can be opened.
func (h *Holder) Find(ctx context.Context, keyIDs [][]byte) (map[string]Held, error) {
	out := map[string]Held{}
	if len(keyIDs) == 0 {
		return out, nil
	}
	args := make([]any, len(keyIDs))
	for i, id := range keyIDs {
		args[i] = id
	}
	// A record whose key was destroyed has nothing in sealed.
	rows, err := h.escrow.o.DB.SQL.QueryContext(ctx, "SELECT id, owner, key_id, policy, required, recipients, proven FROM escrow_records WHERE length(sealed) > 0 AND key_id IN ("+
		strings.TrimSuffix(strings.Repeat("?, ", len(args)), ", ")+") ORDER BY id", args...)
	if err != nil {
		return nil, fmt.Errorf("escrow: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var n Held
		var keyID []byte
		var required int
		var recipients string
		var proven int64
		if err := rows.Scan(&n.Record, &n.Owner, &keyID, &n.Policy, &required, &recipients, &proven); err != nil {
			return nil, fmt.Errorf("escrow: %w", err)
		}
		if n.Opening, err = h.opening(n.Policy, required, recipients); err != nil {
			return nil, fmt.Errorf("escrow: record %d: recipients: %w", n.Record, err)
		}
		if proven != 0 {
			n.Proven = time.UnixMilli(proven).UTC()
		}
		if before, ok := out[string(keyID)]; !ok || n.Opening.Why == "" || before.Opening.Why != "" {
			out[string(keyID)] = n
		}
	}
	return out, rows.Err()
}

func (h *Holder) opening(policy string, required int, recipients string) (Opening, error) {
	key := fmt.Sprintf("%d %s %s", required, policy, recipients)
	if o, ok := h.terms[key]; ok {
		return o, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(recipients), &list); err != nil {
		return Opening{}, err
	}
	if len(h.terms) >= maxTerms {
		clear(h.terms)
	}
	h.terms[key] = h.escrow.Opening(h.openers, policy, required, list)
	return h.terms[key], nil
}

// Certificate is that of an agent that was ever designated; nil where there is none with the fingerprint.
func (o *Openers) Certificate(fingerprint string) *x509.Certificate {
	for i := range o.known {
		if o.known[i].Fingerprint == fingerprint {
			return o.known[i].Certificate
		}
	}
	return nil
}
