package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/backup"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/test/world"
)

// An administrator's bad day: a backup while the gateway runs, a lost database, its restoration on PostgreSQL; and a key that
// was archived before is recovered from it.
func TestADayWithABackup(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	alice := w.Client(t, "alice")
	der, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if _, err := alice.Submit(t, der); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup")
	run := func(want int, args ...string) string {
		t.Helper()
		out, code := p.Output(t, args...)
		if code != want {
			t.Fatalf("%v: exit code %d, want %d: %s", args, code, want, out)
		}
		return out
	}
	run(0, "backup", "create", file)
	run(1, "backup", "create", file)
	run(0, "backup", "verify", file)
	run(1, "restore", file) // the database is not empty
	checkpoint := filepath.Join(t.TempDir(), "checkpoint")
	der, _ = world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if _, err := alice.Submit(t, der); err != nil { // after the backup
		t.Fatal(err)
	}
	if err := os.WriteFile(checkpoint, []byte(run(0, "audit", "checkpoint")), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(cfg.Data, "enrollgate.db"+suffix)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	onPostgres(t, path)
	var m backup.Manifest
	if err := json.Unmarshal([]byte(run(0, "restore", file, "--output", "json")), &m); err != nil || m.Tables["escrow_records"].Rows != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	p.Start(t)
	if out := run(0, "audit", "verify"); !strings.Contains(out, "intact") {
		t.Error(out)
	}
	run(1, "audit", "verify", "--checkpoint", checkpoint) // newer than the backup
	if out := run(0, "escrow", "list", "--owner", "alice"); !strings.Contains(out, "alice@LAB.TEST") {
		t.Error(out)
	}
	holdAndDestroy(t, run)
}

func holdAndDestroy(t *testing.T, run func(code int, args ...string) string) {
	t.Helper()
	run(0, "escrow", "hold", "1", "--reason", "a trial")
	run(3, "escrow", "destroy", "1", "--reason", "no")
	run(0, "escrow", "release", "1", "--reason", "it is over")
	run(0, "escrow", "destroy", "1", "--reason", "she has left")
	if out := run(0, "escrow", "list"); !strings.Contains(out, "destroyed") {
		t.Error(out)
	}
}
