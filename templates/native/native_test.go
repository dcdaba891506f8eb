package native

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/security"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const base = "CN=Public Key Services,CN=Services,CN=Configuration,DC=corp,DC=example"

// authority is a CA for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string, above *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	if above == nil {
		above = a
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: now.AddDate(5, 0, 0), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: key.X.Bytes()[:20]}
	parent := template
	if above != a {
		parent = above.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, above.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) crl(t *testing.T, number int64, at time.Time, serials ...int64) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: at, NextUpdate: at.Add(8 * time.Hour)}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: at})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// forest is an empty one, as Windows makes it.
func forest() *Forest {
	f := &Forest{ConfigDN: "CN=Configuration,DC=corp,DC=example", HasServers: true}
	f.put(base, templates.Attributes{"objectclass": values("container"), "cn": values("Public Key Services")})
	for _, name := range []string{"Enrollment Services", "Certification Authorities", "AIA", "CDP"} {
		f.put("CN="+name+","+base, templates.Attributes{"objectclass": values("container"), "cn": values(name)})
	}
	f.Templates = []manifest.Object{{DN: "CN=User,CN=Certificate Templates," + base, Attributes: templates.Attributes{"cn": values("User")}}}
	return f
}

func (f *Forest) put(dn string, a templates.Attributes) {
	f.Objects = append(f.Objects, manifest.Object{DN: dn, Attributes: a})
}

// apply does what a plan says, as the directory would.
func apply(t *testing.T, f *Forest, p *Plan) {
	t.Helper()
	for _, d := range p.Differences {
		o := d.Operation
		switch {
		case o.Add != nil:
			if f.object(o.DN) != nil || f.object(parent(o.DN)) == nil {
				t.Fatalf("%s cannot be added", o.DN)
			}
			name := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(o.DN, "CN="), ","+parent(o.DN)), `\`, "")
			a := templates.Attributes{"cn": values(name)}
			for k, v := range o.Add {
				a[k] = slices.Clone(v)
			}
			f.put(o.DN, a)
		case o.Delete:
			f.Objects = slices.DeleteFunc(f.Objects, func(x manifest.Object) bool { return x.DN == o.DN })
		default:
			a := f.object(o.DN).Attributes
			for _, m := range o.Modifications {
				for _, v := range m.Old {
					if !has(a[m.Attribute], v) {
						t.Fatalf("%s: no old value in %s", o.DN, m.Attribute)
					}
				}
				a[m.Attribute] = append(slices.DeleteFunc(slices.Clone(a[m.Attribute]), func(v []byte) bool { return has(m.Old, v) }), m.New...)
			}
			if o.Descriptor != nil {
				a[attrDescriptor] = [][]byte{o.Descriptor}
			}
		}
	}
}

func plan(t *testing.T, f *Forest, cas ...CA) *Plan {
	t.Helper()
	p, err := NewPlan(f, cas, "config.yaml", now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func kinds(p *Plan) (out []string) {
	for _, d := range p.Differences {
		out = append(out, d.Kind)
	}
	return out
}

func twoLevels(t *testing.T) (CA, *authority) {
	root := newAuthority(t, "Corp Root", nil)
	sub := newAuthority(t, "Corp Issuing, CA", root)
	return CA{Name: "Corp Issuing, CA", Published: true, Host: "enroll.corp.example", Certificates: []*x509.Certificate{sub.cert}, Templates: []string{"user"},
		Enroll: []security.SID{security.AuthenticatedUsers}, Servers: []string{EnrollmentServer(1, 2, false, "https://enroll.corp.example/x")},
		CRL: sub.crl(t, 1, now), Roots: []*x509.Certificate{root.cert}, Intermediates: []*x509.Certificate{sub.cert}, Logon: []*x509.Certificate{sub.cert}}, sub
}

func TestAPlanIsEmptyAfterItWasApplied(t *testing.T) {
	ca, _ := twoLevels(t)
	f := forest()
	p := plan(t, f, ca)
	if got, want := kinds(p), []string{KindRoot, KindAIA, KindNTAuth, KindContainer, KindCDP, KindService}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	apply(t, f, p)
	if p = plan(t, f, ca); len(p.Differences) != 0 {
		t.Errorf("a second plan has\n%s", p.Unified())
	}
	for _, o := range p.Objects {
		if o.State != InPlace {
			t.Errorf("%+v", o)
		}
	}
	s := f.service(ca.Name)
	if s == nil || !strings.HasPrefix(s.DN, `CN=Corp Issuing\, CA,`) || s.Attributes.First(attrTemplates) != "User" {
		t.Fatalf("%+v", s)
	}
	d, err := security.ParseDescriptor(s.Attributes[attrDescriptor][0])
	if err != nil || !d.ControlAccess(security.NewToken(security.AuthenticatedUsers), security.RightEnroll).Granted {
		t.Errorf("%v, %v", d, err)
	}
	apply(t, f, Removal(f, []CA{ca}, true, "config.yaml"))
	left := forest()
	for _, o := range f.Objects {
		if left.object(o.DN) == nil && !strings.HasPrefix(o.DN, ntAuthRDN) {
			t.Errorf("%s is left", o.DN)
		}
	}
	if v := f.object(ntAuthRDN + "," + base).Attributes[attrCertificate]; len(v) != 1 || !isNothing(v[0]) {
		t.Errorf("NTAuthCertificates has %q", v)
	}
	apply(t, f, plan(t, f, ca)) // and the placeholder goes again
	if v := f.object(ntAuthRDN + "," + base).Attributes[attrCertificate]; len(v) != 1 || isNothing(v[0]) {
		t.Errorf("NTAuthCertificates has %q", v)
	}
}

func TestWhatOthersWroteStays(t *testing.T) {
	ca, _ := twoLevels(t)
	other := newAuthority(t, "Other", nil)
	f := forest()
	f.put(ntAuthRDN+","+base, templates.Attributes{attrCertificate: {other.cert.Raw}})
	deny := security.ACE{Type: security.ACEDeny, Mask: security.MaskWriteProperty, SID: "S-1-5-32-545"}
	inherited := security.ACE{Type: security.ACEAllow, Mask: 0xF01FF, Flags: security.ACEInherited, SID: "S-1-5-32-544"}
	sd := &security.Descriptor{Control: security.ControlDACLPresent, HasDACL: true, DACL: []security.ACE{deny, inherited}}
	f.put("CN=corp issuing\\, ca,CN=Enrollment Services,"+base, templates.Attributes{"cn": values("corp issuing, ca"), attrDisplay: values("Our CA"), attrHost: values("ENROLL.corp.example"),
		attrFlags: values("4"), attrCertificate: {other.cert.Raw}, attrTemplates: values("Machine"), attrSubject: values(`CN="Corp Issuing, CA"`), attrDescriptor: {sd.Bytes()},
		attrServers: values("7\n2\n0\nHTTPS://enroll.corp.example/X\n0")})
	p := plan(t, f, ca)
	apply(t, f, p)
	a := f.service(ca.Name).Attributes
	if a.First(attrDisplay) != "Our CA" || a.First(attrHost) != "ENROLL.corp.example" || a.First(attrFlags) != "14" || len(a[attrServers]) != 1 ||
		!slices.Equal(a.Strings(attrTemplates), []string{"Machine", "User"}) || len(a[attrCertificate]) != 2 {
		t.Errorf("%q", a)
	}
	if v := f.object(ntAuthRDN + "," + base).Attributes[attrCertificate]; len(v) != 2 {
		t.Errorf("%d certificates for logon", len(v))
	}
	d, err := security.ParseDescriptor(a[attrDescriptor][0])
	if err != nil || len(d.DACL) != 2 || d.DACL[0] != deny || d.DACL[1] != enrollACE(security.AuthenticatedUsers) {
		t.Errorf("%v, %v", d, err)
	}
	if last := p.Differences[len(p.Differences)-1]; last.Kind != KindService || last.Operation.Expect == nil {
		t.Errorf("%+v", last)
	}
	// A service that stays needs the certificate: it is not taken away.
	f.put("CN=Twin,CN=Enrollment Services,"+base, templates.Attributes{"cn": values("Twin"), attrCertificate: {ca.Certificates[0].Raw}})
	if p := Removal(f, []CA{ca}, true, ""); slices.Contains(kinds(p), KindNTAuth) || slices.Contains(kinds(p), KindRoot) || len(p.Warnings) == 0 {
		t.Errorf("%v, %q", kinds(p), p.Warnings)
	}
}

func TestADenialIsSaidAndLeftAlone(t *testing.T) {
	ca, _ := twoLevels(t)
	f := forest()
	apply(t, f, plan(t, f, ca))
	deny := security.ACE{Type: security.ACEDenyObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: security.AuthenticatedUsers}
	sd := security.Descriptor{Control: security.ControlDACLPresent, HasDACL: true, DACL: []security.ACE{deny}}
	f.service(ca.Name).Attributes[attrDescriptor] = [][]byte{sd.Bytes()}
	if p := plan(t, f, ca); len(p.Differences) != 0 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "denied by ACE 1") {
		t.Errorf("%s%q", p.Unified(), p.Warnings)
	}
}

func TestARevocationListStaysForHalfOfItsLife(t *testing.T) {
	ca, sub := twoLevels(t)
	f := forest()
	apply(t, f, plan(t, f, ca))
	for what, c := range map[string]struct {
		list    []byte
		at      time.Time
		changes bool
	}{
		"signed again":         {sub.crl(t, 2, now.Add(time.Hour)), now.Add(time.Hour), false},
		"half of it is over":   {sub.crl(t, 2, now.Add(4*time.Hour)), now.Add(4 * time.Hour), true},
		"another revocation":   {sub.crl(t, 2, now, 7), now, true},
		"another key's":        {newAuthority(t, "Corp Issuing, CA", nil).crl(t, 2, now), now, true},
		"another name's":       {newAuthority(t, "X", nil).crl(t, 2, now), now, true},
		"not a list any more":  {[]byte("x"), now, true},
		"octet for octet same": {ca.CRL, now.Add(7 * time.Hour), false},
	} {
		changed := ca
		changed.CRL = c.list
		p, err := NewPlan(f, []CA{changed}, "", c.at)
		if err != nil || (len(p.Differences) > 0) != c.changes {
			t.Errorf("%s: %v, %v", what, kinds(p), err)
		}
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	ca, _ := twoLevels(t)
	f := forest()
	ca.Templates = []string{"Nothing", "None"}
	if _, err := NewPlan(f, []CA{ca}, "", now); err == nil || !strings.Contains(err.Error(), `"Nothing"`) || !strings.Contains(err.Error(), `"None"`) {
		t.Error(err)
	}
	ca.Templates, f.HasServers = nil, false
	p := plan(t, f, ca)
	if len(p.Warnings) != 2 || strings.Contains(LDIF(p), "msPKI-Enrollment-Servers") {
		t.Errorf("%q", p.Warnings)
	}
	if _, err := NewPlan(&Forest{ConfigDN: f.ConfigDN}, []CA{ca}, "", now); err == nil || !strings.Contains(err.Error(), base) {
		t.Error(err)
	}
	ca.Published = false // only trusted
	if p := plan(t, forest(), ca); !slices.Equal(kinds(p), []string{KindRoot, KindAIA, KindNTAuth}) {
		t.Error(kinds(p))
	}
}

func TestPrintedPlans(t *testing.T) {
	ca, _ := twoLevels(t)
	ca.Name = "Bob's / „CA‘"
	f := forest()
	p := plan(t, f, ca)
	text := strings.ReplaceAll(LDIF(p), "\n ", "")
	for _, want := range []string{"version: 1\n", "changetype: add\nobjectClass: certificationAuthority\n", "cACertificate:: " + base64.StdEncoding.EncodeToString(ca.Certificates[0].Raw) + "\n", "certificateTemplates: User\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for l := range strings.Lines(LDIF(p)) {
		if len(l) > 77 {
			t.Errorf("%d octets in a line", len(l))
		}
	}
	script := Script(p)
	for _, want := range []string{"@('RootCA')", "@('SubCA')", "@('NTAuthCA')", "@('enroll', 'Bob''s / „CA‘‘')", `\/`, "('1' + \"`n\" + '2' + ", `dsacls 'CN=Bob''s / „CA‘‘,CN=Enrollment Services,` + base + `' /G 'NT AUTHORITY\Authenticated Users:CA;Enroll'`} {
		if !strings.Contains(script, want) {
			t.Errorf("no %q in\n%s", want, script)
		}
	}
	apply(t, f, p)
	p = Removal(f, []CA{ca}, true, "")
	if text := LDIF(p); !strings.Contains(text, "changetype: delete\n") || !strings.Contains(text, "changetype: modify\ndelete: cACertificate\n") {
		t.Error(text)
	}
	if script := Script(p); !strings.Contains(script, ".DeleteTree()") || !strings.Contains(script, "PutEx(2, 'cACertificate', @(,[Convert]::FromBase64String('AA==')))") {
		t.Error(script)
	}
}
