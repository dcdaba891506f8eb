// Package demo is the gateway's main job from end to end, for somebody to watch: a real Active Directory, a client that
// enrolls and has its key archived, a mail, a lost key, a recovery. Everything is done with the commands that an
// administrator has, with kinit and with OpenSSL.
//
// Run starts the lab and itself again inside it; Inside does the steps there.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/enrollgate/enrollgate/test/lab"
)

// Options say what happens after the steps.
type Options struct {
	Shell   bool   // open a shell in the live environment
	Command string // or run this command in it
}

// Run starts the lab and runs this program in it as "enrollgate demo --inside". It returns the exit code.
func Run(ctx context.Context, o Options) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "enrollgate-demo.")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	script, err := lab.Unpack(dir)
	if err != nil {
		return 0, err
	}
	args := []string{"ns", self, "demo", "--inside"}
	if o.Shell {
		args = append(args, "--shell")
	}
	if o.Command != "" {
		args = append(args, "--run", o.Command)
	}
	cmd := exec.CommandContext(ctx, script, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "DEMO_STARTED="+time.Now().Format(time.RFC3339Nano))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return exitCode(cmd.Run())
}

// exitCode separates a command that ran and failed from one that could not run.
func exitCode(err error) (int, error) {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if code := e.ExitCode(); code >= 0 {
			return code, nil
		}
		return 128, nil
	}
	return 0, err
}

// stage is the scenery of the demo: a work folder, a running gateway, the time line.
type stage struct {
	ctx     context.Context
	out     io.Writer // the time line
	dir     string
	self    string
	started time.Time
	gateway *exec.Cmd
	env     []string
}

// Inside does the steps in the lab and then what the options say. It returns the exit code.
func Inside(ctx context.Context, o Options) (int, error) {
	s := &stage{ctx: ctx, out: os.Stdout, started: time.Now()}
	if o.Command != "" {
		s.out = os.Stderr // standard output belongs to the command
	}
	if t, err := time.Parse(time.RFC3339Nano, os.Getenv("DEMO_STARTED")); err == nil {
		s.started = t
	}
	if os.Getenv("LAB_NS") == "" {
		return 0, errors.New("not inside the lab")
	}
	if err := s.set(); err != nil {
		return 0, err
	}
	defer s.strike()
	fmt.Fprintf(s.out, "\nenrollgate: a mail key's life, in a real Active Directory (%s)\n\n", os.Getenv("LAB_REALM"))
	for _, step := range s.steps() {
		begin := time.Now()
		proof, err := step.do()
		if err != nil {
			fmt.Fprintf(s.out, "%6.1f s  FAILED  %-22s %v\n", time.Since(s.started).Seconds(), step.name, err)
			s.showLog()
			return 1, nil
		}
		fmt.Fprintf(s.out, "%6.1f s  ok      %-22s %s  (%.1f s)\n", time.Since(s.started).Seconds(), step.name, indent(proof), time.Since(begin).Seconds())
	}
	switch {
	case o.Shell:
		fmt.Fprintln(s.out, "\nA shell in the live environment; exit ends it.", next)
		return exitCode(s.interactive("bash", "--norc", "-i").Run())
	case o.Command != "":
		return exitCode(s.interactive("bash", "-c", o.Command).Run())
	}
	fmt.Fprintf(s.out, "\nAll of it is real: Samba's KDC and directory, TLS, OpenSSL. The forest and its keys are gone now.\n%s\n", next)
	return 0, nil
}

const next = `
Try next, in the same environment (make demo-shell):
    enrollgate templates list
    enrollgate explain bob --template LabUserSMIME
    enrollgate requests list
    enrollgate escrow list
    enrollgate audit export
or a single command: make demo-run CMD='enrollgate explain carol --template LabUserSMIME --output json'`

func indent(s string) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n"+strings.Repeat(" ", 41))
}

// set builds the scenery: folder, configuration, environment.
func (s *stage) set() (err error) {
	if s.self, err = os.Executable(); err != nil {
		return err
	}
	s.dir = filepath.Join(os.Getenv("LAB_DIR"), "demo")
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	s.env = append(os.Environ(), "ENROLLGATE_CONFIG="+s.path("enrollgate.yaml"), "PATH="+filepath.Dir(s.self)+":"+os.Getenv("PATH"),
		"KRB5CCNAME=FILE:"+s.path("admin.ccache"), "PS1=enrollgate-demo$ ")
	config := fmt.Sprintf(configuration, s.path("data"), env("LAB_GATEWAY"), env("LAB_GW_IP"), env("LAB_TLS_PEM"), env("LAB_TLS_KEY"),
		env("LAB_KEYTAB_SVC"), env("LAB_LDAP_URL"), env("KRB5_CONFIG"), env("LAB_ISSUING_CA_PEM"), s.path("issuing-ca.key"), s.path("passphrase"))
	for name, text := range map[string]string{"enrollgate.yaml": config, "passphrase": "a passphrase that only this demo has\n", "mail.txt": mail} {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func env(name string) string { return os.Getenv(name) }

const configuration = `# The demo's gateway.
data: %s
public_name: %s
listen: {https: "%[3]s:443", http: "%[3]s:80", metrics: "127.0.0.1:9464"}
tls: {certificate: %[4]s, key: %[5]s}
kerberos: {keytab: %[6]s}
directory:
  servers: ["%[7]s"]
  krb5_conf: %[8]s
  bind: {method: gssapi, principal: svc-enroll}
policy: {id: "{6C1AB0A5-3E4B-4D6F-9C25-7A5F0B1D2E83}", friendly_name: LAB Enrollment Policy}
cas:
  - name: LAB Issuing CA
    local: {certificate: %[9]s, key: %[10]s, passphrase: {file: %[11]s}}
log: {level: info, format: json}
`

const mail = `From: Bob Baker <bob@lab.test>
To: Alice Archer <alice@lab.test>
Subject: the contract

Dear Alice, keep this one. You will need it in seven years.
`

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// strike ends the gateway; the lab's folder vanishes with its namespace.
func (s *stage) strike() {
	if s.gateway == nil || s.gateway.Process == nil {
		return
	}
	_ = s.gateway.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = s.gateway.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = s.gateway.Process.Kill()
	}
}

func (s *stage) showLog() {
	text, err := os.ReadFile(s.path("gateway.log"))
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	fmt.Fprintln(s.out, "\nThe gateway's last words:")
	for _, l := range lines[max(0, len(lines)-8):] {
		fmt.Fprintln(s.out, "  "+l)
	}
}

// interactive prepares a command with this process's terminal.
func (s *stage) interactive(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.dir, s.env, os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// call runs a command and returns what it prints; as names the credential cache, "" the administrator's.
func (s *stage) call(as, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(s.ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = s.dir, s.env, strings.NewReader(stdin)
	if as != "" {
		cmd.Env = append(cmd.Env, "KRB5CCNAME=FILE:"+s.path(as+".ccache"))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), &callError{err, strings.TrimSpace(stderr.String())}
	}
	return stdout.String(), nil
}

type callError struct {
	cause error
	text  string
}

func (e *callError) Error() string {
	if e.text == "" {
		return e.cause.Error()
	}
	return e.text
}

func (e *callError) Unwrap() error { return e.cause }

func (s *stage) enrollgate(as string, args ...string) (string, error) {
	return s.call(as, "", s.self, args...)
}

// logon gets a ticket with the lab's password.
func (s *stage) logon(account, cache string) error {
	_, err := s.call(cache, env("LAB_PASSWORD")+"\n", "kinit", account)
	return err
}
