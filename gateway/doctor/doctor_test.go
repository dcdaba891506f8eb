package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

const day = 24 * time.Hour

// require compares an outcome, and looks for words in reason and fix.
func require(t *testing.T, what string, f Finding, outcome Outcome, words string) {
	t.Helper()
	if f.Outcome != outcome || !strings.Contains(f.Reason+" → "+f.Fix, words) {
		t.Errorf("%s: %+v, want %s with %q", what, f, outcome, words)
	}
	if f.Outcome == Attention && f.Fix == "" {
		t.Errorf("%s: no fix: %+v", what, f)
	}
}

func TestClocks(t *testing.T) {
	for ahead, want := range map[time.Duration]Outcome{0: OK, 2 * time.Minute: OK, -2 * time.Minute: OK, 3 * time.Minute: Attention, -3 * time.Minute: Attention, 6 * time.Minute: Attention} {
		require(t, ahead.String(), judgeClock("dc", ahead, 0), want, "")
	}
	require(t, "behind", judgeClock("dc", time.Hour, time.Hour), Attention, "this machine is 1h0m0s behind: Kerberos refuses more than 5m0s")
	require(t, "narrow", judgeClock("dc", -2*time.Second, 2*time.Second), Attention, "this machine is 2s ahead")
}

func TestHoldersOfAName(t *testing.T) {
	svc := ldapsync.Holder{Account: "svc", Domain: "corp.example", SPNs: []string{"http/enroll.corp.example"}}
	other, disabled := ldapsync.Holder{Account: "bob", Domain: "corp.example"}, svc
	disabled.Disabled = true
	keys := []kerberos.KeyInfo{{Principal: "SVC", Version: 2, Type: 18}}
	spn := "HTTP/enroll.corp.example"
	require(t, "one", judgeHolders(spn, []ldapsync.Holder{svc}, keys, true), OK, `corp.example\svc`)
	require(t, "none", judgeHolders(spn, nil, keys, true), Attention, "setspn -S HTTP/enroll.corp.example")
	require(t, "two", judgeHolders(spn, []ldapsync.Holder{svc, other}, keys, true), Attention, `2 accounts have it`)
	require(t, "disabled", judgeHolders(spn, []ldapsync.Holder{disabled}, keys, true), Attention, "is disabled")
	require(t, "another", judgeHolders(spn, []ldapsync.Holder{other}, keys, true), Attention, "no key of that account")
	require(t, "a keytab that names services", judgeHolders(spn, []ldapsync.Holder{other}, []kerberos.KeyInfo{{Principal: spn}}, true), OK, "")
	require(t, "no keytab", judgeHolders(spn, []ldapsync.Holder{other}, nil, false), OK, "")
}

func TestKeysOfAnAccount(t *testing.T) {
	const aes128, aes256, rc4 = 17, 18, 23
	key := func(version int, types ...int32) (out []kerberos.KeyInfo) {
		for _, e := range types {
			out = append(out, kerberos.KeyInfo{Principal: "HTTP/e.corp.example", Version: version, Type: e, TypeName: "t"})
		}
		return out
	}
	for what, c := range map[string]struct {
		keys    []kerberos.KeyInfo
		version int
		types   int
		rc4     bool
		want    Outcome
		words   string
	}{
		"as it should be":        {key(2, aes128, aes256), 2, 24, false, OK, "version 2"},
		"an older key, too":      {append(key(1, aes256), key(2, aes256)...), 2, 16, false, OK, "version 2"},
		"password changed":       {key(2, aes256), 3, 24, false, Attention, "password was changed"},
		"not replicated":         {key(4, aes256), 3, 24, false, Attention, "replicated"},
		"wrong account":          {[]kerberos.KeyInfo{{Principal: "bob", Version: 2, Type: aes256}}, 2, 24, false, Attention, "no key of svc"},
		"RC4 only":               {key(2, aes256), 2, 4, false, Attention, "KerberosEncryptionType AES128,AES256"},
		"nothing said":           {key(2, aes256), 2, 0, false, Attention, "RC4"},
		"nothing said, allowed":  {key(2, aes256, rc4), 2, 0, true, OK, ""},
		"no AES-256":             {key(2, aes128), 2, 24, false, Attention, "with aes256-cts-hmac-sha1-96"},
		"AES-256 of old version": {append(key(1, aes256), key(2, aes128)...), 2, 24, false, Attention, "AES-256"},
		"AES-128 is enough":      {key(2, aes128), 2, 8, false, OK, ""},
		"no AES-128":             {key(2, aes256), 2, 8, false, Attention, "with aes128-cts-hmac-sha1-96"},
		"version not readable":   {key(2, aes256), 0, 24, false, Unknown, "msDS-KeyVersionNumber"},
	} {
		h := &ldapsync.Holder{Account: "svc", SPNs: []string{"HTTP/E.corp.example"}, KeyVersion: c.version, EncryptionTypes: c.types}
		out := judgeKeytab("k", c.keys, h, c.rc4)
		if len(out) != 1 {
			t.Errorf("%s: %+v", what, out)
			continue
		}
		require(t, what, out[0], c.want, c.words)
	}
}

func newCertificate(t *testing.T, name string, from, to time.Time, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to}
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, parent, by = true, true, template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func TestTLSCertificates(t *testing.T) {
	now := time.Now()
	root, key := newCertificate(t, "root", now.Add(-day), now.Add(900*day), nil, nil)
	c, _ := newCertificate(t, "e.corp.example", now.Add(-time.Hour), now.Add(100*day), root, key)
	for what, x := range map[string]struct {
		name  string
		at    time.Time
		want  Outcome
		words string
	}{
		"good":       {"E.corp.example", now, OK, "good for"},
		"other name": {"f.corp.example", now, Attention, "get a certificate with the DNS name f.corp.example"},
		"ends":       {"e.corp.example", now.Add(80 * day), Attention, "renew it"},
		"ended":      {"e.corp.example", now.Add(101 * day), Attention, "it ended on"},
		"not yet":    {"e.corp.example", now.Add(-2 * time.Hour), Attention, "clock"},
	} {
		out := judge("c.pem", x.name, c, x.at)
		if len(out) != 1 {
			t.Errorf("%s: %+v", what, out)
			continue
		}
		require(t, what, out[0], x.want, x.words)
	}
	s := &templates.Snapshot{}
	require(t, "unknown root", trust("c.pem", []*x509.Certificate{c}, s, nil), Attention, "RootCA")
	require(t, "no directory", trust("c.pem", []*x509.Certificate{c}, s, errors.New("x")), Unknown, "is not known")
	s.PKI = []templates.PKIObject{{DN: "CN=root,CN=Certification Authorities,CN=Public Key Services,CN=Services,CN=Configuration,DC=x", Certificates: []*x509.Certificate{root}}}
	require(t, "the forest's root", trust("c.pem", []*x509.Certificate{c}, s, nil), OK, "members of the domain")
}

func TestOfferedTemplates(t *testing.T) {
	enroll := &security.Descriptor{HasDACL: true, DACL: []security.ACE{{Type: security.ACEAllowObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: "S-1-5-21-1-2-3-513"}}}
	denied := &security.Descriptor{HasDACL: true, DACL: append([]security.ACE{{Type: security.ACEDeny, Mask: security.MaskControlAccess, SID: security.Everyone}}, enroll.DACL...)}
	s := &templates.Snapshot{Unusable: map[string]string{"Odd": "unknown flag"}, Templates: []*templates.Template{{Name: "Good", Security: enroll}, {Name: "Denied", Security: denied}, {Name: "None", Security: &security.Descriptor{HasDACL: true}}}}
	out := judgeOffers(s, &templates.EnrollmentService{Name: "CA", Templates: []string{"good", "Denied", "None", "Odd", "Gone"}})
	if len(out) != 4 {
		t.Fatalf("%+v", out)
	}
	require(t, "denied", out[0], Attention, "nobody may enroll")
	require(t, "none", out[1], Attention, "nobody may enroll")
	require(t, "odd", out[2], Attention, "unknown flag")
	require(t, "gone", out[3], Attention, "no such template")
	out = judgeOffers(s, &templates.EnrollmentService{Name: "CA"})
	require(t, "nothing", out[0], Attention, "--templates")
}

func TestACheckThatHangsOrPanicsDoesNoHarm(t *testing.T) {
	p := &patient{timeout: 10 * time.Millisecond}
	hang := check{"hang", func(context.Context, *patient) ([]Finding, error) { select {} }}
	require(t, "hangs", hang.run(t.Context(), p)[0], Unknown, "not finished within 10ms")
	broken := check{"broken", func(context.Context, *patient) ([]Finding, error) { panic("x") }}
	require(t, "panics", broken.run(t.Context(), p)[0], Unknown, "panic: x")
	late := check{"late", func(ctx context.Context, _ *patient) ([]Finding, error) {
		<-ctx.Done()
		return []Finding{well("a", "found")}, ctx.Err()
	}}
	out := late.run(t.Context(), p)
	if len(out) != 2 || out[0].Outcome != OK || out[0].Check != "late" || out[1].Outcome != Unknown {
		t.Errorf("%+v", out)
	}
	if _, err := within(t.Context(), time.Millisecond, func(context.Context) (int, error) { select {} }); err == nil {
		t.Error("waited for ever")
	}
}

func TestAConfigurationThatCannotBeUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.yaml")
	if err := os.WriteFile(path, []byte("nonsense: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Examine(t.Context(), Options{Path: path})
	if len(r.Findings) != 1 || r.Attention != 1 {
		t.Fatalf("%+v", r)
	}
	require(t, "configuration", r.Findings[0], Attention, "config check")
}

func TestPortsOfTheConfiguration(t *testing.T) {
	var got []string
	for _, d := range doors(&config.Config{Listen: config.Listen{HTTPS: ":443", HTTP: "off", Metrics: ":9464", Certificate: ":8443"}}) {
		got = append(got, d.port)
	}
	if strings.Join(got, " ") != "443 8443" {
		t.Error(got)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p := &patient{timeout: time.Second, cfg: &config.Config{PublicName: "127.0.0.1", Listen: config.Listen{HTTPS: "off", HTTP: "off", Certificate: ":" + port}}}
	out, err := ports(t.Context(), p)
	if err != nil || len(out) != 1 {
		t.Fatalf("%v, %v", out, err)
	}
	require(t, "open", out[0], OK, "client certificate")
	l.Close()
	out, _ = ports(t.Context(), p)
	require(t, "closed", out[0], Attention, "start the gateway")
}
