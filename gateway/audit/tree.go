package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// nodes reads the tree's nodes, numbered as tlog.StoredHashIndex does.
type nodes struct {
	ctx context.Context
	db  querier
}

// ReadHashes implements tlog.HashReader.
func (n nodes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, idx := range indexes {
		var hash []byte
		err := n.db.QueryRowContext(n.ctx, "SELECT hash FROM audit_tree WHERE idx = ?", idx).Scan(&hash)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil, fmt.Errorf("node %d: %w", idx, errNoNode)
		case err != nil:
			return nil, fmt.Errorf("node %d: %w", idx, err)
		case len(hash) != tlog.HashSize:
			return nil, fmt.Errorf("node %d has %d octets, want %d", idx, len(hash), tlog.HashSize)
		}
		out[i] = tlog.Hash(hash)
	}
	return out, nil
}

var errNoNode = errors.New("missing in the tree")

// leaf is what is hashed of a line: its JSON, as audit export prints it, so that others can compute the same.
func (l *Line) leaf() ([]byte, error) { return json.Marshal(l) }

// grow adds a line to the tree, and before it those that are not in it yet: a log from before there was a tree.
func grow(tx *sql.Tx, l *Line) error {
	data, err := l.leaf()
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	err = store(tx, l.Seq-1, data)
	if !errors.Is(err, errNoNode) {
		return err
	}
	return catchUp(tx, l.Seq)
}

// store writes the nodes that become complete with the leaf n, counted from 0.
func store(tx *sql.Tx, n int64, data []byte) error {
	hashes, err := tlog.StoredHashes(n, data, nodes{context.Background(), tx})
	if err != nil {
		return fmt.Errorf("audit: line %d: %w", n+1, err)
	}
	first := tlog.StoredHashIndex(0, n)
	for i, h := range hashes {
		if _, err := tx.Exec("INSERT INTO audit_tree (idx, hash) VALUES (?, ?)", first+int64(i), h[:]); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	return nil
}

// catchUp adds the lines up to, and with, the last to the tree, from the first that is missing.
func catchUp(tx *sql.Tx, last int64) error {
	var count int64
	if err := tx.QueryRow("SELECT count(*) FROM audit_tree").Scan(&count); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	var from int64 // lines in the tree
	for tlog.StoredHashCount(from+1) <= count {
		from++
	}
	var rest []Line
	if err := each(context.Background(), tx, from, func(l Line, _, _ []byte) error {
		if l.Seq <= last {
			rest = append(rest, l)
		}
		return nil
	}); err != nil {
		return err
	}
	for i := range rest {
		data, err := rest[i].leaf()
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		if err := store(tx, rest[i].Seq-1, data); err != nil {
			return err
		}
	}
	return nil
}

// treeChecker compares the tree with what the lines say it has to be, one line after the other.
type treeChecker struct {
	nodes nodes
	next  int64
}

func (c *treeChecker) line(l *Line) error {
	data, err := l.leaf()
	if err != nil {
		return err
	}
	// The nodes that this reads have been compared already.
	want, err := tlog.StoredHashes(l.Seq-1, data, c.nodes)
	if err != nil {
		return fmt.Errorf("line %d: the tree: %w", l.Seq, err)
	}
	for i, h := range want {
		got, err := c.nodes.ReadHashes([]int64{c.next + int64(i)})
		if err != nil {
			return fmt.Errorf("line %d: the tree: %w", l.Seq, err)
		}
		if got[0] != h {
			return fmt.Errorf("line %d, or the tree over it, has been changed", l.Seq)
		}
	}
	c.next += int64(len(want))
	return nil
}

// end requires that the tree has no more nodes than the lines make.
func (c *treeChecker) end() error {
	var count int64
	if err := c.nodes.db.QueryRowContext(c.nodes.ctx, "SELECT count(*) FROM audit_tree").Scan(&count); err != nil {
		return err
	}
	if count != c.next {
		return fmt.Errorf("the tree has %d nodes, the lines make %d: lines were removed from the end", count, c.next)
	}
	return nil
}
