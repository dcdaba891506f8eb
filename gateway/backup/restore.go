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
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
)

// Verify restores a backup into a database of its own, which is thrown away: whatever Restore proves is proven.
func Verify(ctx context.Context, path string) (*Manifest, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".verify-")
	if err != nil {
		return nil, fmt.Errorf("verify backup: %w", err)
	}
	defer os.RemoveAll(dir)
	db, err := store.Open(ctx, filepath.Join(dir, "verify.db"))
	if err != nil {
		return nil, fmt.Errorf("verify backup: %w", err)
	}
	defer db.Close()
	var m *Manifest
	if err := load(ctx, db, path, func(_ *sql.Tx, read *Manifest) error { m = read; return nil }); err != nil {
		return nil, fmt.Errorf("backup %s: %w", path, err)
	}
	return m, nil
}

// Restore fills an empty database from a backup. Before anything becomes durable it is read again and compared with the manifest:
// every row of every table, octet for octet, and the audit log, whose tree must have the same root. Then a line in the log says
// that it was restored, by whom and to which state. A database that has anything in it is not touched.
func Restore(ctx context.Context, db *store.DB, path, actor string, now time.Time) (m *Manifest, err error) {
	err = load(ctx, db, path, func(tx *sql.Tx, read *Manifest) error {
		m = read
		return audit.Append(tx, now, actor, audit.Restored, map[string]any{"backup_created": m.Created, "backup_sha256": m.SHA256,
			"lines": m.Audit.Lines, "root": m.Audit.Root.String()})
	})
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", path, err)
	}
	return m, nil
}

// load reads a backup into an empty database, in one transaction that ends with a proof, and then.
func load(ctx context.Context, db *store.DB, path string, then func(*sql.Tx, *Manifest) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	zip, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<16))
	if err != nil {
		return fmt.Errorf("it is no backup: %w", err)
	}
	return db.Write(ctx, func(tx *sql.Tx) error {
		tables, version, err := db.Tables(ctx, tx)
		if err != nil {
			return err
		}
		for _, t := range tables {
			var any bool
			if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM "+t.Name+")").Scan(&any); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
			if any {
				return fmt.Errorf("the database is not empty, there are rows in %s: a backup is restored into a new one only", t.Name)
			}
		}
		r := &reader{lines: bufio.NewReaderSize(zip, 1<<16), sum: sha256.New(), tables: tables, version: version}
		m, err := r.read(ctx, tx)
		if err != nil {
			return err
		}
		if err := prove(ctx, tx, tables, m); err != nil {
			return err
		}
		if err := db.Renumber(ctx, tx); err != nil {
			return err
		}
		return then(tx, m)
	})
}

// reader reads the lines of a backup.
type reader struct {
	lines   *bufio.Reader
	sum     hash.Hash // of all lines but the manifest
	tables  []*store.Table
	version int64

	insert *sql.Stmt // of the table whose rows come now; nil before the first
	width  int       // its columns
}

// read writes all rows, and returns the manifest.
func (r *reader) read(ctx context.Context, tx *sql.Tx) (*Manifest, error) {
	defer func() {
		if r.insert != nil {
			r.insert.Close()
		}
	}()
	for n := 1; ; n++ {
		line, err := r.lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the backup is cut short: it has no manifest")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		switch {
		case n == 1:
			err = r.header(line)
		case bytes.HasPrefix(line, []byte(`{"manifest":`)):
			return r.manifest(line)
		case line[0] == '{':
			err = r.table(ctx, tx, line)
		default:
			err = r.row(ctx, line)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		r.sum.Write(line)
	}
}

func (r *reader) header(line []byte) error {
	var h header
	if err := json.Unmarshal(line, &h); err != nil || h.Format != format {
		return fmt.Errorf("it is no backup of this program: want %q", format)
	}
	if h.Schema != r.version {
		return fmt.Errorf("the backup has schema %d and this program %d: restore it with the version that has made it, and start this one then", h.Schema, r.version)
	}
	return nil
}

func (r *reader) table(ctx context.Context, tx *sql.Tx, line []byte) error {
	var l tableLine
	if err := json.Unmarshal(line, &l); err != nil {
		return err
	}
	i := slices.IndexFunc(r.tables, func(t *store.Table) bool { return t.Name == l.Table && slices.Equal(t.Columns, l.Columns) })
	if i < 0 {
		return fmt.Errorf("there is no table %q with the columns %v", l.Table, l.Columns)
	}
	if r.insert != nil {
		r.insert.Close()
	}
	var err error
	r.width = len(l.Columns)
	r.insert, err = tx.PrepareContext(ctx, r.tables[i].Insert())
	return err
}

func (r *reader) row(ctx context.Context, line []byte) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	var values []any
	if err := d.Decode(&values); err != nil {
		return err
	}
	if r.insert == nil || len(values) != r.width {
		return fmt.Errorf("a row of %d values does not belong here", len(values))
	}
	for i, v := range values {
		switch v := v.(type) {
		case nil, string:
		case json.Number:
			n, err := v.Int64()
			if err != nil {
				return err
			}
			values[i] = n
		case map[string]any:
			text, ok := v["b"].(string)
			if !ok {
				return errors.New("a value is malformed")
			}
			var b []byte
			if err := json.Unmarshal([]byte(`"`+text+`"`), &b); err != nil {
				return err
			}
			values[i] = b
		default:
			return errors.New("a value is malformed")
		}
	}
	_, err := r.insert.ExecContext(ctx, values...)
	return err
}

func (r *reader) manifest(line []byte) (*Manifest, error) {
	var l struct{ Manifest *Manifest }
	if err := json.Unmarshal(line, &l); err != nil || l.Manifest == nil {
		return nil, errors.New("the manifest is malformed")
	}
	if got := hex.EncodeToString(r.sum.Sum(nil)); got != l.Manifest.SHA256 {
		return nil, fmt.Errorf("the backup was damaged: its hash is %s, the manifest says %s", got, l.Manifest.SHA256)
	}
	// The checksum of the compression stands after the last line.
	if _, err := io.Copy(io.Discard, r.lines); err != nil {
		return nil, fmt.Errorf("the backup was damaged: %w", err)
	}
	return l.Manifest, nil
}

// prove reads back what was written and compares it with the manifest.
func prove(ctx context.Context, tx *sql.Tx, tables []*store.Table, m *Manifest) error {
	if len(tables) != len(m.Tables) {
		return fmt.Errorf("the backup has %d tables, the schema %d", len(m.Tables), len(tables))
	}
	for _, t := range tables {
		got, err := dump(ctx, tx, t, io.Discard)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		if want, ok := m.Tables[t.Name]; !ok || got != want {
			return fmt.Errorf("table %s: %d rows with the hash %s have come out, the manifest says %d with %s", t.Name, got.Rows, got.SHA256, want.Rows, want.SHA256)
		}
	}
	state, err := audit.Recompute(ctx, tx)
	if err != nil {
		return err
	}
	if state != m.Audit {
		return fmt.Errorf("the audit log has come out with %d lines and root %s, the manifest says %d and %s", state.Lines, state.Root, m.Audit.Lines, m.Audit.Root)
	}
	return nil
}
