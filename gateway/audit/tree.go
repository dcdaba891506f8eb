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
			return nil, fmt.Errorf("node %d is missing in the tree", idx)
		case err != nil:
			return nil, fmt.Errorf("node %d: %w", idx, err)
		case len(hash) != tlog.HashSize:
			return nil, fmt.Errorf("node %d has %d octets, want %d", idx, len(hash), tlog.HashSize)
		}
		out[i] = tlog.Hash(hash)
	}
	return out, nil
}

// leaf is what is hashed of a line: its JSON, as audit export prints it, so that others can compute the same.
func (l *Line) leaf() ([]byte, error) { return json.Marshal(l) }

// treeSize is how many lines are in the tree, of which so many nodes are stored.
func treeSize(nodes int64) (lines int64) {
	lines = nodes / 2 // a tree of n lines has between n and 2n nodes
	for tlog.StoredHashCount(lines) > nodes {
		lines--
	}
	for tlog.StoredHashCount(lines+1) <= nodes {
		lines++
	}
	return lines
}

// Grow adds lines that are not in the tree yet, at most limit of them, and tells whether there are more. Lines are not added as
// they are written: nothing depends on the tree before the next checkpoint, and enrollments need not wait for it.
func Grow(ctx context.Context, tx *sql.Tx, limit int64) (more bool, err error) {
	var count int64
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM audit_tree").Scan(&count); err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	insert, err := tx.PrepareContext(ctx, "INSERT INTO audit_tree (idx, hash) VALUES (?, ?)")
	if err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	defer insert.Close()
	from := treeSize(count)
	known := recent{nodes{ctx, tx}, map[int64]tlog.Hash{}}
	err = each(ctx, tx, from, func(l Line, _, _ []byte) error {
		if l.Seq > from+limit {
			more = true
			return errEnough
		}
		data, err := l.leaf()
		if err != nil {
			return err
		}
		hashes, err := tlog.StoredHashes(l.Seq-1, data, known)
		if err != nil {
			return fmt.Errorf("line %d: %w", l.Seq, err)
		}
		first := tlog.StoredHashIndex(0, l.Seq-1)
		for i, h := range hashes {
			known.hashes[first+int64(i)] = h
			if _, err := insert.ExecContext(ctx, first+int64(i), h[:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return false, err
	}
	return more, nil
}

// errEnough ends each early.
var errEnough = errors.New("enough")

// recent has the nodes that were just computed at hand.
type recent struct {
	stored nodes
	hashes map[int64]tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (r recent) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, idx := range indexes {
		if h, ok := r.hashes[idx]; ok {
			out[i] = h
			continue
		}
		stored, err := r.stored.ReadHashes([]int64{idx})
		if err != nil {
			return nil, err
		}
		out[i] = stored[0]
	}
	return out, nil
}

// treeChecker compares the tree with what the lines say it has to be, one line after the other. Nodes that are not stored yet,
// of the lines since the last checkpoint, it keeps in memory.
type treeChecker struct {
	recent
	next  int64 // node that comes next
	count int64 // of nodes that are stored
}

func newTreeChecker(ctx context.Context, db querier) (*treeChecker, error) {
	c := &treeChecker{recent: recent{nodes{ctx, db}, map[int64]tlog.Hash{}}}
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM audit_tree").Scan(&c.count); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *treeChecker) line(l *Line) error {
	data, err := l.leaf()
	if err != nil {
		return err
	}
	// The nodes that this reads have been compared already.
	want, err := tlog.StoredHashes(l.Seq-1, data, c)
	if err != nil {
		return fmt.Errorf("line %d: the tree: %w", l.Seq, err)
	}
	for _, h := range want {
		if c.next >= c.count {
			c.hashes[c.next] = h
		} else if got, err := c.stored.ReadHashes([]int64{c.next}); err != nil {
			return fmt.Errorf("line %d: the tree: %w", l.Seq, err)
		} else if got[0] != h {
			return fmt.Errorf("line %d, or the tree over it, has been changed", l.Seq)
		}
		c.next++
	}
	return nil
}

// end requires that the tree has no more nodes than the lines make.
func (c *treeChecker) end() error {
	if c.count > c.next {
		return fmt.Errorf("the tree has %d nodes, the lines make %d: lines were removed from the end", c.count, c.next)
	}
	return nil
}
