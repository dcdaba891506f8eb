package backup_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/backup"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"golang.org/x/mod/sumdb/note"
)

func TestMain(m *testing.M) { storetest.Main(m) }

var background = context.Background()

// archive records a request with a sealed key and returns the key's number.
func archive(db *store.DB, owner string) (id int64, err error) {
	sealed := make([]byte, 600)
	rand.Read(sealed)
	record := &escrow.Record{Source: "enrollment", Algorithm: "RSA", Bits: 2048, KeyID: sealed[:32], Policy: "default", Required: 1, Format: escrow.FormatCMS,
		Recipients: []string{"x"}, Sealed: sealed}
	row := &ledger.Row{State: ledger.Open, Caller: owner, CallerSID: "S-1-5-21-1", Template: "T", CA: "C", Transport: "test", Fingerprint: sealed[32:64],
		Message: "<\u2028&\"'> ä\n"}
	_, err = ledger.New(db, time.Now).Begin(background, row, func(tx *sql.Tx, request int64) (err error) {
		id, err = record.Insert(tx, time.Now(), request, "gateway", owner, "CN="+owner)
		return err
	})
	return id, err
}

// keys are what is sealed, by number.
func keys(t testing.TB, db *store.DB) map[int64]string {
	t.Helper()
	rows, err := db.SQL.Query("SELECT id, sealed FROM escrow_records")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := map[int64]string{}
	for rows.Next() {
		var id int64
		var sealed []byte
		if err := rows.Scan(&id, &sealed); err != nil {
			t.Fatal(err)
		}
		out[id] = string(sealed)
	}
	return out
}

// sign signs the log.
func sign(t testing.TB, db *store.DB) (c *audit.Checkpoint, v note.Verifier) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner("enroll.lab.test", key)
	if err != nil {
		t.Fatal(err)
	}
	if v, err = note.NewVerifier(s.VerifierKey()); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(background, func(tx *sql.Tx) (err error) { c, err = audit.Sign(background, tx, time.Now(), s); return err }); err != nil {
		t.Fatal(err)
	}
	return c, v
}

// busyBackup makes a backup while eight writers archive keys. before are those that were acknowledged before it began.
func busyBackup(t *testing.T, db *store.DB, path string) (m *backup.Manifest, before map[int64]bool) {
	t.Helper()
	var mu sync.Mutex
	acknowledged := map[int64]bool{}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				id, err := archive(db, fmt.Sprintf("user%d-%d@LAB.TEST", n, i))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acknowledged[id] = true
				mu.Unlock()
			}
		})
	}
	for enough := false; !enough; time.Sleep(time.Millisecond) {
		mu.Lock()
		enough = len(acknowledged) > 200
		mu.Unlock()
	}
	mu.Lock()
	before = maps.Clone(acknowledged)
	mu.Unlock()
	m, err := backup.Create(background, db, path, time.Now())
	stop.Store(true)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return m, before
}

func TestABackupIsWholeWhileOthersWrite(t *testing.T) {
	db := storetest.Open(t)
	path := filepath.Join(t.TempDir(), "backup")
	m, before := busyBackup(t, db, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if v, err := backup.Verify(background, path); err != nil || v.SHA256 != m.SHA256 {
		t.Errorf("verify: %v", err)
	}
	checkpoint, verifier := sign(t, db) // what somebody keeps, later than the backup
	var receipt audit.Receipt
	if err := db.Write(background, func(tx *sql.Tx) (err error) { receipt, err = audit.Last(tx); return err }); err != nil {
		t.Fatal(err)
	}
	restored := storetest.Open(t)
	if _, err := backup.Restore(background, restored, path, "admin", time.Now()); err != nil {
		t.Fatal(err)
	}
	had, have := keys(t, db), keys(t, restored)
	for id := range before {
		if _, ok := have[id]; !ok {
			t.Errorf("key %d was acknowledged before the backup began and is not in it", id)
		}
	}
	for id, sealed := range have {
		if had[id] != sealed {
			t.Errorf("key %d has come back another", id)
		}
	}
	if lines, err := audit.Verify(background, restored.SQL); err != nil || lines != m.Audit.Lines+1 {
		t.Errorf("the log has %d lines, %v", lines, err)
	}
	if err := receipt.Holds(background, restored.SQL); err == nil {
		t.Error("the restored database holds a receipt that is newer than the backup")
	}
	if _, err := audit.VerifySigned(background, restored.SQL, verifier, checkpoint.Note); err == nil {
		t.Error("the restored database goes with a checkpoint that is newer than the backup")
	}
	if id, err := archive(restored, "next@LAB.TEST"); err != nil || have[id] != "" {
		t.Errorf("the next key has the number %d, %v", id, err)
	}
	t.Logf("%d keys before, %d in the backup, %d at its end", len(before), len(have), len(had))
}

// small is a database with something in most tables, and its backup.
func small(t *testing.T) (db *store.DB, path string, m *backup.Manifest) {
	t.Helper()
	db = storetest.Open(t)
	for i := range 3 {
		if _, err := archive(db, fmt.Sprintf("user%d@LAB.TEST", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Write(background, func(tx *sql.Tx) error {
		for _, sid := range []string{"S-1-5-21-B", "S-1-5-21-a", "S-1-5-21-_", "S-1-5-21-Ä"} { // where the order depends on the language
			if _, err := tx.Exec("INSERT INTO leavers (sid, account, state, since) VALUES (?, 'x', 'deleted', 1)", sid); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	sign(t, db)
	path = filepath.Join(t.TempDir(), "backup")
	m, err := backup.Create(background, db, path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return db, path, m
}

func TestABackupGoesToTheOtherKindOfDatabaseAndBack(t *testing.T) {
	db, path, m := small(t)
	file := storetest.Again(t, storetest.Address(filepath.Join(t.TempDir(), "test.db")))
	if _, err := backup.Restore(background, file, path, "admin", time.Now()); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "second")
	m2, err := backup.Create(background, file, second, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, sum := range m.Tables {
		if name != "audit" && m2.Tables[name] != sum {
			t.Errorf("%s: %+v, %+v", name, sum, m2.Tables[name])
		}
	}
	back := storetest.Open(t)
	if _, err := backup.Restore(background, back, second, "admin", time.Now()); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(keys(t, db), keys(t, back)) {
		t.Error("keys have come back others")
	}
	if n, err := audit.Verify(background, back.SQL); err != nil || n != m.Audit.Lines+2 {
		t.Errorf("%d lines, %v", n, err)
	}
}

func TestABackupIsRestoredIntoANewDatabaseOnly(t *testing.T) {
	db, path, _ := small(t)
	if _, err := backup.Restore(background, db, path, "admin", time.Now()); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("%v", err)
	}
	if _, err := backup.Create(background, db, path, time.Now()); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a backup was overwritten: %v", err)
	}
}

// lines are those of a backup.
func lines(t testing.TB, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
}

func TestADamagedBackupIsNotRestored(t *testing.T) {
	_, path, _ := small(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := lines(t, path)
	pack := func(lines []string) []byte {
		var b bytes.Buffer
		zip := gzip.NewWriter(&b)
		io.WriteString(zip, strings.Join(lines, ""))
		zip.Close()
		return b.Bytes()
	}
	without := func(i int) []byte { return pack(append(append([]string{}, text[:i]...), text[i+1:]...)) }
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	cases := map[string][]byte{"nothing": nil, "no backup": []byte("hello"), "one bit": flipped, "cut short": whole[:len(whole)-9], "without its manifest": without(len(text) - 1),
		"another format": pack([]string{`{"format":"other"}` + "\n"}), "another schema": pack([]string{strings.Replace(text[0], `"schema":`, `"schema":9`, 1)})}
	for i := 0; i < len(text)-1; i += 6 {
		cases[fmt.Sprintf("without line %d", i+1)] = without(i)
	}
	for name, content := range cases {
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Verify(background, bad); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	empty := storetest.Open(t)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, without(5), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Restore(background, empty, bad, "admin", time.Now()); err == nil {
		t.Error("restored")
	}
	if _, err := backup.Restore(background, empty, path, "admin", time.Now()); err != nil {
		t.Errorf("a failed attempt has left something: %v", err)
	}
}
