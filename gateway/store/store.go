// Package store is the database under the ledger, the escrow and the audit log: SQLite in write-ahead mode, or PostgreSQL,
// which several gateways can share.
//
// Open it with Open or OpenPostgres, read with DB.SQL, and write with DB.Write, which groups the writes of many requests into
// one transaction, so that one fsync serves them all. Statements are written for both: parameters are ?, numbers and booleans
// are 64-bit integers, new numbers come back by RETURNING.
//
// On both there is one writing transaction at a time, over all processes and machines: what a write has read stays true until
// it is durable, and the audit log is one chain.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

// Kind is the kind of database; its migrations are in the folder of that name.
type Kind string

// The kinds.
const (
	SQLite   Kind = "sqlite"
	Postgres Kind = "postgres"
)

// maxGroup is how many writes share one transaction at most.
const maxGroup = 256

// DB is an open database. All methods are safe for concurrent use.
type DB struct {
	// SQL is for reading. Writes go through Write.
	SQL  *sql.DB
	Kind Kind

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

// start starts the writer.
func start(handle *sql.DB, kind Kind) *DB {
	db := &DB{SQL: handle, Kind: kind, jobs: make(chan *job, maxGroup), stop: make(chan struct{}), done: make(chan struct{})}
	go db.run()
	return db
}

func migrate(ctx context.Context, handle *sql.DB, kind Kind) error {
	p, err := provider(handle, kind)
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	return nil
}

// provider has the migrations of a kind of database. Gateways that start at the same time on one PostgreSQL wait for each other.
func provider(handle *sql.DB, kind Kind) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations/"+string(kind))
	if err != nil {
		return nil, err
	}
	dialect, options := goose.DialectSQLite3, []goose.ProviderOption(nil)
	if kind == Postgres {
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
		if err != nil {
			return nil, err
		}
		dialect, options = goose.DialectPostgres, append(options, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(dialect, handle, files, options...)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return p, nil
}

// Write runs do inside a transaction and returns when it is durable. Writes of other callers may share the
// transaction; each stands or falls alone. If ctx ends first, the write may still happen. do may be run again where the database
// asks for that: what it has set outside the transaction counts from its last run.
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
	err := db.try(group, results)
	for n := 1; n < maxTries && retryable(err); n++ {
		time.Sleep(rand.N(time.Duration(n) * retryWait))
		err = db.try(group, results)
	}
	for i, j := range group {
		if err != nil {
			results[i] = fmt.Errorf("write to the database: %w", err)
		}
		j.result <- results[i]
	}
}

// Databases that speak PostgreSQL's protocol may end any transaction because of another one; it is then done again.
const (
	maxTries  = 10
	retryWait = 20 * time.Millisecond
)

// try does a group in one transaction.
func (db *DB) try(group []*job, results []error) error {
	tx, err := db.begin(context.Background())
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if len(group) == 1 {
		if results[0] = safely(tx, group[0].do); results[0] != nil {
			if retryable(results[0]) {
				return results[0]
			}
			return tx.Rollback()
		}
		return tx.Commit()
	}
	for i, j := range group {
		if results[i], err = savepoint(tx, j.do); err != nil {
			return err
		}
		if retryable(results[i]) { // it ends them all: what the others have written is not kept either
			return results[i]
		}
	}
	return tx.Commit()
}

// retryable tells whether a transaction certainly has not happened, and may well happen at the next attempt: a serialization
// failure or a deadlock.
func retryable(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "40001" || e.Code == "40P01")
}

// begin opens the writing transaction. It waits for that of another process.
func (db *DB) begin(ctx context.Context) (*sql.Tx, error) {
	tx, err := db.SQL.BeginTx(ctx, nil) // SQLite: BEGIN IMMEDIATE
	if err != nil || db.Kind != Postgres {
		return tx, err
	}
	// Statements after this one see everything that the transaction before has written. The lock ends with the transaction.
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(?)", writeLock); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
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

// Fill sets what rows lack that an earlier version has written: query finds them, a page at a time, by number and one value; set has to
// change each so that query does not find it again.
func (db *DB) Fill(ctx context.Context, set func(tx *sql.Tx, id int64, value []byte) error, query string, args ...any) error {
	for {
		found, err := db.lacking(ctx, query, args)
		if err != nil || len(found) == 0 {
			return err
		}
		if err := db.Write(ctx, func(tx *sql.Tx) error {
			for id, value := range found {
				if err := set(tx, id, value); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
}

func (db *DB) lacking(ctx context.Context, query string, args []any) (map[int64][]byte, error) {
	rows, err := db.SQL.QueryContext(ctx, query+" LIMIT 500", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[int64][]byte{}
	for rows.Next() {
		var id int64
		var value []byte
		if err := rows.Scan(&id, &value); err != nil {
			return nil, err
		}
		out[id] = value
	}
	return out, rows.Err()
}

// Scrub overwrites what was deleted, as far as it is in the power of the database: the write-ahead log of SQLite is emptied, and
// PostgreSQL is told that the old rows' place is free. Backups, and what a file system or a disk keeps of files, are beyond it.
func (db *DB) Scrub(ctx context.Context) error {
	statement := "PRAGMA wal_checkpoint(TRUNCATE)"
	if db.Kind == Postgres {
		statement = "VACUUM escrow_records"
	}
	if _, err := db.SQL.ExecContext(ctx, statement); err != nil {
		return fmt.Errorf("database: overwrite what was deleted: %w", err)
	}
	return nil
}

// Close finishes the writes under way and closes the database.
func (db *DB) Close() error {
	db.closed.Do(func() { close(db.stop) })
	<-db.done
	return db.SQL.Close()
}
