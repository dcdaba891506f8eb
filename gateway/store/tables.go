package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// Querier is a database or a transaction.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Table is a table of the schema.
type Table struct {
	Name    string
	Columns []string // by name
	order   []string // of the primary key, as ORDER BY wants it
	refers  []string // tables that it refers to
}

// Rows selects all columns of every row, in the order of the primary key, which is the same in every kind of database.
func (t *Table) Rows() string {
	return "SELECT " + strings.Join(t.Columns, ", ") + " FROM " + t.Name + " ORDER BY " + strings.Join(t.order, ", ")
}

// Insert is the statement that adds a row.
func (t *Table) Insert() string {
	return "INSERT INTO " + t.Name + " (" + strings.Join(t.Columns, ", ") + ") VALUES (?" + strings.Repeat(", ?", len(t.Columns)-1) + ")"
}

// columns and references by kind: table, column, place in the primary key or 0, whether it is text; table, table.
var catalogue = map[Kind][2]string{
	SQLite: {`SELECT m.name, c.name, c.pk, c.type = 'TEXT' FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY m.name, c.name`,
		`SELECT m.name, f."table" FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f WHERE m.type = 'table'`},
	Postgres: {`SELECT c.table_name, c.column_name, coalesce(k.ordinal_position, 0), CASE WHEN c.data_type = 'text' THEN 1 ELSE 0 END
		FROM information_schema.columns c
		LEFT JOIN information_schema.table_constraints t ON t.table_schema = c.table_schema AND t.table_name = c.table_name AND t.constraint_type = 'PRIMARY KEY'
		LEFT JOIN information_schema.key_column_usage k ON k.constraint_name = t.constraint_name AND k.table_schema = c.table_schema
			AND k.table_name = c.table_name AND k.column_name = c.column_name
		WHERE c.table_schema = current_schema() ORDER BY c.table_name COLLATE "C", c.column_name COLLATE "C"`,
		`SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND connamespace = current_schema()::regnamespace`},
}

// Tables are the tables of the schema, those that others refer to first, and its version.
func (db *DB) Tables(ctx context.Context, q Querier) (tables []*Table, version int64, err error) {
	if err := q.QueryRowContext(ctx, "SELECT max(version_id) FROM goose_db_version").Scan(&version); err != nil {
		return nil, 0, fmt.Errorf("database: schema: %w", err)
	}
	byName, err := db.columns(ctx, q)
	if err != nil {
		return nil, 0, fmt.Errorf("database: schema: %w", err)
	}
	rows, err := q.QueryContext(ctx, catalogue[db.Kind][1])
	if err != nil {
		return nil, 0, fmt.Errorf("database: schema: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var from, to string
		if err := rows.Scan(&from, &to); err != nil {
			return nil, 0, fmt.Errorf("database: schema: %w", err)
		}
		if t := byName[from]; t != nil && from != to {
			t.refers = append(t.refers, to)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("database: schema: %w", err)
	}
	names := []string{}
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	var add func(name string)
	add = func(name string) {
		t := byName[name]
		if t == nil || slices.Contains(tables, t) {
			return
		}
		for _, other := range t.refers {
			add(other)
		}
		tables = append(tables, t)
	}
	for _, name := range names {
		add(name)
	}
	return tables, version, nil
}

func (db *DB) columns(ctx context.Context, q Querier) (map[string]*Table, error) {
	rows, err := q.QueryContext(ctx, catalogue[db.Kind][0])
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	tables, keys := map[string]*Table{}, map[string]map[int]string{}
	for rows.Next() {
		var table, column string
		var place int
		var text bool
		if err := rows.Scan(&table, &column, &place, &text); err != nil {
			return nil, err
		}
		if strings.HasPrefix(table, "sqlite_") || strings.HasPrefix(table, "goose_") {
			continue
		}
		if tables[table] == nil {
			tables[table], keys[table] = &Table{Name: table}, map[int]string{}
		}
		tables[table].Columns = append(tables[table].Columns, column)
		if text && db.Kind == Postgres {
			column += ` COLLATE "C"`
		}
		if place > 0 {
			keys[table][place] = column
		}
	}
	for name, t := range tables {
		for place := 1; keys[name][place] != ""; place++ {
			t.order = append(t.order, keys[name][place])
		}
		if len(t.order) == 0 {
			return nil, fmt.Errorf("table %s has no primary key", name)
		}
	}
	return tables, rows.Err()
}

// Renumber lets new rows have numbers after those that were written with theirs. SQLite does so by itself.
func (db *DB) Renumber(ctx context.Context, tx *sql.Tx) error {
	if db.Kind != Postgres {
		return nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() AND is_identity = 'YES'")
	if err != nil {
		return fmt.Errorf("database: schema: %w", err)
	}
	defer rows.Close()
	var statements []string
	for rows.Next() {
		var table, column string
		if err := rows.Scan(&table, &column); err != nil {
			return fmt.Errorf("database: schema: %w", err)
		}
		statements = append(statements, fmt.Sprintf("SELECT setval(pg_get_serial_sequence('%[1]s', '%[2]s'), max(%[2]s)) FROM %[1]s HAVING max(%[2]s) > 0", table, column))
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("database: schema: %w", err)
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("database: next number: %w", err)
		}
	}
	return nil
}
