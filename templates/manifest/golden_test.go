package manifest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates/security"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: run go test -update and review. Got:\n%s", path, got)
	}
}

func TestTheTextOfTemplates(t *testing.T) {
	f := recorded(t)
	for _, name := range []string{"User", "LabUserSMIME", "LabWebServer", "LabOnBehalf", "LabV4"} {
		text, err := Export(f, f.Template(name), func(oid string) string {
			return map[string]string{"1.3.6.1.5.5.7.3.2": "client authentication"}[oid]
		})
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".yaml", string(text))
	}
}

func TestTheTextOfWhatIsHardToSay(t *testing.T) {
	golden(t, "Odd.yaml", export(t, &Forest{Templates: []Object{odd()}}, "Odd"))
}

func TestTheTextOfAPlan(t *testing.T) {
	f := recorded(t)
	p := plan(t, f, `
template: LabUserSMIME
display_name: S/MIME
validity: 2y
private_key_flags: [REQUIRE_PRIVATE_KEY_ARCHIVAL, minimum CA version 2, minimum client version 1]
supersedes: [User]
acl:
  - allow full for LAB\Domain Admins
  - deny enroll for LAB\Domain Computers
  - allow read, enroll, autoenroll for LAB\SMIME Users
offered_by: []
`)
	golden(t, "changes.diff", p.Unified())
	p = plan(t, f, "template: New\n"+minimal)
	golden(t, "new.diff", p.Unified())
}

func TestTheReadmesExampleIsATemplate(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	f := recorded(t)
	for sid, name := range map[security.SID]string{"S-1-5-21-1-1-1-519": `CORP\Enterprise Admins`, "S-1-5-21-1-1-1-1105": `CORP\Web Servers`} {
		f.Names[sid] = name
	}
	f.Services = append(f.Services, Service{DN: "CN=Corp Issuing CA", Name: "Corp Issuing CA"})
	if p := plan(t, f, example); !ok || len(p.Differences) != 3 || len(p.Warnings) > 0 {
		t.Errorf("%s\n%v", p.Unified(), p.Warnings)
	}
}
