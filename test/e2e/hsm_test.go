package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/test/softhsm"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// inHardware keeps the lab's CA key and the exchange keys in a token.
func inHardware(t testing.TB, hsm *softhsm.Token) func(*config.Config) {
	t.Helper()
	text, err := os.ReadFile(world.Env("LAB_ISSUING_CA_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	text, err = os.ReadFile(world.Env("LAB_ISSUING_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(text)
	hsm.Import(t, "ca", "01", key, testpki.Cert(t, block.Bytes))
	return func(c *config.Config) {
		twoOfThree(c)
		c.CAs[0].Local.Key, c.CAs[0].Local.Passphrase = hsm.URI("ca"), config.Secret{}
		c.Escrow.ExchangeToken = hsm.URI("")
		c.Escrow.Policies[0].Hybrid = true
	}
}

// CA key, exchange key and one agent's key are in a token, and both agents have hybrid keys: one beside, one instead.
func TestKeysInHardwareAndHybridAgentsFromEnrollmentToMail(t *testing.T) {
	hsm := softhsm.New(t)
	w := world.StartChanged(t, "", inHardware(t, hsm))
	kra1, kra2 := designate(t, w, "kra1"), designate(t, w, "kra2")
	sh := newShell(t)
	hsm.Import(t, "kra1", "11", kra1.key, kra1.cert)
	p12, err := pkcs12.Modern.Encode(kra2.key, kra2.cert, nil, world.Env("LAB_PASSWORD"))
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{
		"kra1": {"--key", hsm.URI("kra1")},
		"kra2": {"--key", sh.write("kra2.p12", p12), "--key-password-env", "LAB_PASSWORD", "--only"},
	}
	for who, args := range keys {
		sh.local(nil, append([]string{"escrow", "agents", "hybrid-key", "--out", who + ".hybrid", "--public", who + ".json", "--hybrid-password-env", "LAB_PASSWORD"}, args...)...)
		sh.addHybrid(w, who+".json")
	}
	_, cert := archived(t, w)
	if list := hsm.Tool(t, "--list-objects", "--type", "privkey"); !strings.Contains(list, "enrollgate exchange") {
		t.Errorf("the exchange key is not in the token:\n%s", list)
	}
	sh.openssl(nil, "verify", "-partial_chain", "-CAfile", world.Env("LAB_ISSUING_CA_PEM"), sh.write("alice.pem", pemOf("CERTIFICATE", cert.Raw)))
	sh.openssl(nil, "cms", "-encrypt", "-aes256", "-in", sh.write("mail.txt", []byte("the offer\n")), "-out", "mail.p7m", "alice.pem")

	var opened struct {
		Case       int64
		Code, File string
	}
	sh.run("helpdesk", &opened, "open", "--owner", "alice", "--for", "alice@LAB.TEST", "--reason", "lost laptop")
	number := fmt.Sprint(opened.Case)
	// Without the hybrid key an agent's share stays closed.
	if text := sh.refused("kra1", 1, "approve", number, "--code", opened.Code, "--key", hsm.URI("kra1")); !strings.Contains(text, "hybrid key too") {
		t.Errorf("without the hybrid key: %s", text)
	}
	sh.run("kra1", nil, "approve", number, "--code", opened.Code, "--key", hsm.URI("kra1"), "--hybrid-key", "kra1.hybrid", "--hybrid-password-env", "LAB_PASSWORD")
	sh.run("kra2", nil, "approve", number, "--code", opened.Code, "--hybrid-key", "kra2.hybrid", "--hybrid-password-env", "LAB_PASSWORD")
	var fetched struct{ Password string }
	sh.run("helpdesk", &fetched, "fetch", number, "--case-key", opened.File, "--out", "user.p12")
	sh.openssl(nil, "pkcs12", "-in", "user.p12", "-passin", "pass:"+fetched.Password, "-nodes", "-nocerts", "-out", "recovered.key")
	if text := sh.openssl(nil, "cms", "-decrypt", "-in", "mail.p7m", "-recip", "alice.pem", "-inkey", "recovered.key"); !strings.Contains(string(text), "the offer") {
		t.Errorf("the mail says %q", text)
	}
	// The hybrid key's file is one that age opens.
	sh.ageOpens("kra2.hybrid", world.Env("LAB_PASSWORD"), "hybrid_private_key")
}
