package risk

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

const (
	domain                      = "S-1-5-21-1-2-3-"
	domainUsers    security.SID = domain + "513"
	domainAdmins   security.SID = domain + "512"
	agents         security.SID = domain + "1200"
	ca                          = "CA"
	linkedPolicy                = "1.3.6.1.4.1.311.21.8.1.2.400"
	smartCardLogon              = "1.3.6.1.4.1.311.20.2.2"
	secureMail                  = "1.3.6.1.5.5.7.3.4"
)

func allow(sid security.SID, mask uint32) security.ACE {
	return security.ACE{Type: security.ACEAllow, Mask: mask, SID: sid}
}

func deny(sid security.SID, mask uint32) security.ACE {
	return security.ACE{Type: security.ACEDeny, Mask: mask, SID: sid}
}

// limited is an entry for one right, property or class.
func limited(sid security.SID, mask uint32, object string) security.ACE {
	g, err := security.ParseGUID(object)
	if err != nil {
		panic(err)
	}
	return security.ACE{Type: security.ACEAllowObject, Mask: mask, HasObject: true, Object: g, SID: sid}
}

func enroll(sid security.SID) security.ACE {
	return limited(sid, security.MaskControlAccess, security.RightEnroll.String())
}

func descriptor(aces ...security.ACE) *security.Descriptor {
	return &security.Descriptor{Owner: domain + "519", HasDACL: true, DACL: append([]security.ACE{allow(domainAdmins, 0xF01FF)}, aces...)}
}

// user is an ordinary template for domain users, in which no rule finds anything.
func user(changes ...func(*templates.Template)) *templates.Template {
	t := &templates.Template{Name: "T", DN: "CN=T", Schema: 2, EKUs: []string{oidClientAuth}, AppPolicies: []string{oidClientAuth},
		NameFlags: templates.NameSANRequireUPN, Security: descriptor(enroll(domainUsers), allow(security.AuthenticatedUsers, security.MaskReadProperty))}
	for _, c := range changes {
		c(t)
	}
	return t
}

func snapshot(t *templates.Template) *templates.Snapshot {
	return &templates.Snapshot{Templates: []*templates.Template{t}, OIDs: map[string]templates.OIDObject{linkedPolicy: {OID: linkedPolicy, DN: "CN=OID1", GroupLink: "CN=G"}},
		Services: []*templates.EnrollmentService{{Name: ca, DN: "CN=CA", Templates: []string{t.Name}, Security: descriptor(enroll(security.AuthenticatedUsers))}}}
}

var strict = Gateway{NeedBinding: true}

func purposes(oids ...string) func(*templates.Template) {
	return func(t *templates.Template) { t.EKUs, t.AppPolicies = oids, oids }
}

func namesFromRequest(t *templates.Template) { t.NameFlags = templates.NameEnrolleeSuppliesSubject }

func permissions(aces ...security.ACE) func(*templates.Template) {
	return func(t *templates.Template) {
		t.Security = descriptor(append([]security.ACE{enroll(domainUsers)}, aces...)...)
	}
}

// say lists findings as "error ESC1".
func say(findings []Finding) (out []string) {
	for _, f := range findings {
		out = append(out, string(f.Severity)+" "+f.Rule)
	}
	return out
}

// Each case has the findings that it is to have and no others; then each change that a finding of the first rule names is
// made, alone, and clears that rule.
func TestEachFixClosesItsFinding(t *testing.T) {
	for name, c := range map[string]struct {
		change []func(*templates.Template)
		want   string
	}{
		"names from the request and logon":      {[]func(*templates.Template){namesFromRequest}, "error ESC1"},
		"and smart card logon":                  {[]func(*templates.Template){namesFromRequest, purposes(secureMail, smartCardLogon)}, "error ESC1"},
		"no purpose":                            {[]func(*templates.Template){purposes()}, "error ESC2"},
		"any purpose beside others":             {[]func(*templates.Template){purposes(oidAnyPurpose, secureMail)}, "error ESC2"},
		"any purpose and names":                 {[]func(*templates.Template){purposes(oidAnyPurpose), namesFromRequest}, "error ESC1, error ESC2, warning ESC17"},
		"everybody an agent":                    {[]func(*templates.Template){purposes(oidRequestAgent)}, "error ESC3"},
		"chosen agents":                         {[]func(*templates.Template){purposes(oidRequestAgent), func(t *templates.Template) { t.Security = descriptor(enroll(agents)) }}, "warning ESC3"},
		"an agent's signature is taken":         {[]func(*templates.Template){func(t *templates.Template) { t.RASignatures, t.RAAppPolicies = 1, []string{oidRequestAgent} }}, "note ESC3"},
		"full control":                          {[]func(*templates.Template){permissions(allow(domainUsers, security.MaskGenericAll))}, "error ESC4"},
		"generic write":                         {[]func(*templates.Template){permissions(allow(security.Everyone, security.MaskGenericWrite))}, "error ESC4"},
		"write all properties":                  {[]func(*templates.Template){permissions(allow(agents, security.MaskWriteProperty))}, "error ESC4"},
		"write the name flags":                  {[]func(*templates.Template){permissions(limited(agents, security.MaskWriteProperty, "ea1dddc4-60ff-416e-8cc0-17cee534bce7"))}, "error ESC4"},
		"write a property that no rule reads":   {[]func(*templates.Template){permissions(limited(agents, security.MaskWriteProperty, "bf967953-0de6-11d0-a285-00aa003049e2"))}, "warning ESC4"},
		"write the permissions":                 {[]func(*templates.Template){permissions(allow(agents, security.MaskWriteDACL), allow(domainUsers, security.MaskWriteOwner))}, "error ESC4"},
		"a user owns it":                        {[]func(*templates.Template){func(t *templates.Template) { t.Security.Owner = agents }}, "error ESC4"},
		"no access control list":                {[]func(*templates.Template){func(t *templates.Template) { t.Security = &security.Descriptor{Owner: domainAdmins} }}, "error ESC4"},
		"an entry that is not understood":       {[]func(*templates.Template){permissions(security.ACE{Type: 9, Problem: "unknown type 0x09"})}, "warning ESC4"},
		"no SID in the certificate":             {[]func(*templates.Template){func(t *templates.Template) { t.EnrollmentFlags = templates.EnrollNoSecurityExtension }}, "error ESC9"},
		"a policy that is linked to a group":    {[]func(*templates.Template){func(t *templates.Template) { t.IssuancePolicies = []string{"1.2.3", linkedPolicy} }}, "error ESC13"},
		"schema 1 with names from the request":  {[]func(*templates.Template){namesFromRequest, purposes(secureMail), func(t *templates.Template) { t.Schema = 1 }}, "note ESC15"},
		"names of servers":                      {[]func(*templates.Template){namesFromRequest, purposes(oidServerAuth)}, "warning ESC17"},
		"names of domain controllers":           {[]func(*templates.Template){namesFromRequest, purposes(oidKDC)}, "warning ESC17"},
		"a denial after the permission":         {[]func(*templates.Template){permissions(allow(agents, security.MaskWriteDACL), deny(agents, security.MaskWriteDACL))}, "error ESC4"},
		"an owner whose rights an entry widens": {[]func(*templates.Template){func(t *templates.Template) { t.Security.Owner = agents }, owned(security.MaskWriteProperty)}, "error ESC4"},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(user(c.change...))
			found := Find(s, strict, nil)
			if got := strings.Join(say(found), ", "); got != c.want {
				t.Fatalf("found %s, want %s", got, c.want)
			}
			f := found[0]
			if f.How == "" || f.Fix == "" || f.Spec == "" || len(f.Changes) == 0 || f.DN == "" {
				t.Errorf("incomplete: %+v", f)
			}
			for _, change := range f.Changes {
				fixed := snapshot(user(c.change...))
				apply(t, fixed, change)
				left := Find(fixed, strict, nil)
				if slices.ContainsFunc(left, func(x Finding) bool { return x.Rule == f.Rule }) {
					t.Errorf("%s: still there: %s", change, left[0].How)
				}
			}
		})
	}
}

func owned(mask uint32) func(*templates.Template) {
	return func(t *templates.Template) {
		t.Security.DACL = append(t.Security.DACL, allow(security.OwnerRights, mask))
	}
}

// apply does what a change says.
func apply(t *testing.T, s *templates.Snapshot, c Change) {
	t.Helper()
	x := s.Templates[0]
	switch c.Attribute {
	case attrSecurity:
		if len(c.Values) > 0 {
			x.Security = descriptor()
			return
		}
		withdrawn(t, x.Security, c)
	case attrEnrollment:
		x.EnrollmentFlags = x.EnrollmentFlags&^c.Clear | c.Set
	case attrName:
		x.NameFlags = x.NameFlags&^c.Clear | c.Set
	case attrEKU:
		x.EKUs, x.AppPolicies = c.Values, c.Values
	case attrIssuance:
		x.IssuancePolicies = c.Values
	case attrSchema:
		x.Schema = *c.Number
	case attrLink:
		for oid, o := range s.OIDs {
			if o.DN == c.DN {
				o.GroupLink = ""
				s.OIDs[oid] = o
			}
		}
	default:
		t.Fatalf("no such attribute: %+v", c)
	}
}

// withdrawn takes entries out of a descriptor.
func withdrawn(t *testing.T, d *security.Descriptor, c Change) {
	t.Helper()
	before := len(d.DACL)
	d.DACL = slices.DeleteFunc(d.DACL, func(a security.ACE) bool { return slices.Contains(c.Remove, a.String()) })
	if before == len(d.DACL) && c.Owner == "" {
		t.Errorf("%s changes nothing", c)
	}
	if c.Owner != "" {
		d.Owner = c.Owner
	}
}

// What is legitimate stays without a finding.
func TestOrdinaryTemplatesHaveNoFinding(t *testing.T) {
	for name, c := range map[string][]func(*templates.Template){
		"an ordinary template":                       {},
		"names that a manager approves":              {namesFromRequest, func(t *templates.Template) { t.EnrollmentFlags = templates.EnrollPendAllRequests }},
		"names that an officer signs":                {namesFromRequest, func(t *templates.Template) { t.RASignatures = 1 }},
		"names for administrators only":              {namesFromRequest, func(t *templates.Template) { t.Security = descriptor(enroll(domainAdmins)) }},
		"names without a purpose of logon":           {namesFromRequest, purposes(secureMail)},
		"every purpose for administrators only":      {purposes(), func(t *templates.Template) { t.Security = descriptor(enroll(domainAdmins)) }},
		"no SID, but no logon":                       {purposes(secureMail), func(t *templates.Template) { t.EnrollmentFlags = templates.EnrollNoSecurityExtension }},
		"a policy without a group":                   {func(t *templates.Template) { t.IssuancePolicies = []string{"1.2.3"} }},
		"write access beside Enroll, as Windows has": {permissions(limited(domainUsers, security.MaskControlAccess|security.MaskWriteProperty, security.RightEnroll.String()))},
		"a denial before the permission":             {permissions(deny(security.AuthenticatedUsers, security.MaskWriteDACL), allow(domainUsers, security.MaskWriteDACL))},
		"rights for what is below only":              {permissions(security.ACE{Type: security.ACEAllow, Flags: security.ACEInheritOnly, Mask: security.MaskGenericAll, SID: domainUsers})},
		"an owner whose rights an entry limits":      {func(t *templates.Template) { t.Security.Owner = agents }, owned(security.MaskReadProperty)},
		"creator owner":                              {permissions(allow("S-1-3-0", security.MaskGenericAll))},
		"Enroll denied to all": {namesFromRequest, func(t *templates.Template) {
			t.Security = descriptor(deny(security.Everyone, security.MaskControlAccess), enroll(domainUsers))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if found := Find(snapshot(user(c...)), strict, nil); len(found) > 0 {
				t.Errorf("%s: %s", say(found), found[0].How)
			}
		})
	}
}

func TestEveryPrincipalIsListedByName(t *testing.T) {
	s := snapshot(user(namesFromRequest, permissions(enroll(security.AuthenticatedUsers), enroll(agents), enroll(domainAdmins), enroll(domain+"515"))))
	found := Find(s, strict, map[security.SID]string{agents: `CORP\Agents`})
	var got []string
	for _, p := range found[0].Who {
		got = append(got, p.String())
	}
	if want := []string{"Authenticated Users (S-1-5-11)", "Domain Users (" + domain + "513)", "Domain Computers (" + domain + "515)", `CORP\Agents`}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestWhatNoCAOffersIsLessSevere(t *testing.T) {
	s := snapshot(user(namesFromRequest))
	s.Services[0].Templates = nil
	if got := say(Find(s, strict, nil)); !slices.Equal(got, []string{"warning ESC1"}) {
		t.Errorf("%v", got)
	}
	s = snapshot(user(namesFromRequest))
	s.Services[0].Security = descriptor(enroll(domainAdmins))
	if got := say(Find(s, strict, nil)); !slices.Equal(got, []string{"warning ESC1"}) {
		t.Errorf("only administrators enroll at the CA: %v", got)
	}
}

func TestAcceptedRisksCountUntilTheirDay(t *testing.T) {
	end := time.Date(2027, 4, 1, 0, 0, 0, 0, time.UTC)
	found := Find(snapshot(user(namesFromRequest)), strict, nil)
	accepted := []Acceptance{{Object: "t", Rule: "esc1", By: "Jane", Until: end}, {Object: "Gone", Rule: "ESC2", By: "Jane", Until: end.AddDate(1, 0, 0)}}
	before, until := Accept(found, accepted, end.Add(-time.Second))
	if before[0].Accepted == nil || before[0].Accepted.By != "Jane" || before[0].Accepted.LastDay() != "2027-03-31" || !until.Equal(end) || len(Hazards(before)) != 0 {
		t.Errorf("the last second: %+v, changes %s", before[0].Accepted, until)
	}
	after, until := Accept(before, accepted, end)
	hazards := Hazards(after)["T"]
	if after[0].Accepted != nil || !until.IsZero() || len(hazards) != 1 || hazards[0].Rule != "ESC1" || !strings.Contains(hazards[0].Text, string(domainUsers)) || hazards[0].Fix == "" || hazards[0].Spec == "" {
		t.Errorf("after the last day: %+v, changes %s: %+v", after[0].Accepted, until, hazards)
	}
	for now, want := range map[time.Time]string{end.AddDate(0, -2, 0): "", end.AddDate(0, 0, -3): "ends with 2027-03-31", end: "ended with 2027-03-31"} {
		advice := strings.Join(Advice(found, accepted, now), "\n")
		if !strings.Contains(advice, want) || want == "" && strings.Contains(advice, "Jane, end") || !strings.Contains(advice, `"Gone", accepted by Jane, covers nothing`) {
			t.Errorf("%s: %s", now, advice)
		}
	}
	if advice := Advice(nil, accepted, end.AddDate(0, -2, 0)); advice != nil {
		t.Errorf("without a directory: %v", advice)
	}
}

func TestTheRuleTableIsComplete(t *testing.T) {
	for i := range 17 {
		r := ruleByName(fmt.Sprintf("ESC%d", i+1))
		if r.Title == "" || r.Looks == "" || r.Level == "" || r.Status == Checked && r.Spec == "" || r.Status != NotApplicable && r.Proof == "" {
			t.Errorf("ESC%d: %+v", i+1, r)
		}
	}
}

// A test that the table names as proof is there.
func TestTheProofsExist(t *testing.T) {
	named, exists := regexp.MustCompile(`Test\w+`), regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	tests := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range exists.FindAllStringSubmatch(string(text), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Rules() {
		for _, name := range named.FindAllString(r.Proof, -1) {
			if !tests[name] {
				t.Errorf("%s: there is no test %s", r.Name, name)
			}
		}
	}
}
