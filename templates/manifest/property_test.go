package manifest

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// drawn is a template with any attributes: many as a template has them, some that no template has.
func drawn(t *rapid.T) (*Object, map[security.SID]string) {
	a := templates.Attributes{"cn": one(rapid.StringMatching(`[A-Za-z][A-Za-z0-9 #:'-]{0,20}[a-z]`).Draw(t, "cn"))}
	number := rapid.Custom(func(t *rapid.T) []byte { return fmt.Append(nil, rapid.Int32().Draw(t, "n")) })
	oid := rapid.Map(rapid.StringMatching(`[12]\.([1-3]?[0-9]\.){1,6}[0-9]`), func(s string) []byte { return []byte(s) })
	word := rapid.Map(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"on", "0x10", "null", "1e3", "- a", "a: b", "", "=", "base64:"})),
		func(s string) []byte { return []byte(s) })
	interval := rapid.Custom(func(t *rapid.T) []byte {
		n := rapid.OneOf(rapid.Int64(), rapid.Map(rapid.Int64Range(0, 9999), func(d int64) int64 { return -d * 864e9 }),
			rapid.Just(int64(math.MinInt64))).Draw(t, "ticks")
		return period64(n)
	})
	octets := rapid.SliceOfN(rapid.Byte(), 0, 4)
	property := rapid.StringMatching("(msPKI-[A-Z][a-z]{1,9}`(DWORD|PZPWSTR|BLOB)`[a-zA-Z0-9,. ]{0,9}`){1,4}")
	for _, f := range fields() {
		like := map[string]*rapid.Generator[[]byte]{attrRAProperties: rapid.OneOf(oid, rapid.Map(property, func(s string) []byte { return []byte(s) })),
			"pkidefaultcsps": rapid.Map(rapid.StringMatching(`([1-4],)?[A-Z][a-z ]{0,9}`), func(s string) []byte { return []byte(s) })}[f.attribute]
		switch {
		case like != nil:
		case strings.HasPrefix(fmt.Sprintf("%T", f.codec.read), "func") && strings.Contains(f.attribute, "period"):
			like = interval
		case f.attribute == "pkikeyusage":
			like = octets
		case f.need || f.initial != "":
			like = number
		default:
			like = oid
		}
		values := rapid.SliceOfNDistinct(rapid.OneOf(like, like, like, like, word, octets), 0, 3, func(b []byte) string { return string(b) }).Draw(t, f.attribute)
		if len(values) > 0 {
			a[f.attribute] = values
		}
	}
	for _, name := range []string{attrMajor, attrMinor, "description", "x-other"} {
		if values := rapid.SliceOfNDistinct(rapid.OneOf(number, word), 0, 2, func(b []byte) string { return string(b) }).Draw(t, name); len(values) > 0 {
			a[name] = values
		}
	}
	d, names := drawnDescriptor(t)
	a[attrDescriptor] = [][]byte{d.Bytes()}
	return &Object{"CN=x", a}, names
}

func period64(n int64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
	return b
}

func drawnDescriptor(t *rapid.T) (*security.Descriptor, map[security.SID]string) {
	names := map[security.SID]string{"S-1-5-21-1-2-3-512": `LAB\Domain Admins`, "S-1-5-21-1-2-3-7": `LAB\for #1: x`, "S-1-1-0": "Everyone", "S-1-5-21-1-2-3-9": `LAB\S-1-5-9`}
	sid := rapid.SampledFrom([]security.SID{"S-1-5-21-1-2-3-512", "S-1-5-21-1-2-3-7", "S-1-1-0", "S-1-5-21-1-2-3-9", "S-1-5-21-9-9-9-1105"})
	mask := rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0x100, 0x20094, 0xF00FF, 0xF01FF, 0x130, 0}))
	object := rapid.SampledFrom([]security.GUID{security.RightEnroll, security.RightAutoEnroll, {1, 2}})
	ace := rapid.Custom(func(t *rapid.T) security.ACE {
		a := security.ACE{Type: rapid.SampledFrom([]uint8{0, 0, 1, 5, 5, 5, 6, 9}).Draw(t, "type"), SID: sid.Draw(t, "sid"), Mask: mask.Draw(t, "mask")}
		if rapid.IntRange(0, 4).Draw(t, "flagged") == 0 {
			a.Flags = rapid.Byte().Draw(t, "flags") &^ security.ACEInherited
		}
		if a.Type == 5 || a.Type == 6 {
			a.HasObject = rapid.IntRange(0, 5).Draw(t, "object") > 0
			if a.HasObject {
				a.Object = object.Draw(t, "guid")
			}
			if a.HasInherited = rapid.IntRange(0, 5).Draw(t, "inherited") == 0; a.HasInherited {
				a.Inherited = object.Draw(t, "class")
			}
		}
		if a.Type == 9 {
			raw := append([]byte{9, a.Flags, 0, 0}, rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "body")...)
			raw[2] = byte(len(raw))
			a = security.ACE{Type: 9, Flags: a.Flags, Problem: "unknown type 0x09", Raw: string(raw)}
		}
		return a
	})
	d := &security.Descriptor{Owner: sid.Draw(t, "owner"), Group: sid.Draw(t, "group"), HasDACL: rapid.IntRange(0, 9).Draw(t, "list") > 0}
	if rapid.Bool().Draw(t, "protected") {
		d.Control |= security.ControlDACLProtected
	}
	if d.HasDACL {
		d.DACL = rapid.SliceOfN(ace, 0, 6).Draw(t, "aces")
	}
	return d, names
}

func TestAnyTemplateSurvivesItsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o, names := drawn(t)
		f := &Forest{Templates: []Object{*o}, Names: names, ConfigDN: "CN=Configuration"}
		text, err := Export(f, o, func(string) string { return "a: comment # x" })
		if err != nil {
			t.Fatal(err)
		}
		all, err := Parse("x.yaml", text, f.sids)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		m := all[0]
		if m.version != nil {
			m.want[attrMajor], m.want[attrMinor] = one(fmt.Sprint(m.version.major)), one(fmt.Sprint(m.version.minor))
		}
		for name, values := range o.Attributes {
			if name != "cn" && name != attrDescriptor && !sameValues(values, m.want[name]) {
				t.Fatalf("%s: %q, was %q\n%s", name, m.want[name], values, text)
			}
		}
		for name, values := range m.want {
			if len(values) > 0 && len(o.Attributes[name]) == 0 {
				t.Fatalf("%s: %q, was absent\n%s", name, values, text)
			}
		}
		d, err := o.descriptor()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 || m.Name != o.Name() || *m.owner != d.Owner || *m.group != d.Group || *m.inherit != inherits(d) || !m.acl.equal(aclOf(d)) {
			t.Fatalf("%q: %v\n%s", m.Name, d, text)
		}
		again := &target{m: m, old: o, new: *o}
		if err := again.secure(names); err != nil || again.parts != 0 {
			t.Fatalf("parts %d, %v\n%s", again.parts, err, text)
		}
	})
}
