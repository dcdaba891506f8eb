package kill

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/inlab"
)

// needStrace skips a test where strace is missing, but not in CI.
func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		inlab.Missing(t, "strace")
	}
}

// tracer is strace, attached to the gateway.
type tracer struct {
	cmd   *exec.Cmd
	ended chan struct{}
	file  string
}

// never is a count that no thread reaches.
const never = 60000

// trace attaches strace, which then kills the gateway before the n-th of calls that any one thread makes. (strace counts
// per thread.)
func (s *setup) trace(t *testing.T, calls string, n int) *tracer {
	t.Helper()
	tr := &tracer{file: filepath.Join(t.TempDir(), "strace"), ended: make(chan struct{})}
	// -yy names files and connections; -s 0 keeps what is written to them out of the file.
	tr.cmd = exec.Command("strace", "-f", "-yy", "-s", "0", "-p", strconv.Itoa(s.PID()), "-o", tr.file,
		"-e", "trace="+effects, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n))
	stderr, err := tr.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || !strings.Contains(first, "attached") {
		t.Fatalf("strace: %s %v", first, err)
	}
	go func() { _ = tr.cmd.Wait(); close(tr.ended) }()
	t.Cleanup(tr.kill)
	return tr
}

func (tr *tracer) kill() {
	_ = tr.cmd.Process.Kill()
	<-tr.ended
}

// end detaches strace and returns the calls that it has seen, in their order.
func (tr *tracer) end(t *testing.T, alive bool) []point {
	t.Helper()
	if !alive { // it ends by itself then
		select {
		case <-tr.ended:
		case <-time.After(5 * time.Second):
		}
	}
	tr.kill()
	text, err := os.ReadFile(tr.file)
	if err != nil {
		t.Fatal(err)
	}
	var out []point
	for line := range strings.Lines(string(text)) {
		if m := called.FindStringSubmatch(line); m != nil {
			out = append(out, point{m[1], target(m[2], line)})
		}
	}
	return out
}

// point is a system call and what it is about.
type point struct{ call, target string }

func (p point) String() string { return p.call + " " + p.target }

// called is the beginning of a call: thread, name, and a descriptor with its name.
var called = regexp.MustCompile(`^\d+ +(\w+)\(\d+<(.*?)>[,) ]`)

var directoryPorts = regexp.MustCompile(`:(389|88)\b|htons\((389|88)\)`)

// target says in one word where a call goes.
func target(name, line string) string {
	switch {
	case strings.HasSuffix(name, "enrollgate.db"), strings.HasSuffix(name, "enrollgate.db-wal"):
		return filepath.Base(name)
	case strings.HasPrefix(name, "TCP:") && strings.Contains(name, ":443->"):
		return "client"
	case directoryPorts.MatchString(line):
		return "directory"
	case strings.HasPrefix(name, "TCP:"):
		return "CA"
	case strings.Contains(name, "eventfd"):
		return "scheduler"
	}
	return "other (" + filepath.Base(name) + ")"
}
