package audit_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func newSigner(t testing.TB) (*audit.Signer, note.Verifier) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner("enroll.lab.test", key)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(s.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func write(t testing.TB, db *store.DB, do func(*sql.Tx) error) {
	t.Helper()
	if err := db.Write(context.Background(), do); err != nil {
		t.Fatal(err)
	}
}

func appendLines(t testing.TB, db *store.DB, n int) {
	t.Helper()
	for i := range n {
		write(t, db, func(tx *sql.Tx) error {
			return audit.Append(tx, now, "test", audit.KeyArchived, map[string]any{"n": i, "text": "<ä&\"> \u2028"})
		})
	}
}

func sign(t testing.TB, db *store.DB, s *audit.Signer) (c *audit.Checkpoint) {
	t.Helper()
	write(t, db, func(tx *sql.Tx) (err error) {
		c, err = audit.Sign(context.Background(), tx, now, s)
		return err
	})
	return c
}

// Whoever has the file can change any octet of any line, and of the tree: it is found.
func TestEveryChangedOctetShows(t *testing.T) {
	const lines = 3
	fresh := func() (*store.DB, note.Verifier) {
		db, s := testpki.DB(t), (*audit.Signer)(nil)
		var v note.Verifier
		s, v = newSigner(t)
		appendLines(t, db, lines)
		sign(t, db, s)
		if n, err := audit.VerifySigned(context.Background(), db.SQL, v); err != nil || n != lines {
			t.Fatalf("%d lines, %v", n, err)
		}
		storetest.Unlock(t, db)
		return db, v
	}
	db, v := fresh()
	changed := 0
	for _, column := range []string{"actor", "event", "detail", "previous", "hash"} {
		for seq := range lines {
			where := fmt.Sprintf("WHERE seq = %d", seq+1)
			var value []byte
			if err := db.SQL.QueryRow("SELECT " + column + " FROM audit " + where).Scan(&value); err != nil {
				t.Fatal(err)
			}
			for i := range value {
				bad := append([]byte(nil), value...)
				bad[i] ^= 1
				set := func(b []byte) {
					var v any = b
					if column != "previous" && column != "hash" {
						v = string(b)
					}
					if _, err := db.SQL.Exec("UPDATE audit SET "+column+" = ? "+where, v); err != nil {
						t.Fatal(err)
					}
				}
				set(bad)
				if _, err := audit.VerifySigned(context.Background(), db.SQL, v); err == nil {
					t.Errorf("octet %d of %s of line %d", i, column, seq+1)
				}
				set(value)
				changed++
			}
		}
	}
	for _, tamper := range []string{"UPDATE audit SET time = time + 1 WHERE seq = 2", "UPDATE audit SET seq = 9 WHERE seq = 3", "DELETE FROM audit WHERE seq = 3",
		"DELETE FROM audit WHERE seq = 1", "UPDATE audit_tree SET hash = (SELECT hash FROM audit WHERE seq = 2) WHERE idx = 2", "DELETE FROM audit_tree WHERE idx = 1",
		"INSERT INTO audit_tree SELECT 9, hash FROM audit WHERE seq = 1", "UPDATE audit_checkpoints SET note = replace(note, '\n3\n', '\n2\n')"} {
		db, v := fresh()
		if _, err := db.SQL.Exec(tamper); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.VerifySigned(context.Background(), db.SQL, v); err == nil {
			t.Error(tamper)
		}
	}
	t.Logf("%d octets changed", changed)
}

// A log that was put back, or written anew with all hashes right, is found by who kept a checkpoint.
func TestACheckpointKeptElsewhereShowsARolledBackLog(t *testing.T) {
	s, v := newSigner(t)
	first, second := testpki.DB(t), testpki.DB(t)
	appendLines(t, first, 7)
	kept := sign(t, first, s)
	appendLines(t, first, 5)
	if n, err := audit.VerifySigned(context.Background(), first.SQL, v, kept.Note); err != nil || n != 12 {
		t.Errorf("a log that has grown: %d, %v", n, err)
	}
	appendLines(t, second, 5)
	if _, err := audit.VerifySigned(context.Background(), second.SQL, v, kept.Note); err == nil || !strings.Contains(err.Error(), "put back to an earlier state") {
		t.Errorf("a shorter log: %v", err)
	}
	write(t, second, func(tx *sql.Tx) error { return audit.Append(tx, now, "other", audit.KeyArchived, nil) })
	appendLines(t, second, 5)
	if _, err := audit.VerifySigned(context.Background(), second.SQL, v, kept.Note); err == nil || !strings.Contains(err.Error(), "not those that the checkpoint") {
		t.Errorf("another log: %v", err)
	}
	_, stranger := newSigner(t)
	if _, err := audit.VerifySigned(context.Background(), first.SQL, stranger, kept.Note); err == nil {
		t.Error("a checkpoint of another key was accepted")
	}
}

func TestAProofNeedsNothingButTheLogsKey(t *testing.T) {
	db := testpki.DB(t)
	s, _ := newSigner(t)
	appendLines(t, db, 13)
	for seq := int64(1); seq <= 13; seq++ {
		var p *audit.Proof
		write(t, db, func(tx *sql.Tx) (err error) { p, err = audit.Prove(context.Background(), tx, now, s, seq); return err })
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var read audit.Proof
		if err := json.Unmarshal(text, &read); err != nil {
			t.Fatal(err)
		}
		if l, err := read.Check(s.VerifierKey()); err != nil || l.Seq != seq {
			t.Errorf("line %d: %v", seq, err)
		}
		read.Line = json.RawMessage(strings.Replace(string(read.Line), `"n":`, `"m":`, 1))
		if _, err := read.Check(s.VerifierKey()); err == nil {
			t.Errorf("line %d: a changed line was accepted", seq)
		}
		other, _ := newSigner(t)
		if _, err := p.Check(other.VerifierKey()); err == nil {
			t.Errorf("line %d: a stranger's signature was accepted", seq)
		}
	}
	if err := db.Write(context.Background(), func(tx *sql.Tx) error { _, err := audit.Prove(context.Background(), tx, now, s, 99); return err }); err == nil {
		t.Error("a line that is not there was proven")
	}
}

// The tree grows in parts.
func TestTheTreeGrowsInParts(t *testing.T) {
	db := testpki.DB(t)
	_, v := newSigner(t)
	appendLines(t, db, 9)
	appendLines(t, db, 1)
	for more, rounds := true, 0; more; rounds++ {
		write(t, db, func(tx *sql.Tx) (err error) { more, err = audit.Grow(context.Background(), tx, 3); return err })
		if more == (rounds == 3) {
			t.Errorf("more lines after round %d: %t", rounds, more)
		}
	}
	if n, err := audit.VerifySigned(context.Background(), db.SQL, v); err != nil || n != 10 {
		t.Errorf("%d lines, %v", n, err)
	}
}
