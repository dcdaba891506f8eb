package manifest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml"
)

// Export writes one template as a YAML document that says everything about it. comment finds words for an object
// identifier, or "". An empty value is written where leaving the key out would give a new template something else.
func Export(f *Forest, o *Object, comment func(oid string) string) ([]byte, error) {
	if err := nameError(node{text: o.Name()}); err != nil {
		return nil, fmt.Errorf("object %q: %w", o.DN, err)
	}
	e := &exporter{comments: yaml.CommentMap{}, comment: comment, left: maps.Clone(o.Attributes)}
	for _, name := range owned {
		if name == "showinadvancedviewonly" && o.Attributes.First(name) != "TRUE" && len(o.Attributes[name]) > 0 {
			continue // the class sets it to TRUE
		}
		delete(e.left, name)
	}
	e.add(keyTemplate, o.Name())
	for _, field := range fields() {
		if field.key == "flags" {
			e.version(o)
		}
		e.field(field, o)
	}
	if err := e.security(f, o); err != nil {
		return nil, err
	}
	e.add(keyOffered, f.offeredBy(o.Name()))
	e.rest()
	text, err := yaml.MarshalWithOptions(e.out, yaml.IndentSequence(true), yaml.UseSingleQuote(true), yaml.WithComment(e.comments))
	if err != nil {
		return nil, fmt.Errorf("template %q: %w", o.Name(), err)
	}
	return append(bytes.TrimRight(text, "\n"), '\n'), nil
}

// exporter gathers the keys of a document.
type exporter struct {
	out      yaml.MapSlice
	comments yaml.CommentMap
	comment  func(oid string) string
	left     map[string][][]byte // attributes that no key shows so far
}

func (e *exporter) add(key string, value any) {
	e.out = append(e.out, yaml.MapItem{Key: key, Value: value})
}

// field adds the key of a field, if it can show what the attribute holds.
func (e *exporter) field(f field, o *Object) {
	values := o.Attributes[f.attribute]
	if len(values) == 0 {
		if f.need || f.initial != "" || f.key == "application_policies" || f.key == "oid" {
			e.add(f.key, emptyOf(f))
		}
		return
	}
	best, v := readable(f.attribute, values)
	if best == nil || best.key != f.key {
		return
	}
	e.add(f.key, v)
	delete(e.left, f.attribute)
	oids, _ := v.([]string)
	for i, oid := range oids {
		if words := e.comment(oid); words != "" && plain(words) {
			e.comments[fmt.Sprintf("$.%s[%d]", f.key, i)] = []*yaml.Comment{yaml.LineComment(" " + words)}
		}
	}
}

// emptyOf is what clears the attribute of a field. An empty list of flags would be 0.
func emptyOf(f field) any {
	if _, err := f.codec.write(node{kind: list}); err == nil && !f.zero {
		return []string{}
	}
	return ""
}

// version adds the version, if both attributes are numbers; else they are left for the rest.
func (e *exporter) version(o *Object) {
	if v, ok := versionOf(o); ok {
		e.add(keyVersion, v.String())
		delete(e.left, attrMajor)
		delete(e.left, attrMinor)
		return
	}
	for _, name := range []string{attrMajor, attrMinor} {
		if len(e.left[name]) == 0 {
			e.left[name] = [][]byte{}
		}
	}
}

// versionOf reads a template's version; ok is false where it is not two numbers.
func versionOf(o *Object) (v version, ok bool) {
	parse := func(name string, into *int) bool {
		s, _ := single(o.Attributes[name])
		n, err := strconv.ParseUint(s, 10, 31)
		*into = int(n)
		return err == nil && strconv.FormatUint(n, 10) == s
	}
	ok = parse(attrMajor, &v.major)
	return v, parse(attrMinor, &v.minor) && ok
}

// security adds owner, group and access control list.
func (e *exporter) security(f *Forest, o *Object) error {
	d, err := o.descriptor()
	if err != nil || d == nil {
		return err
	}
	if d.Owner != "" {
		e.add(keyOwner, trusteeName(d.Owner, f.Names))
	}
	if d.Group != "" {
		e.add(keyGroup, trusteeName(d.Group, f.Names))
	}
	e.add(keyInherit, inherits(d))
	e.add(keyACL, aclOf(d).lines(f.Names))
	return nil
}

// rest adds what has no readable form.
func (e *exporter) rest() {
	var out yaml.MapSlice
	for _, name := range slices.Sorted(maps.Keys(e.left)) {
		out = append(out, yaml.MapItem{Key: name, Value: raw(e.left[name])})
	}
	if len(out) > 0 {
		e.add(keyAttributes, out)
	}
}
