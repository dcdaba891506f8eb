package store

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// on gives a test the one connection of a file.
func on(t *testing.T, use func(db *sql.DB, c *connection)) {
	t.Helper()
	db, err := openFile(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)"); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var c *connection
	if err := conn.Raw(func(driver any) error { c = driver.(*connection); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	use(db, c)
}

func TestAStatementIsCompiledOnceAndForgetsItsArguments(t *testing.T) {
	on(t, func(db *sql.DB, c *connection) {
		before := len(c.idle)
		for n := range 5 {
			if _, err := db.Exec("INSERT INTO t (n, text) VALUES (?, ?)", n, fmt.Sprint("text ", n)); err != nil {
				t.Fatal(err)
			}
		}
		if len(c.idle) != before+1 {
			t.Errorf("%d statements are kept, %d before", len(c.idle), before)
		}
		for n := range 5 {
			var text string
			if err := db.QueryRow("SELECT text FROM t WHERE n = ?", n).Scan(&text); err != nil || text != fmt.Sprint("text ", n) {
				t.Errorf("%d: %q, %v", n, text, err)
			}
		}
		if _, err := db.Exec("INSERT INTO t (n, text) VALUES (?, ?)", 3, "again"); err == nil {
			t.Error("the key is taken")
		}
		if _, err := db.Exec("INSERT INTO t (n, text) VALUES (?, ?)", 5, nil); err != nil {
			t.Errorf("after an error: %v", err)
		}
	})
}

func TestTheSameQueryRunsWithinItself(t *testing.T) {
	on(t, func(db *sql.DB, c *connection) {
		if _, err := db.Exec("INSERT INTO t (n, text) VALUES (1, 'a'), (2, 'b')"); err != nil {
			t.Fatal(err)
		}
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		const query = "SELECT n FROM t WHERE n > ? ORDER BY n"
		list := func(above int, each func(n int)) {
			rows, err := tx.Query(query, above)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
				var n int
				if err := rows.Scan(&n); err != nil {
					t.Fatal(err)
				}
				each(n)
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
		}
		var seen []string
		list(0, func(n int) { list(n-1, func(m int) { seen = append(seen, fmt.Sprint(n, m)) }) })
		if got := strings.Join(seen, ", "); got != "1 1, 1 2, 2 2" {
			t.Error(got)
		}
	})
}

func TestAConnectionKeepsSoManyStatementsAndSurvivesAnotherSchema(t *testing.T) {
	on(t, func(db *sql.DB, c *connection) {
		read := func() (columns int) {
			rows, err := db.Query("SELECT * FROM t")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			names, err := rows.Columns()
			if err != nil {
				t.Fatal(err)
			}
			return len(names)
		}
		if n := read(); n != 2 {
			t.Error(n)
		}
		for n := range maxStatements + 50 {
			if _, err := db.Exec(fmt.Sprintf("UPDATE t SET text = 'x' WHERE n = %d", n)); err != nil {
				t.Fatal(err)
			}
		}
		if len(c.idle) != maxStatements {
			t.Errorf("%d statements are kept", len(c.idle))
		}
		long := "SELECT 1 /*" + strings.Repeat("x", maxStatement) + "*/"
		if _, err := db.Exec(long); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.idle {
			if s.query == long {
				t.Error("a long script is kept")
			}
		}
		read()
		if _, err := db.Exec("ALTER TABLE t ADD COLUMN more TEXT"); err != nil {
			t.Fatal(err)
		}
		if n := read(); n != 3 {
			t.Errorf("%d columns after the change", n)
		}
	})
}
