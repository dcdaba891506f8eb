package escrow

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// minAgentBits is the smallest agent key that keys are sealed to.
const minAgentBits = 2048

// Agent is a key recovery agent: somebody whose private key opens archived keys.
type Agent struct {
	Certificate *x509.Certificate
	Fingerprint string
	Added       time.Time
	AddedBy     string
	Revoked     bool
	// Holder is the SID of the account that the certificate was issued to; "" where another CA did.
	Holder string

	Hybrid     []byte // public half of the hybrid key (quorum.KEM); nil where the agent has none
	HybridOnly bool   // records are sealed to it instead of the certificate's key, not beside it

	hybridSignature []byte // of quorum.HybridKey

	former bool // no longer designated
}

// Recipient is what records are sealed to.
func (a *Agent) Recipient() quorum.Recipient {
	return quorum.Recipient{Certificate: a.Certificate, Hybrid: a.Hybrid, HybridOnly: a.HybridOnly}
}

// HybridKey is the agent's hybrid key as the agent has signed it; nil where there is none.
func (a *Agent) HybridKey() *quorum.HybridKey {
	if a.Hybrid == nil {
		return nil
	}
	return &quorum.HybridKey{Certificate: a.Certificate.Raw, Public: a.Hybrid, Only: a.HybridOnly, Signature: a.hybridSignature}
}

// KeyKind names what records are sealed to: certificate, hybrid or both.
func (a *Agent) KeyKind() string {
	switch {
	case a.Hybrid == nil:
		return "certificate"
	case a.HybridOnly:
		return "hybrid"
	}
	return "both"
}

// samePerson tells whether two agents are one: the account that both certificates were issued to, or their key, is the same.
func (a *Agent) samePerson(b *Agent) bool {
	return a.Holder != "" && a.Holder == b.Holder || sameKey(a.Certificate, b.Certificate)
}

func sameKey(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// people leaves one agent for each person, that with the newest certificate. While a certificate and its renewal are both
// designated, nobody gets two shares of one key.
func people(agents []Agent) []Agent {
	newest := slices.SortedStableFunc(slices.Values(agents), func(a, b Agent) int { return b.Certificate.NotBefore.Compare(a.Certificate.NotBefore) })
	var out []Agent
	for i := range newest {
		if !slices.ContainsFunc(out, func(b Agent) bool { return b.samePerson(&newest[i]) }) {
			out = append(out, newest[i])
		}
	}
	// In the order of their designation.
	return slices.DeleteFunc(slices.Clone(agents), func(a Agent) bool {
		return !slices.ContainsFunc(out, func(b Agent) bool { return b.Fingerprint == a.Fingerprint })
	})
}

// usable tells whether new keys may be sealed to the agent ([MS-WCCE] 2.2.3.1).
func (a *Agent) usable(now time.Time) error {
	c := a.Certificate
	key, ok := c.PublicKey.(*rsa.PublicKey)
	switch {
	case a.Revoked:
		return errors.New("the certificate is revoked")
	case now.Before(c.NotBefore):
		return fmt.Errorf("the certificate is valid only from %s", c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		return fmt.Errorf("the certificate has expired at %s", c.NotAfter.UTC().Format(time.RFC3339))
	case !ok && !a.HybridOnly:
		return fmt.Errorf("key type %T is not supported, use RSA, or a hybrid key instead of it", c.PublicKey)
	case ok && key.N.BitLen() < minAgentBits:
		return fmt.Errorf("the key has %d bits, at least %d are needed", key.N.BitLen(), minAgentBits)
	case !a.HybridOnly && c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageKeyEncipherment == 0:
		return errors.New("the certificate's key usage lacks key encipherment")
	case !hasKeyRecovery(c):
		return fmt.Errorf("the certificate lacks the extended key usage key recovery agent (%s)", wcce.OIDKeyRecovery)
	}
	return nil
}

func hasKeyRecovery(c *x509.Certificate) bool {
	for _, oid := range c.UnknownExtKeyUsage {
		if oid.String() == wcce.OIDKeyRecovery {
			return true
		}
	}
	return false
}

// Status says in words whether new keys are sealed to the agent.
func (a *Agent) Status(now time.Time) string {
	if err := a.usable(now); err != nil {
		return err.Error()
	}
	return "valid"
}

// Agents returns the designated agents, oldest first.
func (e *Escrow) Agents(ctx context.Context) ([]Agent, error) {
	known, err := e.known(ctx)
	return slices.DeleteFunc(known, func(a Agent) bool { return a.former }), err
}

// AgentsAtHand are the designated agents as they were read last, which is at most a second ago while the gateway serves. Nobody may change them.
func (e *Escrow) AgentsAtHand() []Agent { return *e.agents.Load() }

// known are all agents that were ever designated, oldest first.
func (e *Escrow) known(ctx context.Context) ([]Agent, error) {
	rows, err := e.o.DB.SQL.QueryContext(ctx, "SELECT certificate, added, added_by, removed, hybrid, hybrid_only, hybrid_signature FROM escrow_agents ORDER BY added, fingerprint")
	if err != nil {
		return nil, fmt.Errorf("escrow agents: %w", err)
	}
	defer rows.Close()
	var out []Agent
	for rows.Next() {
		var der []byte
		var added, removed int64
		var a Agent
		if err := rows.Scan(&der, &added, &a.AddedBy, &removed, &a.Hybrid, &a.HybridOnly, &a.hybridSignature); err != nil {
			return nil, fmt.Errorf("escrow agents: %w", err)
		}
		if a.Certificate, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("escrow agents: stored certificate: %w", err)
		}
		a.Fingerprint, a.Added, a.former = Fingerprint(a.Certificate), time.UnixMilli(added).UTC(), removed != 0
		out = append(out, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("escrow agents: %w", err)
	}
	return out, e.askLedger(ctx, out)
}

// askLedger finds out whose the certificates are that were issued here, and which were revoked.
func (e *Escrow) askLedger(ctx context.Context, agents []Agent) error {
	for i := range agents {
		a := &agents[i]
		var revoked int64
		err := e.o.DB.SQL.QueryRowContext(ctx, `SELECT subject_sid, revoked FROM requests WHERE serial = ? AND serial <> '' AND certificate = ? ORDER BY revoked DESC LIMIT 1`,
			a.Certificate.SerialNumber.Text(16), a.Certificate.Raw).Scan(&a.Holder, &revoked)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("escrow agents: %w", err)
		}
		a.Revoked = revoked != 0
	}
	return nil
}

// WasAgent tells whether a certificate was designated once, and no longer is: only a person designates it again.
func (e *Escrow) WasAgent(ctx context.Context, fingerprint string) (bool, error) {
	known, err := e.known(ctx)
	return slices.ContainsFunc(known, func(a Agent) bool { return a.former && a.Fingerprint == fingerprint }), err
}

// MayBeAgent tells whether a certificate can be an agent's now; the error says why not.
func (e *Escrow) MayBeAgent(cert *x509.Certificate) error {
	return (&Agent{Certificate: cert}).usable(e.o.Now())
}

// AddAgent designates an agent. New keys are sealed to it; keys archived before are not.
func (e *Escrow) AddAgent(ctx context.Context, cert *x509.Certificate, actor string) error {
	return e.addAgent(ctx, &Agent{Certificate: cert}, actor)
}

// AddHybridAgent designates an agent with a hybrid key, or gives a designated one its hybrid key.
func (e *Escrow) AddHybridAgent(ctx context.Context, h *quorum.HybridKey, actor string) error {
	cert, err := h.Check()
	if err != nil {
		return err
	}
	return e.addAgent(ctx, &Agent{Certificate: cert, Hybrid: h.Public, HybridOnly: h.Only, hybridSignature: h.Signature}, actor)
}

func (e *Escrow) addAgent(ctx context.Context, a *Agent, actor string) error {
	if err := a.usable(e.o.Now()); err != nil {
		return fmt.Errorf("%s cannot be a key recovery agent: %w", dn.Show(a.Certificate.RawSubject), err)
	}
	return e.designate(ctx, a, actor)
}

// designate is addAgent for an agent that new keys need not be sealed to.
func (e *Escrow) designate(ctx context.Context, a *Agent, actor string) error {
	subject := dn.Show(a.Certificate.RawSubject)
	a.Fingerprint = Fingerprint(a.Certificate)
	raw, err := hex.DecodeString(a.Fingerprint)
	if err != nil {
		return err
	}
	err = e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := e.o.Now()
		res, err := tx.Exec(`INSERT INTO escrow_agents (fingerprint, certificate, added, added_by, hybrid, hybrid_only, hybrid_signature) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (fingerprint) DO UPDATE SET added = excluded.added, added_by = excluded.added_by, removed = 0,
			hybrid = excluded.hybrid, hybrid_only = excluded.hybrid_only, hybrid_signature = excluded.hybrid_signature
			WHERE escrow_agents.removed <> 0 OR (excluded.hybrid IS NOT NULL AND escrow_agents.hybrid IS NULL)`,
			raw, a.Certificate.Raw, now.UnixMilli(), actor, a.Hybrid, a.HybridOnly, a.hybridSignature)
		if err != nil {
			return fmt.Errorf("add agent: %w", err)
		}
		if n, err := res.RowsAffected(); err == nil && n == 0 {
			return fmt.Errorf("%s is an agent already; to change its hybrid key, remove it first", subject)
		}
		detail := map[string]any{"agent": subject, "fingerprint": a.Fingerprint}
		if a.Hybrid != nil {
			sum := sha256.Sum256(a.Hybrid)
			detail["hybrid_key"], detail["hybrid_only"] = hex.EncodeToString(sum[:]), a.HybridOnly
		}
		return audit.Append(tx, now, actor, audit.AgentAdded, detail)
	})
	if err != nil {
		return err
	}
	return e.Refresh(ctx)
}

// RemoveAgent ends a designation. Keys sealed to the agent before can still be opened with its key.
func (e *Escrow) RemoveAgent(ctx context.Context, fingerprint, actor string) error {
	agents, err := e.Agents(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(agents, func(a Agent) bool { return a.Fingerprint == fingerprint })
	if i < 0 {
		return fmt.Errorf("no agent has the fingerprint %s", fingerprint)
	}
	raw, err := hex.DecodeString(fingerprint)
	if err != nil {
		return err
	}
	err = e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := e.o.Now()
		if _, err := tx.Exec("UPDATE escrow_agents SET removed = ?, removed_by = ? WHERE fingerprint = ? AND removed = 0", now.UnixMilli(), actor, raw); err != nil {
			return fmt.Errorf("remove agent: %w", err)
		}
		return audit.Append(tx, now, actor, audit.AgentRemoved, map[string]any{"agent": dn.Show(agents[i].Certificate.RawSubject), "fingerprint": fingerprint})
	})
	if err != nil {
		return err
	}
	return e.Refresh(ctx)
}
