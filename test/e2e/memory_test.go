package e2e

import (
	"bufio"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// secrets finds parts of private keys in memory and files: eight octets out of each prime and of the private exponent, in both
// orders, which are those of DER and of Go's numbers and Windows's blobs.
type secrets struct {
	first [1 << 16]bool // the first two octets of any pattern
	parts map[uint64]string
}

func newSecrets(keys []*rsa.PrivateKey) *secrets {
	s := &secrets{parts: map[uint64]string{}}
	for i, key := range keys {
		for name, number := range map[string][]byte{"p": key.Primes[0].Bytes(), "q": key.Primes[1].Bytes(), "d": key.D.Bytes()} {
			for _, at := range []int{8, len(number) / 2, len(number) - 16} {
				part := slices.Clone(number[at : at+8])
				for range 2 {
					word := binary.LittleEndian.Uint64(part)
					s.first[uint16(word)], s.parts[word] = true, fmt.Sprintf("key %d, %s at %d", i, name, at)
					slices.Reverse(part)
				}
			}
		}
	}
	return s
}

// in are the parts in a text.
func (s *secrets) in(text []byte, found map[string]int) {
	for i := 0; i+8 <= len(text); i++ {
		if s.first[binary.LittleEndian.Uint16(text[i:])] {
			if name, ok := s.parts[binary.LittleEndian.Uint64(text[i:])]; ok {
				found[name]++
			}
		}
	}
}

// memoryOf reads all memory that a process can write to: what a core file has of it. It is stopped meanwhile.
func memoryOf(t testing.TB, pid int, each func([]byte)) (total int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err1 := strconv.ParseInt(from, 16, 64)
		end, err2 := strconv.ParseInt(to, 16, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		for at := begin; at < end; at += 1 << 22 {
			part := make([]byte, min(1<<22, end-at))
			if n, err := mem.ReadAt(part, at); n > 0 && (err == nil || n == len(part)) {
				each(part)
				total += n
			}
		}
	}
	return total
}

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
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				der, key := world.Request(t, "LabUserSMIME", c.Exchange(t))
				if _, err := c.Submit(t, der); err != nil {
					return
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
		s := newSecrets(done)
		searched = len(done)
		mu.Unlock()
		scanned += memoryOf(t, p.PID(), func(part []byte) { s.in(part, found) })
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
	searchFiles(t, newSecrets(done), cores, w.Dir())
}

// searchFiles looks at everything that was written.
func searchFiles(t testing.TB, s *secrets, dirs ...string) {
	t.Helper()
	files := 0
	for _, dir := range dirs {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			found := map[string]int{}
			s.in(text, found)
			if len(found) > 0 {
				t.Errorf("%s has %d parts of private keys", path, len(found))
			}
			if strings.HasPrefix(d.Name(), "core") {
				t.Errorf("there is a core file: %s", path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if files < 2 {
		t.Errorf("only %d files were looked at", files)
	}
}
