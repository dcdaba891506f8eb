package security

import "fmt"

// OwnerRights stands for the owner of the object that carries the ACE ([MS-DTYP] 2.4.2.4).
const OwnerRights SID = "S-1-3-4"

// Access is the answer to "may this token use this right?".
type Access struct {
	Granted bool
	Reason  string // in plain words, for an administrator
	ACE     int    // the ACE that decided, counted from 1; 0 where none did
}

// ControlAccess decides whether a token has a control access right (an "extended right") such as RightEnroll, as
// [MS-ADTS] 5.1.3.3.4 does: the ACEs are tried in the order stored, and the first that applies to the token and the
// right decides; without one the right is not granted.
//
// It fails closed. Where Windows would let everybody in, because there is no DACL, the right is not granted. An ACE that
// was not understood might have denied the right, so the right is not granted either, unless an ACE before it decided.
func (d *Descriptor) ControlAccess(token Token, right GUID) Access {
	if d == nil || !d.HasDACL {
		return Access{Reason: "the object has no access control list; set one (Windows would let everybody in)"}
	}
	for i := range d.DACL {
		ace := &d.DACL[i]
		switch {
		case !ace.Applies():
			continue
		case ace.Problem != "":
			return Access{ACE: i + 1, Reason: fmt.Sprintf("ACE %d: %s; it might deny this right", i+1, ace.Problem)}
		case ace.Mask&(MaskControlAccess|MaskGenericAll) == 0 || ace.HasObject && ace.Object != right:
			continue
		case !token.Has(ace.SID) && !(ace.SID == OwnerRights && d.Owner != "" && token.Has(d.Owner)):
			continue
		case ace.Allows():
			return Access{Granted: true, ACE: i + 1, Reason: fmt.Sprintf("allowed by ACE %d for %s", i+1, ace.SID)}
		}
		return Access{ACE: i + 1, Reason: fmt.Sprintf("denied by ACE %d for %s", i+1, ace.SID)}
	}
	return Access{Reason: fmt.Sprintf("no ACE gives this right to any of the caller's %d SIDs", len(token))}
}
