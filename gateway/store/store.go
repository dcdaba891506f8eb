// Package store is the database under the ledger, the escrow and the audit log: SQLite in write-ahead mode.
//
// Open it, read with DB.SQL, and write with DB.Write, which groups the writes of many requests into one transaction, so
// that one fsync serves them all.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver
)

//go:embed migrations/*.sql
var migrations embed.FS

// maxGroup is how many writes share one transaction at most.
const maxGroup = 256

// DB is an open database. All methods are safe for concurrent use.
type DB struct {
	// SQL is for reading. Writes go through Write.
	SQL *sql.DB

	jobs   chan *job
	stop   chan struct{}
	done   chan struct{}
	closed sync.Once
}

type job struct {
	do     func(*sql.Tx) error
	result chan error
}

// ErrClosed is what Write gives after Close.
var ErrClosed = errors.New("the database is closed")

// Open opens the database file, creates it where it is missing and brings its schema up to date. Other processes may
// have it open at the same time.
func Open(ctx context.Context, path string) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	// The file must not be readable for others at any moment: create it before SQLite does.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	f.Close()
	options := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}, "_txlock": {"immediate"}}
	handle, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+options.Encode())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := migrate(ctx, handle); err != nil {
		handle.Close()
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	db := &DB{SQL: handle, jobs: make(chan *job, maxGroup), stop: make(chan struct{}), done: make(chan struct{})}
	go db.run()
	return db, nil
}

func migrate(ctx context.Context, handle *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, handle, files)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	return nil
}

// Write runs do inside a transaction and returns when it is durable. Writes of other callers may share the
// transaction; each stands or falls alone. If ctx ends first, the write may still happen.
func (db *DB) Write(ctx context.Context, do func(*sql.Tx) error) error {
	j := &job{do: do, result: make(chan error, 1)}
	select {
	case db.jobs <- j:
	case <-db.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-j.result:
		return err
	case <-db.done:
		// The writer has stopped; it answered everything that it took.
		select {
		case err := <-j.result:
			return err
		default:
			return ErrClosed
		}
	}
}

// run is the only writer of this process.
func (db *DB) run() {
	defer close(db.done)
	for {
		select {
		case j := <-db.jobs:
			db.commit(db.gather(j))
		case <-db.stop:
			for {
				select {
				case j := <-db.jobs:
					db.commit(db.gather(j))
				default:
					return
				}
			}
		}
	}
}

// gather takes what waits already: while one group is synced to disk the next one collects itself.
func (db *DB) gather(first *job) []*job {
	group := []*job{first}
	for len(group) < maxGroup {
		select {
		case j := <-db.jobs:
			group = append(group, j)
		default:
			return group
		}
	}
	return group
}

func (db *DB) commit(group []*job) {
	results := make([]error, len(group))
	err := func() error {
		tx, err := db.SQL.BeginTx(context.Background(), nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		for i, j := range group {
			if results[i], err = savepoint(tx, j.do); err != nil {
				return err
			}
		}
		return tx.Commit()
	}()
	for i, j := range group {
		if err != nil {
			results[i] = fmt.Errorf("write to the database: %w", err)
		}
		j.result <- results[i]
	}
}

// savepoint runs one write of the group; its error undoes that write only. The second result is the transaction's own.
func savepoint(tx *sql.Tx, do func(*sql.Tx) error) (result, fatal error) {
	if _, err := tx.Exec("SAVEPOINT w"); err != nil {
		return nil, err
	}
	if result = safely(tx, do); result != nil {
		if _, err := tx.Exec("ROLLBACK TO w"); err != nil {
			return nil, err
		}
	}
	_, err := tx.Exec("RELEASE w")
	return result, err
}

func safely(tx *sql.Tx, do func(*sql.Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a database write: %v", p)
		}
	}()
	return do(tx)
}

// Close finishes the writes under way and closes the database.
func (db *DB) Close() error {
	db.closed.Do(func() { close(db.stop) })
	<-db.done
	return db.SQL.Close()
}
