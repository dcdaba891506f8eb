package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/test/world"
)

// shell runs the program and OpenSSL in one folder.
type shell struct {
	t           testing.TB
	dir, binary string
}

func newShell(t testing.TB) *shell {
	t.Helper()
	s := &shell{t: t, dir: t.TempDir(), binary: filepath.Join(t.TempDir(), "enrollgate")}
	if out, err := exec.Command("go", "build", "-o", s.binary, "github.com/enrollgate/enrollgate/cmd/enrollgate").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return s
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func (s *shell) write(name string, content []byte) string {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return name
}

func (s *shell) command(account string, args ...string) *exec.Cmd {
	args = append([]string{"recovery"}, args...)
	if account != "" {
		args = append(args, "--url", "https://"+world.Env("LAB_GATEWAY"), "--ca-file", world.Env("LAB_CA_PEM"), "--principal", account+"@"+world.Env("LAB_REALM"), "--logon-password-env", "LAB_PASSWORD")
	}
	cmd := exec.Command(s.binary, append(args, "--output", "json")...)
	cmd.Dir = s.dir
	return cmd
}

// run runs recovery as an account; "" is somebody without a network.
func (s *shell) run(account string, into any, args ...string) {
	s.t.Helper()
	cmd := s.command(account, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("recovery %v: %v\n%s", args, err, stderr.String())
	}
	if into != nil {
		if err := json.Unmarshal(out, into); err != nil {
			s.t.Fatalf("recovery %v: %v: %s", args, err, out)
		}
	}
}

// local runs the program without a gateway.
func (s *shell) local(stdin []byte, args ...string) []byte {
	s.t.Helper()
	return s.tool(stdin, s.binary, args...)
}

// addHybrid designates an agent by its hybrid key, as escrow agents add does.
func (s *shell) addHybrid(w *world.World, file string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, file))
	if err != nil {
		s.t.Fatal(err)
	}
	key := &quorum.HybridKey{}
	if err := json.Unmarshal(text, key); err != nil {
		s.t.Fatal(err)
	}
	if err := w.Escrow.AddHybridAgent(background, key, "test"); err != nil {
		s.t.Fatal(err)
	}
}

// ageOpens decrypts a file with age, which asks for the password on a terminal: script makes one.
func (s *shell) ageOpens(file, password, want string) {
	s.t.Helper()
	cmd := exec.Command("script", "-qec", "age --decrypt "+file, "/dev/null")
	cmd.Dir, cmd.Stdin = s.dir, strings.NewReader(password+"\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
		s.t.Errorf("age: %v\n%s", err, out)
	}
}

func (s *shell) refused(account string, code int, args ...string) string {
	s.t.Helper()
	out, err := s.command(account, args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != code {
		s.t.Errorf("recovery %v: %v, want exit code %d\n%s", args, err, code, out)
	}
	return string(out)
}

func (s *shell) openssl(stdin []byte, args ...string) []byte {
	s.t.Helper()
	return s.tool(stdin, "openssl", args...)
}

func (s *shell) tool(stdin []byte, name string, args ...string) []byte {
	s.t.Helper()
	out, err := s.try(stdin, name, args...)
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
	}
	return out
}

func (s *shell) try(stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = s.dir, bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+filepath.Join(s.dir, "gnupg"))
	return cmd.CombinedOutput()
}

// listsAndEnds looks at keys and cases as each role, and ends two other cases.
func (s *shell) listsAndEnds(id int64) {
	s.t.Helper()
	var keys []cases.Key
	s.run("helpdesk", &keys, "keys", "alice")
	if len(keys) != 1 || keys[0].Policy != "mail" || keys[0].Required != 2 {
		s.t.Errorf("keys: %+v", keys)
	}
	var other struct{ Case int64 }
	s.run("helpdesk", &other, "open", "--owner", "alice", "--key", fmt.Sprint(keys[0].Record), "--for", "bob@LAB.TEST", "--reason", "curious", "--out", "other.key")
	s.run("kra2", nil, "deny", fmt.Sprint(other.Case), "--reason", "not for bob")
	s.run("helpdesk", &other, "open", "--owner", "alice", "--for", "alice@LAB.TEST", "--reason", "again", "--out", "another.key")
	s.run("helpdesk", nil, "withdraw", fmt.Sprint(other.Case), "--reason", "one is enough")
	var list []cases.Case
	s.run("kra3", &list, "list")
	if len(list) != 3 || list[0].State != cases.Withdrawn || list[1].State != cases.Denied || list[1].Note != "not for bob" || list[2].ID != id || list[2].State != cases.Open {
		s.t.Errorf("list: %+v", list)
	}
	s.refused("alice", 3, "list")
}

// readByOthers imports a PKCS#12 file with so many keys of Java and NSS.
func (s *shell) readByOthers(file, password string, keys int) {
	s.t.Helper()
	s.needs("keytool", "pk12util", "certutil")
	store := file + ".java"
	s.tool(nil, "keytool", "-importkeystore", "-noprompt", "-srckeystore", file, "-srcstoretype", "PKCS12", "-srcstorepass", password,
		"-destkeystore", store, "-deststoretype", "PKCS12", "-deststorepass", password)
	if out := s.tool(nil, "keytool", "-list", "-keystore", store, "-storepass", password); strings.Count(string(out), "PrivateKeyEntry") != keys {
		s.t.Errorf("keytool, %d keys:\n%s", keys, out)
	}
	db := "sql:" + file + ".nss"
	if err := os.Mkdir(filepath.Join(s.dir, file+".nss"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.tool(nil, "certutil", "-N", "-d", db, "--empty-password")
	s.tool(nil, "pk12util", "-i", file, "-d", db, "-W", password)
	if out := s.tool(nil, "certutil", "-K", "-d", db); strings.Count(string(out), "rsa ") != keys {
		s.t.Errorf("NSS, %d keys:\n%s", keys, out)
	}
}

// decryptedByGPGSM imports PKCS#12 files into GnuPG and decrypts mails with them.
func (s *shell) decryptedByGPGSM(files []string, password string, mails []string) (texts []string) {
	s.t.Helper()
	s.needs("gpgsm")
	home := filepath.Join(s.dir, "gnupg")
	if err := os.MkdirAll(home, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "gpg-agent.conf"), []byte("allow-loopback-pinentry\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.tool(nil, "gpgconf", "--kill", "all") })
	loopback := []string{"--batch", "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--disable-crl-checks"}
	for _, file := range files {
		s.importedByGPGSM(loopback, file, password)
	}
	for _, mail := range mails {
		texts = append(texts, string(s.tool([]byte(password+"\n"), "gpgsm", append(loopback, "--quiet", "--decrypt", mail)...)))
	}
	return texts
}

// importedByGPGSM imports a file. GnuPG 2.2 derives a wrong key from one salt in some hundred, whoever has written the file, so that it
// cannot decrypt one file in fifty: OpenSSL, which can, then writes it anew.
func (s *shell) importedByGPGSM(loopback []string, file, password string) {
	s.t.Helper()
	for range 5 {
		out, err := s.try([]byte(password+"\n"), "gpgsm", append(loopback, "--import", file)...)
		if err == nil {
			return
		}
		if !strings.Contains(string(out), "error parsing or decrypting the PKCS#12 file") {
			s.t.Fatalf("gpgsm --import %s: %v\n%s", file, err, out)
		}
		clear := file + ".pem"
		s.openssl(nil, "pkcs12", "-legacy", "-in", file, "-passin", "pass:"+password, "-nodes", "-out", clear)
		s.openssl(nil, "pkcs12", "-export", "-legacy", "-in", clear, "-certpbe", "PBE-SHA1-3DES", "-keypbe", "PBE-SHA1-3DES", "-passout", "pass:"+password, "-out", file)
	}
	s.t.Fatalf("gpgsm cannot decrypt %s, five times", file)
}

// needs skips the test, or fails it where CI is set, if a program is missing.
func (s *shell) needs(programs ...string) {
	s.t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") != "" {
				s.t.Fatalf("%s is missing: test/deps.sh installs it", p)
			}
			s.t.Skipf("%s is missing: test/deps.sh installs it", p)
		}
	}
}
