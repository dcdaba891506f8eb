package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// secondCA makes an embedded CA that the directory does not publish.
func secondCA(t *testing.T, dir, name string) config.CA {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := local.SelfSigned(name, key, time.Now(), 5)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := local.EncryptKey(key, []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(file string, text []byte) string {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+file)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	no := false
	return config.CA{Name: name, Published: &no, Local: config.LocalCA{Certificate: write(".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Key: write(".key", sealed),
		Passphrase: config.Secret{File: write(".pass", []byte("passphrase\n"))}}}
}

func TestRoutesLeadToOtherCAs(t *testing.T) {
	dir := t.TempDir()
	w := world.StartChanged(t, "", func(c *config.Config) {
		c.CAs = append(c.CAs, secondCA(t, dir, "Mail CA"), secondCA(t, dir, "Server CA"))
		c.Routes = []config.Route{
			{Templates: []string{"LabUserAuth"}, Groups: []string{"Domain Computers"}, To: []config.Destination{{CA: "Server CA"}}}, // nobody here
			{Templates: []string{"LabUserSMIME"}, Domains: []string{"LAB.test"}, To: []config.Destination{{CA: "Mail CA", Weight: 3}}, Failover: []string{world.CAName}},
			{Templates: []string{"LabUserAuth"}, Groups: []string{"Domain Users"}, To: []config.Destination{{CA: "Mail CA"}, {CA: "Server CA", Weight: 1}}},
		}
	})
	alice := w.Client(t, "alice")
	der, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	reply, err := alice.Submit(t, der)
	if err != nil || reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	mail := testpki.Cert(t, reply.Certificate)
	chain, err := w.Signer("Mail CA").Issuer.Chain(background)
	if err != nil || mail.CheckSignatureFrom(chain[0]) != nil {
		t.Errorf("the mail certificate is by %s: %v", mail.Issuer, err)
	}
	if !bytes.Contains(reply.PKCS7, chain[0].Raw) {
		t.Error("the reply does not have the chain of the CA that signed")
	}
	row, err := w.Ledger.BySerial(background, "Mail CA", ledger.SerialText(mail))
	if err != nil || row.CA != world.CAName || row.Issuer != "Mail CA" || len(row.Route) != 2 {
		t.Errorf("%+v, %v", row, err)
	}
	seen := map[string]int{}
	for range 24 { // that all are by one of the two happens once in eight million times
		der, _ := world.Request(t, "LabUserAuth", nil)
		reply, err := alice.Submit(t, der)
		if err != nil {
			t.Fatal(err)
		}
		seen[testpki.Cert(t, reply.Certificate).Issuer.CommonName]++
	}
	if len(seen) != 2 || seen["Mail CA"] == 0 || seen["Server CA"] == 0 {
		t.Errorf("%v", seen)
	}
	e, err := w.Explain(background, "alice", "LabUserAuth", "")
	if err != nil || len(e.Signers) != 2 || e.Signers[1] != (gateway.Share{CA: "Server CA", Percent: 50}) {
		t.Errorf("%+v, %v", e, err)
	}
	if err := w.Revoke(background, row, "test", 1); err != nil {
		t.Error(err)
	}
	list, err := w.CAStatus(background)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, s := range list[1:] { // nothing was issued by the published one
		if s.Published || s.CRL == nil || s.CRL.Error != "" || s.State != "answers" {
			t.Errorf("%+v, %+v", s, s.CRL)
		}
	}
	crl, err := w.Signer("Mail CA").Local.CRL(background)
	if err != nil || !bytes.Contains(crl, mail.SerialNumber.Bytes()) {
		t.Errorf("the revoked certificate is not in its CA's list: %v", err)
	}
}

// The program, as a CA operator uses it.
func TestCAsAreListedAndTriedByTheProgram(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	enrolled(t, w.Client(t, "alice"), "LabUserAuth")
	var list []gateway.CAStatus
	run(t, p, 0, &list, "ca", "list")
	if len(list) != 1 || list[0].State != "answers" || list[0].CRL == nil || list[0].CRL.Error != "" || list[0].CRL.NextUpdate.Before(time.Now()) || list[0].NotAfter.IsZero() {
		t.Errorf("%+v", list)
	}
	var tried gateway.CATest
	run(t, p, 0, &tried, "ca", "test", world.CAName, "--template", "LabUserSMIME", "--principal", "alice")
	same := 0
	for _, l := range tried.Lines {
		if l.Verdict == "same" {
			same++
		} else if l.Verdict != "the CA's own" {
			t.Errorf("%+v", l)
		}
	}
	if tried.State != ledger.Issued || !tried.Revoked || same < 6 {
		t.Errorf("%+v", tried)
	}
	if text, code := p.Output(t, "ca", "test", world.CAName, "--template", "LabUserSMIME", "--principal", "alice"); code != 0 || !strings.Contains(text, "alice@lab.test") || !strings.Contains(text, "same") {
		t.Errorf("exit code %d\n%s", code, text)
	}
	if text, code := p.Output(t, "requests", "revoke", fmt.Sprint(tried.Request)); code != 0 {
		t.Errorf("revoking twice: exit code %d\n%s", code, text)
	}
	if text, code := p.Output(t, "requests", "settle", fmt.Sprint(tried.Request), "--resend", "--reason", "r"); code != 1 {
		t.Errorf("exit code %d\n%s", code, text)
	}
}

// A Microsoft CA's database comes into the ledger, and its certificates count; before that the gateway says what it would have done.
func TestADatabaseOfADCSIsComparedAndImported(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	client := w.Client(t, "alice")
	good := enrolled(t, client, "LabUserAuth")
	issuing, err := os.ReadFile(world.Env("LAB_ISSUING_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := testpki.Agent(t, "foreign", time.Now(), time.Now().AddDate(1, 0, 0))
	row := func(id int, requester, template string, der []byte) string {
		return fmt.Sprintf(`"%d","20 -- Issued","%s","%s","-----BEGIN CERTIFICATE-----%s%s%s-----END CERTIFICATE-----%[4]s"`, id, requester, template, "\r\n", b64(der), "\r\n")
	}
	export := filepath.Join(w.Dir(), "export.csv")
	text := strings.Join([]string{`"Issued Request ID","Request Disposition","Requester Name","Certificate Template","Binary Certificate"`,
		row(1, `LAB\alice`, "LabUserAuth", good.Raw), row(2, `LAB\nobody`, "LabUserAuth", foreign.Raw), `"3","31 -- Denied","LAB\bob","LabUserAuth","EMPTY"`}, "\r\n")
	if err := os.WriteFile(export, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var compared struct {
		Requests []gateway.Shadow
		Summary  map[string]int
	}
	run(t, p, 6, &compared, "ca", "shadow", export, "--all")
	if len(compared.Requests) != 2 || compared.Requests[0].Outcome != gateway.ShadowSame || compared.Requests[1].Outcome != gateway.ShadowRefused || compared.Summary["without a certificate"] != 1 {
		t.Errorf("%+v", compared)
	}
	var done gateway.ADCSImport
	chain := filepath.Join(w.Dir(), "old.pem")
	if err := os.WriteFile(chain, issuing, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, imported := range []int{1, 0} { // twice
		run(t, p, 0, &done, "ca", "import-adcs", export, "--ca", "Old CA", "--certificates", chain)
		if done.Imported != imported || done.Known != i || done.Without != 1 || len(done.Foreign) != 1 {
			t.Errorf("%+v", done)
		}
	}
	var rows []ledger.Row
	run(t, p, 0, &rows, "requests", "list")
	if len(rows) != 2 || rows[0].Issuer != "Old CA" || rows[0].SubjectSID != rows[1].SubjectSID || rows[0].Template != "LabUserAuth" || rows[0].State != ledger.Issued {
		t.Errorf("%+v", rows)
	}
}
