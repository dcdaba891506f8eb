package security

import (
	"fmt"
	"strings"
)

// bitName is a bit and its letters in the security descriptor definition language.
type bitName struct {
	bit  uint32
	name string
}

// The letters of [MS-DTYP] 2.5.1.1, in the order in which Windows writes them.
var (
	sddlControl = []bitName{{ControlDACLProtected, "P"}, {ControlDACLAutoInheritRq, "AR"}, {ControlDACLAutoInherited, "AI"}}
	sddlFlags   = []bitName{{ACEObjectInherit, "OI"}, {ACEContainerInherit, "CI"}, {ACENoPropagate, "NP"},
		{ACEInheritOnly, "IO"}, {ACEInherited, "ID"}, {0x40, "SA"}, {0x80, "FA"}}
	sddlRights = []bitName{{MaskGenericAll, "GA"}, {0x80000000, "GR"}, {MaskGenericWrite, "GW"}, {0x20000000, "GX"},
		{MaskCreateChild, "CC"}, {MaskDeleteChild, "DC"}, {MaskList, "LC"}, {MaskSelf, "SW"}, {MaskReadProperty, "RP"},
		{MaskWriteProperty, "WP"}, {0x40, "DT"}, {0x80, "LO"}, {MaskControlAccess, "CR"}, {MaskDelete, "SD"},
		{MaskReadControl, "RC"}, {MaskWriteDACL, "WD"}, {MaskWriteOwner, "WO"}}
	sddlTypes = map[uint8]string{ACEAllow: "A", ACEDeny: "D", ACEAllowObject: "OA", ACEDenyObject: "OD"}
)

// letters writes bits as letters, and what no letter stands for in hexadecimal.
func letters(v uint32, names []bitName) (text string, rest uint32) {
	var s strings.Builder
	for _, n := range names {
		if v&n.bit != 0 {
			s.WriteString(n.name)
			v &^= n.bit
		}
	}
	return s.String(), v
}

// String writes the descriptor as SDDL ([MS-DTYP] 2.5.1), with SIDs spelled out. ACEs that were not understood, and a
// null DACL, are in angle brackets: SDDL has no form for them.
func (d *Descriptor) String() string {
	var s strings.Builder
	if d.Owner != "" {
		s.WriteString("O:" + string(d.Owner))
	}
	if d.Group != "" {
		s.WriteString("G:" + string(d.Group))
	}
	control, _ := letters(uint32(d.Control), sddlControl)
	s.WriteString("D:" + control)
	if !d.HasDACL {
		s.WriteString("<none>")
	}
	for i := range d.DACL {
		s.WriteString(d.DACL[i].String())
	}
	return s.String()
}

// String writes the ACE as SDDL, "(OA;;CR;0e10c968-78fb-11d2-90d4-00c04f79dc55;;S-1-5-11)".
func (a *ACE) String() string {
	if a.Problem != "" {
		return "<ACE: " + a.Problem + ">"
	}
	flags, unnamed := letters(uint32(a.Flags), sddlFlags)
	if unnamed != 0 {
		flags += fmt.Sprintf("0x%x", unnamed)
	}
	mask, unnamed := letters(a.Mask, sddlRights)
	if unnamed != 0 || mask == "" {
		mask = fmt.Sprintf("0x%x", a.Mask)
	}
	object, inherited := "", ""
	if a.HasObject {
		object = a.Object.String()
	}
	if a.HasInherited {
		inherited = a.Inherited.String()
	}
	return "(" + strings.Join([]string{sddlTypes[a.Type], flags, mask, object, inherited, string(a.SID)}, ";") + ")"
}
