package manifest

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

type kind int

const (
	scalar kind = iota
	list
	mapping
)

// node is a YAML value with its position.
type node struct {
	kind    kind
	text    string  // of a scalar
	number  bool    // whether it stands without quotes and is a number
	items   []node  // of a list
	entries []entry // of a mapping, in the order written
	at      position
}

type entry struct {
	key   string
	at    position
	value node
}

// fault is a mistake at a node, before the file is known.
type fault struct {
	at     position
	reason string
}

func (f *fault) Error() string { return f.reason }

func (n node) fail(format string, args ...any) error {
	return &fault{n.at, fmt.Sprintf(format, args...)}
}

// empty tells whether the value clears an attribute.
func (n node) empty() bool {
	return n.kind == scalar && n.text == "" || n.kind == list && len(n.items) == 0 || n.kind == mapping && len(n.entries) == 0
}

// scalar returns the text of a single value.
func (n node) scalar() (string, error) {
	if n.kind != scalar {
		return "", n.fail("want a single value")
	}
	return n.text, nil
}

// list returns the texts of a list.
func (n node) list() ([]node, error) {
	if n.kind != list {
		return nil, n.fail("want a list, such as [] or lines that begin with -")
	}
	for _, i := range n.items {
		if i.kind != scalar {
			return nil, i.fail("want a single value; put it into quotes where it has a colon")
		}
	}
	return n.items, nil
}

// nodeOf reads the syntax tree. What has no meaning here, such as anchors, tags and "no value", is refused.
func nodeOf(n ast.Node) (node, error) {
	p := n.GetToken().Position
	out := node{at: position{p.Line, p.Column}}
	switch v := n.(type) {
	case *ast.StringNode:
		out.text = v.Value
	case *ast.LiteralNode:
		out.text = v.Value.Value
	case *ast.IntegerNode:
		out.text, out.number = v.GetToken().Value, true
	case *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		out.text = v.GetToken().Value
	case *ast.NullNode:
		return out, out.fail(`no value: write [] or "" to clear, or leave the key out to leave the directory as it is`)
	case *ast.SequenceNode:
		out.kind = list
		for _, item := range v.Values {
			i, err := nodeOf(item)
			if err != nil {
				return out, err
			}
			out.items = append(out.items, i)
		}
	case *ast.MappingNode:
		out.kind = mapping
		for _, pair := range v.Values {
			key := pair.Key.GetToken()
			value, err := nodeOf(pair.Value)
			if err != nil {
				return out, err
			}
			out.entries = append(out.entries, entry{key.Value, position{key.Position.Line, key.Position.Column}, value})
		}
	default:
		return out, out.fail("anchors, aliases and tags are not supported: write the value itself")
	}
	return out, nil
}

// nodeFor is what nodeOf would return for a value that a codec made.
func nodeFor(v any) node {
	switch v := v.(type) {
	case string:
		return node{text: v}
	case int:
		return node{text: strconv.Itoa(v), number: true}
	case bool:
		return node{text: strconv.FormatBool(v)}
	case []string:
		n := node{kind: list}
		for _, item := range v {
			n.items = append(n.items, node{text: item})
		}
		return n
	case yaml.MapSlice:
		n := node{kind: mapping}
		for _, item := range v {
			n.entries = append(n.entries, entry{key: item.Key.(string), value: nodeFor(item.Value)})
		}
		return n
	}
	panic(fmt.Sprintf("manifest: no node for %T", v))
}

// lines shows a value for a diff.
func lines(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case []string:
		if len(v) == 0 {
			return []string{"[]"}
		}
		return v
	case yaml.MapSlice:
		var out []string
		for _, item := range v {
			if values, ok := item.Value.([]string); ok {
				for _, value := range values {
					out = append(out, fmt.Sprintf("%v: %s", item.Key, value))
				}
				continue
			}
			out = append(out, fmt.Sprintf("%v: %v", item.Key, item.Value))
		}
		return out
	}
	return []string{fmt.Sprint(v)}
}

// plain tells whether text can stand in YAML and in a terminal as it is. The library does not quote a question mark, which
// begins a key there.
func plain(text string) bool {
	if strings.HasPrefix(text, "?") {
		return false
	}
	for _, r := range text {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return false
		}
	}
	return true
}
