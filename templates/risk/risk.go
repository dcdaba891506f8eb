// Package risk finds what makes a forest's certificate templates, and the objects around them, dangerous: settings and
// rights by which somebody who is no administrator becomes somebody else. The rules have the names under which attackers
// and defenders know them, ESC1 to ESC17; Rules lists each with what it looks at here, and why.
//
// Find looks at a snapshot, Accept marks what somebody has taken responsibility for, and Hazards is what is left that
// forbids to serve a template. The package does no input or output.
package risk

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Severity is how bad a finding is.
type Severity string

// The severities, in the order of SARIF 2.1.0 3.27.10.
const (
	Error   Severity = "error"   // somebody who is no administrator can become somebody else; such a template is not served
	Warning Severity = "warning" // dangerous together with something else, or for one purpose only
	Note    Severity = "note"    // worth knowing; dangerous on other CAs, or a part of what other findings need
)

func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Note}, s) }

// Kind is what sort of object a finding is about.
type Kind string

// The kinds.
const (
	KindTemplate  Kind = "template"
	KindCA        Kind = "CA"
	KindContainer Kind = "container"
	KindOID       Kind = "OID"
	KindGateway   Kind = "gateway"
)

// Principal is an account or group.
type Principal struct {
	SID  security.SID `json:"sid"`
	Name string       `json:"name,omitempty"` // `CORP\Domain Users`; empty where nobody knows
}

// String is the name, else what everybody calls the SID, else the SID.
func (p Principal) String() string {
	if p.Name != "" {
		return p.Name
	}
	usual := map[string]string{"513": "Domain Users", "514": "Domain Guests", "515": "Domain Computers"} // in any domain
	name := map[security.SID]string{security.Everyone: "Everyone", security.AuthenticatedUsers: "Authenticated Users"}[p.SID]
	if domain, ok := p.SID.Domain(); ok {
		name = usual[string(p.SID[len(domain)+1:])]
	}
	if name == "" {
		return string(p.SID)
	}
	return fmt.Sprintf("%s (%s)", name, p.SID)
}

// Finding is one danger.
type Finding struct {
	Rule     string      `json:"rule"`
	Severity Severity    `json:"severity"`
	Kind     Kind        `json:"kind"`
	Object   string      `json:"object"` // name of the template, the CA, the container; the OID
	DN       string      `json:"dn,omitempty"`
	Who      []Principal `json:"who"`     // that can exploit it; nobody of them is an administrator
	How      string      `json:"how"`     // they do, in plain sentences
	Changes  []Change    `json:"changes"` // each of them alone closes it
	Fix      string      `json:"fix"`     // the changes in words
	Spec     string      `json:"spec,omitempty"`
	Accepted *Acceptance `json:"accepted,omitempty"` // who answers for it; nil where nobody does
}

// Blocks tells whether the finding forbids to serve the template that it is about.
func (f *Finding) Blocks() bool {
	return f.Kind == KindTemplate && f.Severity == Error && f.Accepted == nil
}

// Gateway is what the rules look at in the gateway itself.
type Gateway struct {
	CAs         []string    // names of the CAs that it serves
	Data        string      // path of the folder with the database
	DataMode    fs.FileMode // of that folder; 0 where it does not exist
	Config      string      // path of the configuration
	ConfigMode  fs.FileMode
	AcceptsRC4  bool
	NeedBinding bool // whether clients have to bind their ticket to the TLS channel
}

// Find applies every rule to the snapshot and the gateway, errors first, then by object and rule. names resolves SIDs, for
// people and to know the computers that CAs run on; it may lack any.
func Find(s *templates.Snapshot, g Gateway, names map[security.SID]string) []Finding {
	f := &finder{snapshot: s, gateway: g, names: names, offered: map[string]bool{}}
	for _, e := range s.Services {
		if len(enrollers(e.Security).who) == 0 {
			continue
		}
		for _, name := range e.Templates {
			f.offered[strings.ToLower(name)] = true
		}
	}
	for _, t := range s.Templates {
		f.template(t)
	}
	f.objects()
	f.own()
	slices.SortStableFunc(f.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), strings.Compare(string(a.Kind), string(b.Kind))*-1,
			strings.Compare(a.Object, b.Object), strings.Compare(a.Rule, b.Rule))
	})
	return f.found
}

// SIDs lists every SID that could occur in a finding, to resolve their names.
func SIDs(s *templates.Snapshot) []security.SID {
	seen := security.Token{}
	add := func(d *security.Descriptor) {
		if d == nil {
			return
		}
		seen[d.Owner] = struct{}{}
		for i := range d.DACL {
			seen[d.DACL[i].SID] = struct{}{}
		}
	}
	for _, t := range s.Templates {
		add(t.Security)
	}
	for _, e := range s.Services {
		add(e.Security)
	}
	for _, o := range s.OIDs {
		add(o.Security)
	}
	for _, o := range s.PKI {
		add(o.Security)
	}
	delete(seen, "")
	return seen.Sorted()
}

// Hazards are the findings that forbid to serve templates, by template.
func Hazards(findings []Finding) map[string][]templates.Hazard {
	out := map[string][]templates.Hazard{}
	for _, f := range findings {
		if f.Blocks() {
			text := fmt.Sprintf("%s can exploit it. %s", People(f.Who), f.How)
			out[f.Object] = append(out[f.Object], templates.Hazard{Rule: f.Rule, Text: text, Fix: f.Fix + ". Or accept it under accept_risk in the configuration", Spec: f.Spec})
		}
	}
	return out
}

// People lists principals in a sentence.
func People(who []Principal) string {
	out := make([]string, len(who))
	for i, p := range who {
		out[i] = p.String()
	}
	return strings.Join(out, ", ")
}

// finder collects findings.
type finder struct {
	snapshot *templates.Snapshot
	gateway  Gateway
	names    map[security.SID]string
	offered  map[string]bool // templates that a CA offers and lets anybody have who is no administrator, in lower case
	found    []Finding
}

// add completes a finding and keeps it.
func (f *finder) add(x Finding) {
	for i := range x.Who {
		x.Who[i].Name = f.names[x.Who[i].SID]
	}
	words := make([]string, len(x.Changes))
	for i, c := range x.Changes {
		words[i] = c.String()
	}
	if x.Fix == "" {
		x.Fix = strings.Join(words, "; or ")
	}
	x.Spec = cmp.Or(x.Spec, ruleByName(x.Rule).Spec)
	f.found = append(f.found, x)
}

// Acceptance is somebody's word that a finding is known and wanted.
type Acceptance struct {
	Object string    `json:"object"` // name of the template, the CA, the container, or the OID
	Rule   string    `json:"rule"`
	By     string    `json:"by"`
	Until  time.Time `json:"until"` // the first moment at which it counts no more
	Reason string    `json:"reason,omitempty"`
}

// LastDay is the last day on which it counts.
func (a *Acceptance) LastDay() string { return a.Until.Add(-time.Second).UTC().Format(time.DateOnly) }

func (a *Acceptance) covers(f *Finding) bool {
	return strings.EqualFold(a.Object, f.Object) && strings.EqualFold(a.Rule, f.Rule)
}

// Accept marks the findings that an acceptance covers now, and returns the first moment at which that changes; zero where
// it never does. The findings that came in stay as they are.
func Accept(findings []Finding, accepted []Acceptance, now time.Time) (out []Finding, until time.Time) {
	out = slices.Clone(findings)
	for i := range out {
		out[i].Accepted = nil
		for k := range accepted {
			a := &accepted[k]
			if !a.covers(&out[i]) || !now.Before(a.Until) {
				continue
			}
			if until.IsZero() || a.Until.Before(until) {
				until = a.Until
			}
			if out[i].Accepted == nil || a.Until.After(out[i].Accepted.Until) {
				out[i].Accepted = a
			}
		}
	}
	return out, until
}

// soon is how long before its end an acceptance is mentioned.
const soon = 30 * 24 * time.Hour

// Advice says which acceptances have ended or soon will, and which cover nothing. findings is nil where the directory has
// not been read; then nothing is said of what they cover.
func Advice(findings []Finding, accepted []Acceptance, now time.Time) (out []string) {
	for i := range accepted {
		a := &accepted[i]
		what := fmt.Sprintf("accept_risk: %s of %q, accepted by %s,", a.Rule, a.Object, a.By)
		last := a.LastDay()
		switch {
		case !now.Before(a.Until):
			out = append(out, fmt.Sprintf("%s ended with %s and counts no more: correct the object, or take the line away", what, last))
		case a.Until.Sub(now) < soon:
			out = append(out, fmt.Sprintf("%s ends with %s: correct the object before, or it will not be served", what, last))
		}
		if findings != nil && !slices.ContainsFunc(findings, func(f Finding) bool { return a.covers(&f) }) {
			out = append(out, fmt.Sprintf("%s covers nothing: no object of this name has such a finding; take the line away, or correct the name", what))
		}
	}
	return out
}
