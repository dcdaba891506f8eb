package config

import (
	"cmp"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/templates/risk"
)

// Risk is somebody's word that a danger which enrollgate templates lint finds is known and wanted, until a day.
type Risk struct {
	Template string `yaml:"template"` // name of the template, or
	Object   string `yaml:"object"`   // of another object, as lint shows it
	Rule     string `yaml:"rule"`
	By       string `yaml:"by"`    // who answers for it
	Until    string `yaml:"until"` // the last day, YYYY-MM-DD
	Reason   string `yaml:"reason"`
}

// end is the first moment after the last day, in UTC.
func (r Risk) end() (time.Time, error) {
	day, err := time.Parse(time.DateOnly, r.Until)
	return day.AddDate(0, 0, 1), err
}

// Risks are the accepted risks of a configuration that was checked.
func (c *Config) Risks() []risk.Acceptance {
	out := make([]risk.Acceptance, len(c.AcceptRisk))
	for i, r := range c.AcceptRisk {
		end, _ := r.end()
		out[i] = risk.Acceptance{Object: cmp.Or(r.Template, r.Object), Rule: r.Rule, By: r.By, Until: end, Reason: r.Reason}
	}
	return out
}

func (c *Config) checkRisks() (out []string) {
	need := func(ok bool, i int, format string, args ...any) {
		if !ok {
			out = append(out, fmt.Sprintf("accept_risk[%d].", i)+fmt.Sprintf(format, args...))
		}
	}
	for i, r := range c.AcceptRisk {
		need((r.Template == "") != (r.Object == ""), i, "template: name a template or, for anything else, an object: one of the two")
		need(risk.Known(r.Rule), i, "rule: there is no rule %q that finds anything; enrollgate templates lint --rules lists them", r.Rule)
		need(r.By != "", i, "by: missing; name the person who answers for the risk")
		_, err := r.end()
		need(err == nil, i, "until: %q is not a day such as 2027-03-31, the last on which the risk is accepted", r.Until)
	}
	return out
}
