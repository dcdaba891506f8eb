package risk

import (
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

const (
	pki            = "CN=Public Key Services,CN=Services,CN=Configuration,DC=x"
	publishersRule = "517"
	writeLink      = "f9c9a57c-3941-438d-bebf-0edaf2aca187"
)

// Each object has a descriptor with one entry too many; the fix takes it away.
func TestObjectsAroundTemplates(t *testing.T) {
	const createChild = security.MaskCreateChild
	for name, c := range map[string]struct {
		object string // name of the container; "CA" and "OID" for those
		ace    security.ACE
		names  map[security.SID]string
		want   string // "" where nothing is to be found
	}{
		"create templates":                        {"Certificate Templates", allow(domainUsers, createChild), nil, "error ESC5"},
		"create templates, limited to the class":  {"Certificate Templates", limited(domainUsers, createChild, "e5209ca2-3bba-11d2-90cc-00c04fd91ab1"), nil, "error ESC5"},
		"own everything":                          {"Public Key Services", allow(agents, security.MaskGenericAll), nil, "error ESC5"},
		"publish CAs":                             {"Enrollment Services", allow(domainUsers, createChild), nil, "error ESC5"},
		"add to NTAuth":                           {"NTAuthCertificates", limited(agents, security.MaskWriteProperty, "bf967932-0de6-11d0-a285-00aa003049e2"), nil, "error ESC5"},
		"add OIDs":                                {"OID", allow(agents, createChild), nil, "error ESC5"},
		"replace a root":                          {"Some Root", allow(agents, security.MaskWriteProperty), nil, "error ESC5"},
		"name recovery agents":                    {"KRA", allow(agents, security.MaskWriteProperty), nil, "warning ESC5"},
		"rights for what is below only":           {"Certificate Templates", security.ACE{Flags: security.ACEInheritOnly, Mask: security.MaskGenericAll, SID: domainUsers}, nil, ""},
		"CAs publish themselves":                  {"NTAuthCertificates", allow(domain+publishersRule, security.MaskGenericAll), nil, ""},
		"read access":                             {"Certificate Templates", allow(domainUsers, security.MaskReadProperty|security.MaskList), nil, ""},
		"issuers of authority information":        {"AIA", allow(agents, security.MaskGenericAll), nil, ""},
		"change the gateway's CA":                 {"CA", allow(agents, security.MaskWriteProperty), nil, "error ESC7"},
		"the CA's own computer changes it":        {"CA", allow(agents, security.MaskGenericAll), map[security.SID]string{agents: `X\CAHOST$`}, ""},
		"another computer changes it":             {"CA", allow(agents, security.MaskGenericAll), map[security.SID]string{agents: `X\OTHER$`}, "error ESC7"},
		"Enroll on the CA with write, as Windows": {"CA", limited(domainUsers, security.MaskControlAccess|security.MaskWriteProperty, security.RightEnroll.String()), nil, ""},
		"link a policy":                           {"policy", limited(agents, security.MaskWriteProperty, writeLink), nil, "warning ESC13"},
		"rename a policy":                         {"policy", limited(agents, security.MaskWriteProperty, "bf967953-0de6-11d0-a285-00aa003049e2"), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, d := around(c.object, c.ace)
			g := Gateway{CAs: []string{"ca"}, NeedBinding: true}
			found := Find(s, g, c.names)
			if got := strings.Join(say(found), ", "); got != c.want {
				t.Fatalf("found %q, want %q", got, c.want)
			}
			if c.want == "" {
				return
			}
			if f := found[0]; f.How == "" || f.Fix == "" || f.DN == "" || len(f.Who) != 1 || f.Blocks() {
				t.Errorf("%+v", f)
			}
			withdrawn(t, d, found[0].Changes[0])
			if left := Find(s, g, c.names); len(left) > 0 {
				t.Errorf("%s: still there: %s", found[0].Changes[0], left[0].How)
			}
		})
	}
}

// around is a snapshot without templates, in which one object has an entry more.
func around(object string, ace security.ACE) (*templates.Snapshot, *security.Descriptor) {
	d := descriptor(ace)
	s := &templates.Snapshot{OIDs: map[string]templates.OIDObject{}}
	switch object {
	case "CA":
		s.Services = []*templates.EnrollmentService{{Name: "CA", DN: "CN=CA", DNSHostName: "cahost.x", Security: d}}
	case "policy":
		s.OIDs["1.2.3"] = templates.OIDObject{OID: "1.2.3", DN: "CN=1", Flags: flagIssuancePolicy, Security: d}
	case "Some Root":
		s.PKI = []templates.PKIObject{{Name: object, DN: "CN=Some Root,CN=Certification Authorities," + pki, Security: d}}
	default:
		s.PKI = []templates.PKIObject{{Name: object, DN: "CN=" + object + "," + pki, Security: d}}
	}
	return s, d
}

func TestACAOfOthersIsESC5AndAPolicyInUseIsAnError(t *testing.T) {
	s, _ := around("CA", allow(agents, security.MaskWriteDACL))
	if got := say(Find(s, strict, nil)); !slices.Equal(got, []string{"error ESC5"}) {
		t.Errorf("another CA: %v", got)
	}
	s, _ = around("policy", allow(agents, security.MaskWriteProperty))
	s.Templates = []*templates.Template{user(func(t *templates.Template) { t.IssuancePolicies = []string{"1.2.3"} })}
	if got := say(Find(s, strict, nil)); !slices.Equal(got, []string{"error ESC13"}) {
		t.Errorf("a policy that a template asks for: %v", got)
	}
	s = &templates.Snapshot{PKI: []templates.PKIObject{{Name: "NTAuthCertificates", DN: "CN=NTAuthCertificates," + pki}}}
	if got := say(Find(s, strict, nil)); !slices.Equal(got, []string{"note ESC5"}) {
		t.Errorf("permissions that cannot be read: %v", got)
	}
}

func TestTheGatewayItself(t *testing.T) {
	empty := &templates.Snapshot{}
	for name, c := range map[string]struct {
		gateway Gateway
		want    string
	}{
		"as installed":                               {Gateway{Data: "/d", DataMode: 0o700, Config: "/c", ConfigMode: 0o640, NeedBinding: true}, ""},
		"others can change the database":             {Gateway{Data: "/d", DataMode: 0o770, NeedBinding: true}, "error ESC7"},
		"others can change the configuration":        {Gateway{Config: "/c", ConfigMode: 0o666, NeedBinding: true}, "error ESC7"},
		"clients without channel binding are let in": {Gateway{}, "note ESC8"},
		"RC4 tickets":                                {Gateway{AcceptsRC4: true, NeedBinding: true}, "warning kerberos-rc4"},
	} {
		found := Find(empty, c.gateway, nil)
		if got := strings.Join(say(found), ", "); got != c.want {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
		for _, f := range found {
			if f.How == "" || f.Fix == "" || f.Blocks() {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}
