package gateway

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"
)

// A CA that is down does not keep the gateway from starting: each driver opens without a connection.
func TestDriversOpenFromTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	key, cert := testpki.Agent(t, "RA", time.Now(), time.Now().Add(time.Hour))
	encrypted, err := local.EncryptKey(key, []byte("words"))
	if err != nil {
		t.Fatal(err)
	}
	keyFile, pass := write("ra.key", encrypted), config.Secret{File: write("pass", []byte("words"))}
	root := write("root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	krb5 := write("krb5.conf", []byte("[libdefaults]\n default_realm = LAB.TEST\n"))
	keys := keytab.New()
	if err := keys.AddEntry("svc", "LAB.TEST", "words", time.Now(), 1, etypeID.AES256_CTS_HMAC_SHA1_96); err != nil {
		t.Fatal(err)
	}
	octets, err := keys.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	keytab := write("keytab", octets)
	cfg := &config.Config{Data: dir}
	cfg.Directory.Krb5Conf = krb5
	g := &Gateway{Config: cfg, now: time.Now}
	for _, c := range []config.CA{
		{Driver: "cmp", CMP: config.CMP{URL: "http://ca.test/pkix/", Root: root, Certificate: root, Key: keyFile, Passphrase: pass, CAFile: root}},
		{Driver: "cmp", CMP: config.CMP{URL: "https://ca.test/", Root: root, Secret: pass}},
		{Driver: "adcs", ADCS: config.ADCS{Server: "ca.lab.test", Authority: "CA", Root: root, Principal: "svc@LAB.TEST", Keytab: keytab}},
		{Driver: "scep", SCEP: config.SCEP{URL: "http://ca.test/scep", Root: root, Certificate: root, Key: keyFile, Passphrase: pass}},
		{Driver: "acme", ACME: config.ACME{Directory: "https://ca.test/dir", Root: root, Key: keyFile, Passphrase: pass, KeyID: "k", MACKey: config.Secret{File: write("mac", []byte("AAEC_w"))}}},
		{Driver: "aws-pca", AWSPCA: config.AWSPCA{ARN: "arn:aws:acm-pca:eu-central-1:1:certificate-authority/x", Root: root, AccessKeyID: "A", SecretAccessKey: pass}},
		{Driver: "aws-pca", AWSPCA: config.AWSPCA{ARN: "arn:aws:acm-pca:eu-central-1:1:certificate-authority/x", Root: root}},
	} {
		c.Name = "CA"
		issuer, err := g.openIssuer(c, &CA{Driver: c.Driver}, nil)
		if err != nil {
			t.Errorf("%s: %v", c.Driver, err)
			continue
		}
		if traits := upstream.TraitsOf(issuer); traits.Product == "" {
			t.Errorf("%s: %+v", c.Driver, traits)
		}
	}
	if _, err := g.openIssuer(config.CA{Name: "CA", Driver: "none"}, &CA{Driver: "none"}, nil); err == nil {
		t.Error("a driver that is not there opens")
	}
}
