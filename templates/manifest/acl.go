package manifest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/enrollgate/enrollgate/templates/security"
)

// acl is what an access control list should be: its own entries, without those that come from the container above.
type acl struct {
	none bool // no list at all, which Windows takes as "everybody may do everything"
	aces []security.ACE
}

// noACL is the one line of an absent list.
const noACL = "no access control list: everybody may do everything"

const hexPrefix = "hex:"

// maskNames are words for bits of an access mask ([MS-ADTS] 5.1.3.2). The first two are what a template's access control
// list usually has; "full" does not include the extended rights, so an administrator with it alone cannot enroll. Generic
// rights have no word: the directory replaces them by others when they are written.
var maskNames = []struct {
	mask uint32
	name string
}{
	{0x000F00FF, "full"}, {0x00020094, "read"},
	{security.MaskWriteProperty, "write"}, {security.MaskReadProperty, "read-properties"}, {security.MaskList, "list"}, {0x80, "list-object"},
	{security.MaskReadControl, "read-permissions"}, {security.MaskWriteDACL, "change-permissions"}, {security.MaskWriteOwner, "take-ownership"},
	{security.MaskDelete, "delete"}, {0x40, "delete-tree"}, {security.MaskCreateChild, "create-child"}, {security.MaskDeleteChild, "delete-child"},
	{security.MaskSelf, "write-validated"}, {security.MaskControlAccess, "extended-rights"},
}

const (
	wordEnroll     = "enroll"
	wordAutoEnroll = "autoenroll"
)

// explicit returns the entries that are the object's own.
func explicit(d *security.Descriptor) []security.ACE {
	return slices.DeleteFunc(slices.Clone(d.DACL), func(a security.ACE) bool { return a.WasInherited() })
}

// lines shows the list for people, in its order, which decides. Entries for the same trustee that follow each other share
// a line where writing it gives the same entries again.
func (l *acl) lines(names map[security.SID]string) []string {
	if l.none {
		return []string{noACL}
	}
	out := []string{}
	var open *security.ACE // the entry whose line more rights may be added to
	for i := range l.aces {
		a := &l.aces[i]
		if !speakable(a) {
			out, open = append(out, unspeakable(a)), nil
			continue
		}
		verb, right, rest := "allow ", rights(a), " for "+trusteeName(a.SID, names)
		if !a.Allows() {
			verb = "deny "
		}
		if a.HasObject && !isWord(right) {
			rest = " on " + objectName(a.Object) + rest
			out, open = append(out, verb+right+rest), nil
			continue
		}
		last := len(out) - 1
		if open != nil && open.Allows() == a.Allows() && open.SID == a.SID && (isWord(rights(open)) || isWord(right)) {
			out[last] = strings.TrimSuffix(out[last], rest) + ", " + right + rest
		} else {
			out = append(out, verb+right+rest)
		}
		open = a
	}
	return out
}

// speakable tells whether words can express the entry.
func speakable(a *security.ACE) bool {
	object := a.Type == security.ACEAllowObject || a.Type == security.ACEDenyObject
	return a.Problem == "" && a.Flags == 0 && !a.HasInherited && object == a.HasObject
}

// unspeakable shows an entry as SDDL, or octet by octet where SDDL has no form for it.
func unspeakable(a *security.ACE) string {
	if text := a.String(); a.Problem == "" {
		if again, err := security.ParseACEText(text); err == nil && again == *a {
			return text
		}
	}
	return hexPrefix + hex.EncodeToString(a.Bytes())
}

func isWord(right string) bool { return right == wordEnroll || right == wordAutoEnroll }

func rights(a *security.ACE) string {
	if a.HasObject && a.Mask == security.MaskControlAccess && (a.Object == security.RightEnroll || a.Object == security.RightAutoEnroll) {
		return objectName(a.Object)
	}
	var out []string
	rest := a.Mask
	for _, n := range maskNames {
		if rest&n.mask == n.mask {
			out = append(out, n.name)
			rest &^= n.mask
		}
	}
	if rest != 0 || len(out) == 0 {
		out = append(out, fmt.Sprintf("0x%x", rest))
	}
	return strings.Join(out, ", ")
}

func objectName(g security.GUID) string {
	switch g {
	case security.RightEnroll:
		return wordEnroll
	case security.RightAutoEnroll:
		return wordAutoEnroll
	}
	return g.String()
}

// trusteeName is the name where there is one that reads back, else the SID.
func trusteeName(sid security.SID, names map[security.SID]string) string {
	name := names[sid]
	if _, account, ok := strings.Cut(name, `\`); name == "" || ok && account == "" || !plain(name) || strings.HasPrefix(account, "S-1-") {
		return string(sid)
	}
	return name
}

// Resolver finds the SID of a principal; its error says why there is none.
type Resolver func(name string) (security.SID, error)

// parseACL reads lines as acl.lines writes them, and such as people write.
func parseACL(n node, sidOf Resolver) (*acl, error) {
	items, err := n.list()
	if err != nil {
		return nil, err
	}
	if len(items) == 1 && items[0].text == noACL {
		return &acl{none: true}, nil
	}
	l := &acl{}
	for _, item := range items {
		aces, err := parseACELine(item, sidOf)
		if err != nil {
			return nil, err
		}
		l.aces = append(l.aces, aces...)
	}
	return l, nil
}

func parseACELine(item node, sidOf Resolver) ([]security.ACE, error) {
	var a security.ACE
	var err error
	encoded, isHex := strings.CutPrefix(item.text, hexPrefix)
	switch {
	case isHex:
		b, bad := hex.DecodeString(encoded)
		if a, err = security.ParseACE(b); bad != nil {
			err = bad
		}
	case strings.HasPrefix(item.text, "("):
		a, err = security.ParseACEText(item.text)
	default:
		return parseWords(item, sidOf)
	}
	if err == nil && a.WasInherited() {
		err = fmt.Errorf("an inherited entry: change it on the container above")
	}
	if err != nil {
		return nil, item.fail("%v", err)
	}
	return []security.ACE{a}, nil
}

// parseWords reads "allow read, enroll for CORP\Users" and "deny write on GUID for CORP\Users".
func parseWords(item node, sidOf Resolver) ([]security.ACE, error) {
	what, principal, ok := strings.Cut(item.text, " for ")
	verb, words, ok2 := strings.Cut(what, " ")
	if !ok || !ok2 || verb != "allow" && verb != "deny" {
		return nil, item.fail(`%q: want "allow RIGHTS for PRINCIPAL", such as "allow read, enroll for CORP\Domain Users"`, item.text)
	}
	sid, err := sidOf(strings.TrimSpace(principal))
	if err != nil {
		return nil, item.fail("%v", err)
	}
	plainType, objectType := uint8(security.ACEAllow), uint8(security.ACEAllowObject)
	if verb == "deny" {
		plainType, objectType = security.ACEDeny, security.ACEDenyObject
	}
	words, object, limited := strings.Cut(words, " on ")
	var aces []security.ACE
	for word := range strings.SplitSeq(words, ",") {
		word = strings.TrimSpace(word)
		if isWord(word) && !limited {
			g := security.RightEnroll
			if word == wordAutoEnroll {
				g = security.RightAutoEnroll
			}
			aces = append(aces, security.ACE{Type: objectType, Mask: security.MaskControlAccess, HasObject: true, Object: g, SID: sid})
			continue
		}
		mask, err := maskOf(item, word)
		if err != nil {
			return nil, err
		}
		if last := len(aces) - 1; last >= 0 && !aces[last].HasObject {
			aces[last].Mask |= mask
		} else {
			aces = append(aces, security.ACE{Type: plainType, Mask: mask, SID: sid})
		}
	}
	if limited {
		aces[0].Type, aces[0].HasObject = objectType, true
		if aces[0].Object, err = objectOf(object); err != nil {
			return nil, item.fail("%v", err)
		}
	}
	return aces, nil
}

func objectOf(name string) (security.GUID, error) {
	switch name {
	case wordEnroll:
		return security.RightEnroll, nil
	case wordAutoEnroll:
		return security.RightAutoEnroll, nil
	}
	return security.ParseGUID(name)
}

func maskOf(item node, word string) (uint32, error) {
	names := []string{wordEnroll, wordAutoEnroll}
	for _, n := range maskNames {
		if n.name == word {
			return n.mask, nil
		}
		names = append(names, n.name)
	}
	if digits, ok := strings.CutPrefix(word, "0x"); ok {
		if n, err := strconv.ParseUint(digits, 16, 32); err == nil {
			return uint32(n), nil
		}
	}
	return 0, item.fail("unknown right %q: use %s, or hexadecimal", word, strings.Join(names, ", "))
}

func (l *acl) equal(m *acl) bool {
	return l.none == m.none && slices.EqualFunc(l.aces, m.aces, func(a, b security.ACE) bool { return string(a.Bytes()) == string(b.Bytes()) })
}
