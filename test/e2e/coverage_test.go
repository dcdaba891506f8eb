package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/escrow/verify"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// mailCertificate is one of another CA.
func mailCertificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key := testpki.RSA(t, 2048)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "Bob Baker"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}},
		&x509.Certificate{Subject: pkix.Name{CommonName: "Old Mail CA"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

// ofAnotherCA writes a mail certificate into userCertificate, with ldapmodify.
func ofAnotherCA(t *testing.T, dn string) *x509.Certificate {
	t.Helper()
	cert := mailCertificate(t)
	openLDAP(t, "dn: "+dn+"\nchangetype: modify\nadd: "+userCertificate+"\n"+userCertificate+":: "+b64(cert.Raw)+"\n", "ldapmodify")
	return cert
}

// covered is what escrow coverage prints.
type covered struct {
	Certificates []coverage.Certificate
	Summary      coverage.Summary
}

// run runs a command whose JSON goes into out, and requires the exit code.
func run(t *testing.T, p *world.Process, want int, out any, args ...string) {
	t.Helper()
	text, code := p.Output(t, append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(text), out); err != nil || code != want {
		t.Fatalf("%v: exit code %d, want %d: %v\n%s", args, code, want, err, text)
	}
}

// The program, as an operator runs it: what is archived, what was issued elsewhere and never archived, and what Prometheus sees.
func TestCoverageAndVerificationByTheProgram(t *testing.T) {
	unpublished(t)
	alice, bob := userDN(t, "Alice Archer"), userDN(t, "Bob Baker")
	old := ofAnotherCA(t, bob)
	metrics := world.Env("LAB_GW_IP") + ":9464"
	w, path := world.Prepare(t, fmt.Sprintf("listen: {https: %q, http: %q, metrics: %q}", world.Env("LAB_GW_IP")+":443", world.Env("LAB_GW_IP")+":80", metrics))
	p := world.NewProcess(t, w, path)
	p.Start(t)
	client := w.Client(t, "alice")
	mail := enrolled(t, client, "LabUserSMIME")
	enrolled(t, client, "LabUserAuth") // which does not encrypt
	eventually(t, "publication", func() bool { return has(t, alice, mail.Raw) })

	var own, all, missing, bobs covered
	run(t, p, 0, &own, "escrow", "coverage")
	if len(own.Certificates) != 1 || own.Certificates[0].Serial != ledger.SerialText(mail) || own.Certificates[0].State != coverage.Held || own.Certificates[0].Owner != "alice@LAB.TEST" ||
		len(own.Certificates[0].Agents) != 1 || own.Certificates[0].Foreign || own.Summary.Total.Held != 1 {
		t.Errorf("%+v", own)
	}
	run(t, p, 6, &all, "escrow", "coverage", "--directory")
	run(t, p, 6, &missing, "escrow", "coverage", "--directory", "--missing")
	run(t, p, 6, &bobs, "escrow", "coverage", "--directory", "--owner", "bob")
	if len(all.Certificates) != 2 || len(missing.Certificates) != 1 || len(bobs.Certificates) != 1 {
		t.Fatalf("%+v\n%+v\n%+v", all, missing, bobs)
	}
	for _, c := range []coverage.Certificate{all.Certificates[1], missing.Certificates[0], bobs.Certificates[0]} {
		if !c.Foreign || c.State != coverage.Missing || c.Serial != ledger.SerialText(old) || c.Issuer != "CN=Old Mail CA" || c.Owner != "bob@LAB.TEST" {
			t.Errorf("%+v", c)
		}
	}
	if text, code := p.Output(t, "escrow", "coverage", "--directory"); code != 6 || !strings.Contains(text, "(issued elsewhere)") || !strings.Contains(text, "1 of 1") {
		t.Errorf("exit code %d\n%s", code, text)
	}

	var checked struct {
		Findings []verify.Finding
		Summary  verify.Report
	}
	run(t, p, 0, &checked, "escrow", "verify")
	if checked.Summary.Records != 1 || checked.Summary.Unhashed != 0 || len(checked.Findings) != 0 {
		t.Errorf("%+v", checked)
	}
	p.Stop(t)
	p.Start(t)
	scraped(t, metrics, `enrollgate_escrow_certificates{state="held"} 1`, `enrollgate_escrow_certificates{state="missing"} 0`, `enrollgate_escrow_certificates{state="closed"} 0`,
		"enrollgate_escrow_unproven_records 1", "enrollgate_escrow_verify_bad_records 0", "enrollgate_escrow_coverage_age_seconds 0", "enrollgate_escrow_verify_age_seconds ")

	// Somebody who can write to the database removes the record.
	p.Stop(t)
	write(t, w, "DELETE FROM escrow_words")
	write(t, w, "DELETE FROM escrow_records")
	run(t, p, 1, &checked, "escrow", "verify")
	if checked.Summary.Bad != 1 || len(checked.Findings) != 1 || checked.Findings[0].Owner != "alice@LAB.TEST" {
		t.Errorf("%+v", checked)
	}
	run(t, p, 6, &own, "escrow", "coverage")
	p.Start(t)
	scraped(t, metrics, `enrollgate_escrow_certificates{state="missing"} 1`, "enrollgate_escrow_verify_bad_records 1")
}

// scraped waits for metrics that begin with these texts.
func scraped(t *testing.T, address string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		eventually(t, line, func() bool { return bytes.Contains(fetch(t, "http://"+address+"/"), []byte("\n"+line)) })
	}
}

// write does what somebody can who writes to the database, while no gateway runs.
func write(t *testing.T, w *world.World, query string) {
	t.Helper()
	db, err := store.Open(background, filepath.Join(w.Dir(), "data", "enrollgate.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.SQL.Exec(query); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
