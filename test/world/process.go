package world

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/testpki"
)

// Process is the gateway as a process of its own, which can be killed and measured.
type Process struct {
	Env []string // variables that Start adds

	world *World
	// Dir is where the process runs; "" is the test's.
	Dir string
	// Port is where the process serves HTTPS; "" is the usual one.
	Port string

	binary string
	config string
	cmd    *exec.Cmd
	log    *bytes.Buffer
}

// NewProcess builds the program and designates a recovery agent; w and config come from Prepare.
func NewProcess(t testing.TB, w *World, config string) *Process {
	t.Helper()
	p := &Process{world: w, config: config, binary: filepath.Join(t.TempDir(), "enrollgate")}
	w.AgentKey, w.Agent = testpki.Agent(t, "kra", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	for _, c := range []*exec.Cmd{
		exec.Command("go", "build", "-o", p.binary, "github.com/enrollgate/enrollgate/cmd/enrollgate"),
		exec.Command(p.binary, "--config", config, "escrow", "agents", "add", testpki.PEM(t, "CERTIFICATE", w.Agent.Raw)),
	} {
		c.Env = append(os.Environ(), "GOEXPERIMENT=runtimesecret") // as the Makefile builds it
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	t.Cleanup(p.Kill)
	return p
}

// Twin is another process of the same program, with a configuration of its own.
func (p *Process) Twin(t testing.TB, config, port string) *Process {
	t.Helper()
	twin := &Process{world: p.world, config: config, binary: p.binary, Port: port}
	t.Cleanup(twin.Kill)
	return twin
}

// Command is another command of the program, with the same configuration.
func (p *Process) Command(args ...string) *exec.Cmd {
	return exec.Command(p.binary, append(args, "--config", p.config)...)
}

// Start runs the process and waits until it can decide.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	p.log = &bytes.Buffer{}
	p.cmd = exec.Command(p.binary, "serve", "--config", p.config)
	p.cmd.Env, p.cmd.Dir = append(os.Environ(), p.Env...), p.Dir
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := p.world.HTTP()
	client.Timeout = time.Second
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, err := client.Get("https://" + Env("LAB_GATEWAY") + p.Port + "/healthz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			p.Kill()
			t.Fatalf("the gateway does not come up: %v\n%s", err, p.log.String())
		}
	}
}

// Output runs another command of the program, with the same configuration, and returns what it printed and its exit code.
func (p *Process) Output(t testing.TB, args ...string) (output string, code int) {
	t.Helper()
	c := p.Command(args...)
	c.Env = append(os.Environ(), p.Env...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if stderr.Len() > 0 {
		t.Logf("%v: %s", args, stderr.String())
	}
	return stdout.String(), code
}

// Kill ends the process at once, as a power cut would.
func (p *Process) Kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// Stop asks the process to end, as systemd does, and returns how it ended and what it had written.
func (p *Process) Stop(t testing.TB) (*os.ProcessState, string) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	return p.End()
}

// PID is the number of the process that Start ran last.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// End tells how the process ended, after Kill, and what it had written.
func (p *Process) End() (*os.ProcessState, string) { return p.cmd.ProcessState, p.log.String() }

// Alive tells whether the process that Start ran last still runs.
func (p *Process) Alive() bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(text, []byte(") ")) // the state follows the name (proc(5))
	return ok && rest[0] != 'Z' && rest[0] != 'X'
}

// CPU is the processor time that the process has used.
func (p *Process) CPU() (time.Duration, error) { return CPU(p.PID()) }

// CPU is the processor time that a process has used.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold blanks; utime and stime are the 12th and 13th fields after it (proc(5)).
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * (time.Second / 100), err // USER_HZ is 100 on every architecture
}

// Memory is the resident memory of the process in octets.
func (p *Process) Memory(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
