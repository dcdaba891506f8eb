// Package storetest gives tests new databases, and runs the same tests on SQLite and on PostgreSQL: a test package calls
// Main in its TestMain and Open in its tests.
package storetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/store"
)

// server is what Open makes databases on; nil means SQLite files.
var server *Server

// BeforeAgain is called before the tests run a second time; nil: nothing is.
var BeforeAgain func()

// Main runs the tests of a package on SQLite and then once more on a PostgreSQL server of their own. Where there is no
// PostgreSQL that is said, and is a failure where CI is set. Benchmarks and fuzzing are for SQLite alone.
func Main(m *testing.M) {
	code := m.Run()
	for _, name := range []string{"test.bench", "test.fuzz", "test.list"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			os.Exit(code)
		}
	}
	s, err := Start()
	switch {
	case errors.Is(err, errNotInstalled) && os.Getenv("CI") == "":
		fmt.Println("skipped on PostgreSQL:", err)
	case err != nil:
		fmt.Println("FAIL: on PostgreSQL:", err)
		code = max(code, 1)
	default:
		fmt.Println("once more, on PostgreSQL:")
		server = s
		if BeforeAgain != nil {
			BeforeAgain()
		}
		code = max(code, m.Run())
		s.Stop()
	}
	os.Exit(code)
}

// Open opens a new database.
func Open(t testing.TB) *store.DB {
	t.Helper()
	return Again(t, New(t))
}

// Address is where a database is: the path of a file, or a postgres:// URL.
type Address string

var databases atomic.Int64

// New makes a database, without opening it.
func New(t testing.TB) Address {
	t.Helper()
	if server == nil {
		return Address(filepath.Join(t.TempDir(), "test.db"))
	}
	return server.New(t)
}

// Again opens a database that may be open already, as another process would.
func Again(t testing.TB, a Address) *store.DB {
	t.Helper()
	db, err := a.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Open opens the database.
func (a Address) Open(ctx context.Context) (*store.DB, error) {
	if u, err := url.Parse(string(a)); err == nil && u.Scheme == "postgres" {
		return store.OpenPostgres(ctx, string(a), nil)
	}
	return store.Open(ctx, string(a))
}

// Postgres tells whether the tests run on PostgreSQL now.
func Postgres() bool { return server != nil }
