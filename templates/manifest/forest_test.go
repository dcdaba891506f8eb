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
			f.Names[sid] = `LAB\` + a.First("cn")
		}
		if strings.Contains(dn, ",CN=Certificate Templates,") {
			f.Templates = append(f.Templates, Object{dn, a})
			if a.First("cn") != "User" {
				ca.Templates = append(ca.Templates, a.First("cn"))
			}
		}
	}
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
