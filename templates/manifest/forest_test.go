package manifest

import (
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// recorded is the lab's forest as a Samba domain controller answered (templates/testdata/lab.ldif).
func recorded(t testing.TB) *Forest {
	t.Helper()
	text, err := os.ReadFile("../testdata/lab.ldif")
	if err != nil {
		t.Fatal(err)
	}
	f := &Forest{ConfigDN: "CN=Configuration,DC=lab,DC=test", OIDPrefix: "1.3.6.1.4.1.311.21.8.1.2.3", Names: map[security.SID]string{}}
	ca := Service{DN: "CN=LAB Issuing CA,CN=Enrollment Services,CN=Public Key Services,CN=Services,CN=Configuration,DC=lab,DC=test", Name: "LAB Issuing CA"}
	for entry := range strings.SplitSeq(string(text), "\n\n") {
		a := templates.Attributes{}
		for line := range strings.Lines(entry) {
			name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), ":")
			octets := []byte(strings.TrimPrefix(value, " "))
			if strings.HasPrefix(value, ":") {
				octets, _ = base64.StdEncoding.DecodeString(strings.TrimSpace(value[1:]))
			}
			if ok {
				a[strings.ToLower(name)] = append(a[strings.ToLower(name)], octets)
			}
		}
		dn := a.First("dn")
		delete(a, "dn")
		if sid, err := security.ParseSID([]byte(a.First("objectSid"))); err == nil {
			cn, _, _ := strings.Cut(strings.TrimPrefix(dn, "CN="), ",")
			f.Names[sid] = `LAB\` + cn
		}
		if strings.Contains(dn, ",CN=Certificate Templates,") {
			f.Templates = append(f.Templates, Object{dn, a})
			if a.First("cn") != "User" {
				ca.Templates = append(ca.Templates, a.First("cn"))
			}
		}
	}
	for sid := range f.Names {
		if i := strings.LastIndexByte(string(sid), '-'); strings.HasPrefix(string(sid), "S-1-5-21-") {
			for rid, name := range map[string]string{"512": "Domain Admins", "513": "Domain Users", "515": "Domain Computers", "519": "Enterprise Admins"} {
				f.Names[sid[:i]+security.SID("-"+rid)] = `LAB\` + name
			}
			break
		}
	}
	f.Names[security.AuthenticatedUsers] = `NT AUTHORITY\Authenticated Users`
	f.Services = []Service{ca}
	if len(f.Templates) < 10 {
		t.Fatalf("%d templates", len(f.Templates))
	}
	return f
}

// sids resolves the names of a forest, and SIDs.
func (f *Forest) sids(name string) (security.SID, error) {
	if sid, err := security.ParseSIDText(name); err == nil {
		return sid, nil
	}
	for sid, n := range f.Names {
		if strings.EqualFold(n, name) {
			return sid, nil
		}
	}
	return "", fmt.Errorf("there is no account or group %q", name)
}

func noComment(string) string { return "" }

func noFresh() (OID, error) { return OID{[2]uint32{11, 22}, strings.Repeat("AB", 16)}, nil }

func export(t testing.TB, f *Forest, name string) string {
	t.Helper()
	text, err := Export(f, f.Template(name), noComment)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func plan(t testing.TB, f *Forest, text string) *Plan {
	t.Helper()
	m, err := Parse("t.yaml", []byte(text), f.sids)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	p, err := NewPlan(f, m, noFresh)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

// without is the forest after a template was deleted.
func (f *Forest) without(name string) *Forest {
	g := *f
	g.Templates = slices.DeleteFunc(slices.Clone(f.Templates), func(o Object) bool { return o.Name() == name })
	g.Services = slices.Clone(f.Services)
	for i := range g.Services {
		g.Services[i].Templates = slices.DeleteFunc(slices.Clone(g.Services[i].Templates), func(v string) bool { return v == name })
	}
	return &g
}

// minimal is the least that a new template needs, without its name.
const minimal = `display_name: New Template
schema: 2
flags: [MACHINE_TYPE]
enrollment_flags: [AUTO_ENROLLMENT]
private_key_flags: []
name_flags: [SUBJECT_ALT_REQUIRE_DNS]
validity: 90d
renewal: 3w
key_usage: [digitalSignature]
extended_key_usage: [1.3.6.1.5.5.7.3.2]
acl:
  - allow read, enroll for LAB\Domain Computers
`

// odd is a template of which nothing has a plain readable form.
func odd() Object {
	d := security.Descriptor{Owner: "S-1-5-18", HasDACL: true, DACL: []security.ACE{
		{Type: security.ACEAllow, Flags: security.ACEContainerInherit | security.ACEInheritOnly, Mask: 0x20094, SID: "S-1-3-0"},
		{Type: security.ACEDeny, Mask: 0x00800100, SID: "S-1-1-0"},
		{Type: security.ACEAllowObject, Mask: 0x10, HasObject: true, Object: security.GUID{1, 2, 3}, SID: "S-1-5-11"},
		{Type: security.ACEAllowObject, Mask: 0x100, HasInherited: true, Inherited: security.GUID{4}, SID: "S-1-5-11"},
		{Type: 9, Problem: "unknown type 0x09", Raw: "\x09\x00\x08\x00artx"},
		{Type: security.ACEAllow, Flags: security.ACEInherited, Mask: 0xF01FF, SID: "S-1-5-18"},
	}}
	a := templates.Attributes{}
	for name, values := range map[string][]string{
		"cn": {"Odd"}, "displayName": {"tab\there"}, "flags": {"-2147483615"}, "msPKI-Private-Key-Flag": {"16777472", "1"},
		"msPKI-Enrollment-Flag": {"not a number"}, "msPKI-Certificate-Name-Flag": {"0"}, "revision": {"3"},
		"pKIExpirationPeriod": {"\x00\x00\x00\x00\x00\x00\x00\x80"}, "pKIOverlapPeriod": {"\xff\xff\xff\xff\xff\xff\xff\xff"},
		"pKIKeyUsage": {"\x86"}, "pKIDefaultCSPs": {"2,Two", "5,Five", "None"}, "pKIExtendedKeyUsage": {"1.2.3", "no oid"},
		"msPKI-RA-Application-Policies": {"a`BLOB`x`"}, "msPKI-RA-Policies": {"2.5.29.32.0"}, "msPKI-Supersede-Templates": {"B", "A: b #c"},
		"description": {"base64:x", "on", "\xff\x00"}, "showInAdvancedViewOnly": {"FALSE"}, "nTSecurityDescriptor": {string(d.Bytes())},
	} {
		for _, v := range values {
			a[strings.ToLower(name)] = append(a[strings.ToLower(name)], []byte(v))
		}
	}
	return Object{"CN=Odd,CN=Certificate Templates", a}
}
