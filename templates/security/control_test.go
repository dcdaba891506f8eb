package security

import (
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"
)

// testdata/access.txt is what Samba's access check says of random descriptors (testdata/access.py).
func TestControlsAreThoseThatSambaGrants(t *testing.T) {
	text, err := os.ReadFile("testdata/access.txt")
	if err != nil {
		t.Fatal(err)
	}
	some := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		raw, err := hex.DecodeString(f[0])
		if err != nil {
			t.Fatal(err)
		}
		d, err := ParseDescriptor(raw)
		if err != nil {
			t.Fatal(err)
		}
		token := Token{}
		for _, s := range strings.Fields(f[1]) {
			token[SID(s)] = struct{}{}
		}
		want, err := strconv.ParseUint(f[2], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		var got uint32
		for _, c := range d.Controls(token) {
			got |= c.Mask
		}
		if got != uint32(want) {
			t.Errorf("%s for %s: 0x%x, Samba grants 0x%x", d, f[1], got, want)
		}
		if want != 0 {
			some++
		}
	}
	if some < 100 {
		t.Errorf("only %d descriptors grant anything", some)
	}
}

func TestControlsOfObjectEntriesAndGenericRights(t *testing.T) {
	const me, other SID = "S-1-5-21-1-2-3-1104", "S-1-5-21-1-2-3-1105"
	one, two := mustGUID("ea1dddc4-60ff-416e-8cc0-17cee534bce7"), mustGUID("d15ef7d8-f226-46db-ae79-b34e560bd12c")
	object := func(kind uint8, g GUID) ACE {
		return ACE{Type: kind, Mask: MaskWriteProperty, HasObject: true, Object: g, SID: me}
	}
	for name, c := range map[string]struct {
		d    *Descriptor
		want string // masks and objects
	}{
		"no list":                            {&Descriptor{}, "c0021 "},
		"nothing":                            {&Descriptor{HasDACL: true}, ""},
		"generic all":                        {&Descriptor{HasDACL: true, DACL: []ACE{{Mask: MaskGenericAll, SID: me}}}, "c0021 "},
		"generic write":                      {&Descriptor{HasDACL: true, DACL: []ACE{{Mask: MaskGenericWrite, SID: me}}}, "20 "},
		"somebody else's":                    {&Descriptor{HasDACL: true, DACL: []ACE{{Mask: MaskGenericAll, SID: other}}}, ""},
		"one property":                       {&Descriptor{HasDACL: true, DACL: []ACE{object(ACEAllowObject, one)}}, "20 " + one.String()},
		"another one is denied":              {&Descriptor{HasDACL: true, DACL: []ACE{object(ACEDenyObject, two), object(ACEAllowObject, one)}}, "20 " + one.String()},
		"the same one is denied":             {&Descriptor{HasDACL: true, DACL: []ACE{object(ACEDenyObject, one), object(ACEAllowObject, one)}}, ""},
		"all are denied":                     {&Descriptor{HasDACL: true, DACL: []ACE{{Type: ACEDeny, Mask: MaskGenericWrite, SID: me}, object(ACEAllowObject, one)}}, ""},
		"one is denied, all are allowed":     {&Descriptor{HasDACL: true, DACL: []ACE{object(ACEDenyObject, one), {Mask: MaskWriteProperty, SID: me}}}, "20 "},
		"an entry that is not understood":    {&Descriptor{HasDACL: true, DACL: []ACE{{Type: 9, Problem: "unknown type"}}}, ""},
		"a denial that comes after the gift": {&Descriptor{HasDACL: true, DACL: []ACE{object(ACEAllowObject, one), object(ACEDenyObject, one)}}, "20 " + one.String()},
	} {
		got := ""
		for _, c := range c.d.Controls(NewToken(me)) {
			got += strconv.FormatUint(uint64(c.Mask), 16) + " "
			if c.HasObject {
				got += c.Object.String()
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if d := (&Descriptor{HasDACL: true, DACL: []ACE{{SID: me}, {Problem: "p"}, {Problem: "q", Flags: ACEInheritOnly}}}); len(d.Unread()) != 1 || d.Unread()[0] != 2 {
		t.Errorf("not understood: %v", d.Unread())
	}
}
