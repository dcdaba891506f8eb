package manifest

import (
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates/security"
)

// keys lists what changes, "template version: 100.4 → 100.5".
func keys(p *Plan) (out []string) {
	for _, d := range p.Differences {
		for _, c := range d.Changes {
			out = append(out, d.Kind+" "+c.Key+": "+strings.Join(c.Old, ",")+" → "+strings.Join(c.New, ","))
		}
	}
	return out
}

func TestOnlyWhatADocumentHasIsChanged(t *testing.T) {
	f := recorded(t)
	for text, want := range map[string][]string{
		"":                                       nil,
		"validity: 1y\nversion: '100.4'":         nil,
		"validity: 365d\nversion: '99.9'":        nil,
		"validity: 52w1d":                        nil,
		"validity: 2y":                           {"template version: 100.4 → 100.5", "template validity: 1y → 2y"},
		"validity: 2y\nversion: '100.4'":         {"template version: 100.4 → 100.5", "template validity: 1y → 2y"},
		"validity: 2y\nversion: '=100.4'":        {"template validity: 1y → 2y"},
		"validity: 2y\nversion: '101.0'":         {"template version: 100.4 → 101.0", "template validity: 1y → 2y"},
		"version: '=100.2'":                      {"template version: 100.4 → 100.2"},
		"providers: []":                          {"template version: 100.4 → 100.5", "template providers: Microsoft Enhanced Cryptographic Provider v1.0,Microsoft Base Cryptographic Provider v1.0 → "},
		"display_name: ''":                       {"template version: 100.4 → 100.5", "template display_name: Lab User Auth → "},
		"enrollment_flags: []":                   {"template version: 100.4 → 100.5", "template enrollment_flags: AUTO_ENROLLMENT → []"},
		"enrollment_flags: [0x20]":               nil,
		"offered_by: []":                         {"ca certificateTemplates: LabUserAuth → "},
		"offered_by: [lab issuing ca]":           nil,
		"attributes: {description: [x]}":         {"template version: 100.4 → 100.5", "template description:  → x"},
		"attributes: {pkidefaultkeyspec: ['2']}": {"template version: 100.4 → 100.5", "template key_spec: exchange → signature"},
		"owner: 'LAB\\Domain Admins'":            {"template version: 100.4 → 100.5", "template owner: LAB\\Enterprise Admins → LAB\\Domain Admins"},
		"acl_inherits: true":                     {"template version: 100.4 → 100.5", "template acl_inherits: false → true"},
	} {
		if got := keys(plan(t, f, "template: labuserauth\n"+text)); !slices.Equal(got, want) {
			t.Errorf("%q:\n%q\nwant\n%q", text, got, want)
		}
	}
}

// The directory refuses an old value that is no longer there; so each modification names all old values, and the version is
// always among them.
func TestEveryOperationNamesWhatItReplaces(t *testing.T) {
	f := recorded(t)
	o := f.Template("LabUserAuth")
	p := plan(t, f, "template: LabUserAuth\nproviders: [One]\nversion: '=100.4'\n")
	op := p.Differences[0].Operation
	if op.Expect != o || op.Descriptor != nil || op.Parts != 0 || len(op.Modifications) != 3 {
		t.Fatalf("%+v", op)
	}
	for _, m := range op.Modifications {
		if !sameValues(m.Old, o.Attributes[m.Attribute]) {
			t.Errorf("%s: %q", m.Attribute, m.Old)
		}
	}
	p = plan(t, f, "template: LabUserAuth\nacl: [deny enroll for S-1-1-0]\n")
	op = p.Differences[0].Operation
	d, err := security.ParseDescriptor(op.Descriptor)
	if err != nil || op.Parts != partDACL || len(d.DACL) != 1 || d.DACL[0].Allows() || inherits(d) {
		t.Errorf("%+v, %v, %v", op, d, err)
	}
}

func TestANewTemplateIsWrittenInOrder(t *testing.T) {
	f := recorded(t)
	p := plan(t, f, "template: New, Template\noffered_by: [LAB Issuing CA]\n"+minimal)
	var kinds []string
	for _, d := range p.Differences {
		kinds = append(kinds, d.Kind)
	}
	if !slices.Equal(kinds, []string{"oid", "template", "ca"}) {
		t.Fatal(kinds)
	}
	oid, template := p.Differences[0].Operation, p.Differences[1].Operation
	if want := f.OIDPrefix + ".11.22"; oid.Add.First(attrOID) != want || template.Add.First(attrOID) != want ||
		!strings.HasPrefix(oid.DN, "CN=22."+strings.Repeat("AB", 16)+",CN=OID,") || !strings.HasPrefix(template.DN, `CN=New\, Template,CN=Certificate Templates,`) {
		t.Errorf("%+v\n%+v", oid, template)
	}
	for name, want := range map[string]string{attrMajor: "100", attrMinor: "0", "pkidefaultkeyspec": "1", "mspki-certificate-application-policy": "1.3.6.1.5.5.7.3.2"} {
		if got := template.Add.First(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}

	// A run that came as far as the OID: the next takes it.
	f.OIDs = []OIDObject{{DN: oid.DN, OID: f.OIDPrefix + ".7.8", DisplayName: "New Template", Flags: "1"}}
	p = plan(t, f, "template: New, Template\n"+minimal)
	if len(p.Differences) != 1 || p.Differences[0].Operation.Add.First(attrOID) != f.OIDPrefix+".7.8" {
		t.Errorf("%+v", p.Differences)
	}
	f.OIDs, f.OIDPrefix = nil, ""
	all, _ := Parse("t.yaml", []byte("template: New\n"+minimal), f.sids)
	if _, err := NewPlan(f, all, noFresh); err == nil || !strings.Contains(err.Error(), "no OID prefix") {
		t.Error(err)
	}
	if p = plan(t, f, "template: New\noid: 1.3.6.1.4.1.99999.1\n"+minimal); len(p.Differences) != 2 {
		t.Errorf("%+v", p.Differences)
	}
}

func TestWhatTheGatewayWouldNotServeIsAWarning(t *testing.T) {
	p := plan(t, recorded(t), "template: LabUserAuth\nflags: [IS_CA]\n")
	if len(p.Warnings) == 0 || !strings.Contains(p.Warnings[0], `t.yaml: template "LabUserAuth" is not served`) {
		t.Error(p.Warnings)
	}
	for order, want := range map[string]int{"[deny read for S-1-1-0, allow read for S-1-1-0]": 0, "[allow read for S-1-1-0, deny read for S-1-1-0]": 1} {
		p = plan(t, recorded(t), "template: LabUserAuth\nacl: "+order+"\n")
		if len(p.Warnings) != want || want > 0 && !strings.Contains(p.Warnings[0], "a deny entry after an allow entry") {
			t.Errorf("%s: %q", order, p.Warnings)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]string{"1y": "1y", "730d": "2y", "6w": "6w", "1mo": "30d", "36h": "36h", "1d12h": "36h", "8h": "8h",
		"90min": "1h30min", "1d1s": "1d1s", "10000000tick": "1s", "1s1tick": "1s1tick", "0d": "0d"} {
		ticks, err := parseDuration(text)
		if err != nil || duration(ticks) != want {
			t.Errorf("%s: %s, %v", text, duration(ticks), err)
		}
	}
}

func TestAccessControlLines(t *testing.T) {
	f := &Forest{Names: map[security.SID]string{"S-1-5-11": "Users"}}
	for text, want := range map[string]string{
		"allow read,enroll ,  autoenroll for Users":              "allow read, enroll, autoenroll for Users",
		"allow 0x100 for Users":                                  "allow extended-rights for Users",
		"allow read, read for Users":                             "allow read for Users",
		"deny full, extended-rights for S-1-5-11":                "deny full, extended-rights for Users",
		"allow write on autoenroll for Users":                    "allow write on autoenroll for Users",
		"allow extended-rights on enroll for Users":              "allow enroll for Users",
		"(A;;0x1000000;;;S-1-5-11)":                              "allow 0x1000000 for Users",
		"(OA;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;S-1-5-7)": "allow enroll for S-1-5-7",
	} {
		l, err := parseACL(nodeFor([]string{text}), f.sids)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := l.lines(f.Names); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}
