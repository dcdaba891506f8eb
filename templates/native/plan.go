package native

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/security"
)

// NewPlan compares CAs with the forest. source names where the CAs are from, for the diff. Errors are all mistakes at once.
func NewPlan(f *Forest, cas []CA, source string, now time.Time) (*Plan, error) {
	p := newPlanner(f, source, now)
	if f.object(f.Base()) == nil {
		return nil, fmt.Errorf("there is no %s, or the account may not read it", f.Base())
	}
	var errs []error
	for i := range cas { // trust comes before what makes clients use it
		p.trust(&cas[i])
	}
	for i := range cas {
		if ca := &cas[i]; ca.Published {
			p.distribution(ca)
			errs = append(errs, p.service(ca))
		}
	}
	p.foldCertificates()
	return p.plan, errors.Join(errs...)
}

type planner struct {
	forest *Forest
	source string
	now    time.Time
	plan   *Plan
	wants  []*want
}

func newPlanner(f *Forest, source string, now time.Time) *planner {
	return &planner{forest: f, source: source, now: now,
		plan: &Plan{Plan: manifest.Plan{Differences: []manifest.Difference{}, Warnings: []string{}}, Objects: []Standing{}}}
}

func (p *planner) warn(format string, args ...any) {
	p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf(format, args...))
}

// want is what one object has to be.
type want struct {
	kind, name, dn, class string

	add     templates.Attributes // values that are to be there, among others
	set     templates.Attributes // the one value
	initial templates.Attributes // of a new object only
	enroll  []security.SID       // who has to have the right
}

// container demands a container, and returns its distinguished name.
func (p *planner) container(rdn, above string) string {
	w := &want{kind: KindContainer, name: strings.TrimPrefix(rdn, "CN="), dn: rdn + "," + above, class: "container"}
	if p.forest.object(w.dn) == nil {
		p.wants = append(p.wants, w)
	}
	return w.dn
}

// trust demands roots, intermediate certificates and the right to issue for logon ([MS-WCCE] 2.2.2.11.1, .3, .4).
func (p *planner) trust(ca *CA) {
	base := p.forest.Base()
	for _, c := range ca.Roots {
		p.certificate(KindRoot, rootsRDN, "", c)
	}
	for _, c := range ca.Intermediates {
		name := ""
		if slices.ContainsFunc(ca.Certificates, c.Equal) {
			name = ca.Name
		}
		p.certificate(KindAIA, aiaRDN, name, c)
	}
	if len(ca.Logon) > 0 {
		p.wants = append(p.wants, &want{kind: KindNTAuth, name: ca.Name, dn: ntAuthRDN + "," + base, class: "certificationAuthority",
			add: templates.Attributes{attrCertificate: raw(ca.Logon)}, initial: noLists()})
	}
}

// noLists are what the class certificationAuthority demands.
func noLists() templates.Attributes {
	return templates.Attributes{attrARL: {nothing}, attrCRL: {nothing}}
}

// certificate demands a certificate somewhere below a container: where it is already, else in the object of its name.
func (p *planner) certificate(kind, rdn, name string, c *x509.Certificate) {
	container := p.container(rdn, p.forest.Base())
	name = cmp.Or(name, commonName(c))
	at := "CN=" + dn.Escape(name) + "," + container
	for _, o := range p.forest.in(container) {
		if has(o.Attributes[attrCertificate], c.Raw) {
			at = o.DN
			break
		}
	}
	p.wants = append(p.wants, &want{kind: kind, name: name, dn: at, class: "certificationAuthority",
		add: templates.Attributes{attrCertificate: {c.Raw}}, initial: noLists()})
}

// commonName is how Windows calls the object of a certificate.
func commonName(c *x509.Certificate) string {
	return cmp.Or(c.Subject.CommonName, dn.Show(c.RawSubject))
}

// distribution demands the revocation list ([MS-WCCE] 2.2.2.11: CN=<CA>,CN=<host>,CN=CDP).
func (p *planner) distribution(ca *CA) {
	if ca.CRL == nil {
		return
	}
	host := p.container(hostRDN(ca), p.container(cdpRDN, p.forest.Base()))
	w := &want{kind: KindCDP, name: ca.Name, dn: "CN=" + dn.Escape(ca.Name) + "," + host, class: "cRLDistributionPoint"}
	if old := p.forest.object(w.dn); old != nil && len(old.Attributes[attrCRL]) == 1 && revocationListStands(old.Attributes[attrCRL][0], ca.CRL, p.now) {
		p.wants = append(p.wants, w)
		return
	}
	w.set = templates.Attributes{attrCRL: {ca.CRL}}
	p.wants = append(p.wants, w)
}

// hostRDN is the first part of the host's name, as Windows writes it.
func hostRDN(ca *CA) string {
	short, _, _ := strings.Cut(ca.Host, ".")
	return "CN=" + dn.Escape(short)
}

// service demands the enrollment service ([MS-WCCE] 2.2.2.11.2).
func (p *planner) service(ca *CA) error {
	if len(ca.Certificates) == 0 {
		return fmt.Errorf("CA %q has no certificate to publish", ca.Name)
	}
	container := p.container(servicesRDN, p.forest.Base())
	w := &want{kind: KindService, name: ca.Name, dn: "CN=" + dn.Escape(ca.Name) + "," + container, class: "pKIEnrollmentService", enroll: ca.Enroll,
		add: templates.Attributes{attrCertificate: raw(ca.Certificates)},
		set: templates.Attributes{attrHost: values(ca.Host), attrSubject: values(dn.Show(ca.Certificates[0].RawSubject)), attrDisplay: values(ca.Name)}}
	flags := flagNTAuthentication | flagAdvanced
	old := p.forest.service(ca.Name)
	if old != nil {
		w.dn = old.DN
		was, err := strconv.ParseInt(old.Attributes.First(attrFlags), 10, 32)
		if err != nil && old.Attributes.First(attrFlags) != "" {
			return fmt.Errorf("CA %q: flags of %s: %w", ca.Name, old.DN, err)
		}
		flags |= int(was)
		p.keepSpelling(w, old)
		if host := old.Attributes.First(attrHost); host != "" && len(w.set[attrHost]) > 0 {
			p.warn("CA %q is published on %s: clients that went there will come to %s", ca.Name, host, ca.Host)
		}
	}
	w.set[attrFlags] = values(strconv.Itoa(flags))
	names, err := p.templateNames(ca)
	if err != nil {
		return err
	}
	w.add[attrTemplates] = names
	if len(ca.Servers) > 0 && p.forest.HasServers {
		w.add[attrServers] = newServers(old, ca.Servers)
	} else if len(ca.Servers) > 0 {
		p.warn("the forest's schema is older than Windows Server 2008 R2 and has no msPKI-Enrollment-Servers: clients find the gateway's address for HTTPS by group policy only")
	}
	p.wants = append(p.wants, w)
	return nil
}

// keepSpelling takes out of what is demanded what is there in another spelling, and what somebody may have chosen.
func (p *planner) keepSpelling(w *want, old *manifest.Object) {
	a := old.Attributes
	if a.First(attrDisplay) != "" {
		delete(w.set, attrDisplay)
	}
	if strings.EqualFold(a.First(attrHost), string(w.set[attrHost][0])) {
		delete(w.set, attrHost)
	}
	squeeze := func(name string) string { return strings.ReplaceAll(name, ", ", ",") }
	if strings.EqualFold(squeeze(a.First(attrSubject)), squeeze(string(w.set[attrSubject][0]))) {
		delete(w.set, attrSubject)
	}
}

// templateNames are the templates that a CA is to offer and does not yet, as the forest spells them.
func (p *planner) templateNames(ca *CA) ([][]byte, error) {
	var offered []string
	if old := p.forest.service(ca.Name); old != nil {
		offered = old.Attributes.Strings(attrTemplates)
	}
	same := func(name string) func(string) bool {
		return func(s string) bool { return strings.EqualFold(s, name) }
	}
	var out [][]byte
	var errs []error
	for _, name := range ca.Templates {
		i := slices.IndexFunc(p.forest.Templates, func(o manifest.Object) bool { return strings.EqualFold(o.Name(), name) })
		if i < 0 {
			errs = append(errs, fmt.Errorf("the forest has no template %q", name))
			continue
		}
		o := &p.forest.Templates[i]
		if slices.ContainsFunc(offered, same(name)) {
			continue
		}
		offered = append(offered, o.Name())
		out = append(out, []byte(o.Name()))
		t, err := templates.Parse(o.DN, maps.Clone(o.Attributes))
		if err != nil {
			p.warn("template %q is not served by the gateway: %v", o.Name(), err)
			continue
		}
		for _, reason := range templates.Unsupported(t) {
			p.warn("template %q is not served by the gateway: %s", o.Name(), reason)
		}
	}
	if len(offered) == 0 {
		p.warn("%s", OffersNothing(ca.Name))
	}
	return out, errors.Join(errs...)
}

// OffersNothing is the warning about a CA without templates.
func OffersNothing(ca string) string {
	return fmt.Sprintf("CA %q offers no template: name some with --templates, or offer them in templates' files (offered_by)", ca)
}

// newServers leaves out addresses that are there, with whatever priority somebody gave them.
func newServers(old *manifest.Object, servers []string) (out [][]byte) {
	address := func(value string) string {
		if fields := strings.Split(value, "\n"); len(fields) > 3 {
			return strings.ToLower(fields[3])
		}
		return ""
	}
	for _, s := range servers {
		there := old != nil && slices.ContainsFunc(old.Attributes.Strings(attrServers), func(v string) bool { return address(v) == address(s) })
		if !there {
			out = append(out, []byte(s))
		}
	}
	return out
}

// EnrollmentServer is a value of msPKI-Enrollment-Servers: an address of the enrollment service over HTTPS. authentication
// is that of [MS-XCEP] 3.1.4.1.3.2.
func EnrollmentServer(priority, authentication uint32, renewalOnly bool, address string) string {
	only := 0
	if renewalOnly {
		only = 1
	}
	return fmt.Sprintf("%d\n%d\n%d\n%s\n%d", priority, authentication, only, address, only)
}

func has(list [][]byte, value []byte) bool {
	return slices.ContainsFunc(list, func(v []byte) bool { return bytes.Equal(v, value) })
}

// foldCertificates makes differences of what is demanded: one for each object.
func (p *planner) foldCertificates() {
	var order []*want
	byDN := map[string]*want{}
	for _, w := range p.wants {
		first := byDN[strings.ToLower(w.dn)]
		if first == nil {
			byDN[strings.ToLower(w.dn)] = w
			order = append(order, w)
			continue
		}
		for name, list := range w.add {
			for _, v := range list {
				if !has(first.add[name], v) {
					first.add[name] = append(first.add[name], v)
				}
			}
		}
	}
	for _, w := range order {
		p.compare(w)
	}
}
