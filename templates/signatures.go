package templates

import (
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

const oidRequestAgent = "1.3.6.1.4.1.311.20.2.1" // Certificate Request Agent

// AgentRule lets accounts enroll on behalf of others: any of the agents, for any of the subjects, by any of the templates
// (enrollment agent rights, [MS-CSRA] 3.1.1.7).
type AgentRule struct {
	Agents    []security.SID // accounts or groups
	Subjects  []security.SID // accounts or groups
	Templates []string       // names
}

// checkSignatures applies the rules about registration authorities ([MS-WCCE] 3.2.2.6.2.1.4.5.1, .3 and .4).
func checkSignatures(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.5.1"
	const name = "signatures"
	r := in.Request
	switch {
	case r == nil && t.RASignatures > 0:
		c.pass(name, "needs %s", t.signaturesText())
		return
	case r == nil:
		return
	case t.RASignatures == 0 && len(r.Signatures) > 0 && r.RequestorName == "":
		c.fail(hresult.TooManySignatures, name, "send the request without them", "%d signatures more than the template asks for", len(r.Signatures))
		return
	case t.RASignatures == 0:
		return
	case approvedBefore(in, t) == nil:
		c.pass(name, "the renewed certificate stands for %s", t.signaturesText())
		return
	case len(r.Signatures) == 0:
		c.fail(hresult.SignaturePolicyRequired, name, "have the request signed", "the template demands %s, the request has none", t.signaturesText())
		return
	}
	for i := range r.Signatures {
		if s := &r.Signatures[i]; s.Distrust != nil {
			c.fail(hresult.SignatureRejected, name, "sign with a certificate that a CA served here has issued and not revoked",
				"the signature by %s counts for nothing: %v", s.Certificate.Subject, s.Distrust)
			return
		}
	}
	signers := distinct(r)
	if len(signers) < t.RASignatures {
		c.fail(hresult.SignatureCount, name, "have the request signed by more", "the template demands %s, the request has %d", t.signaturesText(), len(signers))
		return
	}
	for _, need := range []struct {
		oids []string
		of   func(*Proof) []string
		kind string
	}{{t.RAAppPolicies, (*Proof).applicationPolicies, "application policy"}, {t.RAPolicies, (*Proof).issuancePolicies, "issuance policy"}} {
		for _, oid := range need.oids {
			if !slices.ContainsFunc(signers, func(s *Proof) bool { return slices.Contains(need.of(s), oid) }) {
				c.fail(hresult.SignatureRejected, name, "sign with a certificate that has it", "no signature is by a certificate with the %s %s", need.kind, oid)
				return
			}
		}
	}
	c.pass(name, "signed by %d, the template demands %s", len(signers), t.signaturesText())
}

// signaturesText says what the template demands.
func (t *Template) signaturesText() string {
	text := fmt.Sprintf("%d signatures", t.RASignatures)
	if t.RASignatures == 1 {
		text = "1 signature"
	}
	if policies := slices.Concat(t.RAAppPolicies, t.RAPolicies); len(policies) > 0 {
		text += " with the policies " + strings.Join(policies, ", ")
	}
	return text
}

// distinct are the signers, each key once: one key that signs twice is one signature, and the subject's own is none.
func distinct(r *Request) []*Proof {
	var out []*Proof
	for i := range r.Signatures {
		s := &r.Signatures[i]
		if samePublicKey(s.Certificate.PublicKey, r.PublicKey) ||
			slices.ContainsFunc(out, func(o *Proof) bool { return samePublicKey(o.Certificate.PublicKey, s.Certificate.PublicKey) }) {
			continue
		}
		out = append(out, s)
	}
	return out
}

// checkOnBehalf decides whether an enrollment agent may ask for the subject's certificate ([MS-WCCE] 3.2.2.6.2.1.2.1).
func checkOnBehalf(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.2.1"
	const name = "on-behalf-of"
	r := in.Request
	if r == nil || r.RequestorName == "" {
		return
	}
	refuse := func(fix, format string, args ...any) {
		c.fail(hresult.RestrictedOfficer, name, fix, format, args...)
	}
	isAgent := func(s *Proof) bool {
		return s.Distrust == nil && s.Owner == in.Caller.SID && slices.Contains(s.applicationPolicies(), oidRequestAgent)
	}
	switch {
	case t.Schema > 1 && t.EnrollmentFlags&EnrollAllowOnBehalfOf == 0:
		refuse("set ALLOW_ENROLL_ON_BEHALF_OF in the template", "the template does not let anybody enroll for %s", r.RequestorName)
	case r.Renewal != nil:
		refuse("send a new request", "a renewal cannot be on behalf of others (%s)", r.RequestorName)
	case len(r.Signatures) == 0:
		c.fail(hresult.SignaturePolicyRequired, name, "sign the request with an enrollment agent certificate", "a request for %s has to be signed by an enrollment agent", r.RequestorName)
	case !slices.ContainsFunc(distinct(r), isAgent):
		text := fmt.Sprintf("the account has no certificate with the purpose Certificate Request Agent (%s)", oidRequestAgent)
		for i := range r.Signatures {
			if s := &r.Signatures[i]; s.Distrust != nil {
				text = fmt.Sprintf("the signature by %s counts for nothing: %v", s.Certificate.Subject, s.Distrust)
			}
		}
		refuse("sign with an enrollment agent certificate that was issued to the account itself", "not signed by an enrollment agent: %s", text)
	case !agentAllowed(in, t):
		refuse("add a rule for the agent, the template and a group of the subject to enrollment_agents in the configuration",
			"no rule of this gateway lets %s enroll for %s by this template", in.Caller.Principal, r.RequestorName)
	default:
		if access := t.Security.ControlAccess(in.Subject.token(), security.RightEnroll); !access.Granted {
			c.fail(hresult.TemplateDenied, name, fmt.Sprintf("give one of the groups of %s the Enroll right on the template", r.RequestorName),
				"%s has no Enroll right on the template: %s", r.RequestorName, access.Reason)
			return
		}
		c.pass(name, "%s may enroll for %s", in.Caller.Principal, r.RequestorName)
	}
}

func agentAllowed(in Input, t *Template) bool {
	agent, subject := in.Caller.Token(), in.Subject.token()
	holds := func(token security.Token, sids []security.SID) bool {
		return slices.ContainsFunc(sids, func(s security.SID) bool { _, ok := token[s]; return ok })
	}
	return slices.ContainsFunc(in.Agents, func(a AgentRule) bool {
		return holds(agent, a.Agents) && holds(subject, a.Subjects) && slices.ContainsFunc(a.Templates, func(n string) bool { return strings.EqualFold(n, t.Name) })
	})
}

// token is the access token of an account of which the directory listed the groups.
func (s *Subject) token() security.Token {
	return newToken(s.SID, s.Groups)
}
