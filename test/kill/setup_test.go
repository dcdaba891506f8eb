package kill

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/ejbca/ejbcaserver"
	"github.com/enrollgate/enrollgate/test/world"
)

// setup is a gateway that can be killed, and its CA, which goes on meanwhile.
type setup struct {
	*world.World
	*world.Process
	config string
	step   *server.Server      // where step-ca signs
	ejbca  *ejbcaserver.Server // where EJBCA does
}

// withEachCA runs the same test with CAs that settle a lost answer in different ways.
func withEachCA(t *testing.T, names []string, test func(*testing.T, *setup)) {
	inlab.Need(t)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			s := &setup{}
			s.World, s.config = world.Prepare(t, "")
			switch name {
			case "step-ca":
				s.step = server.Start(t, stepca.Template)
				s.issueThrough(t, s.step)
			case "EJBCA":
				s.issueThroughEJBCA(t)
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

// issueThroughEJBCA puts an EJBCA in the place of the embedded CA. It recognizes no order: what became of one is found by its end entity.
func (s *setup) issueThroughEJBCA(t *testing.T) {
	t.Helper()
	s.ejbca = ejbcaserver.New(t)
	s.ejbca.KeyUsage |= x509.KeyUsageDigitalSignature
	a := s.ejbca.Authority
	listener := httptest.NewUnstartedServer(s.ejbca)
	listener.TLS = a.Server(t, true)
	listener.Config.ErrorLog = log.New(io.Discard, "", 0) // connections of who is killed
	listener.StartTLS()
	t.Cleanup(listener.Close)
	pair := a.Client(t, "gateway").Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range pair.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	client := filepath.Join(filepath.Dir(s.config), "client.pem")
	if err := os.WriteFile(client, chain, 0o600); err != nil {
		t.Fatal(err)
	}
	root := testpki.PEM(t, "CERTIFICATE", a.Root.Raw)
	s.change(t, `(?s)\n    local: \{.*?\}\}\n`, fmt.Sprintf(`
    driver: ejbca
    ejbca: {url: %q, root: %q, ca_file: %[2]q, certificate: %q, key: %q, ca: Mail CA, certificate_profile: Mail, end_entity_profile: Users, extensions: %s}
`, listener.URL, root, client, testpki.PEM(t, "PRIVATE KEY", key), customExtensions))
}

// customExtensions are what EJBCA has to be told of Windows' extensions.
const customExtensions = `["1.3.6.1.4.1.311.20.2", "1.3.6.1.4.1.311.21.7", "1.3.6.1.4.1.311.21.10", "1.3.6.1.4.1.311.25.2", "1.2.840.113549.1.9.15"]`

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
