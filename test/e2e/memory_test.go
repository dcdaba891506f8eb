package e2e

import (
	"crypto/rsa"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/enrollgate/enrollgate/test/remains"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// While keys are archived and recovered the process is stopped again and again, and its memory searched as a core file would
// have it, for every key whose archival is done; then it is ended by the signal that dumps core, and everything that it has left
// on the disk is searched.
func TestAttackCoreDumpWhileArchivingAndRecovering(t *testing.T) {
	t.Run("one agent", func(t *testing.T) { searchCores(t, "", 1) })
	t.Run("two agents", func(t *testing.T) {
		searchCores(t, `escrow: {policies: [{name: all, required: 2, managers: ['LAB\Certificate Managers'], approvers: ['LAB\Key Recovery Agents']}]}`, 2)
	})
}

func searchCores(t *testing.T, section string, agents int) {
	w, path := world.Prepare(t, section)
	p := world.NewProcess(t, w, path)
	for i := range agents - 1 {
		_, cert := testpki.Agent(t, fmt.Sprintf("kra %d", i), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
		if out, code := p.Output(t, "escrow", "agents", "add", testpki.PEM(t, "CERTIFICATE", cert.Raw)); code != 0 {
			t.Fatal(out)
		}
	}
	cores := t.TempDir()
	p.Dir = cores
	p.Start(t)
	clients := []*world.Client{w.Client(t, "alice"), w.Client(t, "alice")}
	var mu sync.Mutex
	var done []*rsa.PrivateKey
	stop := make(chan struct{})
	var group sync.WaitGroup
	for _, c := range clients {
		exchange := c.Exchange(t)
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				der, key := world.Request(t, "LabUserSMIME", exchange)
				if _, err := c.Submit(t, der); err != nil {
					return // the process is ended in the middle of it
				}
				mu.Lock()
				done = append(done, key)
				mu.Unlock()
			}
		})
	}
	p12, err := pkcs12.Modern.Encode(w.AgentKey, w.Agent, nil, "agent password")
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(t.TempDir(), "kra.p12")
	if err := os.WriteFile(agent, p12, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Env = []string{"AGENT=agent password", "OUT=user password"}
	found, searched, scanned := map[string]int{}, 0, 0
	for round := range 5 {
		time.Sleep(400 * time.Millisecond)
		if agents > 1 { // cases are recovered on other machines
			time.Sleep(time.Second)
		} else if out, code := p.Output(t, "escrow", "recover", "--owner", "alice", "--key", agent, "--key-password-env", "AGENT", "--out-password-env", "OUT",
			"--out", filepath.Join(t.TempDir(), fmt.Sprint(round)), "--reason", "drill"); code != 0 {
			t.Fatalf("recover: %d %s", code, out)
		}
		mu.Lock()
		parts := remains.Of(done)
		searched = len(done)
		mu.Unlock()
		scanned += parts.Memory(t, p.PID(), found)
	}
	t.Logf("%d keys, %d MiB of memory searched", searched, scanned>>20)
	if searched < 5 || scanned < 10<<20 {
		t.Errorf("only %d keys were archived, and %d octets searched", searched, scanned)
	}
	if len(found) > 0 {
		t.Errorf("%d parts of private keys are in the memory: %v", len(found), found)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.PID()))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0") {
		t.Errorf("core files are allowed: %v\n%s", err, limits)
	}
	if err := syscall.Kill(p.PID(), syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	close(stop)
	group.Wait()
	p.Kill() // collects it
	remains.Of(done).Files(t, cores, w.Dir())
}
