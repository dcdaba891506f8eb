package gateway

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/store"
)

// sharedFiles are what gateways on one database must have in common: the small CAs that the policy publishes, and the keys that sign
// and cosign audit logs. Keys among them are encrypted with the secret, which the gateways have in common too.
var sharedFiles = []string{"identity-*.key", "identity-*.pem", "audit.key", "witness.key"}

// isShared tells whether a file of that name is one that gateways share.
func isShared(name string) bool {
	return name == filepath.Base(name) && slices.ContainsFunc(sharedFiles, func(pattern string) bool {
		ok, err := filepath.Match(pattern, name)
		return ok && err == nil
	})
}

// takeShared brings the files of the data folder to what the first gateway on the database has made. With SQLite there is one only.
func (g *Gateway) takeShared(ctx context.Context) error {
	if g.DB.Kind == store.SQLite {
		return nil
	}
	shared, err := g.readShared(ctx)
	if err != nil {
		return err
	}
	for name, content := range shared {
		path := filepath.Join(g.Config.Data, name)
		have, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Equal(have, content) {
			continue
		}
		if err == nil {
			g.Log.WithField("file", path).Warn("another gateway on the database has a file of this name; it takes the place of this one, which is kept with .old at its end")
			if err := os.Rename(path, path+".old"); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (g *Gateway) readShared(ctx context.Context) (map[string][]byte, error) {
	rows, err := g.DB.SQL.QueryContext(ctx, "SELECT name, content FROM shared_files")
	if err != nil {
		return nil, fmt.Errorf("files that gateways share: %w", err)
	}
	defer rows.Close()
	out := map[string][]byte{}
	for rows.Next() {
		var name string
		var content []byte
		if err := rows.Scan(&name, &content); err != nil {
			return nil, fmt.Errorf("files that gateways share: %w", err)
		}
		if !isShared(name) { // who can write to the database does not write other files through it
			return nil, fmt.Errorf("files that gateways share: the database has one of the name %q, which none of them is", name)
		}
		out[name] = content
	}
	return out, rows.Err()
}

// giveShared puts what this gateway has made into the database. It is an error where another one was faster, at the very first start.
func (g *Gateway) giveShared(ctx context.Context) error {
	if g.DB.Kind == store.SQLite {
		return nil
	}
	if _, err := g.AuditSigner(); err != nil { // made now, not when it is first needed
		return err
	}
	files := map[string][]byte{}
	for _, pattern := range sharedFiles {
		found, err := filepath.Glob(filepath.Join(g.Config.Data, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			if files[filepath.Base(path)], err = os.ReadFile(path); err != nil {
				return err
			}
		}
	}
	shared, err := g.readShared(ctx)
	if err != nil {
		return err
	}
	for name := range shared {
		delete(files, name)
	}
	if len(files) == 0 {
		return nil
	}
	return g.DB.Write(ctx, func(tx *sql.Tx) error {
		for name, content := range files {
			res, err := tx.Exec("INSERT INTO shared_files (name, content) VALUES (?, ?) ON CONFLICT DO NOTHING", name, content)
			if err != nil {
				return fmt.Errorf("files that gateways share: %w", err)
			}
			if n, err := res.RowsAffected(); err != nil || n != 1 {
				return errors.Join(err, fmt.Errorf("another gateway on the database made %s at the same moment: start this one again", name))
			}
		}
		return nil
	})
}
