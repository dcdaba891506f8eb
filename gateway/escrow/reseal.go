package escrow

import (
	"context"
	"encoding/json"
	"fmt"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"slices"
)

// Reseal seals a key that was opened anew, on the machine of who has opened it: as the gateway seals a key that it archives. The
// caller wipes pkcs8. keyID is the SHA-256 of the key's SubjectPublicKeyInfo.
func Reseal(pkcs8, keyID []byte, owner, policy string, required int, agents []quorum.Recipient) (*Record, error) {
	r := &Record{KeyID: keyID}
	return r, r.seal(pkcs8, owner, &Policy{Name: policy, Required: required}, agents)
}

// Openers tells at one moment who can open what.
type Openers struct{ known []Agent }

// Openers reads the agents once, for many records.
func (e *Escrow) Openers(ctx context.Context) (*Openers, error) {
	known, err := e.known(ctx)
	return &Openers{known}, err
}

// Of are the agents that can open a record with these recipients, as RecipientsOf; each person once.
func (o *Openers) Of(recipients []string) []Agent { return people(openers(o.known, recipients)) }

// All are the certificates of agents that can open records, with former ones of the same keys.
func (o *Openers) All() []Agent {
	var every []string
	for _, a := range o.known {
		every = append(every, a.Fingerprint)
	}
	return openers(o.known, every)
}

// Find is one of All by its fingerprint; nil where it is none.
func (o *Openers) Find(fingerprint string) *Agent {
	if found := openers(o.known, []string{fingerprint}); len(found) > 0 {
		return &found[0]
	}
	return nil
}

// SamePerson tells whether two agents are one.
func (a *Agent) SamePerson(b *Agent) bool { return a.samePerson(b) }

// ValidFor are the agents that keys may be sealed to under a policy now, each person once, without regard to its minimum.
func (e *Escrow) ValidFor(ctx context.Context, p *Policy) ([]Agent, error) {
	all, err := e.Agents(ctx)
	now := e.o.Now()
	return people(slices.DeleteFunc(all, func(a Agent) bool { return !p.has(&a) || p.admits(&a, now) != nil })), err
}

// Chosen is a record as Choose finds it.
type Chosen struct {
	ID         int64
	Required   int
	Recipients []string // sorted; shared by records with the same
}

// Choose calls yield with the records of a policy that have a certificate, by their number; owner "" means everybody's.
func (e *Escrow) Choose(ctx context.Context, policy, owner string, yield func(Chosen)) error {
	rows, err := e.o.DB.SQL.QueryContext(ctx, `SELECT e.id, e.required, e.recipients FROM escrow_records e LEFT JOIN requests r ON r.id = e.request_id
		WHERE e.policy = ? AND e.destroyed = 0 AND (e.source = 'import' OR r.state = 'issued') AND (? = '' OR lower(e.owner) = lower(?)) ORDER BY e.id`, policy, owner, owner)
	if err != nil {
		return fmt.Errorf("escrow: %w", err)
	}
	defer rows.Close()
	sets := map[string][]string{}
	for rows.Next() {
		var c Chosen
		var recipients string
		if err := rows.Scan(&c.ID, &c.Required, &recipients); err != nil {
			return fmt.Errorf("escrow: %w", err)
		}
		if sets[recipients] == nil {
			var set []string
			if err := json.Unmarshal([]byte(recipients), &set); err != nil {
				return fmt.Errorf("escrow: record %d: %w", c.ID, err)
			}
			slices.Sort(set)
			sets[recipients] = set
		}
		c.Recipients = sets[recipients]
		yield(c)
	}
	return rows.Err()
}
