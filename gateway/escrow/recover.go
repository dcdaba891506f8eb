package escrow

import (
	"context"
	"crypto"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/memory"
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
func (e *Escrow) Recover(ctx context.Context, entry *Entry, agentKey crypto.Decrypter, agentCert *x509.Certificate, actor, reason string) (*Recovered, error) {
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
	agentCert, err = e.mayRecover(ctx, entry, agentCert)
	if err != nil {
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
	var pkcs8 []byte
	memory.Secret(func() { pkcs8, err = entry.openWith(agentKey, agentCert) })
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

// RecipientsOf are the agents that can open a record, with the certificates that the record names: whose key is that of a
// certificate that is designated and not revoked. So an agent whose certificate was renewed with the same key goes on opening
// what was sealed before.
func (e *Escrow) RecipientsOf(ctx context.Context, entry *Entry) ([]Agent, error) {
	known, err := e.known(ctx)
	return openers(known, entry.Recipients), err
}

func openers(known []Agent, recipients []string) []Agent {
	var out []Agent
	for i := range known {
		designated := func(b Agent) bool { return !b.former && !b.Revoked && sameKey(b.Certificate, known[i].Certificate) }
		if slices.Contains(recipients, known[i].Fingerprint) && slices.ContainsFunc(known, designated) {
			out = append(out, known[i])
		}
	}
	return out
}

// mayRecover requires that the agent is a recipient of the record and still designated. It returns the certificate that the
// record names.
func (e *Escrow) mayRecover(ctx context.Context, entry *Entry, agent *x509.Certificate) (*x509.Certificate, error) {
	if err := entry.Gone(); err != nil {
		return nil, err
	}
	known, err := e.known(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, a := range openers(known, entry.Recipients) {
		if sameKey(a.Certificate, agent) {
			return a.Certificate, nil
		}
		names = append(names, dn.Show(a.Certificate.RawSubject))
	}
	name, fingerprint := dn.Show(agent.RawSubject), Fingerprint(agent)
	i := slices.IndexFunc(known, func(a Agent) bool { return a.Fingerprint == fingerprint })
	switch {
	case !slices.Contains(entry.Recipients, fingerprint):
		return nil, fmt.Errorf("%s is no recovery agent of archived key %d; it is sealed to: %s", name, entry.ID, strings.Join(names, "; "))
	case i >= 0 && known[i].Revoked:
		return nil, fmt.Errorf("the certificate of %s is revoked", name)
	}
	return nil, fmt.Errorf("%s is no longer a designated recovery agent", name)
}

// openWith decrypts a key that one agent opens. The caller wipes the result.
func (n *Entry) openWith(key crypto.Decrypter, agent *x509.Certificate) ([]byte, error) {
	if pub, ok := agent.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the agent's private key is not that of the agent's certificate")
	}
	if n.Format == FormatShared {
		return n.openShared(key, agent)
	}
	enveloped, err := wcce.ParseEnveloped(n.sealed)
	if err != nil {
		return nil, fmt.Errorf("sealed record: %w", err)
	}
	for i := range enveloped.Recipients {
		if r := &enveloped.Recipients[i]; r.Names(agent) {
			content, err := enveloped.Open(r, key)
			if err != nil {
				return nil, err
			}
			return wcce.PrivateKeyDER(content)
		}
	}
	return nil, errors.New("the sealed record does not name the agent")
}

func (n *Entry) openShared(key crypto.Decrypter, agent *x509.Certificate) ([]byte, error) {
	r, err := quorum.Parse(n.sealed)
	if err != nil {
		return nil, err
	}
	if hex.EncodeToString(r.KeyID) != n.KeyID || r.Owner != n.Owner || r.Policy != n.Policy {
		return nil, fmt.Errorf("the record was sealed as a key of %s under policy %q: its row in the database was changed", r.Owner, r.Policy)
	}
	share, err := r.OpenShare(agent, key)
	if err != nil {
		return nil, err
	}
	defer share.Wipe()
	return r.Combine([]*quorum.Share{share})
}

func (e *Escrow) log(ctx context.Context, actor string, event audit.Event, detail any) error {
	return e.o.DB.Write(ctx, func(tx *sql.Tx) error { return audit.Append(tx, e.o.Now(), actor, event, detail) })
}

// Sealed returns the record as it lies in the database, in its Format.
func (n *Entry) Sealed() []byte { return n.sealed }
