package names_test

import (
	"slices"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream/names"
)

func TestAlternativeNames(t *testing.T) {
	der := []byte{0x30, 0x28, 0x81, 0x03, 'a', '@', 'b', 0x82, 0x01, 'h', 0x86, 0x03, 'u', ':', 'v', 0x87, 0x04, 192, 0, 2, 1,
		0xa0, 0x13, 0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x14, 2, 3, 0xa0, 0x05, 0x0c, 0x03, 'u', '@', 'r'}
	der[1] = byte(len(der) - 2)
	got, err := names.Alternative(der)
	if err != nil || len(got) != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, want := range []names.Name{{Kind: names.Email, Text: "a@b"}, {Kind: names.DNS, Text: "h"}, {Kind: names.URI, Text: "u:v"}, {Kind: names.IP, Text: "192.0.2.1"},
		{Kind: names.Other, OID: names.OIDUPN, Text: "u@r"}} {
		if g := got[i]; g.Kind != want.Kind || g.Text != want.Text || g.OID != want.OID {
			t.Errorf("%d: %+v, want %+v", i, g, want)
		}
	}
	for name, der := range map[string][]byte{"a directory name": {0x30, 0x04, 0xa4, 0x02, 0x30, 0x00}, "a short address": {0x30, 0x03, 0x87, 0x01, 1},
		"a line break": {0x30, 0x03, 0x82, 0x01, '\n'}, "more behind it": {0x30, 0x00, 0x00}, "half": {0x30, 0x03, 0x82, 0x02, 'a'}} {
		if got, err := names.Alternative(der); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestSubject(t *testing.T) {
	got, err := names.Subject([]byte{0x30, 0x0e, 0x31, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 4, 3, 0x0c, 0x03, 'A', 'd', 'a'})
	if err != nil || !slices.Equal(got, []names.Attribute{{OID: "2.5.4.3", Text: "Ada"}}) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, der := range map[string][]byte{"two in one RDN": {0x30, 0x1a, 0x31, 0x18, 0x30, 0x0a, 0x06, 0x03, 0x55, 4, 3, 0x0c, 0x03, 'A', 'd', 'a', 0x30, 0x0a, 0x06, 0x03, 0x55, 4, 4, 0x0c, 0x03, 'A', 'd', 'a'},
		"a number": {0x30, 0x0c, 0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 4, 3, 0x02, 0x01, 1}, "no Name": {0x04, 0x00}} {
		if got, err := names.Subject(der); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x82, 0x01, 'h'})
	f.Add([]byte{0x30, 0x0e, 0x31, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 4, 3, 0x0c, 0x03, 'A', 'd', 'a'})
	f.Fuzz(func(t *testing.T, der []byte) {
		if list, err := names.Alternative(der); err != nil && list != nil {
			t.Error("an error, and names")
		}
		if list, err := names.Subject(der); err != nil && list != nil {
			t.Error("an error, and attributes")
		}
	})
}
