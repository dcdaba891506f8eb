package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/world"
)

const nativeCA = "Native Test CA"

// native is a configuration with the lab's CA and one that the forest does not know.
type native struct {
	*gitops
	config      string
	certificate []byte // DER
}

// newNative requires that everything below CN=Public Key Services is in the end as it was.
func newNative(t *testing.T) *native {
	t.Helper()
	n := &native{gitops: newGitops(t)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if n.certificate, err = local.SelfSigned(nativeCA, key, time.Now().Add(-time.Hour), 5); err != nil {
		t.Fatal(err)
	}
	encrypted, err := local.EncryptKey(key, []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	certificate := n.write(t, "native.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.certificate})))
	keyFile, pass := n.write(t, "native.key", string(encrypted)), n.write(t, "native.pass", "passphrase\n")
	section := fmt.Sprintf("cas:\n  - name: %s\n    local: {certificate: %s, key: %s, passphrase: {file: %s}}", nativeCA, certificate, keyFile, pass)
	_, n.config = world.Prepare(t, section)

	before := n.everything(t)
	t.Cleanup(func() {
		n.init(t, -1, "--ca", nativeCA, "--remove", "--with-trust", "--apply", "--yes")
		if after := n.everything(t); !slices.Equal(before, after) {
			t.Errorf("the forest is not as it was; before and after:\n%s\n\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	})
	return n
}

// everything is all that the forest says about certificates, apart from who wrote it when.
func (n *native) everything(t *testing.T) []string { return stored(t, "(objectClass=*)", identity...) }

// init runs the command as Administrator; code -1 takes any exit code.
func (n *native) init(t *testing.T, code int, args ...string) string {
	t.Helper()
	return n.command(t, code, append(append([]string{"init", "--native", "--config", n.config}, args...), n.as...)...)
}

func (n *native) command(t *testing.T, code int, args ...string) string {
	t.Helper()
	c := exec.Command(n.binary, args...)
	out, err := c.CombinedOutput()
	got := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code && code >= 0 {
		t.Fatalf("%v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return string(out)
}

// TestNativeAnUnknownCAIsPublished starts with a forest that does not know the CA.
func TestNativeAnUnknownCAIsPublished(t *testing.T) {
	n := newNative(t)
	before := n.everything(t)
	args := []string{"--ca", nativeCA, "--templates", "LabUserAuth,labmachine"}
	if out := n.init(t, 5, args...); !strings.Contains(out, "+allow enroll for NT AUTHORITY\\Authenticated Users") || !strings.Contains(out, "+LabMachine") {
		t.Error(out)
	}
	n.init(t, 2, append(args, "--apply")...) // nobody can be asked
	own := append([]string{"init", "--native", "--config", n.config}, args...)
	if out := n.command(t, 5, own...); !strings.Contains(out, "+LabMachine") { // the gateway's own account may look
		t.Error(out)
	}
	if out := n.command(t, 1, append(own, "--apply", "--yes")...); !strings.Contains(out, "name one that may with --bind-principal") {
		t.Error(out)
	}
	if after := n.everything(t); !slices.Equal(before, after) {
		t.Error("a plan has written")
	}
	if out := n.init(t, 0, append(args, "--apply", "--yes")...); !strings.Contains(out, "a second plan has no changes") {
		t.Error(out)
	}
	if out := n.init(t, 0, args...); !strings.Contains(out, "no changes") || strings.Contains(out, "to be") {
		t.Error(out)
	}
	n.published(t)
	n.seenBySamba(t)
	n.seenByCertipy(t)

	// What was there is there still.
	after := n.everything(t)
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("gone: %s", line)
		}
	}
	n.served(t)

	// Another run with less asked for takes nothing away.
	if out := n.init(t, 0, "--ca", nativeCA); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
}

// published looks with OpenLDAP's and Samba's tools.
func (n *native) published(t *testing.T) {
	t.Helper()
	der := base64.StdEncoding.EncodeToString(n.certificate)
	service := strings.Join(stored(t, "(&(objectClass=pKIEnrollmentService)(cn="+nativeCA+"))"), "\n")
	url := "1\n2\n0\nhttps://" + world.Env("LAB_GATEWAY") + "/Native%20Test%20CA_CES_Kerberos/service.svc/CES\n0"
	for _, want := range []string{"displayName: " + nativeCA, "dNSHostName: " + world.Env("LAB_GATEWAY"), "flags: 10", "cACertificate:: " + der, "cACertificateDN: CN=" + nativeCA,
		"certificateTemplates: LabMachine", "certificateTemplates: LabUserAuth", "msPKI-Enrollment-Servers:: " + base64.StdEncoding.EncodeToString([]byte(url))} {
		if !strings.Contains(service+"\n", want+"\n") {
			t.Errorf("no %q in\n%s", want, service)
		}
	}
	host, _, _ := strings.Cut(world.Env("LAB_GATEWAY"), ".")
	for _, dn := range []string{"CN=" + nativeCA + ",CN=Certification Authorities", "CN=" + nativeCA + ",CN=AIA", "CN=NTAuthCertificates"} {
		out := openLDAP(t, "", "ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-s", "base", "-b", dn+","+pkiBase(), "cACertificate")
		if !strings.Contains(out, "cACertificate:: "+der+"\n") {
			t.Errorf("%s: %s", dn, out)
		}
	}
	out := openLDAP(t, "", "ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-s", "base", "-b", "CN="+nativeCA+",CN="+host+",CN=CDP,"+pkiBase(), "certificateRevocationList")
	_, text, _ := strings.Cut(out, "certificateRevocationList:: ")
	list, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	issuer, err := x509.ParseCertificate(n.certificate)
	if err != nil {
		t.Fatal(err)
	}
	if crl, err := x509.ParseRevocationList(list); err != nil || crl.CheckSignatureFrom(issuer) != nil {
		t.Errorf("revocation list: %v", err)
	}
	dacl := sambaACL(t, "CN="+nativeCA+",CN=Enrollment Services,"+pkiBase())
	for _, want := range []string{"(OA;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;AU)", "(A;;RPLCLORC;;;AU)", ";;;EA)"} {
		if !strings.Contains(dacl, want) {
			t.Errorf("no %q in %s", want, dacl)
		}
	}
}

// seenBySamba asks the autoenrollment extension of samba-gpupdate which CAs it finds.
func (n *native) seenBySamba(t *testing.T) {
	t.Helper()
	script := `
import sys
from samba.samdb import SamDB
from samba.param import LoadParm
from samba.credentials import Credentials
from samba.gp.gp_cert_auto_enroll_ext import fetch_certification_authorities
lp = LoadParm(sys.argv[1])
c = Credentials(); c.guess(lp); c.set_username("ws1$"); c.set_password(sys.argv[3])
for ca in fetch_certification_authorities(SamDB(url=sys.argv[2], credentials=c, lp=lp)):
    print(ca["name"], "on", ca["hostname"], len(bytes(ca["cACertificate"])))
`
	lab := world.Env("LAB_DIR")
	out, err := exec.Command("/usr/bin/python3", "-c", script, lab+"/smb.conf", world.Env("LAB_LDAP_URL"), world.Env("LAB_PASSWORD")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := fmt.Sprintf("%s on %s %d", nativeCA, world.Env("LAB_GATEWAY"), len(n.certificate)); !strings.Contains(string(out), want) {
		t.Errorf("samba finds\n%s\nwant %q", out, want)
	}
}

// seenByCertipy asks Certipy, where CERTIPY names the folder with its source (see test/certipy).
func (n *native) seenByCertipy(t *testing.T) {
	t.Helper()
	source := os.Getenv("CERTIPY")
	if source == "" {
		t.Log("Certipy is not asked: it needs its source, named by CERTIPY")
		return
	}
	out := filepath.Join(t.TempDir(), "out")
	c := exec.Command("/usr/bin/python3", "../certipy/find.py", source, "-u", "alice@lab.test", "-p", world.Env("LAB_PASSWORD"), "-dc-ip", world.Env("LAB_IP"),
		"-target", world.Env("LAB_DC"), "-ldap-simple-auth", "-no-ldap-channel-binding", "-dc-only", "-json", "-output", out)
	said, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	text, err := os.ReadFile(out + "_Certipy.json")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	var r struct {
		CAs       map[string]map[string]any `json:"Certificate Authorities"`
		Templates map[string]struct {
			Name string   `json:"Template Name"`
			CAs  []string `json:"Certificate Authorities"`
		} `json:"Certificate Templates"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	for _, ca := range r.CAs {
		if ca["CA Name"] == nativeCA && ca["DNS Name"] == world.Env("LAB_GATEWAY") && ca["Certificate Subject"] == "CN="+nativeCA {
			var offered []string
			for _, t := range r.Templates {
				if slices.Contains(t.CAs, nativeCA) {
					offered = append(offered, t.Name)
				}
			}
			slices.Sort(offered)
			if want := []string{"LabMachine", "LabUserAuth"}; !slices.Equal(offered, want) {
				t.Errorf("Certipy sees the templates %q, want %q", offered, want)
			}
			return
		}
	}
	t.Errorf("Certipy does not see the CA:\n%.4000s", text)
}

// served enrolls a user with the CA that was published.
func (n *native) served(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "\ncas:\n")
	own, _, _ := strings.Cut(block, "\n  - name: "+world.CAName)
	w := world.StartWith(t, "cas:\n"+own)
	c := w.Client(t, "alice")
	c.CES = strings.ReplaceAll(c.CES, strings.ReplaceAll(world.CAName, " ", "%20"), strings.ReplaceAll(nativeCA, " ", "%20"))
	der, _ := world.Request(t, "LabUserAuth", nil)
	reply, err := c.Submit(t, der)
	if err != nil || len(reply.Certificate) == 0 {
		t.Fatalf("%+v, %v", reply, err)
	}
	cert, err := x509.ParseCertificate(reply.Certificate)
	if err != nil || cert.Issuer.CommonName != nativeCA {
		t.Errorf("%v, %v", cert, err)
	}
}

// TestNativeOnlyWhatIsMissingIsWritten changes what was published, as other people do.
func TestNativeOnlyWhatIsMissingIsWritten(t *testing.T) {
	n := newNative(t)
	args := []string{"--ca", nativeCA, "--templates", "LabUserAuth"}
	n.init(t, 0, append(args, "--apply", "--yes")...)
	dn := "CN=" + nativeCA + ",CN=Enrollment Services," + pkiBase()
	other, err := os.ReadFile(world.Env("LAB_CA_PEM"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(other)
	openLDAP(t, "dn: "+dn+"\nchangetype: modify\nreplace: dNSHostName\ndNSHostName: old.lab.test\n-\nadd: certificateTemplates\ncertificateTemplates: LabKRA\n-\n"+
		"add: cACertificate\ncACertificate:: "+base64.StdEncoding.EncodeToString(block.Bytes)+"\n-\nreplace: flags\nflags: 4\n", "ldapmodify")
	var p struct {
		Differences []struct {
			Kind    string
			Changes []struct{ Key string }
		}
		Warnings []string
	}
	if err := json.Unmarshal([]byte(n.init(t, 5, append(args, "--output", "json")...)), &p); err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, d := range p.Differences {
		for _, c := range d.Changes {
			got = append(got, d.Kind+" "+c.Key)
		}
	}
	if want := []string{"ca dNSHostName", "ca flags"}; !slices.Equal(got, want) || len(p.Warnings) == 0 || !strings.Contains(p.Warnings[0], "old.lab.test") {
		t.Errorf("%q, %q", got, p.Warnings)
	}
	n.init(t, 0, append(args, "--apply", "--yes")...)
	text := strings.Join(stored(t, "(&(objectClass=pKIEnrollmentService)(cn="+nativeCA+"))"), "\n")
	for _, want := range []string{"certificateTemplates: LabKRA", "certificateTemplates: LabUserAuth", "flags: 14", "dNSHostName: " + world.Env("LAB_GATEWAY"),
		"cACertificate:: " + base64.StdEncoding.EncodeToString(block.Bytes)} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if out := n.init(t, 1, "--ca", nativeCA, "--templates", "NoSuchTemplate"); !strings.Contains(out, `no template "NoSuchTemplate"`) {
		t.Error(out)
	}
}

// TestNativeLDIFIsWhatAnotherToolWrites applies the printed plan with ldapmodify, and without the gateway's configuration.
func TestNativeLDIFIsWhatAnotherToolWrites(t *testing.T) {
	n := newNative(t)
	ldif := n.init(t, 0, "--ca", nativeCA, "--templates", "LabUserAuth", "--print", "ldif")
	openLDAP(t, ldif, "ldapmodify")
	if out := n.init(t, 0, "--ca", nativeCA, "--templates", "LabUserAuth"); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
	n.enrollRight(t)
	certificate := filepath.Join(n.dir, "native.pem")
	bare := append([]string{"init", "--native", "--ca", nativeCA, "--certificate", certificate, "--host", world.Env("LAB_GATEWAY")}, n.as...)
	if out := n.command(t, 0, bare...); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
	// Somebody takes the right away, and it comes back as LDIF, too.
	dn := "CN=" + nativeCA + ",CN=Enrollment Services," + pkiBase()
	changeACL(t, dn, func(a security.ACE) bool { return a.Object != security.RightEnroll })
	ldif = n.init(t, 0, "--ca", nativeCA, "--print", "ldif")
	if strings.Count(ldif, "changetype:") != 1 || !strings.Contains(ldif, "control: 1.2.840.113556.1.4.801") {
		t.Error(ldif)
	}
	openLDAP(t, ldif, "ldapmodify")
	if out := n.init(t, 0, "--ca", nativeCA); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
	script := n.init(t, 0, "--ca", nativeCA, "--remove", "--with-trust", "--print", "certutil")
	if !strings.Contains(script, `([ADSI]'LDAP://CN=Native Test CA,CN=Enrollment Services,`) {
		t.Error(script)
	}
}

// enrollRight looks at the right that a change record without a control gave.
func (n *native) enrollRight(t *testing.T) {
	t.Helper()
	dacl := sambaACL(t, "CN="+nativeCA+",CN=Enrollment Services,"+pkiBase())
	if !strings.Contains(dacl, "(OA;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;AU)") || !strings.Contains(dacl, ";;;EA)") {
		t.Error(dacl)
	}
}
