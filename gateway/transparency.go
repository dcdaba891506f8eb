package gateway

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/goccy/go-yaml"
)

// checkpointEvery is how often the state of the audit log is signed while it grows.
const checkpointEvery = time.Minute

// growAtOnce is how many lines go into the tree in one transaction.
const growAtOnce = 1000

// AuditSigner signs checkpoints of the audit log. Its key is made on first use, and encrypted at rest.
func (g *Gateway) AuditSigner() (*audit.Signer, error) { return g.auditSigner() }

// loadAuditSigner reads the log's key, or makes it.
func loadAuditSigner(dir, name string, secret []byte) (*audit.Signer, error) {
	key, err := loadEd25519(filepath.Join(dir, "audit.key"), secret)
	if err != nil {
		return nil, fmt.Errorf("the audit log's key: %w", err)
	}
	return audit.NewSigner(name, key)
}

// loadEd25519 reads a key, or makes it. It is encrypted at rest.
func loadEd25519(path string, secret []byte) (ed25519.PrivateKey, error) {
	signer, err := identity.LoadOrCreateKey(path, secret, func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	})
	if err != nil {
		return nil, err
	}
	key, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an Ed25519 key, but %T", path, signer.Public())
	}
	return key, nil
}

// Checkpoint signs the audit log as it is.
func (g *Gateway) Checkpoint(ctx context.Context) (c *audit.Checkpoint, err error) {
	s, err := g.AuditSigner()
	if err != nil {
		return nil, err
	}
	for more := true; more; { // in parts: enrollments write in between
		if err := g.DB.Write(ctx, func(tx *sql.Tx) (err error) { more, err = audit.Grow(ctx, tx, growAtOnce); return err }); err != nil {
			return nil, err
		}
	}
	err = g.DB.Write(ctx, func(tx *sql.Tx) (err error) {
		c, err = audit.Sign(ctx, tx, g.now(), s)
		return err
	})
	return c, err
}

// ProveLine makes the proof that a line is in the audit log.
func (g *Gateway) ProveLine(ctx context.Context, seq int64) (p *audit.Proof, err error) {
	s, err := g.AuditSigner()
	if err != nil {
		return nil, err
	}
	err = g.DB.Write(ctx, func(tx *sql.Tx) (err error) {
		p, err = audit.Prove(ctx, tx, g.now(), s, seq)
		return err
	})
	return p, err
}

// signLog signs the audit log from time to time.
func (g *Gateway) signLog(ctx context.Context) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		if c, err := g.Cosign(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).WithField("signed", c != nil).Error("the audit log is not witnessed")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// recordConfiguration writes a line into the audit log where the configuration is not what it was when the gateway last
// started. It has the hash only: the configuration names files, and where they lie is nobody's business who reads the log.
func (g *Gateway) recordConfiguration(ctx context.Context) error {
	text, err := yaml.Marshal(g.Config)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	sum := sha256.Sum256(text)
	detail := map[string]string{"sha256": hex.EncodeToString(sum[:])}
	return g.DB.Write(ctx, func(tx *sql.Tx) error {
		var last string
		err := tx.QueryRow("SELECT detail FROM audit WHERE event = ? ORDER BY seq DESC LIMIT 1", string(audit.ConfigChanged)).Scan(&last)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("audit: %w", err)
		}
		var before map[string]string
		if json.Unmarshal([]byte(last), &before) == nil && before["sha256"] == detail["sha256"] {
			return nil
		}
		return audit.Append(tx, g.now(), "gateway", audit.ConfigChanged, detail)
	})
}
