package escrow

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// DefaultPolicy is the name of the policy for keys that no other one is for: any one of all designated agents.
const DefaultPolicy = "default"

// AllAgents in Policy.Agents stands for all designated ones.
const AllAgents = "all"

// Policy is whose keys are sealed to which agents, how many of them it takes, and who may open cases.
type Policy struct {
	Name         string
	Templates    []string      // names of the templates it is for; empty: all
	Groups       []string      // groups of the owner that it is for; empty: all owners
	Agents       []string      // fingerprints or subjects of designated agents, or "all"
	Required     int           // how many agents it takes
	Minimum      int           // with fewer valid agents nothing is archived
	Hybrid       bool          // seal to agents with a hybrid key only
	Managers     []string      // accounts or groups that may open cases and fetch the key
	Approvers    []string      // accounts or groups that may approve and deny
	CaseValidity time.Duration // how long a case lives
}

// Owner is whose key is archived.
type Owner struct {
	Name     string // Kerberos principal
	Template string // "" for imported keys
	// MemberOf tells which groups the owner is in. It may ask the directory; an error means that nothing is archived.
	MemberOf func(groups []string) (bool, error)
}

// PolicyFor is the first policy that is for a key. It fails where the owner's groups are needed and cannot be told.
func (e *Escrow) PolicyFor(o Owner) (*Policy, error) {
	for i := range e.o.Policies {
		p := &e.o.Policies[i]
		if len(p.Templates) > 0 && !slices.ContainsFunc(p.Templates, func(t string) bool { return strings.EqualFold(t, o.Template) }) {
			continue
		}
		if len(p.Groups) > 0 {
			if o.MemberOf == nil {
				return nil, fmt.Errorf("recovery policy %q is for members of groups, and the groups of %s are not known", p.Name, o.Name)
			}
			member, err := o.MemberOf(p.Groups)
			if err != nil {
				return nil, fmt.Errorf("recovery policy %q: %w", p.Name, err)
			}
			if !member {
				continue
			}
		}
		return p, nil
	}
	p := defaultPolicy()
	return &p, nil
}

func defaultPolicy() Policy {
	return Policy{Name: DefaultPolicy, Agents: []string{AllAgents}, Required: 1, Minimum: 1}
}

// Policy finds a policy by the name that is kept with a record.
func (e *Escrow) Policy(name string) (*Policy, error) {
	for i := range e.o.Policies {
		if e.o.Policies[i].Name == name {
			return &e.o.Policies[i], nil
		}
	}
	if name == DefaultPolicy {
		return e.PolicyFor(Owner{MemberOf: func([]string) (bool, error) { return false, nil }})
	}
	return nil, fmt.Errorf("the recovery policy %q is not in the configuration any more: add it to escrow.policies", name)
}

// ReadyFor returns nil if keys can be archived under the policy now, else the error that requests are refused with.
func (e *Escrow) ReadyFor(p *Policy) error {
	_, err := e.validAgents(p)
	return err
}

// has tells whether the policy names the agent.
func (p *Policy) has(a *Agent) bool {
	return slices.ContainsFunc(p.Agents, func(name string) bool {
		return name == AllAgents || strings.EqualFold(name, a.Fingerprint) || strings.EqualFold(name, dn.Show(a.Certificate.RawSubject)) ||
			strings.EqualFold(name, a.Certificate.Subject.CommonName)
	})
}

// admits tells whether new keys may be sealed to the agent under the policy.
func (p *Policy) admits(a *Agent, now time.Time) error {
	if err := a.usable(now); err != nil {
		return err
	}
	if p.Hybrid && a.Hybrid == nil {
		return errors.New("it has no hybrid key, which the policy requires: enrollgate escrow agents hybrid-key makes one")
	}
	return nil
}

// validAgents are the policy's agents that new keys may be sealed to, each person once; an error where there are fewer than
// its minimum.
func (e *Escrow) validAgents(p *Policy) ([]quorum.Recipient, error) {
	var valid []Agent
	var reasons string
	now := e.o.Now()
	for _, a := range *e.agents.Load() {
		if !p.has(&a) {
			continue
		}
		if err := p.admits(&a, now); err != nil {
			reasons += fmt.Sprintf("; %s: %v", dn.Show(a.Certificate.RawSubject), err)
			continue
		}
		valid = append(valid, a)
	}
	valid = people(valid)
	const fix = "add one: enrollgate escrow agents add CERTIFICATE"
	switch need := max(p.Minimum, p.Required, 1); {
	case len(valid) == 0:
		return nil, hresult.New(hresult.NoValidKRA, "no key recovery agent has a valid certificate%s", reasons).WithFix(fix)
	case len(valid) < need:
		return nil, hresult.New(hresult.NoValidKRA, "recovery policy %q: %d key recovery agents have a valid certificate, %d are needed%s", p.Name, len(valid), need, reasons).WithFix(fix)
	}
	var out []quorum.Recipient
	for i := range valid {
		out = append(out, valid[i].Recipient())
	}
	return out, nil
}

// Policies are the configured ones.
func (e *Escrow) Policies() []Policy { return e.o.Policies }
