package store

import (
	"context"
	"database/sql/driver"
	"slices"

	"modernc.org/sqlite"
)

// keeping opens SQLite connections that keep the statements which they have compiled: compiling takes longer than most of them run.
type keeping struct{ driver.Connector }

func newConnector(address string) (driver.Connector, error) {
	c, err := sqlite.NewConnector(address)
	return keeping{c}, err
}

func (k keeping) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := k.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &connection{all: c.(all)}, nil
}

// all is what the driver's connections can do, without running statements that are not compiled: database/sql compiles them then.
type all interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// Of one connection, as many statements are kept as the program has, and no long scripts.
const (
	maxStatements = 256
	maxStatement  = 4 << 10
)

// connection is used by one goroutine at a time.
type connection struct {
	all
	idle []*statement // compiled and not in use, the last used at the end
}

// Unwrap returns the driver's connection.
func (c *connection) Unwrap() driver.Conn { return c.all }

func (c *connection) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext takes an idle statement, or compiles one: of the same text there may be several in use.
func (c *connection) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	for i := len(c.idle) - 1; i >= 0; i-- {
		if s := c.idle[i]; s.query == query {
			c.idle = slices.Delete(c.idle, i, i+1)
			return s, nil
		}
	}
	s, err := c.all.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &statement{compiled: s.(compiled), query: query, of: c}, nil
}

func (c *connection) Close() error {
	for _, s := range c.idle {
		_ = s.compiled.Close()
	}
	c.idle = nil
	return c.all.Close()
}

type compiled interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type statement struct {
	compiled
	query string
	of    *connection
}

// Close keeps the statement for the next one who prepares the same.
func (s *statement) Close() error {
	if len(s.query) > maxStatement {
		return s.compiled.Close()
	}
	c := s.of
	if c.idle = append(c.idle, s); len(c.idle) <= maxStatements {
		return nil
	}
	oldest := c.idle[0]
	c.idle = slices.Delete(c.idle, 0, 1)
	return oldest.compiled.Close()
}
