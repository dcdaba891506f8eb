package ledger

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Imported is a certificate that a CA has issued without the gateway.
type Imported struct {
	Caller      string
	SID         security.SID // "" where the account is not known
	Template    string
	Subject     string
	Certificate *x509.Certificate
	Revoked     bool
}

// Import adds certificates that a CA has issued, but for those that are there. It returns how many it has added.
func (l *Ledger) Import(ctx context.Context, issuer, actor string, list []Imported) (added int, err error) {
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		added = 0
		now := l.now().UnixMilli()
		for _, c := range list {
			cert := c.Certificate
			var known int
			if err := tx.QueryRow("SELECT count(*) FROM requests WHERE serial = ? AND issuer = ?", SerialText(cert), issuer).Scan(&known); err != nil {
				return fmt.Errorf("ledger: %w", err)
			}
			if known > 0 {
				continue
			}
			revoked := int64(0)
			if c.Revoked {
				revoked = now
			}
			fingerprint, keyID := sha256.Sum256(cert.Raw), sha256.Sum256(cert.RawSubjectPublicKeyInfo)
			if _, err := tx.Exec(`INSERT INTO requests (state, created, updated, caller, caller_sid, subject_sid, template, ca, issuer, transport, archived, fingerprint, profile, checks,
				message, serial, certificate, not_after, key_id, revoked) VALUES ('issued', ?, ?, ?, ?, ?, ?, ?, ?, 'import', 0, ?, '{}', '[]', 'Imported', ?, ?, ?, ?, ?)`,
				cert.NotBefore.UnixMilli(), now, c.Caller, string(c.SID), string(c.SID), c.Template, issuer, issuer, fingerprint[:], SerialText(cert), cert.Raw,
				cert.NotAfter.UnixMilli(), keyID[:], revoked); err != nil {
				return fmt.Errorf("ledger: certificate %s: %w", SerialText(cert), err)
			}
			added++
		}
		if added == 0 {
			return nil
		}
		return audit.Append(tx, l.now(), actor, audit.CertsImported, map[string]any{"ca": issuer, "certificates": added})
	})
	return added, err
}
