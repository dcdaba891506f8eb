package config

import (
	"cmp"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
)

// RecoveryPolicy is whose archived keys are sealed to which agents, how many of them it takes, and who may open cases.
type RecoveryPolicy struct {
	Name         string        `yaml:"name"`
	Templates    []string      `yaml:"templates"`      // empty: all
	Groups       []string      `yaml:"groups"`         // of the key's owner; empty: all owners
	Agents       []string      `yaml:"agents"`         // fingerprints or subjects of designated agents, or all
	Required     int           `yaml:"required"`       // how many of them it takes
	Minimum      int           `yaml:"minimum_agents"` // with fewer valid agents nothing is archived
	Hybrid       bool          `yaml:"require_hybrid"` // only agents with a hybrid (post-quantum) key count
	Managers     []string      `yaml:"managers"`       // accounts or groups that open cases and fetch the key
	Approvers    []string      `yaml:"approvers"`      // accounts or groups that approve and deny
	CaseValidity time.Duration `yaml:"case_validity"`
}

// Agents is where recovery agents come from, and when to say that they go.
type Agents struct {
	FromDirectory string        `yaml:"from_directory"` // what becomes of certificates in the KRA container
	WarnBefore    time.Duration `yaml:"warn_before"`    // how long before an agent's certificate ends it is said
}

// What becomes of certificates in the KRA container.
const (
	FromDirectoryOff       = "off"       // they are shown; a person designates
	FromDirectoryDesignate = "designate" // those that this gateway has issued after an approval are designated
)

// Retention is how long archived keys are kept, and when those that are over are destroyed. Without rules they are kept for ever.
type Retention struct {
	Every     time.Duration   `yaml:"every"`
	MaxPerRun int             `yaml:"max_per_run"` // more keys due at once are a mistake until an operator says otherwise
	Rules     []RetentionRule `yaml:"rules"`
}

// RetentionRule is how long keys of some policies and templates are kept. The first one that is for a key counts.
type RetentionRule struct {
	Policies  []string      `yaml:"policies"`  // empty: all
	Templates []string      `yaml:"templates"` // empty: all, and imported keys
	Keep      time.Duration `yaml:"keep"`      // after the end of the key's last certificate
}

// check requires policies that exist: a name with a mistake in it would leave the key to another rule.
func (r Retention) check(policies map[string]bool, need func(ok bool, format string, args ...any)) {
	need(r.Every >= time.Minute && r.MaxPerRun > 0, "escrow.retention: every (%s) must be a minute or more and max_per_run (%d) positive", r.Every, r.MaxPerRun)
	for i, rule := range r.Rules {
		need(rule.Keep > 0, "escrow.retention.rules[%d].keep: missing, or not positive: how long after the end of its certificate a key is kept", i)
		for _, name := range rule.Policies {
			need(policies[name], "escrow.retention.rules[%d].policies: there is no policy %q under escrow.policies", i, name)
		}
		last := i == len(r.Rules)-1
		need(last || len(rule.Templates) > 0 || len(rule.Policies) > 0, "escrow.retention.rules[%d]: without policies and templates it is for every key, and those after it for none: make it the last", i)
	}
}

const (
	defaultCaseValidity = 72 * time.Hour
	maxCaseValidity     = 90 * 24 * time.Hour
)

// WithDefaults fills in what was left out.
func (p RecoveryPolicy) WithDefaults() RecoveryPolicy {
	if len(p.Agents) == 0 {
		p.Agents = []string{"all"}
	}
	p.Required = cmp.Or(p.Required, 1)
	p.Minimum = cmp.Or(p.Minimum, p.Required)
	p.CaseValidity = cmp.Or(p.CaseValidity, defaultCaseValidity)
	return p
}

func (e Escrow) check(need func(ok bool, format string, args ...any)) {
	need(e.ExchangeValidity >= time.Hour, "escrow.exchange_validity: %s is less than an hour", e.ExchangeValidity)
	need(e.Grace >= 0, "escrow.grace: %s is negative", e.Grace)
	need(e.Agents.FromDirectory == FromDirectoryOff || e.Agents.FromDirectory == FromDirectoryDesignate, "escrow.agents.from_directory: %q is neither off nor designate", e.Agents.FromDirectory)
	need(e.Agents.WarnBefore >= 0, "escrow.agents.warn_before: %s is negative", e.Agents.WarnBefore)
	seen, names := map[string]bool{}, map[string]bool{"default": true}
	for i, p := range e.Policies {
		names[p.Name] = true
		p = p.WithDefaults()
		need(p.Name != "" && len(p.Name) <= 64, "escrow.policies[%d].name: missing, or longer than 64 octets; archived keys are kept under it, do not change it later", i)
		need(!seen[strings.ToLower(p.Name)], "escrow.policies[%d].name: %q occurs twice", i, p.Name)
		seen[strings.ToLower(p.Name)] = true
		need(p.Required >= 1 && p.Required <= quorum.MaxAgents, "escrow.policies[%d].required: %d is not between 1 and %d", i, p.Required, quorum.MaxAgents)
		need(p.Minimum >= p.Required, "escrow.policies[%d].minimum_agents: %d is less than the %d that a recovery takes", i, p.Minimum, p.Required)
		all := len(p.Agents) == 1 && strings.EqualFold(p.Agents[0], "all")
		need(all || len(p.Agents) >= p.Minimum, "escrow.policies[%d].agents: %d are named, %d are needed", i, len(p.Agents), p.Minimum)
		need((len(p.Managers) > 0) == (len(p.Approvers) > 0), "escrow.policies[%d]: managers and approvers go together: who opens cases, and who approves them", i)
		need(p.Required == 1 || len(p.Managers) > 0, "escrow.policies[%d]: managers and approvers are needed, or nobody can ever recover a key that takes %d agents", i, p.Required)
		need(p.CaseValidity > 0 && p.CaseValidity <= maxCaseValidity, "escrow.policies[%d].case_validity: %s is not between 0 and %s", i, p.CaseValidity, maxCaseValidity)
		last := i == len(e.Policies)-1
		need(last || len(p.Templates) > 0 || len(p.Groups) > 0, "escrow.policies[%d]: without templates and groups it is for every key, and those after it for none: make it the last", i)
	}
	e.Retention.check(names, need)
}
