package audit_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// Others compute the root from the exported lines alone (Python), and verify the signature over it (OpenSSL).
func TestOthersCheckACheckpoint(t *testing.T) {
	db := testpki.DB(t)
	s, _ := newSigner(t)
	appendLines(t, db, 21)
	c := sign(t, db, s)
	var exported bytes.Buffer
	if err := audit.Each(context.Background(), db.SQL, 0, func(l audit.Line) error {
		text, err := l.JSON()
		exported.Write(append(text, '\n'))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "testdata/root.py")
	cmd.Stdin = &exported
	root, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	text, signature, ok := strings.Cut(c.Note, "\n\n— ")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 3 || lines[2] != strings.TrimSpace(string(root)) {
		t.Fatalf("the checkpoint\n%s\nPython's root %s", c.Note, root)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Fields(signature)[1])
	if err != nil || len(raw) != 4+64 {
		t.Fatalf("signature of %d octets, %v", len(raw), err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.SplitN(s.VerifierKey(), "+", 3)[2])
	if err != nil {
		t.Fatal(err)
	}
	// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 4): a fixed head and the 32 octets after the algorithm's.
	spki := append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}, key[1:]...)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if out, err := testpki.OpenSSL(t, nil, "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", file("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
		"-sigfile", file("sig", raw[4:]), "-in", file("text", []byte(text+"\n"))); err != nil {
		t.Errorf("OpenSSL: %v %s", err, out)
	}
}

func TestSyslogLinesHaveTheirHeader(t *testing.T) {
	l := audit.Line{Seq: 7, Time: now, Actor: "alice@LAB.TEST", Event: audit.RequestDenied, Detail: []byte(`{"reason":"no\nright"}`)}
	text, err := l.Syslog("enroll.lab.test\n x")
	want := `<84>1 2026-11-25T12:00:00Z enroll.lab.testx enrollgate - request-denied [meta sequenceId="7"] {"seq":7,`
	if err != nil || !strings.HasPrefix(text, want) || strings.Contains(text, "\n") {
		t.Errorf("%q, %v", text, err)
	}
}
