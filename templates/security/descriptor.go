package security

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Descriptor is a security descriptor: who owns an object and who may do what with it ([MS-DTYP] 2.4.6).
type Descriptor struct {
	Control uint16 // the control field as stored; see the Control constants
	Owner   SID    // "" where the descriptor names none
	Group   SID    // "" where the descriptor names none
	HasDACL bool   // false for an absent or null DACL, which Windows takes as "everybody may do everything"
	DACL    []ACE  // in the order stored
}

// Bits of Descriptor.Control ([MS-DTYP] 2.4.6).
const (
	ControlDACLPresent       = 0x0004
	ControlSACLPresent       = 0x0010
	ControlDACLAutoInheritRq = 0x0100
	ControlDACLAutoInherited = 0x0400
	ControlDACLProtected     = 0x1000
	ControlSelfRelative      = 0x8000
)

// ACE is one access control entry ([MS-DTYP] 2.4.4). An ACE whose type or body this package does not understand has
// Problem set, and nothing but Type, Flags and Problem can be relied upon.
type ACE struct {
	Type         uint8
	Flags        uint8
	Mask         uint32
	HasObject    bool // whether the ACE is limited to the right, property or property set Object
	Object       GUID
	HasInherited bool // whether inheritance is limited to the object class Inherited; no effect on the object itself
	Inherited    GUID
	SID          SID    // the trustee
	Problem      string // "unknown type 0x09", or what is wrong with the body
	Raw          string `json:"-"` // the octets of an ACE with a Problem, header included, so that it can be written again
}

// ACE types that are understood ([MS-DTYP] 2.4.4.1).
const (
	ACEAllow       = 0x00
	ACEDeny        = 0x01
	ACEAllowObject = 0x05
	ACEDenyObject  = 0x06
)

// ACE flags ([MS-DTYP] 2.4.4.1).
const (
	ACEObjectInherit    = 0x01
	ACEContainerInherit = 0x02
	ACENoPropagate      = 0x04
	ACEInheritOnly      = 0x08
	ACEInherited        = 0x10
)

// Access mask bits that decide who controls a template ([MS-ADTS] 5.1.3.2).
const (
	MaskCreateChild   = 0x00000001
	MaskDeleteChild   = 0x00000002
	MaskList          = 0x00000004
	MaskSelf          = 0x00000008
	MaskReadProperty  = 0x00000010
	MaskWriteProperty = 0x00000020
	MaskControlAccess = 0x00000100
	MaskDelete        = 0x00010000
	MaskReadControl   = 0x00020000
	MaskWriteDACL     = 0x00040000
	MaskWriteOwner    = 0x00080000
	MaskGenericAll    = 0x10000000
	MaskGenericWrite  = 0x40000000
)

// Allows tells whether the ACE is of a type that gives access.
func (a *ACE) Allows() bool { return a.Type == ACEAllow || a.Type == ACEAllowObject }

// Applies tells whether the ACE concerns the object that carries it, and not only the objects below.
func (a *ACE) Applies() bool { return a.Flags&ACEInheritOnly == 0 }

// WasInherited tells whether the ACE came from a container above.
func (a *ACE) WasInherited() bool { return a.Flags&ACEInherited != 0 }

const (
	headerSize     = 20 // of a self-relative descriptor
	aclHeaderSize  = 8
	aceHeaderSize  = 4
	aclRevision    = 2
	aclRevisionDS  = 4 // the only revision that may hold object ACEs ([MS-DTYP] 2.4.5)
	objectPresent  = 1 // Flags of an object ACE ([MS-DTYP] 2.4.4.3)
	inheritPresent = 2
)

// ParseDescriptor reads a self-relative security descriptor, such as a value of nTSecurityDescriptor. Everything that
// lies outside of the octets given, or contradicts itself, is an error. An ACE that is well framed but not understood
// is kept, see ACE.Problem: what it means for a decision is up to ControlAccess.
func ParseDescriptor(b []byte) (*Descriptor, error) {
	d, err := parseDescriptor(b)
	if err != nil {
		return nil, fmt.Errorf("security descriptor: %w", err)
	}
	return d, nil
}

func parseDescriptor(b []byte) (*Descriptor, error) {
	if len(b) < headerSize {
		return nil, fmt.Errorf("%d octets, need at least %d", len(b), headerSize)
	}
	if b[0] != 1 {
		return nil, fmt.Errorf("revision %d, want 1", b[0])
	}
	d := &Descriptor{Control: binary.LittleEndian.Uint16(b[2:])}
	if d.Control&ControlSelfRelative == 0 {
		return nil, errors.New("not self-relative")
	}
	var err error
	if d.Owner, err = sidAt(b, binary.LittleEndian.Uint32(b[4:])); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	if d.Group, err = sidAt(b, binary.LittleEndian.Uint32(b[8:])); err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	if _, err = aclAt(b, binary.LittleEndian.Uint32(b[12:])); err != nil {
		return nil, fmt.Errorf("SACL: %w", err)
	}
	acl, err := aclAt(b, binary.LittleEndian.Uint32(b[16:]))
	if err != nil {
		return nil, fmt.Errorf("DACL: %w", err)
	}
	if d.Control&ControlDACLPresent == 0 || acl == nil {
		return d, nil
	}
	d.HasDACL = true
	if d.DACL, err = parseACEs(acl); err != nil {
		return nil, fmt.Errorf("DACL: %w", err)
	}
	return d, nil
}

// at returns what follows the offset; nil for offset 0, which stands for "absent".
func at(b []byte, offset uint32) ([]byte, error) {
	switch {
	case offset == 0:
		return nil, nil
	case offset < headerSize || uint64(offset) > uint64(len(b)):
		return nil, fmt.Errorf("offset %d is outside of the %d octets after the header", offset, len(b)-headerSize)
	}
	return b[offset:], nil
}

func sidAt(b []byte, offset uint32) (SID, error) {
	rest, err := at(b, offset)
	if err != nil || rest == nil {
		return "", err
	}
	sid, _, err := readSID(rest)
	return sid, err
}

// aclAt returns the octets of the ACL at an offset, header included; nil where there is none.
func aclAt(b []byte, offset uint32) ([]byte, error) {
	rest, err := at(b, offset)
	if err != nil || rest == nil {
		return nil, err
	}
	if len(rest) < aclHeaderSize {
		return nil, fmt.Errorf("%d octets, the header needs %d", len(rest), aclHeaderSize)
	}
	if rest[0] != aclRevision && rest[0] != aclRevisionDS {
		return nil, fmt.Errorf("revision %d, want %d or %d", rest[0], aclRevision, aclRevisionDS)
	}
	size := int(binary.LittleEndian.Uint16(rest[2:]))
	if size < aclHeaderSize || size > len(rest) {
		return nil, fmt.Errorf("size %d, there are %d octets", size, len(rest))
	}
	return rest[:size], nil
}

// parseACEs reads as many ACEs as the header says. Unused octets after the last one are allowed: Windows leaves them
// when an ACE is removed.
func parseACEs(acl []byte) ([]ACE, error) {
	count := int(binary.LittleEndian.Uint16(acl[4:]))
	rest := acl[aclHeaderSize:]
	var aces []ACE // grows with the octets that are there, not with what the header claims
	for i := range count {
		if len(rest) < aceHeaderSize {
			return nil, fmt.Errorf("ACE %d of %d: no room for its header", i+1, count)
		}
		size := int(binary.LittleEndian.Uint16(rest[2:]))
		if size < aceHeaderSize || size > len(rest) || size%4 != 0 {
			return nil, fmt.Errorf("ACE %d: size %d, there are %d octets", i+1, size, len(rest))
		}
		ace := ACE{Type: rest[0], Flags: rest[1]}
		if err := ace.parseBody(rest[aceHeaderSize:size], acl[0]); err != nil {
			ace = ACE{Type: ace.Type, Flags: ace.Flags, Problem: err.Error(), Raw: string(rest[:size])}
		}
		aces = append(aces, ace)
		rest = rest[size:]
	}
	return aces, nil
}

// parseBody reads what follows the ACE header ([MS-DTYP] 2.4.4.2 to 2.4.4.5). Callback ACEs carry a condition that
// depends on claims which nobody here evaluates; they and all others are unknown.
func (a *ACE) parseBody(b []byte, revision byte) error {
	switch a.Type {
	case ACEAllow, ACEDeny, ACEAllowObject, ACEDenyObject:
	default:
		return fmt.Errorf("unknown type 0x%02x", a.Type)
	}
	if len(b) < 4 {
		return errors.New("no room for the access mask")
	}
	a.Mask, b = binary.LittleEndian.Uint32(b), b[4:]
	if a.Type == ACEAllowObject || a.Type == ACEDenyObject {
		if revision != aclRevisionDS {
			return fmt.Errorf("object ACE in an ACL of revision %d", revision)
		}
		var err error
		if b, err = a.parseObject(b); err != nil {
			return err
		}
	}
	sid, rest, err := readSID(b)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d octets after the SID", len(rest))
	}
	a.SID = sid
	return nil
}

// parseObject reads the part of an object ACE before the SID ([MS-DTYP] 2.4.4.3) and returns the rest.
func (a *ACE) parseObject(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, errors.New("no room for the object flags")
	}
	flags := binary.LittleEndian.Uint32(b)
	if flags&^(objectPresent|inheritPresent) != 0 {
		return nil, fmt.Errorf("unknown object flags 0x%x", flags)
	}
	b = b[4:]
	read := func(present bool, g *GUID) bool {
		if !present {
			return true
		}
		if len(b) < len(g) {
			return false
		}
		*g, b = GUID(b), b[len(g):]
		return true
	}
	a.HasObject, a.HasInherited = flags&objectPresent != 0, flags&inheritPresent != 0
	if !read(a.HasObject, &a.Object) || !read(a.HasInherited, &a.Inherited) {
		return nil, errors.New("no room for the object types")
	}
	return b, nil
}
