package escrow

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
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
	case !ok:
		return fmt.Errorf("key type %T is not supported, use RSA", c.PublicKey)
	case key.N.BitLen() < minAgentBits:
		return fmt.Errorf("the key has %d bits, at least %d are needed", key.N.BitLen(), minAgentBits)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageKeyEncipherment == 0:
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
	rows, err := e.o.DB.SQL.QueryContext(ctx, "SELECT certificate, added, added_by FROM escrow_agents WHERE removed = 0 ORDER BY added, fingerprint")
	if err != nil {
		return nil, fmt.Errorf("escrow agents: %w", err)
	}
	defer rows.Close()
	var out []Agent
	for rows.Next() {
		var der []byte
		var added int64
		var a Agent
		if err := rows.Scan(&der, &added, &a.AddedBy); err != nil {
			return nil, fmt.Errorf("escrow agents: %w", err)
		}
		if a.Certificate, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("escrow agents: stored certificate: %w", err)
		}
		a.Fingerprint, a.Added = Fingerprint(a.Certificate), time.UnixMilli(added).UTC()
		out = append(out, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("escrow agents: %w", err)
	}
	return out, e.markRevoked(ctx, out)
}

// markRevoked looks the agents up among the certificates that were revoked here.
func (e *Escrow) markRevoked(ctx context.Context, agents []Agent) error {
	for i := range agents {
		err := e.o.DB.SQL.QueryRowContext(ctx, `SELECT 1 FROM requests WHERE serial = ? AND certificate = ? AND revoked <> 0`,
			agents[i].Certificate.SerialNumber.Text(16), agents[i].Certificate.Raw).Scan(new(int))
		switch {
		case err == nil:
			agents[i].Revoked = true
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("escrow agents: %w", err)
		}
	}
	return nil
}

// AddAgent designates an agent. New keys are sealed to it; keys archived before are not.
func (e *Escrow) AddAgent(ctx context.Context, cert *x509.Certificate, actor string) error {
	a := Agent{Certificate: cert, Fingerprint: Fingerprint(cert)}
	if err := a.usable(e.o.Now()); err != nil {
		return fmt.Errorf("%s cannot be a key recovery agent: %w", dn.Show(cert.RawSubject), err)
	}
	raw, err := hex.DecodeString(a.Fingerprint)
	if err != nil {
		return err
	}
	err = e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := e.o.Now()
		res, err := tx.Exec(`INSERT INTO escrow_agents (fingerprint, certificate, added, added_by) VALUES (?, ?, ?, ?)
			ON CONFLICT (fingerprint) DO UPDATE SET added = excluded.added, added_by = excluded.added_by, removed = 0 WHERE escrow_agents.removed <> 0`,
			raw, cert.Raw, now.UnixMilli(), actor)
		if err != nil {
			return fmt.Errorf("add agent: %w", err)
		}
		if n, err := res.RowsAffected(); err == nil && n == 0 {
			return fmt.Errorf("%s is an agent already", dn.Show(cert.RawSubject))
		}
		return audit.Append(tx, now, actor, audit.AgentAdded, map[string]any{"agent": dn.Show(cert.RawSubject), "fingerprint": a.Fingerprint})
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
