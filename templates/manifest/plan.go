package manifest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Change is one difference between the directory and a document, in words.
type Change struct {
	Key string   `json:"key"`
	Old []string `json:"old"`
	New []string `json:"new"`
}

// Difference is all that is to be done to one object.
type Difference struct {
	Object  string   `json:"object"` // distinguished name
	Kind    string   `json:"kind"`   // "template", "oid" or "ca"; package native has more
	Name    string   `json:"name"`
	File    string   `json:"file"`
	Create  bool     `json:"create"`
	Delete  bool     `json:"delete,omitempty"`
	Changes []Change `json:"changes"`

	Operation Operation `json:"-"`
}

// Modification replaces values of one attribute. Old values that are no longer there make the directory refuse it.
type Modification struct {
	Attribute string
	Old, New  [][]byte
}

// Operation is one request to the directory.
type Operation struct {
	DN            string
	Add           templates.Attributes // of a new object; nil for a change
	Delete        bool                 // the object goes
	Modifications []Modification
	Descriptor    []byte  // new nTSecurityDescriptor; nil to leave it alone
	Parts         int     // of the descriptor that are written: the flags of LDAP_SERVER_SD_FLAGS_OID ([MS-ADTS] 3.1.1.3.4.1.11)
	Expect        *Object // what the object was when the plan was made; nil where it does not matter
}

// Plan is what has to be done, in this order.
type Plan struct {
	Differences []Difference `json:"differences"`
	Warnings    []string     `json:"warnings"` // what the gateway would not serve
}

// NewPlan compares documents with the directory. fresh makes the last two arcs of a new object identifier, and the random
// part of the name of its object. Errors are all mistakes of all documents, with their positions.
func NewPlan(f *Forest, manifests []*Manifest, fresh func() (OID, error)) (*Plan, error) {
	p := &planner{forest: f, fresh: fresh, taken: map[string]string{}, plan: &Plan{Differences: []Difference{}, Warnings: []string{}}}
	var errs []error
	seen := map[string]*Manifest{}
	for _, m := range manifests {
		key := strings.ToLower(m.Name)
		if other := seen[key]; other != nil {
			errs = append(errs, m.errorAt(keyTemplate, "%s has the template %q, too", other.File, m.Name))
			continue
		}
		seen[key] = m
		if err := p.template(m); err != nil {
			errs = append(errs, err)
		}
	}
	return p.plan, errors.Join(errs...)
}

type planner struct {
	forest *Forest
	fresh  func() (OID, error)
	taken  map[string]string // OIDs of this plan, and whose they are
	plan   *Plan
}

// target is what a template is to be.
type target struct {
	m        *Manifest
	old      *Object // nil for a new template
	new      Object
	oid      *OIDObject // to be made
	parts    int        // of the security descriptor that change
	changes  []Change
	modified []string // attributes
}

// template plans one document.
func (p *planner) template(m *Manifest) error {
	t := &target{m: m, old: p.forest.Template(m.Name)}
	if t.old != nil {
		t.new = Object{t.old.DN, maps.Clone(t.old.Attributes)}
	} else {
		t.new = Object{"CN=" + escapeRDN(m.Name) + ",CN=Certificate Templates," + p.base(), templates.Attributes{"cn": one(m.Name)}}
		if err := t.complete(); err != nil {
			return err
		}
	}
	maps.Copy(t.new.Attributes, m.want)
	if err := p.identify(t); err != nil {
		return err
	}
	if err := t.secure(p.forest.Names); err != nil {
		return err
	}
	t.compare()
	t.setVersion()
	if err := p.validate(t); err != nil {
		return err
	}
	offers, err := p.offers(m)
	if err != nil {
		return err
	}
	p.emit(t, offers)
	return nil
}

func (p *planner) base() string {
	return "CN=Public Key Services,CN=Services," + p.forest.ConfigDN
}

// complete gives a new template what its document leaves out, and refuses to guess what matters.
func (t *target) complete() error {
	var missing []string
	for _, f := range fields() {
		if _, given := t.m.want[f.attribute]; given {
			continue
		}
		if f.need {
			missing = append(missing, f.key)
		}
		if f.initial != "" {
			t.new.Attributes[f.attribute] = one(f.initial)
		}
	}
	if t.m.acl == nil {
		missing = append(missing, keyACL)
	}
	if len(missing) > 0 {
		return t.m.errorAt(keyTemplate, "the forest has no template %q, and to make one these keys are missing: %s", t.m.Name, strings.Join(missing, ", "))
	}
	if schema := t.m.want[attrSchema]; len(schema) > 0 && string(schema[0]) != "1" {
		t.new.Attributes["mspki-certificate-application-policy"] = t.m.want["pkiextendedkeyusage"]
	}
	t.new.Attributes[attrMajor], t.new.Attributes[attrMinor] = one("100"), one("0")
	return nil
}

// secure sets the new security descriptor, and which parts of it change.
func (t *target) secure(names map[security.SID]string) error {
	old, err := t.old.descriptor()
	if err != nil {
		return t.m.errorAt(keyTemplate, "%v", err)
	}
	if old == nil {
		old = &security.Descriptor{Control: security.ControlDACLProtected | security.ControlDACLAutoInherited}
	}
	d := *old
	m := t.m
	part := func(flag int, key string, was, is []string) {
		t.parts |= flag
		if t.old == nil {
			was = nil
		}
		t.changes = append(t.changes, Change{key, was, is})
	}
	if m.owner != nil && *m.owner != old.Owner {
		d.Owner = *m.owner
		part(partOwner, keyOwner, nameLines(old.Owner, names), nameLines(d.Owner, names))
	}
	if m.group != nil && *m.group != old.Group {
		d.Group = *m.group
		part(partGroup, keyGroup, nameLines(old.Group, names), nameLines(d.Group, names))
	}
	if m.inherit != nil && *m.inherit != inherits(old) {
		d.Control ^= security.ControlDACLProtected
		part(partDACL, keyInherit, lines(inherits(old)), lines(inherits(&d)))
	}
	if was := aclOf(old); m.acl != nil && (t.old == nil || !m.acl.equal(was)) {
		d.DACL, d.HasDACL = m.acl.aces, !m.acl.none
		part(partDACL, keyACL, lines(was.lines(names)), lines(m.acl.lines(names)))
	} else {
		d.DACL = explicit(&d) // the directory adds the inherited ones
	}
	if t.parts != 0 {
		t.new.Attributes[attrDescriptor] = [][]byte{d.Bytes()}
	}
	return nil
}

// Parts of a security descriptor ([MS-ADTS] 3.1.1.3.4.1.11).
const (
	partOwner = 1
	partGroup = 2
	partDACL  = 4
)

func inherits(d *security.Descriptor) bool { return d.Control&security.ControlDACLProtected == 0 }

func aclOf(d *security.Descriptor) *acl { return &acl{none: !d.HasDACL, aces: explicit(d)} }

func nameLines(sid security.SID, names map[security.SID]string) []string {
	if sid == "" {
		return nil
	}
	return []string{trusteeName(sid, names)}
}

// compare lists the attributes that change.
func (t *target) compare() {
	var changes []Change
	shown := map[string]bool{attrDescriptor: true, attrMajor: t.m.version != nil || t.old == nil, attrMinor: t.m.version != nil || t.old == nil, "cn": true}
	note := func(attribute string) {
		old, new := t.values(attribute)
		if shown[attribute] || sameValues(old, new) {
			return
		}
		shown[attribute] = true
		t.modified = append(t.modified, attribute)
		changes = append(changes, changeOf(attribute, old, new))
	}
	for _, f := range fields() {
		note(f.attribute)
	}
	for _, name := range slices.Sorted(maps.Keys(t.new.Attributes)) {
		note(name)
	}
	t.changes = append(changes, t.changes...)
}

func (t *target) values(attribute string) (old, new [][]byte) {
	if t.old != nil {
		old = t.old.Attributes[attribute]
	}
	return old, t.new.Attributes[attribute]
}

// changeOf finds words for both sides; where one has none, both are shown as they are stored.
func changeOf(attribute string, old, new [][]byte) Change {
	was, oldText := readable(attribute, old)
	is, newText := readable(attribute, new)
	if was == nil && len(old) > 0 || is == nil && len(new) > 0 {
		return Change{attribute, raw(old), raw(new)}
	}
	if is == nil {
		is = was
	}
	return Change{is.key, lines(oldText), lines(newText)}
}

// setVersion raises the minor version of a template that changes, as the Windows console does, unless the document fixes it.
func (t *target) setVersion() {
	v, numbers := versionOf(&t.new)
	_, given := t.m.want[attrMajor]
	if _, minor := t.m.want[attrMinor]; given || minor || !numbers && t.m.version == nil {
		return // the document sets the attributes themselves, or there is nothing to count from
	}
	old := v
	if t.old != nil && len(t.changes) > 0 {
		v.minor++
	}
	if want := t.m.version; want != nil && (want.exact || t.old == nil || !numbers || v.less(*want)) {
		v = *want
	}
	if t.old != nil && v.major == old.major && v.minor == old.minor {
		return
	}
	c := Change{keyVersion, []string{old.String()}, []string{v.String()}}
	if t.old == nil || !numbers {
		c.Old = nil
	}
	t.changes = append([]Change{c}, t.changes...)
	t.new.Attributes[attrMajor], t.new.Attributes[attrMinor] = one(fmt.Sprint(v.major)), one(fmt.Sprint(v.minor))
}
