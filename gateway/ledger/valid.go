package ledger

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/security"
)

// Valid is an issued certificate that is neither over nor revoked.
type Valid struct {
	Request     int64
	Caller      string
	CallerSID   security.SID
	SubjectSID  security.SID
	Template    string
	Certificate []byte // DER
}

// Valid returns certificates that are valid at a time, by the number of their request, at most limit of those after a number.
func (l *Ledger) Valid(ctx context.Context, now time.Time, after int64, limit int) ([]Valid, error) {
	rows, err := l.db.SQL.QueryContext(ctx, `SELECT id, caller, caller_sid, subject_sid, template, certificate FROM requests
		WHERE state = 'issued' AND revoked = 0 AND not_after > ? AND id > ? ORDER BY id LIMIT ?`, now.UnixMilli(), after, limit)
	if err != nil {
		return nil, fmt.Errorf("ledger: valid certificates: %w", err)
	}
	defer rows.Close()
	var out []Valid
	for rows.Next() {
		var v Valid
		if err := rows.Scan(&v.Request, &v.Caller, &v.CallerSID, &v.SubjectSID, &v.Template, &v.Certificate); err != nil {
			return nil, fmt.Errorf("ledger: valid certificates: %w", err)
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// Has tells which of some certificates were issued here, revoked ones too: the SHA-256 of their DER is in the result.
func (l *Ledger) Has(ctx context.Context, certs []*x509.Certificate) (map[[sha256.Size]byte]bool, error) {
	out := map[[sha256.Size]byte]bool{}
	if len(certs) == 0 {
		return out, nil
	}
	var serials []any
	for _, c := range certs {
		serials = append(serials, SerialText(c))
	}
	rows, err := l.db.SQL.QueryContext(ctx, "SELECT certificate FROM requests WHERE state = 'issued' AND serial <> '' AND serial IN ("+
		strings.TrimSuffix(strings.Repeat("?, ", len(serials)), ", ")+")", serials...)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var der []byte
		if err := rows.Scan(&der); err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		out[sha256.Sum256(der)] = true
	}
	return out, rows.Err()
}
