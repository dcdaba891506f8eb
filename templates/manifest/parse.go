package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/enrollgate/enrollgate/templates"
)

// maxSize bounds a file.
const maxSize = 1 << 20

// Parse reads a file of one or more documents. Everything that is not understood is an error with file, line and column;
// all of them are reported.
func Parse(file string, content []byte, sidOf Resolver) ([]*Manifest, error) {
	if len(content) > maxSize {
		return nil, fmt.Errorf("%s: more than 1 MiB", file)
	}
	tree, err := parseTree(content)
	if err != nil {
		return nil, syntaxError(file, err)
	}
	var out []*Manifest
	var errs []error
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue // nothing but comments
		}
		p := &documentParser{m: &Manifest{File: file, want: templates.Attributes{}, at: map[string]position{}}, sidOf: sidOf}
		p.document(doc.Body)
		out, errs = append(out, p.m), append(errs, p.errs...)
	}
	if len(out) == 0 {
		errs = append(errs, &Error{file, 1, 1, "there is no template in it"})
	}
	return out, errors.Join(errs...)
}

// parseTree turns a panic of the parser, which its history is not free of, into an error.
func parseTree(content []byte) (tree *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML parser gave up on this text (%v)", p)
		}
	}()
	return parser.ParseBytes(content, 0)
}

func syntaxError(file string, err error) error {
	var e *yaml.SyntaxError
	if errors.As(err, &e) && e.Token != nil {
		return &Error{file, e.Token.Position.Line, e.Token.Position.Column, e.Message}
	}
	return fmt.Errorf("%s: %w", file, err)
}

// documentParser collects the errors of one document.
type documentParser struct {
	m     *Manifest
	sidOf Resolver
	errs  []error
}

func (p *documentParser) fail(at position, format string, args ...any) {
	p.errs = append(p.errs, &Error{p.m.File, at.line, at.column, fmt.Sprintf(format, args...)})
}

// check records an error of a value.
func (p *documentParser) check(e entry, err error) bool {
	if err == nil {
		return true
	}
	at, reason := e.at, err.Error()
	if f, ok := errors.AsType[*fault](err); ok {
		at = f.at
	}
	p.fail(at, "%s: %s", e.key, reason)
	return false
}

func (p *documentParser) document(body ast.Node) {
	top, ok := body.(*ast.MappingNode)
	if !ok {
		position := body.GetToken().Position
		p.errs = append(p.errs, &Error{p.m.File, position.Line, position.Column, "want keys and values, such as template: NAME"})
		return
	}
	for _, pair := range top.Values {
		key := pair.Key.GetToken()
		e := entry{key: key.Value, at: position{key.Position.Line, key.Position.Column}}
		var err error
		if e.value, err = nodeOf(pair.Value); p.check(e, err) {
			p.key(e)
		}
	}
	if p.m.Name == "" {
		first := top.GetToken().Position
		p.fail(position{first.Line, first.Column}, "the key template is missing: it is the template's name (cn)")
	}
}

// key reads one key of a document.
func (p *documentParser) key(e entry) {
	p.m.at[e.key] = e.at
	switch e.key {
	case keyTemplate:
		p.m.Name = e.value.text
		p.check(e, nameError(e.value))
	case keyVersion:
		v, err := parseVersion(e.value)
		if p.check(e, err) && p.claim(e, attrMajor) && p.claim(e, attrMinor) {
			p.m.version = &v
		}
	case keyOwner, keyGroup:
		sid, err := p.sidOf(e.value.text)
		if !p.check(e, err) {
			return
		}
		if e.key == keyOwner {
			p.m.owner = &sid
		} else {
			p.m.group = &sid
		}
	case keyInherit:
		inherit, err := strconv.ParseBool(e.value.text)
		if err != nil {
			err = e.value.fail("want true or false")
		}
		if p.check(e, err) {
			p.m.inherit = &inherit
		}
	case keyACL:
		l, err := parseACL(e.value, p.sidOf)
		if p.check(e, err) {
			p.m.acl = l
		}
	case keyOffered:
		items, err := e.value.list()
		names := []string{}
		for _, item := range items {
			names = append(names, item.text)
			p.m.at[keyOffered+" "+item.text] = item.at
		}
		if p.check(e, err) {
			p.m.offered = &names
		}
	case keyAttributes:
		p.attributes(e)
	default:
		p.field(e)
	}
}

// nameError says what is wrong with a cn: the directory allows 64 characters ([MS-ADA1] 2.110, rangeUpper).
func nameError(n node) error {
	switch {
	case n.kind != scalar || n.text == "":
		return n.fail("want the template's name (cn)")
	case len([]rune(n.text)) > 64 || !plain(n.text) || strings.TrimSpace(n.text) != n.text:
		return n.fail("%q cannot be a template's name: at most 64 printable characters, no space at either end", n.text)
	}
	return nil
}

func parseVersion(n node) (version, error) {
	text, exact := strings.CutPrefix(n.text, "=")
	majorText, minorText, ok := strings.Cut(text, ".")
	major, err1 := strconv.ParseUint(majorText, 10, 31)
	minor, err2 := strconv.ParseUint(minorText, 10, 31)
	if n.kind != scalar || !ok || err1 != nil || err2 != nil {
		return version{}, n.fail(`want "MAJOR.MINOR", such as "100.4", or "=100.4" to fix it`)
	}
	return version{int(major), int(minor), exact}, nil
}

// field reads a key of the table.
func (p *documentParser) field(e entry) {
	table := fields()
	i := slices.IndexFunc(table, func(f field) bool { return f.key == e.key })
	if i < 0 {
		p.fail(e.at, "unknown key %q", e.key)
		return
	}
	f := table[i]
	values := [][]byte{}
	if !e.value.empty() || e.value.kind == list && f.zero {
		var err error
		if values, err = f.codec.write(e.value); !p.check(e, err) {
			return
		}
	}
	if p.claim(e, f.attribute) {
		p.m.want[f.attribute] = values
	}
}

// attributes reads values that no readable key can express.
func (p *documentParser) attributes(e entry) {
	if e.value.kind != mapping {
		p.fail(e.value.at, "attributes: want attributes with lists of values")
		return
	}
	for _, a := range e.value.entries {
		name := strings.ToLower(a.key)
		values, err := writeRaw(a.value)
		if !p.check(a, err) {
			continue
		}
		if slices.Contains(owned, name) && name != "showinadvancedviewonly" {
			p.fail(a.at, "attribute %s belongs to the directory; take it out", a.key)
			continue
		}
		if !isAttribute(name) {
			p.fail(a.at, "%q is not the name of an attribute", a.key)
			continue
		}
		if p.claim(a, name) {
			if values == nil {
				values = [][]byte{}
			}
			p.m.want[name] = values
		}
	}
}

// isAttribute tells whether a name can be that of an LDAP attribute, without options (RFC 4512 1.4).
func isAttribute(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// claim records that a key sets an attribute; a second one must not.
func (p *documentParser) claim(e entry, attribute string) bool {
	id := "=" + attribute
	if _, taken := p.m.at[id]; taken {
		p.fail(e.at, "%s: the document sets the attribute %s twice", e.key, attribute)
		return false
	}
	p.m.at[id] = e.at
	return true
}
