package security

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const domain = "S-1-5-21-1000-2000-3000"

// sambaDescriptor is one line of testdata/descriptors.txt, which Samba wrote (testdata/descriptors.py).
type sambaDescriptor struct {
	name, sddl string
	bytes      []byte
}

func sambaDescriptors(t testing.TB) []sambaDescriptor {
	t.Helper()
	b, err := os.ReadFile("testdata/descriptors.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []sambaDescriptor
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 {
			t.Fatalf("line %q: want three fields", line)
		}
		raw, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, sambaDescriptor{f[0], f[1], raw})
	}
	return out
}

func sambaDescriptorNamed(t testing.TB, name string) []byte {
	t.Helper()
	for _, d := range sambaDescriptors(t) {
		if d.name == name {
			return d.bytes
		}
	}
	t.Fatalf("no descriptor %q in testdata", name)
	return nil
}

func TestDescriptorsOfSambaReadBackAsTheirSDDL(t *testing.T) {
	for _, in := range sambaDescriptors(t) {
		d, err := ParseDescriptor(in.bytes)
		if err != nil {
			t.Errorf("%s: %v", in.name, err)
			continue
		}
		want, _, _ := strings.Cut(in.sddl, "S:(") // the SACL is not kept
		if in.name == "no DACL" {
			want += "D:<none>"
		}
		if got := d.String(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", in.name, got, want)
		}
	}
}

func TestControlAccess(t *testing.T) {
	member, other, both := NewToken(domain+"-1105"), NewToken(domain+"-1106"), NewToken(domain+"-1105", domain+"-1106")
	users, admins := NewToken(domain+"-513"), NewToken(domain+"-512")
	tests := []struct {
		descriptor string // in testdata
		token      Token
		right      GUID
		granted    bool
		reason     string
	}{
		{"enroll and autoenroll for a group", member, RightEnroll, true, "allowed by ACE 1 for " + domain + "-1105"},
		{"enroll and autoenroll for a group", member, RightAutoEnroll, true, "allowed by ACE 2 for " + domain + "-1105"},
		{"enroll and autoenroll for a group", other, RightEnroll, false, "no ACE gives this right to any of the caller's 1 SIDs"},
		{"enroll only", users, RightEnroll, true, "allowed by ACE 1 for " + domain + "-513"},
		{"enroll only", users, RightAutoEnroll, false, "no ACE gives this right to any of the caller's 1 SIDs"},
		{"write property of the right's GUID is not control access", users, RightEnroll, false, "no ACE"},
		{"another right", users, RightEnroll, false, "no ACE"},
		{"all extended rights", admins, RightEnroll, true, "allowed by ACE 1"},
		{"object ACE without object type", admins, RightAutoEnroll, true, "allowed by ACE 1"},
		{"generic all", admins, RightEnroll, true, "allowed by ACE 1"},
		{"full control of an administrator, without control access", admins, RightEnroll, false, "no ACE"},
		{"denied before allowed", both, RightEnroll, false, "denied by ACE 1 for " + domain + "-1106"},
		{"denied before allowed", member, RightEnroll, true, "allowed by ACE 2"},
		{"allowed before denied", both, RightEnroll, true, "allowed by ACE 1"},
		{"allowed before denied", other, RightEnroll, false, "denied by ACE 2"},
		{"deny of all access", both, RightEnroll, false, "denied by ACE 1"},
		{"deny of another right", both, RightEnroll, true, "allowed by ACE 2"},
		{"deny of another right", both, RightAutoEnroll, false, "denied by ACE 1"},
		{"deny of writing", member, RightEnroll, true, "allowed by ACE 2"},
		{"inherit-only", member, RightEnroll, false, "no ACE"},
		{"inherit-only deny", member, RightEnroll, true, "allowed by ACE 2"},
		{"inherited", member, RightEnroll, true, "allowed by ACE 1"},
		{"limited to a child class but not inherit-only", member, RightEnroll, true, "allowed by ACE 1"},
		{"inherited object type alone", member, RightEnroll, true, "allowed by ACE 1"},
		{"owner rights", NewToken(domain + "-519"), RightEnroll, true, "allowed by ACE 1"},
		{"owner rights", member, RightEnroll, false, "no ACE"},
		{"empty", admins, RightEnroll, false, "no ACE"},
		{"with a SACL", member, RightEnroll, true, "allowed by ACE 1"},
		{"no DACL", admins, RightEnroll, false, "the object has no access control list"},
	}
	for _, tt := range tests {
		d, err := ParseDescriptor(sambaDescriptorNamed(t, tt.descriptor))
		if err != nil {
			t.Fatalf("%s: %v", tt.descriptor, err)
		}
		got := d.ControlAccess(tt.token, tt.right)
		if got.Granted != tt.granted || !strings.HasPrefix(got.Reason, tt.reason) {
			t.Errorf("%s, %v, %s: got %+v, want %v, %q", tt.descriptor, tt.token.Sorted(), tt.right, got, tt.granted, tt.reason)
		}
	}
	var none *Descriptor
	if none.ControlAccess(member, RightEnroll).Granted {
		t.Error("a missing descriptor gives access")
	}
}

// firstACE is where the header of the first ACE begins.
func firstACE(b []byte) int { return int(binary.LittleEndian.Uint32(b[16:])) + aclHeaderSize }

func TestAnACEThatIsNotUnderstoodClosesTheDoor(t *testing.T) {
	original := sambaDescriptorNamed(t, "denied before allowed")
	member := NewToken(domain + "-1105") // the first ACE does not concern it, the second allows
	tests := []struct {
		name   string
		change func(b []byte)
		reason string // "" where the right must still be granted
	}{
		{"a callback ACE", func(b []byte) { b[firstACE(b)] = 0x0b }, "ACE 1: unknown type 0x0b"},
		{"a type of the future", func(b []byte) { b[firstACE(b)] = 0xfe }, "ACE 1: unknown type 0xfe"},
		{"unknown object flags", func(b []byte) { b[firstACE(b)+8] |= 4 }, "ACE 1: unknown object flags 0x5"},
		{"object flags that leave no room", func(b []byte) { b[firstACE(b)+8] = 0; b[firstACE(b)+13] = 15 }, "ACE 1: SID"},
		{"a SID of another revision", func(b []byte) { b[firstACE(b)+28] = 2 }, "ACE 1: SID: revision 2"},
		{"a SID that ends before the ACE", func(b []byte) { b[firstACE(b)+29] = 4 }, "ACE 1: 4 octets after the SID"},
		{"a SID that ends after the ACE", func(b []byte) { b[firstACE(b)+29] = 6 }, "ACE 1: SID"},
		{"object ACEs in a plain ACL", func(b []byte) { b[firstACE(b)-aclHeaderSize] = 2 }, "ACE 1: object ACE in an ACL of revision 2"},
		{"an unknown ACE for children only", func(b []byte) { b[firstACE(b)] = 0x0b; b[firstACE(b)+1] |= ACEInheritOnly }, ""},
	}
	for _, tt := range tests {
		b := append([]byte(nil), original...)
		tt.change(b)
		d, err := ParseDescriptor(b)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := d.ControlAccess(member, RightEnroll)
		if got.Granted != (tt.reason == "") || !got.Granted && !strings.HasPrefix(got.Reason, tt.reason) {
			t.Errorf("%s: got %+v, want %q", tt.name, got, tt.reason)
		}
	}
	// What comes after the decision cannot change it.
	b := append([]byte(nil), sambaDescriptorNamed(t, "allowed before denied")...)
	second := firstACE(b) + int(binary.LittleEndian.Uint16(b[firstACE(b)+2:]))
	b[second] = 0x0b
	d, err := ParseDescriptor(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.ControlAccess(member, RightEnroll); !got.Granted || got.ACE != 1 {
		t.Errorf("unknown ACE after the decision: %+v", got)
	}
}

func TestDamagedDescriptorsAreRefused(t *testing.T) {
	original := sambaDescriptorNamed(t, "with a SACL")
	put16, put32 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32
	dacl := func(b []byte) []byte { return b[binary.LittleEndian.Uint32(b[16:]):] }
	tests := []struct {
		name   string
		change func(b []byte) []byte
		want   string
	}{
		{"nothing", func(b []byte) []byte { return nil }, "0 octets"},
		{"revision", func(b []byte) []byte { b[0] = 2; return b }, "revision 2"},
		{"absolute form", func(b []byte) []byte { b[3] &^= 0x80; return b }, "not self-relative"},
		{"owner in the header", func(b []byte) []byte { put32(b[4:], 8); return b }, "owner: offset 8"},
		{"owner outside", func(b []byte) []byte { put32(b[4:], 0xfffffffc); return b }, "owner: offset"},
		{"group at the very end", func(b []byte) []byte { put32(b[8:], uint32(len(b))); return b }, "group: SID: 0 octets"},
		{"SACL outside", func(b []byte) []byte { put32(b[12:], uint32(len(b))+1); return b }, "SACL: offset"},
		{"SACL too long", func(b []byte) []byte { put16(b[binary.LittleEndian.Uint32(b[12:])+2:], 0xffff); return b }, "SACL: size"},
		{"DACL cut in its header", func(b []byte) []byte { put32(b[16:], uint32(len(b))-4); return b }, "DACL: 4 octets"},
		{"DACL revision", func(b []byte) []byte { dacl(b)[0] = 3; return b }, "DACL: revision 3"},
		{"DACL size below its header", func(b []byte) []byte { put16(dacl(b)[2:], 7); return b }, "DACL: size 7"},
		{"more ACEs than octets", func(b []byte) []byte { put16(dacl(b)[4:], 0xffff); return b }, "DACL: ACE 2 of 65535: no room"},
		{"ACE of size 0", func(b []byte) []byte { put16(dacl(b)[10:], 0); return b }, "DACL: ACE 1: size 0"},
		{"ACE of odd size", func(b []byte) []byte { put16(dacl(b)[10:], 30); return b }, "DACL: ACE 1: size 30"},
		{"ACE too long", func(b []byte) []byte { put16(dacl(b)[10:], 0xfffc); return b }, "DACL: ACE 1: size 65532"},
	}
	for _, tt := range tests {
		_, err := ParseDescriptor(tt.change(append([]byte(nil), original...)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	for n := range original {
		if _, err := ParseDescriptor(original[:n]); err == nil {
			t.Errorf("cut after %d octets: accepted", n)
		}
	}
}

// Whatever order of ACEs: a token is granted a right exactly if the first applicable ACE allows.
func TestTheFirstApplicableACEDecides(t *testing.T) {
	sids := []SID{domain + "-1", domain + "-2", domain + "-3", Everyone}
	rights := []GUID{RightEnroll, RightAutoEnroll}
	rapid.Check(t, func(t *rapid.T) {
		aces := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) ACE {
			return ACE{
				Type:      rapid.SampledFrom([]uint8{ACEAllow, ACEDeny, ACEAllowObject, ACEDenyObject}).Draw(t, "type"),
				Flags:     rapid.SampledFrom([]uint8{0, ACEInherited, ACEInheritOnly}).Draw(t, "flags"),
				Mask:      rapid.SampledFrom([]uint32{MaskControlAccess, MaskGenericAll, MaskWriteProperty}).Draw(t, "mask"),
				HasObject: rapid.Bool().Draw(t, "object"),
				Object:    rapid.SampledFrom(rights).Draw(t, "right"),
				SID:       rapid.SampledFrom(sids).Draw(t, "sid"),
			}
		}), 0, 12).Draw(t, "aces")
		for i := range aces {
			if aces[i].Type < ACEAllowObject {
				aces[i].HasObject, aces[i].Object = false, GUID{}
			} else if !aces[i].HasObject {
				aces[i].Object = GUID{}
			}
		}
		d, err := ParseDescriptor(encode(aces))
		if err != nil {
			t.Fatal(err)
		}
		token := NewToken(rapid.SliceOfDistinct(rapid.SampledFrom(sids), rapid.ID[SID]).Draw(t, "token")...)
		right := rapid.SampledFrom(rights).Draw(t, "asked")
		want := 0
		for i, a := range aces {
			concerns := a.Flags != ACEInheritOnly && a.Mask != MaskWriteProperty && token.Has(a.SID)
			if concerns && (!a.HasObject || a.Object == right) {
				want = i + 1
				break
			}
		}
		got := d.ControlAccess(token, right)
		granted := want > 0 && (aces[want-1].Type == ACEAllow || aces[want-1].Type == ACEAllowObject)
		if got.ACE != want || got.Granted != granted {
			t.Fatalf("%s: got %+v, want ACE %d, %v", d, got, want, granted)
		}
	})
}

// encode writes a descriptor with these ACEs, owner and group absent.
func encode(aces []ACE) []byte {
	acl := []byte{aclRevisionDS, 0, 0, 0, byte(len(aces)), 0, 0, 0}
	for _, a := range aces {
		body := binary.LittleEndian.AppendUint32(nil, a.Mask)
		if a.Type >= ACEAllowObject {
			flags := byte(0)
			if a.HasObject {
				flags = objectPresent
			}
			body = append(body, flags, 0, 0, 0)
			if a.HasObject {
				body = append(body, a.Object[:]...)
			}
		}
		body = append(body, a.SID.Bytes()...)
		acl = append(acl, a.Type, a.Flags)
		acl = binary.LittleEndian.AppendUint16(acl, uint16(len(body)+aceHeaderSize))
		acl = append(acl, body...)
	}
	binary.LittleEndian.PutUint16(acl[2:], uint16(len(acl)))
	b := make([]byte, headerSize)
	b[0] = 1
	binary.LittleEndian.PutUint16(b[2:], ControlSelfRelative|ControlDACLPresent)
	binary.LittleEndian.PutUint32(b[16:], headerSize)
	return append(b, acl...)
}

func FuzzParseDescriptor(f *testing.F) {
	for _, d := range sambaDescriptors(f) {
		f.Add(d.bytes)
	}
	token := NewToken(domain+"-1105", Everyone)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDescriptor(b)
		if err != nil {
			return
		}
		if len(d.DACL)*aceHeaderSize > len(b) {
			t.Errorf("%d ACEs out of %d octets", len(d.DACL), len(b))
		}
		access := d.ControlAccess(token, RightEnroll)
		if access.Granted && (access.ACE == 0 || d.DACL[access.ACE-1].Problem != "") {
			t.Errorf("granted without an ACE that was understood: %s", d)
		}
		if d.String() == "" || access.Reason == "" {
			t.Error("no text")
		}
	})
}

func TestSIDsInTextAndBinaryAgree(t *testing.T) {
	for text, hexed := range map[string]string{ // octets from [MS-DTYP] 2.4.2.2 and Samba's ndr_pack
		"S-1-5-32-544":         "01020000000000052000000020020000",
		"S-1-1-0":              "010100000000000100000000",
		"S-1-5-21-1-2-3-1105":  "01050000000000051500000001000000020000000300000051040000",
		"S-1-0x010000000000-7": "010101000000000007000000",
	} {
		b, _ := hex.DecodeString(hexed)
		if got, err := ParseSID(b); err != nil || string(got) != text {
			t.Errorf("%s: got %q, %v", text, got, err)
		}
		if got := SID(text).Bytes(); hex.EncodeToString(got) != hexed {
			t.Errorf("%s: octets %x", text, got)
		}
		if _, err := ParseSID(append(b, 0)); err == nil {
			t.Errorf("%s: an octet too many is accepted", text)
		}
	}
	for _, text := range []string{"", "S-1", "S-2-5-18", "S-1-5-x", "S-1-5-4294967296", "S-1-5-1-2-3-4-5-6-7-8-9-10-11-12-13-14-15-16"} {
		if sid, err := ParseSIDText(text); err == nil {
			t.Errorf("%q is accepted as %q", text, sid)
		}
	}
	if got, _ := ParseSIDText("s-1-05-021-1"); got != "S-1-5-21-1" {
		t.Errorf("not canonical: %q", got)
	}
}
