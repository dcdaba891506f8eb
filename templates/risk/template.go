package risk

import (
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Purposes that rules look at.
const (
	oidAnyPurpose   = "2.5.29.37.0"
	oidClientAuth   = "1.3.6.1.5.5.7.3.2"
	oidServerAuth   = "1.3.6.1.5.5.7.3.1"
	oidKDC          = "1.3.6.1.5.2.3.5"
	oidRequestAgent = "1.3.6.1.4.1.311.20.2.1"
)

// template applies the rules about one template.
func (f *finder) template(t *templates.Template) {
	f.esc4(t)
	f.unread(t)
	who := enrollers(t.Security)
	if len(who.who) == 0 {
		return
	}
	f.agentTarget(t, who)
	if t.EnrollmentFlags&templates.EnrollPendAllRequests != 0 || t.RASignatures > 0 {
		return // somebody else has to agree to each certificate
	}
	logon := templates.LogonPurpose(t)
	if t.EnrolleeSuppliesSubject() {
		f.suppliedNames(t, who, logon)
	}
	f.anyPurpose(t, who)
	f.agent(t, who)
	if logon == "" {
		return
	}
	if t.EnrollmentFlags&templates.EnrollNoSecurityExtension != 0 {
		f.issued(t, who, "ESC9", Error, fmt.Sprintf("The certificate is good for %s but does not say whose SID it is for: who can change another account's name (userPrincipalName, dNSHostName) "+
			"enrolls under that name and logs on as who really has it.", logon), Change{Attribute: attrEnrollment, Clear: templates.EnrollNoSecurityExtension})
	}
	f.linkedPolicies(t, who, logon)
}

// issued adds a finding about what an enroller gets. It is an error at most where a CA offers the template to them.
func (f *finder) issued(t *templates.Template, who access, rule string, severity Severity, how string, first ...Change) {
	if !f.offered[strings.ToLower(t.Name)] {
		severity = []Severity{Error, Warning, Note}[min(severity.rank()+1, 2)]
		how += " No CA offers the template to them now."
	}
	f.add(Finding{Rule: rule, Severity: severity, Kind: KindTemplate, Object: t.Name, DN: t.DN, Who: slices.Clone(who.who), How: how,
		Changes: append(first, approve, withdraw(t.Security, who.aces, false))})
}

// suppliedNames are ESC1, ESC15 and ESC17: the enrollee says who the certificate is for.
func (f *finder) suppliedNames(t *templates.Template, who access, logon string) {
	fromDirectory := Change{Attribute: attrName, Clear: templates.NameEnrolleeSuppliesSubject}
	if logon != "" {
		f.issued(t, who, "ESC1", Error, fmt.Sprintf("They ask for a certificate with the name of any account, such as an administrator's; it is good for %s, and nobody approves it. "+
			"With it they log on as that account.", logon), fromDirectory)
	}
	if t.Schema == 1 {
		two := 2
		f.issued(t, who, "ESC15", Note, "A CA without the correction of CVE-2024-49019 also takes the purposes from the request, so that they log on as any account. This gateway never does.",
			fromDirectory, Change{Attribute: attrSchema, Number: &two})
	}
	policies := t.Policies()
	if logon == "every purpose" || slices.ContainsFunc(policies, func(p string) bool { return p == oidServerAuth || p == oidKDC || p == oidAnyPurpose }) {
		f.issued(t, who, "ESC17", Warning, "They ask for a certificate with the name of any server and stand in for it where clients connect to it.", fromDirectory)
	}
}

// anyPurpose is ESC2.
func (f *finder) anyPurpose(t *templates.Template, who access) {
	policies := t.Policies()
	if len(policies) > 0 && !slices.Contains(policies, oidAnyPurpose) {
		return
	}
	needed := slices.DeleteFunc(slices.Clone(policies), func(p string) bool { return p == oidAnyPurpose })
	if len(needed) == 0 {
		needed = []string{oidClientAuth}
	}
	f.issued(t, who, "ESC2", Error, "The certificate is good for every purpose: with it they sign requests as an enrollment agent and get certificates in the name of any account, or sign code, or stand in for servers.",
		Change{Attribute: attrEKU, Also: []string{attrPolicies}, Values: needed})
}

// agent is ESC3: certificates that sign requests for others. It is an error where nobody chose who the agents are; a
// group that was made for agents is what the template is for.
func (f *finder) agent(t *templates.Template, who access) {
	if !slices.Contains(t.Policies(), oidRequestAgent) {
		return
	}
	severity := Warning
	for _, p := range who.who {
		if broad(p.SID) {
			severity = Error
		}
	}
	f.issued(t, who, "ESC3", severity, "They get an enrollment agent's certificate without approval, and with it ask for certificates in the name of any account, wherever a template accepts an agent's signature.")
}

// agentTarget is the other half of ESC3.
func (f *finder) agentTarget(t *templates.Template, who access) {
	if t.RASignatures != 1 || !slices.Contains(t.RAAppPolicies, oidRequestAgent) || templates.LogonPurpose(t) == "" || t.EnrollmentFlags&templates.EnrollPendAllRequests != 0 {
		return
	}
	f.issued(t, who, "ESC3", Note, "Who has an enrollment agent's certificate gets a certificate in another account's name with one signature. It is as safe as the templates that make agents, and what agents may do.")
}

// linkedPolicies is ESC13: logging on with the certificate gives the membership of a group.
func (f *finder) linkedPolicies(t *templates.Template, who access, logon string) {
	for i, policy := range t.IssuancePolicies {
		o := f.snapshot.OIDs[policy]
		if o.GroupLink == "" {
			continue
		}
		rest := slices.Delete(slices.Clone(t.IssuancePolicies), i, i+1)
		f.issued(t, who, "ESC13", Error, fmt.Sprintf("The certificate is good for %s and has the issuance policy %s, which is linked to the group %s: who logs on with it is a member of the group.", logon, policy, o.GroupLink),
			Change{DN: o.DN, Attribute: attrLink}, Change{Attribute: attrIssuance, Values: rest})
	}
}

// esc4 is about who can change the template.
func (f *finder) esc4(t *templates.Template) {
	const mask = security.MaskWriteProperty | security.MaskWriteDACL | security.MaskWriteOwner
	minor := func(c security.Control) bool { // a property that the rules do not know
		return c.HasObject && c.Mask&(security.MaskWriteDACL|security.MaskWriteOwner) == 0 && properties[c.Object.String()] == ""
	}
	report := func(severity Severity, harmless func(security.Control) bool) {
		w := writers(t.Security, mask, harmless, nil)
		if len(w.who) == 0 {
			return
		}
		how := fmt.Sprintf("They have %s on the template: they can make it one in which they name the subject (ESC1), and then log on as anybody.", strings.Join(w.ways, ", "))
		if severity == Warning {
			how = fmt.Sprintf("They have %s on the template: they can change a part of it.", strings.Join(w.ways, ", "))
		}
		change := withdraw(t.Security, w.aces, w.owner)
		if !t.Security.HasDACL {
			how, change = "The template has no access control list: everybody can do everything with it.", Change{Attribute: attrSecurity, Values: []string{"D:PAI" + fullControl}}
		}
		f.add(Finding{Rule: "ESC4", Severity: severity, Kind: KindTemplate, Object: t.Name, DN: t.DN, Who: w.who, How: how, Changes: []Change{change}})
	}
	report(Error, func(c security.Control) bool { return extendedRight(c) || minor(c) })
	report(Warning, func(c security.Control) bool { return extendedRight(c) || !minor(c) })
}

// fullControl gives administrators everything and authenticated users read access, in SDDL.
const fullControl = "(A;;CCDCLCSWRPWPDTLOSDRCWDWO;;;S-1-5-32-544)(A;;LCRPLORC;;;S-1-5-11)"
