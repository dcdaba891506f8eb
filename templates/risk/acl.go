package risk

import (
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

const administrators security.SID = "S-1-5-32-544"

// Privileged tells whether a SID stands for those who administer the forest or are its domain controllers: what they may
// do is no finding ([MS-DTYP] 2.4.2.4).
func Privileged(sid security.SID) bool {
	switch sid {
	case administrators, "S-1-5-18", "S-1-5-9": // SYSTEM; domain controllers of the forest
		return true
	}
	if !strings.HasPrefix(string(sid), "S-1-5-21-") {
		return false
	}
	switch rid(sid) {
	// read-only controllers of the forest; Administrator; krbtgt; Domain Admins; controllers; Schema and Enterprise
	// Admins; read-only controllers
	case "498", "500", "502", "512", "516", "518", "519", "521":
		return true
	}
	return false
}

// broad tells whether a SID stands for nearly everybody: nobody was chosen.
func broad(sid security.SID) bool {
	switch sid {
	case security.Everyone, security.AuthenticatedUsers, security.Network, security.ThisOrganization, security.BuiltinUsers,
		"S-1-5-4", "S-1-5-7", "S-1-5-32-546", "S-1-5-32-554": // interactive, anonymous, guests, old compatible access
		return true
	}
	if !strings.HasPrefix(string(sid), "S-1-5-21-") {
		return false
	}
	switch rid(sid) {
	case "501", "513", "514", "515": // Guest, Domain Users, Domain Guests, Domain Computers
		return true
	}
	return false
}

func rid(sid security.SID) string { return string(sid)[strings.LastIndexByte(string(sid), '-')+1:] }

// placeholder tells whether a SID in an entry concerns nobody on the objects here: it is replaced when the entry is
// inherited, or stands for an account object itself.
func placeholder(sid security.SID) bool {
	return sid == "" || sid == "S-1-3-0" || sid == "S-1-3-1" || sid == "S-1-5-10" || sid == security.OwnerRights
}

// tokenOf is the least that somebody acts with who has the SID.
func tokenOf(sid security.SID) security.Token {
	return security.NewToken(sid, security.Everyone, security.AuthenticatedUsers)
}

// candidates are the SIDs that a descriptor names and that are no administrators, those that stand for nearly everybody
// first.
func candidates(d *security.Descriptor) []security.SID {
	seen := security.Token{}
	if !d.HasDACL {
		seen[security.Everyone] = struct{}{}
	}
	for _, sid := range append([]security.SID{d.Owner}, sidsOf(d)...) {
		if !placeholder(sid) && !Privileged(sid) {
			seen[sid] = struct{}{}
		}
	}
	out := seen.Sorted()
	slices.SortStableFunc(out, func(a, b security.SID) int {
		switch {
		case broad(a) == broad(b):
			return 0
		case broad(a):
			return -1
		}
		return 1
	})
	return out
}

func sidsOf(d *security.Descriptor) []security.SID {
	out := make([]security.SID, len(d.DACL))
	for i := range d.DACL {
		out[i] = d.DACL[i].SID
	}
	return out
}

// access is who has something, and by which entries.
type access struct {
	who   []Principal
	aces  []int
	owner bool
	ways  []string // "WriteDACL", "owner"
}

func (a *access) add(sid security.SID, way string) {
	if !slices.ContainsFunc(a.who, func(p Principal) bool { return p.SID == sid }) {
		a.who = append(a.who, Principal{SID: sid})
	}
	if way != "" && !slices.Contains(a.ways, way) {
		a.ways = append(a.ways, way)
	}
}

// enrollers are those who have Enroll by an entry of their own. The gateway gives no right by an entry that it does not
// understand, nor without a list, so those are nobody here.
func enrollers(d *security.Descriptor) access {
	var out access
	if d == nil {
		return out
	}
	for _, sid := range candidates(d) {
		if !d.ControlAccess(tokenOf(sid), security.RightEnroll).Granted {
			continue
		}
		for i := range d.DACL {
			if ace := &d.DACL[i]; ace.SID == sid && ace.Allows() && ace.Applies() && ace.Mask&(security.MaskControlAccess|security.MaskGenericAll) != 0 &&
				(!ace.HasObject || ace.Object == security.RightEnroll) {
				out.add(sid, "")
				out.aces = append(out.aces, i+1)
			}
		}
	}
	return out
}

// writers are those who can change the object. harmless tells which limited rights change nothing that matters; trusted
// are SIDs that may.
func writers(d *security.Descriptor, mask uint32, harmless func(security.Control) bool, trusted func(security.SID) bool) access {
	var out access
	for _, sid := range candidates(d) {
		if trusted != nil && trusted(sid) {
			continue
		}
		for _, c := range d.Controls(tokenOf(sid)) {
			if c.SID != sid || c.Mask&mask == 0 || harmless != nil && harmless(c) {
				continue
			}
			out.add(sid, describe(c, mask))
			byOwning := c.Owner || c.ACE > 0 && d.DACL[c.ACE-1].SID == security.OwnerRights
			if out.owner = out.owner || byOwning; c.ACE > 0 && !byOwning { // without its entry an owner would have more
				out.aces = append(out.aces, c.ACE)
			}
		}
	}
	return out
}

func describe(c security.Control, mask uint32) string {
	if c.Owner {
		return "ownership"
	}
	var names []string
	for _, m := range []struct {
		bit  uint32
		name string
	}{{security.MaskWriteDACL, "WriteDACL"}, {security.MaskWriteOwner, "WriteOwner"}, {security.MaskWriteProperty, "WriteProperty"}, {security.MaskCreateChild, "CreateChild"}} {
		if c.Mask&mask&m.bit != 0 {
			names = append(names, m.name)
		}
	}
	text := strings.Join(names, "+")
	if c.HasObject {
		if name := properties[c.Object.String()]; name != "" {
			return text + " on " + name
		}
		return text + " on " + c.Object.String()
	}
	return text
}

// properties are the attributes whose change makes a template dangerous, or decides whom its certificates are for, by
// schemaIDGUID ([MS-ADA2], [MS-ADA3]).
var properties = map[string]string{
	"ea1dddc4-60ff-416e-8cc0-17cee534bce7": attrName,
	"d15ef7d8-f226-46db-ae79-b34e560bd12c": attrEnrollment,
	"bab04ac2-0435-4709-9307-28380e7c7001": "msPKI-Private-Key-Flag",
	"18976af6-3b9e-11d2-90cc-00c04fd91ab1": attrEKU,
	"dbd90548-aa37-4202-9966-8c537ba5ce32": attrPolicies,
	"38942346-cc5b-424b-a7d8-6ffd12029c5f": attrIssuance,
	"fe17e04b-937d-4f7e-8e0e-9292c8d5683e": "msPKI-RA-Signature",
	"3c91fbbf-4773-4ccd-a87b-85d53e7bcf6a": "msPKI-RA-Application-Policies",
	"d546ae22-0951-4d47-817e-1c9f96faad46": "msPKI-RA-Policies",
	"0c15e9f5-491d-4594-918f-32813a091da9": attrSchema,
	"bf967976-0de6-11d0-a285-00aa003049e2": "flags",
	"3164c36a-ba26-468c-8bda-c1e5cc256728": "msPKI-Cert-Template-OID",
	"f9c9a57c-3941-438d-bebf-0edaf2aca187": attrLink,
	"bf967932-0de6-11d0-a285-00aa003049e2": "cACertificate",
	"2a39c5b1-8960-11d1-aebc-0000f80367c1": "certificateTemplates",
}

// extendedRight tells whether a limited right names Enroll or AutoEnroll, as the Windows console writes read and write
// beside them: there is no property of this GUID.
func extendedRight(c security.Control) bool {
	return c.HasObject && c.Mask&(security.MaskWriteDACL|security.MaskWriteOwner) == 0 && (c.Object == security.RightEnroll || c.Object == security.RightAutoEnroll)
}

// unread adds a warning where entries of a template's descriptor were not understood: the directory may give a right by
// them.
func (f *finder) unread(t *templates.Template) {
	aces := t.Security.Unread()
	if len(aces) == 0 {
		return
	}
	f.add(Finding{Rule: "ESC4", Severity: Warning, Kind: KindTemplate, Object: t.Name, DN: t.DN,
		How:     fmt.Sprintf("Entries %v of the permissions are of a kind that is not understood here; the directory may give somebody the right to change the template by them.", aces),
		Changes: []Change{withdraw(t.Security, aces, false)}})
}
