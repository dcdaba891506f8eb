package security

import "slices"

// Rights by which a token changes an object, or who may change it ([MS-ADTS] 5.1.3.2).
const MaskChange = MaskCreateChild | MaskWriteProperty | MaskWriteDACL | MaskWriteOwner

// allRights and writeRights are what the generic bits stand for in the directory ([MS-ADTS] 5.1.3.2).
const (
	allRights   = 0x000F01FF
	writeRights = MaskReadControl | MaskWriteProperty | MaskSelf
)

// Control is one way in which a token may change an object.
type Control struct {
	SID       SID
	Mask      uint32 // of MaskChange
	HasObject bool   // whether it is limited to the property, property set or class Object
	Object    GUID
	ACE       int  // counted from 1; 0 for the owner
	Owner     bool // by owning the object, which gives WriteDACL ([MS-ADTS] 5.1.3.3.1)
}

// Controls lists the rights of MaskChange that the descriptor gives to a token, one for each entry that gives any, as far
// as no entry before it denies them ([MS-ADTS] 5.1.3.3.3). Unlike ControlAccess it errs on the side of reporting: without
// a DACL everybody has every right, and a denial of one property takes nothing else away. Entries that are not
// understood are in Unread.
func (d *Descriptor) Controls(token Token) []Control {
	if d == nil {
		return nil
	}
	if !d.HasDACL {
		return []Control{{SID: Everyone, Mask: MaskChange}}
	}
	var out []Control
	if d.Owner != "" && token.Has(d.Owner) && !d.limitsOwner() {
		out = append(out, Control{SID: d.Owner, Mask: MaskWriteDACL, Owner: true})
	}
	denied := uint32(0)
	deniedObjects := map[GUID]uint32{}
	for i := range d.DACL {
		ace := &d.DACL[i]
		owner := ace.SID == OwnerRights && d.Owner != "" && token.Has(d.Owner)
		if !ace.Applies() || ace.Problem != "" || !token.Has(ace.SID) && !owner {
			continue
		}
		mask := expand(ace.Mask) & MaskChange
		switch {
		case ace.Allows():
			if mask &^= denied | deniedObjects[ace.Object]; mask != 0 {
				c := Control{SID: ace.SID, Mask: mask, HasObject: ace.HasObject, Object: ace.Object, ACE: i + 1}
				if owner {
					c.SID = d.Owner
				}
				out = append(out, c)
			}
		case ace.HasObject:
			deniedObjects[ace.Object] |= mask
		default:
			denied |= mask
		}
	}
	return out
}

// Unread lists the entries that concern the object and were not understood, counted from 1: they might give any right.
func (d *Descriptor) Unread() (aces []int) {
	for i := range d.DACL {
		if d.DACL[i].Problem != "" && d.DACL[i].Applies() {
			aces = append(aces, i+1)
		}
	}
	return aces
}

// limitsOwner tells whether an entry for OWNER RIGHTS takes the place of what owners have by themselves.
func (d *Descriptor) limitsOwner() bool {
	return slices.ContainsFunc(d.DACL, func(a ACE) bool { return a.Applies() && a.Problem == "" && a.SID == OwnerRights })
}

func expand(mask uint32) uint32 {
	if mask&MaskGenericAll != 0 {
		mask |= allRights
	}
	if mask&MaskGenericWrite != 0 {
		mask |= writeRights
	}
	return mask
}
