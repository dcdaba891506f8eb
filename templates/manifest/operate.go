package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
)

// OID is what a new object identifier below the forest's prefix is made from: its last two arcs, and 32 hexadecimal digits
// for the name of its object, as the Windows console chooses them: at random.
type OID struct {
	Arcs   [2]uint32
	Digits string
}

// identify gives a new template its object identifier, and finds out whether that has to be registered.
func (p *planner) identify(t *target) error {
	oldOID := ""
	if t.old != nil {
		oldOID = t.old.Attributes.First(attrOID)
	}
	oid := t.new.Attributes.First(attrOID)
	_, given := t.m.want[attrOID]
	if schema := t.new.Attributes.First(attrSchema); t.old == nil && oid == "" && (schema != "1" || !given) {
		var err error
		if oid, err = p.newOID(t); err != nil {
			return t.m.errorAt(keyTemplate, "%v", err)
		}
		t.new.Attributes[attrOID] = one(oid)
	}
	if oid == "" || oid == oldOID {
		return nil
	}
	for i := range p.forest.Templates {
		if o := &p.forest.Templates[i]; o.Attributes.First(attrOID) == oid && !strings.EqualFold(o.Name(), t.m.Name) {
			return t.m.errorAt("oid", "%s is the OID of the template %q", oid, o.Name())
		}
	}
	if other, taken := p.taken[oid]; taken {
		return t.m.errorAt("oid", "%s is the OID of the template %q in these files", oid, other)
	}
	p.taken[oid] = t.m.Name
	if t.oid == nil && !slices.ContainsFunc(p.forest.OIDs, func(o OIDObject) bool { return o.OID == oid }) {
		fresh, err := p.fresh()
		if err != nil {
			return err
		}
		t.oid = p.oidObject(oid, fresh.Digits)
	}
	return nil
}

func (p *planner) oidObject(oid, digits string) *OIDObject {
	cn := oid[strings.LastIndexByte(oid, '.')+1:] + "." + digits
	return &OIDObject{DN: "CN=" + cn + ",CN=OID," + p.base(), OID: oid, Flags: "1"}
}

// newOID makes an object identifier for a new template. One that a run before has registered for a template of this name,
// and that no template has, is taken again.
func (p *planner) newOID(t *target) (string, error) {
	for _, o := range p.forest.OIDs {
		free := !slices.ContainsFunc(p.forest.Templates, func(x Object) bool { return x.Attributes.First(attrOID) == o.OID })
		if _, taken := p.taken[o.OID]; free && !taken && o.Flags == "1" && o.DisplayName != "" && o.DisplayName == t.new.Attributes.First(attrDisplay) {
			return o.OID, nil
		}
	}
	if !templates.IsOID(p.forest.OIDPrefix) {
		return "", fmt.Errorf("the forest has no OID prefix (msPKI-Cert-Template-OID of CN=OID): give the template an OID with the key oid, " +
			"or open the Certificate Templates console once, which makes a prefix")
	}
	fresh, err := p.fresh()
	if err != nil {
		return "", err
	}
	oid := fmt.Sprintf("%s.%d.%d", p.forest.OIDPrefix, fresh.Arcs[0], fresh.Arcs[1])
	t.oid = p.oidObject(oid, fresh.Digits)
	return oid, nil
}

// validate refuses what the gateway could not read afterwards, and notes what it would not serve.
func (p *planner) validate(t *target) error {
	parsed, err := templates.Parse(t.new.DN, maps.Clone(t.new.Attributes))
	if err != nil {
		key := keyTemplate
		if _, rest, ok := strings.Cut(err.Error(), "attribute "); ok {
			name, _, _ := strings.Cut(rest, ":")
			if _, given := t.m.at["="+strings.ToLower(name)]; given {
				key = "=" + strings.ToLower(name)
			}
		}
		return t.m.errorAt(key, "the result would not be a template that can be served: %v", err)
	}
	warn := func(format string, args ...any) {
		p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf("%s: template %q ", t.m.File, t.m.Name)+fmt.Sprintf(format, args...))
	}
	for _, reason := range templates.Unsupported(parsed) {
		warn("is not served by the gateway: %s", reason)
	}
	if t.m.acl != nil && t.m.acl.denyAfterAllow() {
		warn("has a deny entry after an allow entry: the first that applies decides, and Windows' editors want deny entries first")
	}
	return nil
}

// denyAfterAllow tells whether the list is not in the order that Windows calls canonical.
func (l *acl) denyAfterAllow() bool {
	allow := false
	for i := range l.aces {
		a := &l.aces[i]
		if a.Problem == "" && !a.Allows() && allow {
			return true
		}
		allow = allow || a.Allows()
	}
	return false
}

// offers lists the differences of CAs.
func (p *planner) offers(m *Manifest) ([]Difference, error) {
	if m.offered == nil {
		return nil, nil
	}
	isWanted := func(ca string) bool {
		return slices.ContainsFunc(*m.offered, func(name string) bool { return strings.EqualFold(name, ca) })
	}
	for _, name := range *m.offered {
		if !slices.ContainsFunc(p.forest.Services, func(s Service) bool { return strings.EqualFold(s.Name, name) }) {
			return nil, m.errorAt(keyOffered+" "+name, "the forest has no enrollment service %q", name)
		}
	}
	var out []Difference
	for _, s := range p.forest.Services {
		d := Difference{Object: s.DN, Kind: "ca", Name: s.Name, File: m.File, Operation: Operation{DN: s.DN}}
		mod := Modification{Attribute: "certificateTemplates"}
		switch value := s.value(m.Name); {
		case isWanted(s.Name) && value == "":
			mod.New = one(m.Name)
			d.Changes = []Change{{mod.Attribute, []string{}, []string{m.Name}}}
		case !isWanted(s.Name) && value != "":
			mod.Old = one(value)
			d.Changes = []Change{{mod.Attribute, []string{value}, []string{}}}
		default:
			continue
		}
		d.Operation.Modifications = []Modification{mod}
		out = append(out, d)
	}
	return out, nil
}

// emit adds what has to be done: the OID first, then the template with its access control list, then what CAs offer.
func (p *planner) emit(t *target, offers []Difference) {
	add := func(d Difference) { p.plan.Differences = append(p.plan.Differences, d) }
	if t.oid != nil {
		display := t.new.Attributes.First(attrDisplay)
		attributes := templates.Attributes{"objectclass": one("msPKI-Enterprise-Oid"), "flags": one(t.oid.Flags), attrOID: one(t.oid.OID)}
		changes := []Change{{"oid", nil, []string{t.oid.OID}}}
		if display != "" {
			attributes[attrDisplay] = one(display)
			changes = append(changes, Change{"display_name", nil, []string{display}})
		}
		add(Difference{Object: t.oid.DN, Kind: "oid", Name: t.m.Name, File: t.m.File, Create: true,
			Changes: changes, Operation: Operation{DN: t.oid.DN, Add: attributes}})
	}
	if len(t.changes) > 0 {
		add(Difference{Object: t.new.DN, Kind: "template", Name: t.m.Name, File: t.m.File, Create: t.old == nil,
			Changes: t.changes, Operation: t.operation()})
	}
	for _, d := range offers {
		add(d)
	}
}

// operation is the one request that makes or changes the template: all of it, or nothing.
func (t *target) operation() Operation {
	o := Operation{DN: t.new.DN, Expect: t.old, Parts: t.parts}
	if t.old == nil {
		o.Add = templates.Attributes{"objectclass": one("pKICertificateTemplate")}
		for name, values := range t.new.Attributes {
			if name != "cn" && len(values) > 0 {
				o.Add[name] = values
			}
		}
		return o
	}
	for _, name := range t.modified {
		if name != attrMinor && name != attrMajor {
			old, new := t.values(name)
			o.Modifications = append(o.Modifications, Modification{name, old, new})
		}
	}
	// The version is always in it: whoever else has changed the template has raised it, and the directory refuses.
	for _, name := range []string{attrMajor, attrMinor} {
		if old, new := t.values(name); len(old)+len(new) > 0 {
			o.Modifications = append(o.Modifications, Modification{name, old, new})
		}
	}
	if t.parts != 0 {
		o.Descriptor = t.new.Attributes[attrDescriptor][0]
	}
	return o
}

// escapeRDN escapes a value for a distinguished name (RFC 4514 2.4).
func escapeRDN(value string) string {
	var b strings.Builder
	for i, r := range value {
		if strings.ContainsRune(`"+,;<>\=`, r) || i == 0 && (r == '#' || r == ' ') || i == len(value)-1 && r == ' ' {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
