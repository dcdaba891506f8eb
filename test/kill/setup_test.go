package kill

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/world"
)

// setup is a gateway that can be killed, and its CA, which goes on meanwhile.
type setup struct {
	*world.World
	*world.Process
	config string
	step   *server.Server // nil: the embedded CA
}

// withEachCA runs the same test with the embedded CA and with a step-ca.
func withEachCA(t *testing.T, test func(*testing.T, *setup)) {
	inlab.Need(t)
	for _, name := range []string{"embedded", "step-ca"} {
		t.Run(name, func(t *testing.T) {
			s := &setup{}
			s.World, s.config = world.Prepare(t, "")
			if name == "step-ca" {
				s.step = server.Start(t, stepca.Template)
				s.issueThrough(t, s.step)
			}
			s.Process = world.NewProcess(t, s.World, s.config)
			test(t, s)
		})
	}
}

// kill ends the gateway, or buries it. It must not have ended by anything but SIGKILL: not by a panic, for one.
func (s *setup) kill(t *testing.T) {
	t.Helper()
	s.Kill()
	state, text := s.End()
	if status, ok := state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the gateway ended by itself, %s:\n%s", state, text)
	}
}

// issueThrough puts a step-ca in the place of the embedded CA.
func (s *setup) issueThrough(t *testing.T, step *server.Server) {
	t.Helper()
	dir := filepath.Dir(s.config)
	for name, content := range map[string][]byte{"key.jwk": step.Key, "password": []byte(server.Password + "\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.change(t, `(?s)\n    local: \{.*?\}\}\n`, fmt.Sprintf(`
    driver: step-ca
    identity: own
    step_ca: {url: %q, root: %q, provisioner: %q, key: key.jwk, password: {file: password}}
`, step.URL, step.RootFile, server.Provisioner))
}

// change replaces a part of the configuration.
func (s *setup) change(t *testing.T, pattern, replacement string) {
	t.Helper()
	old, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	part := regexp.MustCompile(pattern)
	if !part.Match(old) {
		t.Fatalf("the configuration has nothing like %s:\n%s", pattern, old)
	}
	if err := os.WriteFile(s.config, part.ReplaceAllLiteral(old, []byte(replacement)), 0o600); err != nil {
		t.Fatal(err)
	}
}
