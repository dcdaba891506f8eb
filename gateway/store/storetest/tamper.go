package storetest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/store"
)

// execute runs statements of which the first is for SQLite, the second for PostgreSQL.
func execute(t testing.TB, db *store.DB, sqlite, postgres string) {
	t.Helper()
	statements := map[store.Kind]string{store.SQLite: sqlite, store.Postgres: postgres}
	if _, err := db.SQL.Exec(statements[db.Kind]); err != nil {
		t.Fatal(err)
	}
}

// Unlock does what somebody can who has the database in hand: lines of the audit log can be changed from now on.
func Unlock(t testing.TB, db *store.DB) {
	t.Helper()
	execute(t, db, "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete; DROP TRIGGER audit_tree_no_update; DROP TRIGGER audit_tree_no_delete",
		"ALTER TABLE audit DISABLE TRIGGER USER; ALTER TABLE audit_tree DISABLE TRIGGER USER")
}

// Fill lets every new row in a table fail, as a full disk would, until the result is called.
func Fill(t testing.TB, db *store.DB, table string) (undo func()) {
	t.Helper()
	execute(t, db, "CREATE TRIGGER full_disk BEFORE INSERT ON "+table+" BEGIN SELECT RAISE(ABORT, 'disk full'); END",
		"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'disk full'; END $$;"+
			"CREATE TRIGGER full_disk BEFORE INSERT ON "+table+" EXECUTE FUNCTION full_disk()")
	return func() {
		t.Helper()
		execute(t, db, "DROP TRIGGER full_disk", "DROP TRIGGER full_disk ON "+table+"; DROP FUNCTION full_disk")
	}
}

// Copy is a second database with what the first one has now. Nobody may use the first one meanwhile.
func Copy(t testing.TB, db *store.DB) *store.DB {
	t.Helper()
	if db.Kind == store.SQLite {
		path := filepath.Join(t.TempDir(), "copy.db")
		if _, err := db.SQL.Exec("VACUUM INTO ?", path); err != nil {
			t.Fatal(err)
		}
		return Again(t, Address(path))
	}
	var name string
	if err := db.SQL.QueryRow("SELECT current_database()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	db.SQL.SetMaxIdleConns(0) // a database that is copied has no connections
	a := server.copy(t, name)
	db.SQL.SetMaxIdleConns(2)
	return Again(t, a)
}

// Files are the octets of the database's files, as they are on disk.
func Files(t testing.TB, db *store.DB) []byte {
	t.Helper()
	var pattern string
	if db.Kind == store.SQLite {
		if err := db.SQL.QueryRow("SELECT file || '*' FROM pragma_database_list WHERE name = 'main'").Scan(&pattern); err != nil {
			t.Fatal(err)
		}
	} else {
		if err := db.SQL.QueryRow("SELECT oid FROM pg_database WHERE datname = current_database()").Scan(&pattern); err != nil {
			t.Fatal(err)
		}
		pattern = filepath.Join(server.dir, "data", "base", pattern, "*")
		if _, err := db.SQL.Exec("CHECKPOINT"); err != nil {
			t.Fatal(err)
		}
	}
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: no files, %v", pattern, err)
	}
	var all []byte
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, content...)
	}
	return all
}
