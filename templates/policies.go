package templates

import (
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// addPolicies adds the issuance policies: those of the template, or of them the requested ones where the template says so
// ([MS-WCCE] 3.2.2.6.2.1.4.5.8).
func addPolicies(in Input, t *Template, c *checks, p *CertificateProfile) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.5.8"
	const name = "issuance-policies"
	policies := t.IssuancePolicies
	if t.EnrollmentFlags&EnrollIssuancePoliciesFromRequest != 0 && in.Request != nil {
		value := extension(in.Request.Extensions, oidCertPolicies)
		requested, ok := ReadOIDs(value)
		switch {
		case value != nil && !ok:
			c.fail(hresult.InvalidData, name, "correct the request", "the issuance policies of the request are malformed")
			return
		case len(requested) > 0 && len(policies) == 0:
			c.fail(hresult.TemplateConflict, name, "list the policies in the template", "the request asks for issuance policies, the template has none")
			return
		}
		policies = slices.DeleteFunc(slices.Clone(policies), func(oid string) bool { return !slices.Contains(requested, oid) })
	}
	if len(policies) == 0 {
		return
	}
	p.IssuancePolicies = policies
	p.add(t, oidCertPolicies, oidSequence(policies, true))
	text := "issuance policies " + strings.Join(policies, ", ")
	for _, oid := range policies {
		if o := in.Snapshot.OIDs[oid]; o.GroupLink != "" {
			text += "; who logs on with the certificate gets the group " + o.GroupLink + " by policy " + oid
		}
	}
	c.pass(name, "%s", text)
}
