package security

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bytes writes the descriptor in self-relative form ([MS-DTYP] 2.4.6): what ParseDescriptor reads. There is never a SACL.
func (d *Descriptor) Bytes() []byte {
	b := make([]byte, headerSize)
	control := d.Control&^(ControlDACLPresent|ControlSACLPresent) | ControlSelfRelative
	b[0] = 1
	put := func(field int, octets []byte) {
		if octets != nil {
			binary.LittleEndian.PutUint32(b[field:], uint32(len(b)))
			b = append(b, octets...)
		}
	}
	put(4, d.Owner.Bytes())
	put(8, d.Group.Bytes())
	if d.HasDACL {
		control |= ControlDACLPresent
		put(16, aclBytes(d.DACL))
	}
	binary.LittleEndian.PutUint16(b[2:], control)
	return b
}

// aclBytes writes an ACL ([MS-DTYP] 2.4.5).
func aclBytes(aces []ACE) []byte {
	b := []byte{aclRevision, 0, 0, 0, 0, 0, 0, 0}
	for i := range aces {
		if t := aces[i].Type; t != ACEAllow && t != ACEDeny {
			b[0] = aclRevisionDS
		}
		b = append(b, aces[i].Bytes()...)
	}
	binary.LittleEndian.PutUint16(b[2:], uint16(len(b)))
	binary.LittleEndian.PutUint16(b[4:], uint16(len(aces)))
	return b
}

// Bytes writes the ACE with its header ([MS-DTYP] 2.4.4).
func (a *ACE) Bytes() []byte {
	if a.Problem != "" {
		return []byte(a.Raw)
	}
	b := binary.LittleEndian.AppendUint32([]byte{a.Type, a.Flags, 0, 0}, a.Mask)
	if a.Type == ACEAllowObject || a.Type == ACEDenyObject {
		var present uint32
		var guids []byte
		if a.HasObject {
			present, guids = objectPresent, a.Object[:]
		}
		if a.HasInherited {
			present, guids = present|inheritPresent, append(slices.Clone(guids), a.Inherited[:]...)
		}
		b = append(binary.LittleEndian.AppendUint32(b, present), guids...)
	}
	b = append(b, a.SID.Bytes()...)
	binary.LittleEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// ParseACE reads the octets of one ACE; one that is not understood has Problem and Raw.
func ParseACE(b []byte) (ACE, error) {
	if len(b) > 0xFFFF-aclHeaderSize {
		return ACE{}, fmt.Errorf("ACE: %d octets are too many", len(b))
	}
	acl := []byte{aclRevisionDS, 0, 0, 0, 1, 0, 0, 0}
	aces, err := parseACEs(append(acl, b...))
	if err != nil {
		return ACE{}, err
	}
	if size := int(binary.LittleEndian.Uint16(b[2:])); size != len(b) {
		return ACE{}, fmt.Errorf("ACE: %d octets after the end", len(b)-size)
	}
	return aces[0], nil
}

// ParseACEText reads what ACE.String writes: "(OA;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;S-1-5-11)" ([MS-DTYP] 2.5.1.1).
// Trustees are SIDs: the two letters that stand for some of them depend on the domain.
func ParseACEText(text string) (ACE, error) {
	inner, ok := strings.CutPrefix(text, "(")
	inner, closed := strings.CutSuffix(inner, ")")
	f := strings.Split(inner, ";")
	if !ok || !closed || len(f) != 6 {
		return ACE{}, fmt.Errorf("%q is not an ACE: want (type;flags;rights;object;inherited;SID)", text)
	}
	var a ACE
	found := false
	for t, name := range sddlTypes {
		if name == f[0] {
			a.Type, found = t, true
		}
	}
	if !found {
		return ACE{}, fmt.Errorf("%q: unknown type %q; use A, D, OA or OD", text, f[0])
	}
	flags, err := bitsOf(f[1], sddlFlags)
	if err == nil && flags > 0xFF {
		err = fmt.Errorf("flags %q are more than one octet", f[1])
	}
	if err == nil {
		a.Flags = uint8(flags)
		a.Mask, err = bitsOf(f[2], sddlRights)
	}
	if err == nil {
		a.HasObject, err = guidInto(&a.Object, f[3])
	}
	if err == nil {
		a.HasInherited, err = guidInto(&a.Inherited, f[4])
	}
	if err == nil && (a.HasObject || a.HasInherited) && a.Type != ACEAllowObject && a.Type != ACEDenyObject {
		err = fmt.Errorf("type %s has no object; use O%s", f[0], f[0])
	}
	if err == nil {
		a.SID, err = ParseSIDText(f[5])
	}
	if err != nil {
		return ACE{}, fmt.Errorf("%q: %w", text, err)
	}
	return a, nil
}

// bitsOf reads letters, "RPWP", then perhaps a number in hexadecimal.
func bitsOf(text string, names []bitName) (v uint32, err error) {
	rest := text
	for rest != "" && !strings.HasPrefix(rest, "0x") {
		i := slices.IndexFunc(names, func(n bitName) bool { return strings.HasPrefix(rest, n.name) })
		if i < 0 {
			return 0, fmt.Errorf("%q: unknown letters %q", text, rest)
		}
		v |= names[i].bit
		rest = rest[len(names[i].name):]
	}
	if rest != "" {
		n, err := strconv.ParseUint(rest[2:], 16, 32)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number in hexadecimal", rest)
		}
		v |= uint32(n)
	}
	return v, nil
}

func guidInto(g *GUID, text string) (present bool, err error) {
	if text == "" {
		return false, nil
	}
	*g, err = ParseGUID(text)
	return true, err
}
