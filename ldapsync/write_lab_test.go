package ldapsync

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/security"
)

func administrator() Config {
	c := sealedKerberos()
	c.Auth = Auth{Method: GSSAPI, Principal: "Administrator@LAB.TEST", Password: os.Getenv("LAB_PASSWORD")}
	return c
}

// still is the test's context, which does not end before its cleanup does.
func still(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// planFor reads the directory and compares it with a document.
func planFor(t *testing.T, d *Directory, text string) *manifest.Plan {
	t.Helper()
	f, err := d.ManifestForest(still(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse("t.yaml", []byte(text), func(name string) (security.SID, error) { return d.SIDOf(still(t), name) })
	if err != nil {
		t.Fatal(err)
	}
	p, err := manifest.NewPlan(f, m, FreshOID)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// apply requires that a document can be applied.
func apply(t *testing.T, d *Directory, text string) {
	t.Helper()
	if _, err := d.Apply(still(t), planFor(t, d, text)); err != nil {
		t.Fatal(err)
	}
}

func exportOf(t *testing.T, d *Directory, name string) string {
	t.Helper()
	f, err := d.ManifestForest(still(t))
	if err != nil {
		t.Fatal(err)
	}
	text, err := manifest.Export(f, f.Template(name), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestATemplateThatSomebodyElseChangesIsNotOverwritten(t *testing.T) {
	d := open(t, administrator())
	other := open(t, administrator())
	for name, theirs := range map[string]string{
		"the same attribute":      "template: LabUserAuth\nvalidity: 3y\n",
		"another attribute":       "template: LabUserAuth\nrenewal: 5w\n",
		"another, same version":   "template: LabUserAuth\nversion: '=100.4'\nproviders: [One]\n",
		"access control alone":    "template: LabUserAuth\nversion: '=100.4'\nacl: [allow full for LAB\\Enterprise Admins]\n",
		"a value that was absent": "template: LabUserAuth\nversion: '=100.4'\nattributes: {description: [x]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			restored := strings.Replace(exportOf(t, d, "LabUserAuth"), "version: '", "version: '=", 1)
			defer func() { apply(t, d, restored+"attributes: {description: []}\n") }()
			p := planFor(t, d, "template: LabUserAuth\nvalidity: 2y\n")
			apply(t, other, theirs)
			now := exportOf(t, d, "LabUserAuth")
			if done, err := d.Apply(still(t), p); !errors.Is(err, ErrChanged) || done != 0 {
				t.Errorf("%d done, %v", done, err)
			}
			if after := exportOf(t, d, "LabUserAuth"); after != now {
				t.Errorf("it was written all the same:\n%s\n%s", now, after)
			}
		})
	}
}

// Between the comparison and the write, somebody else may be faster: then the directory itself refuses.
func TestTheDirectoryRefusesWhatComparesWithAnOldTemplate(t *testing.T) {
	d := open(t, administrator())
	for name, theirs := range map[string]string{
		"same attribute":                  "template: LabUserAuth\nversion: '=100.4'\nvalidity: 3y\n",
		"other attribute, higher version": "template: LabUserAuth\nproviders: [One]\n",
	} {
		t.Run(name, func(t *testing.T) {
			restored := strings.Replace(exportOf(t, d, "LabUserAuth"), "version: '", "version: '=", 1)
			defer func() { apply(t, d, restored) }()
			p := planFor(t, d, "template: LabUserAuth\nvalidity: 2y\nacl: [deny enroll for LAB\\bob]\n")
			apply(t, d, theirs)
			now := exportOf(t, d, "LabUserAuth")
			p.Differences[0].Operation.Expect = nil // as if the comparison had been before
			if _, err := d.Apply(still(t), p); !errors.Is(err, ErrChanged) || !ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchAttribute) {
				t.Error(err)
			}
			if after := exportOf(t, d, "LabUserAuth"); after != now {
				t.Errorf("it was written all the same:\n%s\n%s", now, after)
			}
		})
	}
}

// What a CA offers is one value more or less: other values may come and go meanwhile, this one not.
func TestWhatACAOffersIsChangedValueByValue(t *testing.T) {
	d := open(t, administrator())
	t.Cleanup(func() {
		again := open(t, administrator())
		apply(t, again, "template: User\noffered_by: []\n---\ntemplate: LabV4\noffered_by: [LAB Issuing CA]\n")
	})
	mine := planFor(t, d, "template: User\noffered_by: [LAB Issuing CA]\n")
	same := planFor(t, d, "template: User\noffered_by: [LAB Issuing CA]\n")
	apply(t, d, "template: LabV4\noffered_by: []\n")
	if _, err := d.Apply(still(t), mine); err != nil {
		t.Error(err)
	}
	if _, err := d.Apply(still(t), same); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
	if ca := refresh(t, d).Service("LAB Issuing CA"); !ca.Offers("User") || ca.Offers("LabV4") || !ca.Offers("LabUserAuth") {
		t.Error(ca.Templates)
	}
}

const partialTemplate = `template: PartialTest
display_name: Partial Test
schema: 2
flags: [MACHINE_TYPE]
enrollment_flags: []
private_key_flags: []
name_flags: [SUBJECT_ALT_REQUIRE_DNS]
validity: 1y
renewal: 6w
key_usage: [digitalSignature]
extended_key_usage: [1.3.6.1.5.5.7.3.2]
acl: [allow full for LAB\Enterprise Admins]
offered_by: [LAB Issuing CA]
`

func TestWhatStoppedHalfWayIsFinishedByTheNextRun(t *testing.T) {
	d := open(t, administrator())
	t.Cleanup(func() {
		again := open(t, administrator())
		apply(t, again, "template: PartialTest\noffered_by: []\n")
		f, err := again.ManifestForest(still(t))
		if err != nil {
			t.Fatal(err)
		}
		s, err := again.connected(still(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range f.OIDs {
			if o.DisplayName == "Partial Test" {
				_ = s.ldap.Del(ldap.NewDelRequest(o.DN, nil))
			}
		}
		_ = s.ldap.Del(ldap.NewDelRequest(f.Template("PartialTest").DN, nil))
	})
	var oid string
	for stop := 1; stop <= 3; stop++ {
		p := planFor(t, d, partialTemplate)
		if want := 4 - stop; len(p.Differences) != want {
			t.Fatalf("run %d: %d differences, want %d\n%s", stop, len(p.Differences), want, p.Unified())
		}
		if stop == 1 {
			oid = p.Differences[0].Changes[0].New[0]
		}
		if stop < 3 { // the next operation names a container that does not exist
			p.Differences[1].Operation.DN = "CN=X,CN=Nowhere," + p.Differences[1].Operation.DN
		}
		if done, err := d.Apply(still(t), p); done != 1 || (err == nil) != (stop == 3) {
			t.Fatalf("run %d: %d done, %v", stop, done, err)
		}
	}
	if p := planFor(t, d, partialTemplate); len(p.Differences) > 0 {
		t.Error(p.Unified())
	}
	if f, err := d.ManifestForest(still(t)); err != nil || f.Template("PartialTest").Attributes.First("msPKI-Cert-Template-OID") != oid {
		t.Errorf("not the OID %s of the first run, %v", oid, err)
	}
}

func TestTheGatewaysAccountMayNotWrite(t *testing.T) {
	d := open(t, sealedKerberos())
	_, err := d.Apply(still(t), planFor(t, d, "template: LabUserAuth\nvalidity: 2y\n"))
	if err == nil || !strings.Contains(err.Error(), "--bind-principal") {
		t.Error(err)
	}
}

func TestNamesOfPrincipalsReadBack(t *testing.T) {
	d := open(t, sealedKerberos())
	f, err := d.ManifestForest(still(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Names) < 5 {
		t.Error(f.Names)
	}
	for sid, name := range f.Names {
		if got, err := d.SIDOf(still(t), name); err != nil || got != sid {
			t.Errorf("%s: %s, %v; want %s", name, got, err, sid)
		}
	}
	for name, want := range map[string]security.SID{"everyone": security.Everyone, `BUILTIN\Administrators`: "S-1-5-32-544", "S-1-5-21-1-2-3-4": "S-1-5-21-1-2-3-4"} {
		if got, err := d.SIDOf(still(t), name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, name := range []string{`LAB\Nobody`, `OTHER\alice`, `LAB\*`, `BUILTIN\alice`, `LAB\Administrators`, "", `LAB\`, "Nobody"} {
		if sid, err := d.SIDOf(still(t), name); err == nil {
			t.Errorf("%q: %s", name, sid)
		}
	}
	if bare, err := d.SIDOf(still(t), "SMIME Users"); err != nil || bare == "" {
		t.Error(err)
	}
}
