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
	for {
		found, err := l.unnamed(ctx)
		if err != nil || len(found) == 0 {
			return err
		}
		if err := l.db.Write(ctx, func(tx *sql.Tx) error {
			for id, der := range found {
				if _, err := tx.Exec("UPDATE requests SET "+setNames+" WHERE id = ?", append(namesOf(der), id)...); err != nil {
					return fmt.Errorf("ledger: request %d: %w", id, err)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
}

func (l *Ledger) unnamed(ctx context.Context) (map[int64][]byte, error) {
	rows, err := l.db.SQL.QueryContext(ctx, "SELECT id, certificate FROM requests WHERE state = 'issued' AND certificate_hash = '' AND certificate IS NOT NULL LIMIT 500")
	if err != nil {
		return nil, fmt.Errorf("ledger: certificates: %w", err)
	}
	defer rows.Close()
	out := map[int64][]byte{}
	for rows.Next() {
		var id int64
		var der []byte
		if err := rows.Scan(&id, &der); err != nil {
			return nil, fmt.Errorf("ledger: certificates: %w", err)
		}
		if len(der) > 0 {
			out[id] = der
		}
	}
	return out, rows.Err()
}
