package security

import (
	"bytes"
	"reflect"
	"testing"
)

func TestDescriptorsOfSambaAreWrittenAsTheyWereRead(t *testing.T) {
	for _, in := range sambaDescriptors(t) {
		d, err := ParseDescriptor(in.bytes)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseDescriptor(d.Bytes())
		if err != nil {
			t.Errorf("%s: %v", in.name, err)
			continue
		}
		d.Control &^= ControlSACLPresent
		if d.Control &^= ControlDACLPresent; d.HasDACL {
			d.Control |= ControlDACLPresent
		}
		if !reflect.DeepEqual(d, again) {
			t.Errorf("%s:\n%v\n%v", in.name, d, again)
		}
		for i := range d.DACL {
			a := &d.DACL[i]
			if b, err := ParseACE(a.Bytes()); err != nil || !bytes.Equal(b.Bytes(), a.Bytes()) {
				t.Errorf("%s: ACE %d: %v, %v", in.name, i+1, b, err)
			}
			if a.Problem != "" {
				continue
			}
			if b, err := ParseACEText(a.String()); err != nil || b != *a {
				t.Errorf("%s: ACE %s: %v, %v", in.name, a, b, err)
			}
		}
	}
}

func TestACETextsThatAreRefused(t *testing.T) {
	for _, text := range []string{"", "()", "(A;;CR;;;)", "(XA;;CR;;;S-1-1-0)", "(A;QQ;CR;;;S-1-1-0)", "(A;;QQ;;;S-1-1-0)", "(A;;0xg;;;S-1-1-0)",
		"(A;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;S-1-1-0)", "(OA;;CR;x;;S-1-1-0)", "(A;0x100;CR;;;S-1-1-0)", "(A;;CR;;;DA)", "A;;CR;;;S-1-1-0"} {
		if a, err := ParseACEText(text); err == nil {
			t.Errorf("%q: %v", text, a)
		}
	}
}
