package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// cepces enrolls with user name and password, and renews with the certificate that it got. CEPCES names its source, and with a
// colon that of requests-gssapi, which it needs; no Debian package has them.
func TestCepcesEnrollsWithoutKerberos(t *testing.T) {
	source := os.Getenv("CEPCES")
	if source == "" {
		t.Skip("needs the source of cepces: CEPCES=/path/to/cepces:/path/to/requests-gssapi")
	}
	cepces, gssapi, _ := strings.Cut(source, ":")
	world.StartChanged(t, "", everyWay)
	dir := t.TempDir()
	submit := func(endpoint, auth, section string) *x509.Certificate {
		t.Helper()
		conf := "[global]\nserver=" + world.Env("LAB_GATEWAY") + "\nauth=" + auth + "\ntype=Policy\nendpoint=" + endpoint + "\ncas=" + world.Env("LAB_CA_PEM") + "\npoll_interval=60\n" + section
		if err := os.WriteFile(filepath.Join(dir, "cepces.conf"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		csr, err := testpki.OpenSSL(t, nil, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", filepath.Join(dir, "new.key"), "-subj", "/CN=any",
			"-addext", "1.3.6.1.4.1.311.20.2=ASN1:BMPSTRING:LabUserAuth")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/usr/bin/python3", filepath.Join(cepces, "bin/cepces-submit"))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(cepces, "src")+":"+filepath.Join(gssapi, "src"),
			"CERTMONGER_OPERATION=SUBMIT", "CERTMONGER_CSR="+string(csr), "CERTMONGER_CA_PROFILE=LabUserAuth")
		if old, err := os.ReadFile(filepath.Join(dir, "cert.pem")); err == nil { // then it is a renewal
			cmd.Env = append(cmd.Env, "CERTMONGER_CERTIFICATE="+string(old))
		}
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, out.String(), errs.String())
		}
		block, _ := pem.Decode(out.Bytes())
		if block == nil {
			t.Fatalf("no certificate in %q", out.String())
		}
		if err := os.Rename(filepath.Join(dir, "new.key"), filepath.Join(dir, "key.pem")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cert.pem"), out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return testpki.Cert(t, block.Bytes)
	}
	host := "https://" + world.Env("LAB_GATEWAY")
	first := submit(host+soap.Password.CEPPath, "UsernamePassword", "[usernamepassword]\nusername=alice\npassword="+world.Env("LAB_PASSWORD")+"\n")
	second := submit(host+certificateListener+soap.Certificate.CEPPath, "Certificate",
		"[certificate]\ncertfile="+filepath.Join(dir, "cert.pem")+"\nkeyfile="+filepath.Join(dir, "key.pem")+"\n")
	if !strings.Contains(first.Subject.String(), "Alice Archer") || first.Subject.String() != second.Subject.String() || first.SerialNumber.Cmp(second.SerialNumber) == 0 {
		t.Errorf("%s, then %s", first.Subject, second.Subject)
	}
}
