package store_test

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/google/go-cmp/cmp"
)

// schema has for each table its columns, with what may be in them.
func schema(t testing.TB, db *store.DB) map[string][]string {
	t.Helper()
	query := `SELECT m.name, c.name, c.type, c."notnull" <> 0 OR c.pk > 0 FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'`
	if db.Kind == store.Postgres {
		query = `SELECT table_name, column_name, data_type, is_nullable = 'NO' FROM information_schema.columns WHERE table_schema = current_schema()`
	}
	rows, err := db.SQL.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	types := map[string]string{"bigint": "INTEGER", "text": "TEXT", "bytea": "BLOB"}
	out := map[string][]string{}
	for rows.Next() {
		var table, column, kind string
		var needed bool
		if err := rows.Scan(&table, &column, &kind, &needed); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(table, "sqlite_") || strings.HasPrefix(table, "goose_") {
			continue
		}
		if known := types[kind]; known != "" {
			kind = known
		}
		if needed {
			kind += " NOT NULL"
		}
		out[table] = append(out[table], column+" "+kind)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for _, columns := range out {
		slices.Sort(columns)
	}
	return out
}

func TestBothKindsHaveTheSameTablesAndColumns(t *testing.T) {
	if !storetest.Postgres() {
		t.Skip("compared when the tests run on PostgreSQL")
	}
	file := schema(t, storetest.Again(t, storetest.Address(filepath.Join(t.TempDir(), "test.db"))))
	server := schema(t, storetest.Open(t))
	if len(file) < 10 {
		t.Errorf("only %d tables: %v", len(file), slices.Collect(maps.Keys(file)))
	}
	if diff := cmp.Diff(file, server); diff != "" {
		t.Errorf("SQLite (-) and PostgreSQL (+):\n%s", diff)
	}
}
