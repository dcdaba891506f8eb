package native

import (
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/manifest"
)

// Removal plans the way back: enrollment services, revocation lists and the right to issue for logon. With trust also roots
// and intermediate certificates, without which no certificate of the CA can be verified any more. What another enrollment
// service needs stays. Services go first: nobody is to find a CA that is half gone.
func Removal(f *Forest, cas []CA, trust bool, source string) *Plan {
	p := newPlanner(f, source, time.Time{})
	gone := map[string]bool{}
	for _, ca := range cas {
		if o := f.service(ca.Name); ca.Published && o != nil {
			gone[o.DN] = true
			p.remove(KindService, ca.Name, o)
		}
	}
	for _, ca := range cas {
		if !ca.Published {
			continue
		}
		host := hostRDN(&ca) + "," + cdpRDN + "," + f.Base()
		o := f.object("CN=" + dn.Escape(ca.Name) + "," + host)
		if o == nil {
			continue
		}
		gone[o.DN] = true
		p.remove(KindCDP, ca.Name, o)
		if above := f.object(host); above != nil && !slices.ContainsFunc(f.in(host), func(o *manifest.Object) bool { return !gone[o.DN] }) {
			p.remove(KindContainer, above.Name(), above)
		}
	}
	for i := range cas {
		ca := &cas[i]
		p.withdraw(KindNTAuth, ca.Name, []*manifest.Object{f.object(ntAuthRDN + "," + f.Base())}, ca.Logon, gone)
		if trust {
			p.withdraw(KindAIA, ca.Name, f.in(aiaRDN+","+f.Base()), ca.Intermediates, gone)
			p.withdraw(KindRoot, ca.Name, f.in(rootsRDN+","+f.Base()), ca.Roots, gone)
		}
	}
	return p.plan
}

func (p *planner) remove(kind, name string, o *manifest.Object) {
	d := manifest.Difference{Object: o.DN, Kind: kind, Name: name, File: p.source, Delete: true, Changes: []manifest.Change{},
		Operation: manifest.Operation{DN: o.DN, Delete: true, Expect: o}}
	for _, attribute := range []string{attrHost, attrCertificate, attrTemplates, attrCRL} {
		if was := show(attribute, o.Attributes[attribute]); len(was) > 0 {
			d.Changes = append(d.Changes, manifest.Change{Key: spelled(attribute), Old: was, New: []string{}})
		}
	}
	p.plan.Differences = append(p.plan.Differences, d)
	p.plan.Objects = append(p.plan.Objects, Standing{kind, o.DN, Removes})
}

// withdraw takes certificates out of objects. An object of which nothing is left goes, but for NTAuthCertificates.
func (p *planner) withdraw(kind, name string, objects []*manifest.Object, certs []*x509.Certificate, gone map[string]bool) {
	for _, o := range objects {
		if o == nil || gone[o.DN] {
			continue
		}
		var m manifest.Modification
		var left [][]byte
		for _, v := range o.Attributes[attrCertificate] {
			i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return slices.Equal(c.Raw, v) })
			switch {
			case i < 0:
				left = append(left, v)
			case p.needed(certs[i], gone):
				left = append(left, v)
				p.warn("%s stays in %s: another enrollment service needs it", dn.Show(certs[i].RawSubject), o.DN)
			default:
				m.Old = append(m.Old, v)
			}
		}
		if len(m.Old) == 0 {
			continue
		}
		if len(left) == 0 && kind != KindNTAuth {
			gone[o.DN] = true
			p.remove(kind, name, o)
			continue
		}
		if len(left) == 0 {
			m.New = [][]byte{nothing}
		}
		m.Attribute = attrCertificate
		p.plan.Differences = append(p.plan.Differences, manifest.Difference{Object: o.DN, Kind: kind, Name: name, File: p.source,
			Changes:   []manifest.Change{{Key: spelled(attrCertificate), Old: show(attrCertificate, o.Attributes[attrCertificate]), New: show(attrCertificate, left)}},
			Operation: manifest.Operation{DN: o.DN, Modifications: []manifest.Modification{m}}})
		p.plan.Objects = append(p.plan.Objects, Standing{kind, o.DN, Changes})
	}
}

// needed tells whether an enrollment service that stays has the certificate, or one that it has issued.
func (p *planner) needed(c *x509.Certificate, gone map[string]bool) bool {
	for _, o := range p.forest.in(servicesRDN + "," + p.forest.Base()) {
		if gone[o.DN] {
			continue
		}
		for _, v := range o.Attributes[attrCertificate] {
			other, err := x509.ParseCertificate(v)
			if err == nil && (c.Equal(other) || strings.EqualFold(string(other.RawIssuer), string(c.RawSubject)) && other.CheckSignatureFrom(c) == nil) {
				return true
			}
		}
	}
	return false
}
