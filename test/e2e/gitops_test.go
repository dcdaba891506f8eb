package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/world"
	"github.com/go-ldap/ldap/v3"
)

// gitops runs the program as an administrator does on a machine without a gateway.
type gitops struct {
	binary, dir string
	as          []string
}

func newGitops(t *testing.T) *gitops {
	t.Helper()
	inlab.Need(t)
	g := &gitops{dir: t.TempDir()}
	g.binary = filepath.Join(g.dir, "enrollgate")
	if out, err := exec.Command("go", "build", "-o", g.binary, "github.com/enrollgate/enrollgate/cmd/enrollgate").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	password := g.write(t, "password", world.Env("LAB_PASSWORD")+"\n")
	g.as = []string{"--server", world.Env("LAB_LDAP_URL"), "--bind-principal", "Administrator@LAB.TEST", "--password-file", password}
	return g
}

func (g *gitops) write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run requires an exit code and returns what was printed, errors included.
func (g *gitops) run(t *testing.T, code int, args ...string) string {
	t.Helper()
	c := exec.Command(g.binary, append(append([]string{"templates"}, args...), g.as...)...)
	out, err := c.CombinedOutput()
	got := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Fatalf("%v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return string(out)
}

// openLDAP asks the directory with OpenLDAP's and Samba's tools: what is true is not what this program says.
func openLDAP(t *testing.T, stdin, tool string, args ...string) string {
	t.Helper()
	c := exec.Command(tool, append([]string{"-H", world.Env("LAB_LDAPS_URL"), "-x", "-D", "Administrator@lab.test", "-w", world.Env("LAB_PASSWORD")}, args...)...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

func pkiBase() string { return "CN=Public Key Services,CN=Services," + world.Env("LAB_CONFIG_DN") }

// stored returns the sorted LDIF lines of objects, without the attributes named.
func stored(t *testing.T, filter string, without ...string) []string {
	t.Helper()
	out := openLDAP(t, "", "ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-b", pkiBase(), "-E", "!1.2.840.113556.1.4.801=::MAMCAQc=", filter, "*", "nTSecurityDescriptor")
	lines := strings.Split(out, "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		name, _, _ := strings.Cut(l, ":")
		return l == "" || slices.Contains(without, name)
	})
	slices.Sort(lines)
	return lines
}

// identity are the attributes that make an object this one and no other.
var identity = []string{"objectGUID", "whenCreated", "whenChanged", "uSNCreated", "uSNChanged", "dSCorePropagationData"}

func deleteObjects(t *testing.T, filter string) {
	t.Helper()
	conn := world.Admin(t)
	found, err := conn.Search(ldap.NewSearchRequest(pkiBase(), ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, []string{"cn"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range found.Entries {
		if err := conn.Del(ldap.NewDelRequest(e.DN, nil)); err != nil {
			t.Fatal(err)
		}
	}
}

// restore puts a template back after a test that changes it.
func restore(t *testing.T, g *gitops, name string) {
	t.Helper()
	saved := strings.ReplaceAll(g.run(t, 0, "export", name), "version: '", "version: '=")
	t.Cleanup(func() { g.run(t, 0, "apply", "--yes", g.write(t, "saved.yaml", saved)) })
}

func TestWhatIsExportedFromTheForestIsNoChange(t *testing.T) {
	g := newGitops(t)
	dir := t.TempDir()
	before := stored(t, "(objectClass=*)")
	files := strings.Fields(g.run(t, 0, "export", "--dir", dir))
	if len(files) < 10 {
		t.Fatal(files)
	}
	if out := g.run(t, 0, "plan", dir); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
	if out := g.run(t, 0, "apply", "--yes", dir); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
	if after := stored(t, "(objectClass=*)"); !slices.Equal(before, after) {
		t.Error("applying no change has changed something")
	}
}

func TestATemplateThatWasDeletedIsMadeAgainAsItWas(t *testing.T) {
	g := newGitops(t)
	for _, name := range []string{"LabUserSMIME", "LabWebServer", "User"} {
		filter := fmt.Sprintf("(&(objectClass=pKICertificateTemplate)(cn=%s))", name)
		file := g.write(t, name+".yaml", g.run(t, 0, "export", name))
		before := stored(t, filter, identity...)
		deleteObjects(t, filter)
		if out := g.run(t, 0, "apply", "--yes", file); !strings.Contains(out, "a second plan has no changes") {
			t.Error(out)
		}
		if after := stored(t, filter, identity...); !slices.Equal(before, after) {
			t.Errorf("%s: before and after:\n%s\n\n%s", name, strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	}
}

const newTemplate = `
template: 'GitOps, Web #1'
display_name: Web servers of team 1
schema: 3
flags: [MACHINE_TYPE, ADD_TEMPLATE_NAME]
enrollment_flags: [AUTO_ENROLLMENT]
private_key_flags: [minimum CA version 2, minimum client version 2]
name_flags: [SUBJECT_ALT_REQUIRE_DNS, SUBJECT_REQUIRE_COMMON_NAME]
validity: 90d
renewal: 3w
key_usage: [digitalSignature, keyEncipherment]
providers: [Microsoft Software Key Storage Provider]
extended_key_usage:
  - 1.3.6.1.5.5.7.3.1
  - 1.3.6.1.5.5.7.3.2
ra_properties:
  msPKI-Asymmetric-Algorithm: RSA
  msPKI-Hash-Algorithm: SHA256
  msPKI-Key-Usage: 16777215
acl:
  - allow full for LAB\Enterprise Admins
  - allow read for NT AUTHORITY\Authenticated Users
  - allow enroll, autoenroll for LAB\Domain Computers
offered_by: [LAB Issuing CA]
`

func TestATemplateFromYAMLIsServed(t *testing.T) {
	g := newGitops(t)
	w := world.Start(t)
	t.Cleanup(func() {
		g.run(t, 0, "apply", "--yes", g.write(t, "gone.yaml", "template: 'GitOps, Web #1'\noffered_by: []\n"))
		deleteObjects(t, "(|(cn=GitOps, Web #1)(displayName=Web servers of team 1))")
	})
	file := g.write(t, "new.yaml", newTemplate)
	if out := g.run(t, 5, "plan", file); !strings.Contains(out, "+allow enroll, autoenroll for LAB\\Domain Computers") {
		t.Error(out)
	}
	g.run(t, 0, "apply", "--yes", file)
	eventually(t, "the gateway's snapshot with the template", func() bool { return w.Directory.Snapshot().TemplateByName("GitOps, Web #1") != nil })
	e, err := w.Explain(background, "WS1$", "GitOps, Web #1", "")
	if err != nil || e.Outcome != templates.Allow || !e.AutoEnrollment.Enrolls {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := w.Explain(background, "alice", "GitOps, Web #1", ""); err != nil || e.Outcome != templates.Deny {
		t.Errorf("%+v, %v", e, err)
	}

	// The same, as tools see it that nobody here wrote.
	text := strings.Join(stored(t, "(cn=GitOps, Web #1)"), "\n")
	for _, want := range []string{"revision: 100", "flags: 576", "msPKI-Template-Schema-Version: 3", "pKIKeyUsage:: oAA=", "pKIExpirationPeriod:: AIDSFke5//8=",
		"pKIDefaultCSPs: 1,Microsoft Software Key Storage Provider", "msPKI-RA-Application-Policies: msPKI-Asymmetric-Algorithm`PZPWSTR`RSA`msPKI-Hash-Algorithm`PZPWSTR`SHA256`msPKI-Key-Usage`DWORD`16777215`"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	oid := w.Directory.Snapshot().TemplateByName("GitOps, Web #1").OID
	if n := len(stored(t, "(&(objectClass=msPKI-Enterprise-Oid)(flags=1)(displayName=Web servers of team 1)(msPKI-Cert-Template-OID="+oid+"))")); n == 0 {
		t.Errorf("the OID %s is not registered", oid)
	}
	dacl := sambaACL(t, "CN=GitOps\\, Web #1,CN=Certificate Templates,"+pkiBase())
	for _, want := range []string{"D:P", "(A;;RPLCLORC;;;AU)", "(OA;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;DC)", "(OA;;CR;a05b8cc2-17bc-4802-a710-e7c15ab866a2;;DC)", "(A;;RPWPCCDCLCLORCWOWDSDDTSW;;;EA)"} {
		if !strings.Contains(dacl, want) {
			t.Errorf("no %q in %s", want, dacl)
		}
	}
}

// sambaACL is the descriptor in the words of samba-tool.
func sambaACL(t *testing.T, dn string) string {
	t.Helper()
	lab := world.Env("LAB_DIR")
	out, err := exec.Command("samba-tool", "dsacl", "get", "--objectdn="+dn, "-s", lab+"/smb.conf", "-H", lab+"/private/sam.ldb").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestAChangeIsShownAndNothingElseIsTouched(t *testing.T) {
	g := newGitops(t)
	restore(t, g, "LabUserAuth")
	others := stored(t, "(&(objectClass=*)(!(cn=LabUserAuth)))")
	exported := g.run(t, 0, "export", "LabUserAuth")
	changed := strings.Replace(exported, "validity: 1y", "validity: 2y", 1)
	changed = strings.Replace(changed, "\nacl:\n", "\nacl:\n  - 'deny enroll for LAB\\bob'\n", 1)
	file := g.write(t, "changed.yaml", changed)
	var p struct {
		Differences []struct {
			Kind, Name string
			Create     bool
			Changes    []struct {
				Key      string
				Old, New []string
			}
		}
	}
	if err := json.Unmarshal([]byte(g.run(t, 5, "plan", file, "--output", "json")), &p); err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, d := range p.Differences {
		for _, c := range d.Changes {
			got = append(got, fmt.Sprintf("%s %s.%s", d.Kind, d.Name, c.Key))
		}
	}
	if want := []string{"template LabUserAuth.version", "template LabUserAuth.validity", "template LabUserAuth.acl"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	text := g.run(t, 5, "plan", file)
	for _, line := range strings.Split(text, "\n") {
		if (strings.HasPrefix(line, "-") || strings.HasPrefix(line, "+")) && !slices.Contains([]string{"-100.4", "+100.5", "-1y", "+2y", "+deny enroll for LAB\\bob"}, line) &&
			!strings.HasPrefix(line, "--- ") && !strings.HasPrefix(line, "+++ ") {
			t.Errorf("line %q", line)
		}
	}
	g.run(t, 2, "apply", file) // nobody can be asked
	g.run(t, 0, "apply", "--yes", file)
	if out := g.run(t, 0, "plan", file); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
	if after := stored(t, "(&(objectClass=*)(!(cn=LabUserAuth)))"); !slices.Equal(others, after) {
		t.Error("another object has changed")
	}
	if dacl := sambaACL(t, "CN=LabUserAuth,CN=Certificate Templates,"+pkiBase()); !strings.Contains(dacl, "D:PAI(OD;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;S-1-5-21-") {
		t.Error(dacl)
	}
	// Two years, and nothing of what was not in the file, as LDIF has it.
	if now := stored(t, "(cn=LabUserAuth)"); !slices.Contains(now, "pKIExpirationPeriod:: AIByDl3C/f8=") || !slices.Contains(now, "msPKI-Template-Minor-Revision: 5") {
		t.Error(strings.Join(now, "\n"))
	}
}

func TestATemplateThatAnotherToolWroteIsExported(t *testing.T) {
	g := newGitops(t)
	dn := "CN=ByLDIF,CN=Certificate Templates," + pkiBase()
	t.Cleanup(func() { deleteObjects(t, "(cn=ByLDIF)") })
	openLDAP(t, "dn: "+dn+`
objectClass: pKICertificateTemplate
displayName: By LDIF
flags: 131642
revision: 100
pKIDefaultKeySpec: 1
pKIKeyUsage:: hg==
pKIMaxIssuingDepth: -1
pKICriticalExtensions: 2.5.29.19
pKICriticalExtensions: 2.5.29.15
pKIExpirationPeriod:: AEA5hy7h/v8=
pKIOverlapPeriod:: AICmCv/e//8=
pKIExtendedKeyUsage: 1.3.6.1.5.5.7.3.4
pKIDefaultCSPs: 2,Microsoft Base Cryptographic Provider v1.0
pKIDefaultCSPs: 1,Microsoft Enhanced Cryptographic Provider v1.0
msPKI-RA-Signature: 1
msPKI-Enrollment-Flag: 1073741865
msPKI-Private-Key-Flag: 84213760
msPKI-Certificate-Name-Flag: -1509949440
msPKI-Minimal-Key-Size: 4096
msPKI-Template-Schema-Version: 2
msPKI-Template-Minor-Revision: 12
msPKI-Cert-Template-OID: 1.3.6.1.4.1.99999.7
msPKI-Certificate-Application-Policy: 1.3.6.1.5.5.7.3.4
msPKI-RA-Application-Policies: 1.3.6.1.4.1.311.20.2.1
description: written by hand
`, "ldapadd")
	text := g.run(t, 0, "export", "ByLDIF")
	for _, want := range []string{"version: '100.12'", "validity: 1y", "renewal: 6w", "  - one-octet", "  - keyCertSign", "max_issuing_depth: -1", "  - 2.5.29.15 # key usage",
		"  - '0x40000000'", "  - AUTO_ENROLLMENT\n", "  - minimum CA version 5", "  - SUBJECT_REQUIRE_DIRECTORY_PATH", "  - SUBJECT_REQUIRE_EMAIL", "providers:\n  - Microsoft Enhanced Cryptographic Provider v1.0\n  - Microsoft Base",
		"ra_signatures: 1", "ra_application_policies:\n  - 1.3.6.1.4.1.311.20.2.1", "minimum_key_size: 4096", "  description:\n    - written by hand", "offered_by: []", "owner: 'LAB\\Enterprise Admins'"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if out := g.run(t, 0, "plan", g.write(t, "ldif.yaml", text)); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
}

func TestAnyAccountThatReadsCanPlan(t *testing.T) {
	g := newGitops(t)
	dir := t.TempDir()
	g.run(t, 0, "export", "--dir", dir)
	_, config := world.Prepare(t, "")
	for name, as := range map[string][]string{
		"a keytab":              {"--server", world.Env("LAB_LDAP_URL"), "--bind-principal", "alice@LAB.TEST", "--keytab", world.Env("LAB_KEYTAB_ALICE")},
		"the gateway's account": {"--config", config},
		"an administrator, by the gateway's configuration": append([]string{"--config", config}, g.as[2:]...),
	} {
		other := *g
		other.as = as
		if out := other.run(t, 0, "plan", dir); !strings.Contains(out, "no changes") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// The directory adds entries from the container above: they are its own, and no difference.
func TestAnAccessControlListThatInherits(t *testing.T) {
	g := newGitops(t)
	restore(t, g, "LabV4")
	file := g.write(t, "inherits.yaml", "template: LabV4\nacl_inherits: true\n")
	g.run(t, 0, "apply", "--yes", file)
	if dacl := sambaACL(t, "CN=LabV4,CN=Certificate Templates,"+pkiBase()); !strings.Contains(dacl, "D:AI(") || !strings.Contains(dacl, "ID;") {
		t.Error(dacl)
	}
	if out := g.run(t, 0, "plan", g.write(t, "all.yaml", g.run(t, 0, "export", "LabV4"))); !strings.Contains(out, "no changes") {
		t.Error(out)
	}
}

func TestMistakesInFilesStopBeforeAnythingIsWritten(t *testing.T) {
	g := newGitops(t)
	before := stored(t, "(objectClass=*)")
	file := g.write(t, "wrong.yaml", "template: LabUserAuth\nvalidity: 2y\nacl:\n  - allow enroll for LAB\\Nobody\n")
	if out := g.run(t, 1, "apply", "--yes", file); !strings.Contains(out, "wrong.yaml:4:5: acl: there is no account or group") {
		t.Error(out)
	}
	if after := stored(t, "(objectClass=*)"); !slices.Equal(before, after) {
		t.Error("something has changed")
	}
}
