package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
)

func insert(serial string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO revocations (ca, serial, reason, revoked) VALUES ('x', ?, 0, 0)", serial)
		return err
	}
}

func count(t testing.TB, db *store.DB) (n int) {
	t.Helper()
	if err := db.SQL.QueryRow("SELECT count(*) FROM revocations").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestManyWritersShareTransactionsAndEachStandsAlone(t *testing.T) {
	db := storetest.Open(t)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			err := db.Write(context.Background(), func(tx *sql.Tx) error {
				if err := insert(string(rune('a'+i%26)) + strings.Repeat("x", i/26))(tx); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return errors.New("no")
				case 2:
					panic("oops")
				}
				return nil
			})
			if (err != nil) != (i%4 == 1 || i%4 == 2) {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := count(t, db); n != 100 {
		t.Errorf("%d rows, want 100: a failed write must leave nothing", n)
	}
}

func TestWhatWasWrittenIsThereAfterReopening(t *testing.T) {
	address := storetest.New(t)
	db := storetest.Again(t, address)
	if err := db.Write(context.Background(), insert("1")); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := db.Write(context.Background(), insert("2")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if n := count(t, storetest.Again(t, address)); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestOthersCannotReadTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b%20", "test.db")
	storetest.Again(t, storetest.Address(path))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: others must not read the database", info.Mode(), err)
	}
}

func TestTwoProcessesWrite(t *testing.T) {
	address := storetest.New(t)
	a, b := storetest.Again(t, address), storetest.Again(t, address)
	var wg sync.WaitGroup
	for i := range 50 {
		for name, db := range map[string]*store.DB{"a": a, "b": b} {
			wg.Go(func() {
				if err := db.Write(context.Background(), insert(name+strings.Repeat("1", i))); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n := count(t, a); n != 100 {
		t.Errorf("%d rows, want 100", n)
	}
}

// A database that ends transactions because of others gets them again: a write happens once, and so do those that shared the transaction.
func TestAnEndedTransactionIsDoneAgain(t *testing.T) {
	db := storetest.Open(t)
	if db.Kind != store.Postgres {
		t.Skip("SQLite ends no transaction because of another")
	}
	var tries, wrong int
	write := func(do func(tx *sql.Tx) error) chan error {
		done := make(chan error, 1)
		go func() { done <- db.Write(context.Background(), do) }()
		return done
	}
	failing := write(func(tx *sql.Tx) error {
		if tries++; tries < 4 {
			if _, err := tx.Exec("DO $$ BEGIN RAISE EXCEPTION 'restart transaction' USING ERRCODE = '40001'; END $$"); err != nil {
				return err
			}
		}
		return insert("a")(tx)
	})
	refused := write(func(tx *sql.Tx) error {
		wrong++
		return errors.New("never")
	})
	for _, serial := range []string{"b", "c"} {
		if err := <-write(insert(serial)); err != nil {
			t.Error(err)
		}
	}
	if err := <-failing; err != nil || tries != 4 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if err := <-refused; err == nil || err.Error() != "never" {
		t.Errorf("%v", err)
	}
	if n := count(t, db); n != 3 {
		t.Errorf("%d rows", n)
	}
}
