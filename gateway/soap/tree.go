package soap

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// limits bound what a document may cost before it is understood.
type limits struct{ depth, tokens int }

var (
	requestLimits = limits{depth: 64, tokens: 10_000}
	// replyLimits leave room for the policies of a forest with thousands of templates.
	replyLimits = limits{depth: 64, tokens: 5_000_000}
)

// element is an XML element with its namespace resolved. Comments are gone.
type element struct {
	name     xml.Name
	attrs    []xml.Attr
	text     string // all character data directly inside
	children []*element
}

var utf8BOM = []byte("\xef\xbb\xbf")

// parseDocument reads one UTF-8 document into a tree. Document type declarations, processing instructions, other
// encodings and documents over the limits are refused, so there are no entities to expand.
func parseDocument(b []byte, lim limits) (*element, error) {
	b = bytes.TrimPrefix(b, utf8BOM)
	d := xml.NewDecoder(bytes.NewReader(b))
	var root *element
	var open []*element
	var texts []*strings.Builder
	for tokens := 0; ; tokens++ {
		start := d.InputOffset()
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("XML: %w", err)
		}
		if tokens >= lim.tokens {
			return nil, fmt.Errorf("XML: more than %d tokens", lim.tokens)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if len(open) >= lim.depth {
				return nil, fmt.Errorf("XML: more than %d levels", lim.depth)
			}
			e := &element{name: tok.Name, attrs: tok.Copy().Attr}
			if len(open) > 0 {
				parent := open[len(open)-1]
				parent.children = append(parent.children, e)
			} else if root != nil {
				return nil, fmt.Errorf("XML: a second root element %s", tok.Name.Local)
			} else {
				root = e
			}
			open, texts = append(open, e), append(texts, &strings.Builder{})
		case xml.EndElement:
			last := len(open) - 1
			open[last].text = texts[last].String()
			open, texts = open[:last], texts[:last]
		case xml.CharData:
			if len(open) > 0 {
				texts[len(texts)-1].Write(tok)
			} else if len(bytes.TrimSpace(tok)) > 0 {
				return nil, fmt.Errorf("XML: text outside of the root element")
			}
		case xml.ProcInst:
			if tok.Target != "xml" || start != 0 {
				return nil, fmt.Errorf("XML: processing instruction %q is not allowed", tok.Target)
			}
		case xml.Directive:
			return nil, fmt.Errorf("XML: document type declarations are not allowed")
		}
	}
	if root == nil {
		return nil, fmt.Errorf("XML: the document is empty")
	}
	return root, nil
}

func (e *element) is(space, local string) bool {
	return e.name.Space == space && e.name.Local == local
}

// child returns the only child of this name, or nil where there is none.
func (e *element) child(space, local string) (*element, error) {
	var found *element
	for _, c := range e.children {
		if !c.is(space, local) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s: more than one %s", e.name.Local, local)
		}
		found = c
	}
	return found, nil
}

// need is child for an element that must be there, and not be nil.
func (e *element) need(space, local string) (*element, error) {
	c, err := e.child(space, local)
	if err != nil {
		return nil, err
	}
	if c == nil || c.isNil() {
		return nil, fmt.Errorf("%s: %s is missing", e.name.Local, local)
	}
	return c, nil
}

// optional is child, where xsi:nil is the same as absence.
func (e *element) optional(space, local string) (*element, error) {
	c, err := e.child(space, local)
	if c == nil || err != nil || c.isNil() {
		return nil, err
	}
	return c, nil
}

func (e *element) attr(space, local string) string {
	for _, a := range e.attrs {
		if a.Name.Space == space && a.Name.Local == local {
			return strings.TrimSpace(a.Value)
		}
	}
	return ""
}

func (e *element) isNil() bool {
	v := e.attr(nsInstance, "nil")
	return v == "true" || v == "1"
}

// leaf returns the text of an element without children, trimmed.
func (e *element) leaf() (string, error) {
	if len(e.children) > 0 {
		return "", fmt.Errorf("%s: unexpected element %s", e.name.Local, e.children[0].name.Local)
	}
	return strings.TrimSpace(e.text), nil
}

// base64 decodes the text of an element, whose lines may be broken anywhere, with LF or CR LF.
func (e *element) base64() ([]byte, error) {
	text, err := e.leaf()
	if err != nil {
		return nil, err
	}
	text = strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, text)
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.name.Local, err)
	}
	return b, nil
}

// reader takes values out of an element's children and keeps the first error, so that a long structure reads as a list.
type reader struct {
	e     *element
	space string
	err   error
}

func (r *reader) fail(err error) {
	if r.err == nil && err != nil {
		r.err = err
	}
}

// sub opens a child that must be there; optional children give a reader whose element is nil.
func (r *reader) sub(local string) *reader {
	s := r.maybe(local)
	if s.e == nil {
		r.fail(fmt.Errorf("%s: %s is missing", r.name(), local))
	}
	return s
}

func (r *reader) maybe(local string) *reader {
	s := &reader{space: r.space}
	if r.e == nil || r.err != nil {
		return s
	}
	var err error
	s.e, err = r.e.optional(r.space, local)
	r.fail(err)
	return s
}

func (r *reader) name() string {
	if r.e == nil {
		return "absent element"
	}
	return r.e.name.Local
}

// all returns the children of one name.
func (r *reader) all(local string) []*reader {
	if r.e == nil {
		return nil
	}
	var out []*reader
	for _, c := range r.e.children {
		if c.is(r.space, local) {
			out = append(out, &reader{e: c, space: r.space})
		}
	}
	return out
}

func (r *reader) value() string {
	if r.e == nil {
		return ""
	}
	s, err := r.e.leaf()
	r.fail(err)
	return s
}

func (r *reader) text(local string) string {
	s := r.maybe(local)
	v := s.value()
	r.fail(s.err)
	return v
}

// number reads an unsigned 32-bit integer; nil where the child is nil or absent.
func (r *reader) number(local string) *uint32 {
	v := r.text(local)
	if v == "" {
		return nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		r.fail(fmt.Errorf("%s: %s %q is not a number", r.name(), local, v))
	}
	n32 := uint32(n)
	return &n32
}

// mustNumber is number for a child that has to be there.
func (r *reader) mustNumber(local string) uint32 {
	n := r.number(local)
	if n == nil {
		r.fail(fmt.Errorf("%s: %s is missing", r.name(), local))
		return 0
	}
	return *n
}

func (r *reader) bool(local string) bool {
	switch v := r.text(local); v {
	case "true", "1":
		return true
	case "", "false", "0":
	default:
		r.fail(fmt.Errorf("%s: %s %q is not true or false", r.name(), local, v))
	}
	return false
}

func (r *reader) octets(local string) []byte {
	s := r.maybe(local)
	if s.e == nil {
		return nil
	}
	b, err := s.e.base64()
	r.fail(err)
	return b
}
