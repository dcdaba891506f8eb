package risk

import (
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Change is what to do to one object of the directory so that a finding is closed. The parts of one change go together.
type Change struct {
	DN        string       `json:"dn,omitempty"`
	Attribute string       `json:"attribute"`
	Set       uint32       `json:"set,omitempty"`    // bits
	Clear     uint32       `json:"clear,omitempty"`  // bits
	Values    []string     `json:"values,omitempty"` // all that the attribute has then; with none of the other parts, it has none
	Also      []string     `json:"also,omitempty"`   // other attributes that get the same values
	Remove    []string     `json:"remove,omitempty"` // access control entries, in SDDL
	Owner     security.SID `json:"owner,omitempty"`  // new owner
	Number    *int         `json:"number,omitempty"` // new value of a number
	Files     string       `json:"files,omitempty"`  // a command on the gateway's machine
}

// The attributes that changes are about.
const (
	attrEnrollment = "msPKI-Enrollment-Flag"
	attrName       = "msPKI-Certificate-Name-Flag"
	attrEKU        = "pKIExtendedKeyUsage"
	attrPolicies   = "msPKI-Certificate-Application-Policy"
	attrIssuance   = "msPKI-Certificate-Policy"
	attrSecurity   = "nTSecurityDescriptor"
	attrLink       = "msDS-OIDToGroupLink"
	attrSchema     = "msPKI-Template-Schema-Version"
)

// String says it as an instruction.
func (c Change) String() string {
	var parts []string
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case c.Files != "":
		say("run %s", c.Files)
	case c.Set != 0:
		say("set %s in %s", bits(c.Attribute, c.Set), c.Attribute)
	case c.Clear != 0:
		say("clear %s in %s", bits(c.Attribute, c.Clear), c.Attribute)
	case c.Number != nil:
		say("make %s %d", c.Attribute, *c.Number)
	case len(c.Values) > 0:
		say("let %s be %s only", strings.Join(append([]string{c.Attribute}, c.Also...), " and "), strings.Join(c.Values, ", "))
	case c.Attribute != attrSecurity:
		say("empty %s", c.Attribute)
	}
	if c.Owner != "" {
		say("make %s (%s) the owner", "Administrators", c.Owner)
	}
	if len(c.Remove) > 0 {
		say("remove from the permissions %s", strings.Join(c.Remove, " "))
	}
	text := strings.Join(parts, " and ")
	if c.DN != "" {
		text += " of " + c.DN
	}
	return text
}

// bits names the bits of a flag attribute.
func bits(attribute string, mask uint32) string {
	if name := templates.FlagName(attribute, mask); name != "" {
		return fmt.Sprintf("%s (0x%08X)", name, mask)
	}
	return fmt.Sprintf("0x%08X", mask)
}

// approve has a certificate manager look at each request.
var approve = Change{Attribute: attrEnrollment, Set: templates.EnrollPendAllRequests}

// withdraw takes entries of a descriptor away, and the ownership where owner is set.
func withdraw(d *security.Descriptor, aces []int, owner bool) Change {
	c := Change{Attribute: attrSecurity}
	slices.Sort(aces)
	for _, n := range slices.Compact(aces) {
		c.Remove = append(c.Remove, d.DACL[n-1].String())
	}
	if owner {
		c.Owner = administrators
	}
	return c
}
