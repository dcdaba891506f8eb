// Package backup copies the whole database into a file while the gateway goes on, and back into an empty database, of the same
// kind or of the other: SQLite to PostgreSQL and back.
//
// Create writes one consistent state. Verify and Restore read the file and prove that nothing is missing and nothing was
// changed. The file is compressed text, a line for each thing:
//
//	{"format": "enrollgate backup 1", "created": …, "schema": 7}
//	{"table": "requests", "columns": ["archived", …]}
//	[1, "text", {"b": "octets in base64"}, null]               its rows, in the order of the primary key
//	…
//	{"manifest": …}                                            what has to come out, and the hash of all lines before
//
// What is sealed stays sealed. The keys that lie beside the database are not in it: the secret, those of CAs and of the audit log.
package backup

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"time"
	"unicode/utf8"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
)

const format = "enrollgate backup 1"

// header is the first line.
type header struct {
	Format  string    `json:"format"`
	Created time.Time `json:"created"`
	Schema  int64     `json:"schema"`
}

// tableLine comes before the rows of a table.
type tableLine struct {
	Table   string   `json:"table"`
	Columns []string `json:"columns"`
}

// Sum is what a table has to come to.
type Sum struct {
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"` // of its rows' lines
}

// Manifest is what a backup has in it.
type Manifest struct {
	Created time.Time      `json:"created"`
	Schema  int64          `json:"schema"`
	Tables  map[string]Sum `json:"tables"`
	Audit   audit.State    `json:"audit"`
	// Checkpoint is the last signed one: whoever has the log's key sees that the backup is one of this log.
	Checkpoint string `json:"checkpoint,omitempty"`
	SHA256     string `json:"sha256"` // of all lines before the manifest
}

// Create writes a backup to a new file that only its owner can read. The file is there when it is complete and on disk.
func Create(ctx context.Context, db *store.DB, path string, now time.Time) (m *Manifest, err error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s exists already: choose another name or remove it", path)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s exists: another backup is being made, or one was cut short; remove it then", part)
	}
	if err != nil {
		return nil, fmt.Errorf("create backup: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(part)
		}
	}()
	if m, err = write(ctx, db, f, now); err != nil {
		return nil, fmt.Errorf("create backup: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("create backup: %w", err)
	}
	if err := os.Link(part, path); err != nil { // never over another file
		return nil, fmt.Errorf("create backup: %w", err)
	}
	return m, os.Remove(part)
}

func write(ctx context.Context, db *store.DB, to io.Writer, now time.Time) (*Manifest, error) {
	tx, err := db.SQL.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}) // one state, while others write
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	tables, version, err := db.Tables(ctx, tx)
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	out := bufio.NewWriterSize(zip, 1<<16)
	sum := sha256.New()
	lines := io.MultiWriter(out, sum)
	m := &Manifest{Created: now.UTC(), Schema: version, Tables: map[string]Sum{}}
	if err := writeLine(lines, header{format, m.Created, version}); err != nil {
		return nil, err
	}
	for _, t := range tables {
		if err := writeLine(lines, tableLine{t.Name, t.Columns}); err != nil {
			return nil, err
		}
		if m.Tables[t.Name], err = dump(ctx, tx, t, lines); err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	if m.Audit, err = audit.Recompute(ctx, tx); err != nil { // a log that is broken already makes no backup to rely on
		return nil, err
	}
	switch err := tx.QueryRowContext(ctx, "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1").Scan(&m.Checkpoint); {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	m.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if err := writeLine(out, map[string]*Manifest{"manifest": m}); err != nil {
		return nil, err
	}
	return m, errors.Join(out.Flush(), zip.Close())
}

func writeLine(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// octets is how a blob is written.
type octets struct {
	B []byte `json:"b"`
}

// dump writes the rows of a table, and tells what they come to.
func dump(ctx context.Context, tx *sql.Tx, t *store.Table, to io.Writer) (Sum, error) {
	rows, err := tx.QueryContext(ctx, t.Rows())
	if err != nil {
		return Sum{}, err
	}
	defer rows.Close()
	var n int64
	h := sha256.New()
	both := io.MultiWriter(to, h)
	values, at := make([]any, len(t.Columns)), make([]any, len(t.Columns))
	for i := range values {
		at[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(at...); err != nil {
			return Sum{}, err
		}
		for i, v := range values {
			switch v := v.(type) {
			case nil, int64:
			case []byte:
				values[i] = octets{append([]byte{}, v...)} // SQLite gives nil where there are none
			case string:
				if !utf8.ValidString(v) {
					return Sum{}, fmt.Errorf("row %d: %s is not text", n+1, t.Columns[i])
				}
			default:
				return Sum{}, fmt.Errorf("row %d: %s is a %T", n+1, t.Columns[i], v)
			}
		}
		if err := writeLine(both, values); err != nil {
			return Sum{}, err
		}
		n++
	}
	return sumOf(n, h), rows.Err()
}

func sumOf(rows int64, h hash.Hash) Sum { return Sum{rows, hex.EncodeToString(h.Sum(nil))} }
