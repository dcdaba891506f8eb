package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/test/world"
)

// What an auditor does: keep a checkpoint, verify the log against it later, and check, on another machine, the proof that a line
// is in the log.
func TestAnAuditorVerifiesTheLog(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	der, _ := world.Request(t, "LabUserAuth", nil)
	if _, err := w.Client(t, "alice").Submit(t, der); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, code := p.Output(t, args...)
		if code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, out)
		}
		return out
	}
	var c struct {
		Size       int64  `json:"size"`
		Checkpoint string `json:"checkpoint"`
		LogKey     string `json:"log_key"`
	}
	if err := json.Unmarshal([]byte(run("audit", "checkpoint", "--output", "json")), &c); err != nil || c.Size < 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	kept := filepath.Join(t.TempDir(), "checkpoint")
	if err := os.WriteFile(kept, []byte(c.Checkpoint), 0o600); err != nil {
		t.Fatal(err)
	}
	der, _ = world.Request(t, "LabUserAuth", nil)
	if _, err := w.Client(t, "bob").Submit(t, der); err != nil {
		t.Fatal(err)
	}
	if out := run("audit", "verify", "--checkpoint", kept); !strings.Contains(out, "intact") {
		t.Errorf("verify: %s", out)
	}
	proof := filepath.Join(t.TempDir(), "proof.json")
	if err := os.WriteFile(proof, []byte(run("audit", "prove", "2")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("audit", "check-proof", proof, "--log-key", c.LogKey); !strings.Contains(out, "line 2 is in the log") {
		t.Errorf("check-proof: %s", out)
	}
	lines := strings.Split(strings.TrimSpace(run("audit", "export", "--format", "jsonl")), "\n")
	if int64(len(lines)) <= c.Size || !strings.Contains(run("audit", "export"), "configuration-changed") {
		t.Errorf("%d lines exported, the checkpoint has %d", len(lines), c.Size)
	}
	for _, line := range strings.Split(strings.TrimSpace(run("audit", "export", "--format", "syslog", "--after", "1")), "\n") {
		if !strings.HasPrefix(line, "<8") || !strings.Contains(line, " enrollgate - ") {
			t.Errorf("syslog: %s", line)
		}
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(run("audit", "export", "--output", "json")), &list); err != nil || len(list) != len(lines) {
		t.Errorf("%d of %d lines as one list, %v", len(list), len(lines), err)
	}

	// A gateway that was put back to what it was before the checkpoint.
	w2, path2 := world.Prepare(t, "")
	p.Kill()
	p2 := world.NewProcess(t, w2, path2)
	if out, code := p2.Output(t, "audit", "verify", "--checkpoint", kept); code == 0 {
		t.Errorf("another log was taken for the one of the checkpoint: %s", out)
	}
}
