package ledger

import (
	"context"
	"crypto/sha1" //nolint:gosec // what Windows finds certificates by
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
)

// setNames sets the columns that certificates are looked for by; namesOf are their values.
const setNames = "common_name = ?, upn = ?, certificate_hash = ?, subject_key_id = ?"

// namesOf a certificate in DER. One that cannot be read has its hash alone; none has nothing.
func namesOf(der []byte) []any {
	if len(der) == 0 {
		return []any{"", "", "", ""}
	}
	name, upn, keyID := "", "", ""
	if cert, err := x509.ParseCertificate(der); err == nil {
		name, upn, keyID = cert.Subject.CommonName, templates.UserPrincipalName(cert), hex.EncodeToString(cert.SubjectKeyId)
	}
	sum := sha1.Sum(der) //nolint:gosec // what it is
	return []any{strings.ToLower(name), strings.ToLower(upn), hex.EncodeToString(sum[:]), keyID}
}

// named finds issued certificates by their names. The empty one is not looked for: an index need not have it.
func (q *Query) named() (conditions []string, args []any) {
	for _, n := range []struct{ column, value string }{{"common_name", q.CommonName}, {"upn", q.UPN}, {"certificate_hash", q.Hash}, {"subject_key_id", q.SubjectKeyID}} {
		if n.value != "" {
			conditions, args = append(conditions, n.column+" = ? AND "+n.column+" <> '' AND state = 'issued'"), append(args, strings.ToLower(n.value))
		}
	}
	return conditions, args
}

// FillNames looks at certificates that were never looked at: an earlier version has recorded them, or an import.
func (l *Ledger) FillNames(ctx context.Context) error {
	err := l.db.Fill(ctx, func(tx *sql.Tx, id int64, der []byte) error {
		_, err := tx.Exec("UPDATE requests SET "+setNames+" WHERE id = ?", append(namesOf(der), id)...)
		return err
	}, "SELECT id, certificate FROM requests WHERE state = 'issued' AND certificate_hash = '' AND length(certificate) > 0")
	if err != nil {
		return fmt.Errorf("ledger: names of certificates: %w", err)
	}
	return nil
}
