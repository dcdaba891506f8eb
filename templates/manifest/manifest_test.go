package manifest

import (
	"slices"
	"testing"
)

func TestWhatIsExportedIsNoChange(t *testing.T) {
	f := recorded(t)
	for i := range f.Templates {
		text := export(t, f, f.Templates[i].Name())
		if p := plan(t, f, text); len(p.Differences) > 0 {
			t.Errorf("%s\n%s", p.Unified(), text)
		}
	}
}

func TestATemplateThatWasDeletedComesBackAsItWas(t *testing.T) {
	f := recorded(t)
	for i := range f.Templates {
		comesBack(t, f, &f.Templates[i])
	}
}

// comesBack requires that the text of a template makes the same template in a forest without it.
func comesBack(t *testing.T, f *Forest, o *Object) {
	t.Helper()
	p := plan(t, f.without(o.Name()), export(t, f, o.Name()))
	var add Operation
	for _, d := range p.Differences {
		if d.Kind == "template" {
			add = d.Operation
		}
	}
	for name, values := range o.Attributes {
		switch {
		case name == attrDescriptor:
			made := &Object{Attributes: add.Add}
			a, _ := o.descriptor()
			b, err := made.descriptor()
			if err != nil || a.Owner != b.Owner || a.Group != b.Group || inherits(a) != inherits(b) || !aclOf(a).equal(aclOf(b)) {
				t.Errorf("%s: %v\n%v\n%v", o.Name(), err, a, b)
			}
		case slices.Contains(owned, name):
		case !sameValues(values, add.Add[name]):
			t.Errorf("%s: %s: %q, was %q", o.Name(), name, add.Add[name], values)
		}
	}
	for name := range add.Add {
		if _, had := o.Attributes[name]; !had && name != "objectclass" {
			t.Errorf("%s: it did not have %s", o.Name(), name)
		}
	}
}
