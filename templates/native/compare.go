package native

import (
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/security"
)

// partDACL is the access control list of a descriptor ([MS-ADTS] 3.1.1.3.4.1.11).
const partDACL = 4

// compare notes what one object lacks.
func (p *planner) compare(w *want) {
	old := p.forest.object(w.dn)
	d := manifest.Difference{Object: w.dn, Kind: w.kind, Name: w.name, File: p.source, Create: old == nil, Operation: manifest.Operation{DN: w.dn}}
	if old == nil {
		p.create(w, &d)
	} else {
		d.Object, d.Operation.DN = old.DN, old.DN
		p.modify(w, old, &d)
	}
	state := InPlace
	if len(d.Changes) > 0 || d.Create {
		p.plan.Differences = append(p.plan.Differences, d)
		state = Changes
		if d.Create {
			state = Adds
		}
	}
	p.plan.Objects = append(p.plan.Objects, Standing{w.kind, d.Object, state})
}

func (p *planner) create(w *want, d *manifest.Difference) {
	o := &d.Operation
	o.Add = templates.Attributes{attrClass: values(w.class)}
	for _, part := range []templates.Attributes{w.initial, w.add, w.set} {
		for _, name := range slices.Sorted(maps.Keys(part)) {
			if len(part[name]) == 0 {
				continue
			}
			o.Add[name] = part[name]
			if text := show(name, part[name]); len(text) > 0 {
				d.Changes = append(d.Changes, manifest.Change{Key: spelled(name), Old: []string{}, New: text})
			}
		}
	}
	if len(w.enroll) > 0 {
		sd := newDescriptor(w.enroll)
		o.Add[attrDescriptor], o.Parts = [][]byte{sd.Bytes()}, partDACL
		d.Changes = append(d.Changes, manifest.Change{Key: "acl", Old: []string{}, New: p.entries(w.enroll)})
	}
	if len(d.Changes) == 0 {
		d.Changes = []manifest.Change{}
	}
}

func (p *planner) modify(w *want, old *manifest.Object, d *manifest.Difference) {
	change := func(name string, was, is [][]byte, m manifest.Modification) {
		if len(m.Old)+len(m.New) == 0 {
			return
		}
		m.Attribute = name
		d.Operation.Modifications = append(d.Operation.Modifications, m)
		d.Changes = append(d.Changes, manifest.Change{Key: spelled(name), Old: show(name, was), New: show(name, is)})
	}
	for _, name := range slices.Sorted(maps.Keys(w.set)) {
		was, is := old.Attributes[name], w.set[name]
		if len(was) != 1 || !has(was, is[0]) {
			change(name, was, is, manifest.Modification{Old: was, New: is})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.add)) {
		was := old.Attributes[name]
		var m manifest.Modification
		for _, v := range w.add[name] {
			if !has(was, v) {
				m.New = append(m.New, v)
			}
		}
		if len(m.New) > 0 && has(was, nothing) {
			m.Old = [][]byte{nothing}
		}
		change(name, was, slices.Concat(was, m.New), m)
	}
	p.allow(w, old, d)
}

// allow adds the right to enroll where it is missing. What denies it is somebody's wish, and said.
func (p *planner) allow(w *want, old *manifest.Object, d *manifest.Difference) {
	if len(w.enroll) == 0 {
		return
	}
	stored := old.Attributes[attrDescriptor]
	if len(stored) == 0 {
		p.warn("%s: its access control list cannot be read: whether clients may enroll is not known", old.DN)
		return
	}
	sd, err := security.ParseDescriptor(stored[0])
	if err != nil {
		p.warn("%s: %v", old.DN, err)
		return
	}
	var missing []security.SID
	for _, sid := range w.enroll {
		access := sd.ControlAccess(security.NewToken(sid, security.Everyone), security.RightEnroll)
		switch {
		case access.Granted:
		case access.ACE > 0:
			p.warn("%s: %s may not enroll: %s; take that entry away if it is not meant", old.DN, p.nameOf(sid), access.Reason)
		default:
			missing = append(missing, sid)
		}
	}
	if len(missing) == 0 {
		return
	}
	own := slices.DeleteFunc(slices.Clone(sd.DACL), func(a security.ACE) bool { return a.WasInherited() })
	for _, sid := range missing {
		own = append(own, enrollACE(sid))
	}
	n := *sd
	n.HasDACL, n.DACL = true, own // the directory adds the inherited ones
	d.Operation.Descriptor, d.Operation.Parts, d.Operation.Expect = n.Bytes(), partDACL, old
	d.Changes = append(d.Changes, manifest.Change{Key: "acl", Old: []string{}, New: p.entries(missing)[len(readers()):]})
}

// newDescriptor lets everybody in the forest read the object and those named enroll; administrators' rights are inherited.
func newDescriptor(enroll []security.SID) *security.Descriptor {
	d := &security.Descriptor{Control: security.ControlDACLPresent | security.ControlDACLAutoInheritRq, HasDACL: true}
	d.DACL = append(d.DACL, readers()...)
	for _, sid := range enroll {
		d.DACL = append(d.DACL, enrollACE(sid))
	}
	return d
}

const maskRead = security.MaskReadControl | security.MaskReadProperty | security.MaskList | 0x80 // list object

func readers() []security.ACE {
	return []security.ACE{{Type: security.ACEAllow, Mask: maskRead, SID: security.AuthenticatedUsers}}
}

func enrollACE(sid security.SID) security.ACE {
	return security.ACE{Type: security.ACEAllowObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: sid}
}

// entries are the lines of an access control list, as templates' files have them.
func (p *planner) entries(enroll []security.SID) []string {
	out := []string{"allow read for " + p.nameOf(security.AuthenticatedUsers)}
	for _, sid := range enroll {
		out = append(out, "allow enroll for "+p.nameOf(sid))
	}
	return out
}

func (p *planner) nameOf(sid security.SID) string {
	if name := p.forest.Names[sid]; name != "" {
		return name
	}
	if sid == security.AuthenticatedUsers {
		return `NT AUTHORITY\Authenticated Users`
	}
	return string(sid)
}

// show is values for people.
func show(name string, list [][]byte) []string {
	out := []string{}
	for _, v := range list {
		switch {
		case isNothing(v):
		case name == attrCertificate:
			out = append(out, Certificate(v))
		case name == attrCRL:
			out = append(out, revocationList(v))
		case name == attrServers:
			out = append(out, strings.ReplaceAll(string(v), "\n", " "))
		default:
			out = append(out, dn.Clean(string(v)))
		}
	}
	return out
}

// Certificate is a certificate in one line: whose it is, until when, and its SHA-1 hash, by which Windows calls it.
func Certificate(der []byte) string {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Sprintf("%d octets that are no certificate", len(der))
	}
	return fmt.Sprintf("%s, until %s, thumbprint %x", dn.Show(c.RawSubject), c.NotAfter.UTC().Format(time.DateOnly), sha1.Sum(der))
}

func revocationList(der []byte) string {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Sprintf("%d octets that are no revocation list", len(der))
	}
	return fmt.Sprintf("number %s, until %s, %d revoked", l.Number, l.NextUpdate.UTC().Format(time.RFC3339), len(l.RevokedCertificateEntries))
}
