package store

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// writeLock is the number of the advisory lock that every writing transaction takes.
const writeLock = 0x656e726f6c6c // "enroll"

// maxConnections is how many connections one gateway has at most; PostgreSQL allows 100 where nobody has changed that.
const maxConnections = 24

// OpenPostgres opens a database on a PostgreSQL server and brings its schema up to date. address is a postgres:// URL, or
// key=value words, as libpq has them, without a password.
func OpenPostgres(ctx context.Context, address string, password []byte) (*DB, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, fmt.Errorf("address of the database: %w", err)
	}
	if err := proven(config); err != nil {
		return nil, err
	}
	if len(password) > 0 {
		config.Password = string(password)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 10 * time.Second
	}
	for name, value := range map[string]string{
		"application_name":   "enrollgate",
		"synchronous_commit": "on",                // what was acknowledged is on disk, whatever the server's default
		"plan_cache_mode":    "force_custom_plan", // plans for any parameter read thousands of rows where a search finds four
		// A gateway that has vanished lets go of the write lock, and one that waits for it does not wait for ever.
		"idle_in_transaction_session_timeout": "60s", "lock_timeout": "30s",
		"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
	} {
		config.RuntimeParams[name] = value
	}
	raw := stdlib.OpenDB(*config) // migrations are written for PostgreSQL alone
	defer raw.Close()
	if err := migrate(ctx, raw, Postgres); err != nil {
		return nil, fmt.Errorf("database %s at %s: %w", config.Database, config.Host, err)
	}
	handle := sql.OpenDB(connector{stdlib.GetConnector(*config)})
	handle.SetMaxOpenConns(maxConnections)
	handle.SetMaxIdleConns(maxConnections)
	handle.SetConnMaxIdleTime(time.Minute)
	return start(handle, Postgres), nil
}

// proven requires TLS with the server's certificate checked, but for a server on this machine.
func proven(config *pgx.ConnConfig) error {
	check := func(host string, t *tls.Config) error {
		ip := net.ParseIP(host)
		if strings.HasPrefix(host, "/") || host == "localhost" || ip != nil && ip.IsLoopback() || t != nil && !t.InsecureSkipVerify {
			return nil
		}
		return fmt.Errorf("the database server %s is reached over the network without proof of who it is: use sslmode=verify-full", host)
	}
	errs := check(config.Host, config.TLSConfig)
	for _, f := range config.Fallbacks {
		errs = errors.Join(errs, check(f.Host, f.TLSConfig))
	}
	return errs
}

// connector makes connections that take statements as they are written for SQLite.
type connector struct{ driver.Connector }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return postgresConn{conn.(*stdlib.Conn)}, nil
}

type postgresConn struct{ *stdlib.Conn }

// PrepareContext implements driver.ConnPrepareContext.
func (c postgresConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.Conn.PrepareContext(ctx, numbered(query))
}

// ExecContext implements driver.ExecerContext.
func (c postgresConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.ExecContext(ctx, numbered(query), args)
}

// QueryContext implements driver.QueryerContext.
func (c postgresConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.QueryContext(ctx, numbered(query), args)
}

// BeginTx implements driver.ConnBeginTx: who only reads sees one state of the database, as in SQLite.
func (c postgresConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if opts.ReadOnly {
		opts.Isolation = driver.IsolationLevel(sql.LevelRepeatableRead)
	}
	return c.Conn.BeginTx(ctx, opts)
}

// CheckNamedValue implements driver.NamedValueChecker: booleans are numbers, and text is what PostgreSQL can keep.
func (c postgresConn) CheckNamedValue(v *driver.NamedValue) (err error) {
	if v.Value, err = driver.DefaultParameterConverter.ConvertValue(v.Value); err != nil {
		return err
	}
	switch x := v.Value.(type) {
	case bool:
		v.Value = int64(0)
		if x {
			v.Value = int64(1)
		}
	case string:
		v.Value = Text(x)
	}
	return nil
}

// Text is s as every database keeps it: what is not UTF-8, and NUL, becomes U+FFFD.
func Text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// numbered turns the parameters of a statement, ?, into $1, $2 and so on. In quotes a question mark is one.
func numbered(query string) string {
	if !strings.Contains(query, "?") {
		return query
	}
	var out strings.Builder
	var quote byte // that is open; 0: none
	n := 0
	for i := range len(query) {
		c := query[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '?':
			n++
			out.WriteString("$" + strconv.Itoa(n))
			continue
		}
		out.WriteByte(c)
	}
	return out.String()
}
