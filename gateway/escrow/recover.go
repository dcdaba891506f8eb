package escrow

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Recovered is a private key that left the escrow.
type Recovered struct {
	Key         crypto.PrivateKey
	Certificate *x509.Certificate
	CA          string // the CA that issued the certificate; empty for imported keys
}

// ErrRefused is a recovery that was not allowed; it is in the audit log.
var ErrRefused = errors.New("recovery refused")

// Recover opens one archived key with a key recovery agent's key. The line in the audit log is durable before the key is
// handed out. A reason is required. A refusal is logged too.
func (e *Escrow) Recover(ctx context.Context, entry *Entry, agentKey crypto.PrivateKey, agentCert *x509.Certificate, actor, reason string) (*Recovered, error) {
	if strings.TrimSpace(reason) == "" {
		return nil, errors.New("a recovery needs a written reason")
	}
	entry, err := e.Get(ctx, entry.ID) // as it is now, with what is sealed
	if err != nil {
		return nil, err
	}
	detail := map[string]any{"record": entry.ID, "owner": entry.Owner, "agent": dn.Show(agentCert.RawSubject), "fingerprint": Fingerprint(agentCert), "reason": reason}
	refuse := func(cause error) error {
		detail["refused"] = cause.Error()
		if err := e.log(ctx, actor, audit.RecoveryRefused, detail); err != nil {
			return fmt.Errorf("%w: %w; and it could not be logged: %w", ErrRefused, cause, err)
		}
		return fmt.Errorf("%w: %w", ErrRefused, cause)
	}
	if err := e.mayRecover(ctx, entry, agentCert); err != nil {
		return nil, refuse(err)
	}
	if n, err := e.Needed(entry); err != nil || n > 1 {
		if err == nil {
			err = fmt.Errorf("archived key %d takes %d recovery agents (policy %q): open a case with enrollgate recovery open", entry.ID, n, entry.Policy)
		}
		return nil, refuse(err)
	}
	cert, err := entry.Certificate()
	if err != nil {
		return nil, err
	}
	pkcs8, err := openWith(entry.sealed, agentKey, agentCert)
	if err != nil {
		return nil, refuse(err)
	}
	defer wcce.Wipe(pkcs8)
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, fmt.Errorf("archived key %d: %w", entry.ID, err)
	}
	signer, ok := key.(interface{ Public() crypto.PublicKey })
	if pub, isKey := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !isKey || !pub.Equal(signer.Public()) {
		return nil, fmt.Errorf("archived key %d is not that of its certificate", entry.ID)
	}
	if err := e.log(ctx, actor, audit.KeyRecovered, detail); err != nil {
		return nil, fmt.Errorf("the recovery could not be logged, so the key stays closed: %w", err)
	}
	return &Recovered{Key: key, Certificate: cert, CA: entry.ca}, nil
}

// Needed is how many agents it takes to recover a key: as many as it was sealed for, and as many as its policy names now.
func (e *Escrow) Needed(entry *Entry) (int, error) {
	p, err := e.Policy(entry.Policy)
	if err != nil {
		return 0, err
	}
	return max(entry.Required, p.Required), nil
}

// Certificate is the certificate of the archived key.
func (n *Entry) Certificate() (*x509.Certificate, error) {
	if n.certificate == nil {
		return nil, fmt.Errorf("archived key %d has no certificate: request %d is %s", n.ID, n.RequestID, n.State)
	}
	cert, err := x509.ParseCertificate(n.certificate)
	if err != nil {
		return nil, fmt.Errorf("archived key %d: stored certificate: %w", n.ID, err)
	}
	return cert, nil
}

// CA is the name of the CA that issued the certificate; empty for imported keys.
func (n *Entry) CA() string { return n.ca }

// RecipientsOf are the designated agents that a record is sealed to, without those whose certificate is revoked.
func (e *Escrow) RecipientsOf(ctx context.Context, entry *Entry) ([]Agent, error) {
	agents, err := e.Agents(ctx)
	return slices.DeleteFunc(agents, func(a Agent) bool { return a.Revoked || !slices.Contains(entry.Recipients, a.Fingerprint) }), err
}

// mayRecover requires that the agent is a recipient of the record and still designated.
func (e *Escrow) mayRecover(ctx context.Context, entry *Entry, agent *x509.Certificate) error {
	if err := entry.Gone(); err != nil {
		return err
	}
	agents, err := e.Agents(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, a := range agents {
		if slices.Contains(entry.Recipients, a.Fingerprint) {
			names = append(names, dn.Show(a.Certificate.RawSubject))
		}
	}
	fingerprint := Fingerprint(agent)
	if !slices.Contains(entry.Recipients, fingerprint) {
		return fmt.Errorf("%s is no recovery agent of archived key %d; it is sealed to: %s", dn.Show(agent.RawSubject), entry.ID, strings.Join(names, "; "))
	}
	if i := slices.IndexFunc(agents, func(a Agent) bool { return a.Fingerprint == fingerprint }); i < 0 {
		return fmt.Errorf("%s is no longer a designated recovery agent", dn.Show(agent.RawSubject))
	} else if agents[i].Revoked {
		return fmt.Errorf("the certificate of %s is revoked", dn.Show(agent.RawSubject))
	}
	return nil
}

func openWith(sealed []byte, agentKey crypto.PrivateKey, agentCert *x509.Certificate) ([]byte, error) {
	key, ok := agentKey.(*rsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(agentCert.PublicKey) {
		return nil, errors.New("the agent's private key is not that of the agent's certificate")
	}
	enveloped, err := wcce.ParseEnveloped(sealed)
	if err != nil {
		return nil, fmt.Errorf("sealed record: %w", err)
	}
	for i := range enveloped.Recipients {
		if r := &enveloped.Recipients[i]; r.Names(agentCert) {
			return enveloped.Open(r, key)
		}
	}
	return nil, errors.New("the sealed record does not name the agent")
}

func (e *Escrow) log(ctx context.Context, actor string, event audit.Event, detail any) error {
	return e.o.DB.Write(ctx, func(tx *sql.Tx) error { return audit.Append(tx, e.o.Now(), actor, event, detail) })
}

// Sealed returns the record as it lies in the database, in its Format.
func (n *Entry) Sealed() []byte { return n.sealed }
