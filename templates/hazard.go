package templates

import "github.com/enrollgate/enrollgate/gateway/wcce/hresult"

// Hazard is a reason why it would be dangerous to serve a template. Package risk finds them.
type Hazard struct {
	Rule string `json:"rule"` // "ESC1"
	Text string `json:"text"` // who can do what
	Fix  string `json:"fix"`
	Spec string `json:"spec,omitempty"`
}

// checkHazards refuses a dangerous template, each hazard by its rule. Those that somebody has accepted are not in the
// input.
func checkHazards(in Input, t *Template, c *checks) {
	c.spec = "[MS-CRTD] 2"
	if in.Hazards == nil {
		return
	}
	hazards := in.Hazards[t.Name]
	for _, h := range hazards {
		c.spec = h.Spec
		c.fail(hresult.NotSupported, "risk", h.Fix, "the template is dangerous (%s): %s", h.Rule, h.Text)
	}
	if len(hazards) == 0 {
		c.pass("risk", "no rule of enrollgate templates lint forbids to serve the template")
	}
}

// LogonPurpose names the purpose by which certificates of the template prove an account to a domain controller; "" where
// they do not ([MS-PKCA] 3.1.5.2.1).
func LogonPurpose(t *Template) string {
	policies := t.Policies()
	if len(policies) == 0 {
		return "every purpose"
	}
	for _, p := range policies {
		switch p {
		case oidClientAuth:
			return "client authentication"
		case oidSmartCardLogon:
			return "smart card logon"
		case oidPKINITClient:
			return "Kerberos client authentication"
		case oidAnyPurpose:
			return "any purpose"
		}
	}
	return ""
}
