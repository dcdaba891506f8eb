package escrow

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/dn"
)

// Holding is how many records have the same terms.
type Holding struct {
	Policy     string
	Required   int
	Recipients []string // fingerprints
	Records    int64

	text string // Recipients as they are stored
}

// Holdings counts the records by their terms. It reads an index, not the records.
func (e *Escrow) Holdings(ctx context.Context) ([]Holding, error) {
	rows, err := e.o.DB.SQL.QueryContext(ctx, "SELECT policy, required, recipients, count(*) FROM escrow_records WHERE destroyed = 0 GROUP BY policy, required, recipients")
	if err != nil {
		return nil, fmt.Errorf("escrow: %w", err)
	}
	defer rows.Close()
	var out []Holding
	for rows.Next() {
		var h Holding
		if err := rows.Scan(&h.Policy, &h.Required, &h.text, &h.Records); err != nil {
			return nil, fmt.Errorf("escrow: %w", err)
		}
		if err := json.Unmarshal([]byte(h.text), &h.Recipients); err != nil {
			return nil, fmt.Errorf("escrow: recipients of records: %w", err)
		}
		out = append(out, h)
	}
	return out, rows.Err()
}

// BelowQuorum returns records that fewer agents can open than it takes, at most limit.
func (e *Escrow) BelowQuorum(ctx context.Context, limit int) ([]Entry, error) {
	holdings, err := e.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	openers, err := e.Openers(ctx)
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, h := range holdings {
		if e.Opening(openers, h.Policy, h.Required, h.Recipients).Why == "" {
			continue
		}
		list, err := e.entries(ctx, entryColumns+"NULL"+fromRecords+"WHERE e.policy = ? AND e.required = ? AND e.recipients = ? AND e.destroyed = 0 ORDER BY e.id DESC LIMIT ?", h.Policy, h.Required, h.text, limit-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// Levels of health.
const (
	Healthy  = "ok"
	Soon     = "warning"  // something ends within the time of warning
	Critical = "critical" // keys are refused, or archived ones cannot be opened
)

// AgentHealth is how an agent is, and what depends on it.
type AgentHealth struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	Days        int       `json:"days_left"` // whole days until the certificate ends; negative when it has
	State       string    `json:"state"`     // valid, expiring, expired, revoked or unusable
	Status      string    `json:"status"`    // in words
	Added       time.Time `json:"added"`
	AddedBy     string    `json:"added_by"`
	Key         string    `json:"key"`      // what records are sealed to: certificate, hybrid or both
	Policies    []string  `json:"policies"` // that seal new keys to it
	Alone       int64     `json:"records_alone"`
	Together    int64     `json:"records_together"` // that it opens with others
	Needed      int64     `json:"records_needed"`   // that nobody could open any more without it
}

// PolicyHealth is how many agents a policy has.
type PolicyHealth struct {
	Name        string `json:"policy"`
	Level       string `json:"level"`
	Valid       int    `json:"valid_agents"`
	Minimum     int    `json:"minimum_agents"` // with fewer nothing is archived
	Required    int    `json:"required"`
	Records     int64  `json:"records"`
	BelowQuorum int64  `json:"records_below_quorum"` // that too few agents can open
}

// Warning is something to be done.
type Warning struct {
	Level string `json:"level"`
	Text  string `json:"text"`
	Fix   string `json:"fix"`
}

// Health is how the agents are at a moment.
type Health struct {
	Level    string         `json:"level"`
	Agents   []AgentHealth  `json:"agents"`
	Policies []PolicyHealth `json:"policies"`
	Warnings []Warning      `json:"warnings"`
}

// Health looks at all agents and at what depends on them. holdings may be of a while ago. warn is how long before an end it is
// said. revoked has what other CAs say, by fingerprint.
//
// Archiving takes valid agents. Opening takes designated ones whose certificate is not revoked: a certificate that has expired
// keeps nobody from opening what was sealed to it before.
func (e *Escrow) Health(ctx context.Context, holdings []Holding, warn time.Duration, revoked map[string]bool) (*Health, error) {
	known, err := e.known(ctx)
	if err != nil {
		return nil, err
	}
	for i := range known {
		known[i].Revoked = known[i].Revoked || revoked[known[i].Fingerprint]
	}
	policies := slices.Clone(e.o.Policies)
	if !slices.ContainsFunc(policies, func(p Policy) bool { return p.Name == DefaultPolicy }) {
		policies = append(policies, defaultPolicy())
	}
	x := examination{now: e.o.Now(), warn: warn, known: known, h: &Health{Level: Healthy, Agents: []AgentHealth{}, Policies: []PolicyHealth{}, Warnings: []Warning{}}}
	x.agents(policies)
	for _, p := range policies {
		x.policy(p, holdings)
	}
	x.orphans(policies, holdings)
	return x.h, e.unproven(ctx, &x)
}

// provingTime is how long a rewrap may wait for its proof before it is said.
const provingTime = 24 * time.Hour

// unproven says which rewraps nobody has proven: what they have replaced can still be opened by those that it was sealed to.
func (e *Escrow) unproven(ctx context.Context, x *examination) error {
	rows, err := e.o.DB.SQL.QueryContext(ctx, "SELECT batch, count(*), min(replaced) FROM escrow_previous GROUP BY batch ORDER BY batch")
	if err != nil {
		return fmt.Errorf("escrow: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var batch, count, since int64
		if err := rows.Scan(&batch, &count, &since); err != nil {
			return fmt.Errorf("escrow: %w", err)
		}
		if at := time.UnixMilli(since).UTC(); x.now.Sub(at) > provingTime {
			x.say(Soon, fmt.Sprintf("enrollgate escrow rewrap verify %d", batch), "%d records that rewrap %d has sealed anew since %s are not proven, and kept in their old form too", count, batch, at.Format(time.DateOnly))
		}
	}
	return rows.Err()
}

// examination finds out the health from values.
type examination struct {
	now   time.Time
	warn  time.Duration
	known []Agent
	h     *Health
}

func (x *examination) say(level, fix, format string, args ...any) {
	x.h.Warnings = append(x.h.Warnings, Warning{level, fmt.Sprintf(format, args...), fix})
	if level == Critical || x.h.Level == Healthy {
		x.h.Level = level
	}
}

func (x *examination) agents(policies []Policy) {
	for i := range x.known {
		a := &x.known[i]
		if a.former {
			continue
		}
		left := a.Certificate.NotAfter.Sub(x.now)
		n := AgentHealth{Subject: dn.Show(a.Certificate.RawSubject), Fingerprint: a.Fingerprint, NotAfter: a.Certificate.NotAfter.UTC(),
			Days: int(left / (24 * time.Hour)), State: "valid", Status: "valid", Added: a.Added, AddedBy: a.AddedBy, Key: a.KeyKind(), Policies: []string{}}
		switch err := a.usable(x.now); {
		case a.Revoked:
			n.State = "revoked"
		case left < 0:
			n.State = "expired"
		case err != nil:
			n.State = "unusable"
		case left < x.warn:
			n.State, n.Status = "expiring", fmt.Sprintf("expires in %d days", n.Days)
			x.say(Soon, "let the agent renew the certificate, and designate it: enrollgate escrow agents add", "the certificate of %s expires in %d days", n.Subject, n.Days)
		}
		if err := a.usable(x.now); err != nil {
			n.Status = err.Error()
		}
		for _, p := range policies {
			if p.has(a) {
				n.Policies = append(n.Policies, p.Name)
			}
		}
		x.h.Agents = append(x.h.Agents, n)
	}
}

// valid are the agents of a policy at a time.
func (x *examination) valid(p *Policy, at time.Time) int {
	return len(people(slices.DeleteFunc(slices.Clone(x.known), func(a Agent) bool { return a.former || !p.has(&a) || p.admits(&a, at) != nil })))
}

func (x *examination) policy(p Policy, holdings []Holding) {
	n := PolicyHealth{Name: p.Name, Level: Healthy, Valid: x.valid(&p, x.now), Minimum: max(p.Minimum, p.Required, 1), Required: p.Required}
	gone := map[string]bool{}
	for _, h := range holdings {
		if h.Policy != p.Name {
			continue
		}
		n.Records += h.Records
		if below := x.holding(h, max(h.Required, p.Required)); below > 0 {
			n.BelowQuorum += below
			x.former(h, gone)
		}
	}
	before := len(x.h.Warnings)
	const fix = "designate another: enrollgate escrow agents add CERTIFICATE"
	if n.Valid < n.Minimum && (p.Name != DefaultPolicy || len(x.h.Agents) > 0 || n.Records > 0) {
		x.say(Critical, fix, "recovery policy %q has %d valid agents and needs %d: keys are not archived", p.Name, n.Valid, n.Minimum)
	} else if end, left := x.ends(&p, n.Minimum); n.Valid >= n.Minimum && !end.IsZero() {
		x.say(Soon, fix, "recovery policy %q will have %d valid agents on %s, and needs %d: keys will not be archived", p.Name, left, end.UTC().Format(time.DateOnly), n.Minimum)
	}
	if n.BelowQuorum > 0 {
		x.say(Critical, "designate former agents again who still have their keys: "+strings.Join(slices.Sorted(maps.Keys(gone)), "; "),
			"%d records of recovery policy %q can be opened by fewer agents than it takes (enrollgate escrow list --below-quorum)", n.BelowQuorum, p.Name)
	}
	for _, w := range x.h.Warnings[before:] {
		if n.Level != Critical {
			n.Level = w.Level
		}
	}
	x.h.Policies = append(x.h.Policies, n)
}

// ends is when, within the time of warning, the policy falls below its minimum, and how many agents it has then.
func (x *examination) ends(p *Policy, minimum int) (time.Time, int) {
	var first time.Time
	count := 0
	for _, a := range x.known {
		end := a.Certificate.NotAfter.Add(time.Second)
		if n := x.valid(p, end); end.Before(x.now.Add(x.warn)) && end.After(x.now) && n < minimum && (first.IsZero() || end.Before(first)) {
			first, count = end, n
		}
	}
	return first, count
}

// holding counts what depends on each agent, and returns how many records too few agents can open.
func (x *examination) holding(h Holding, required int) (below int64) {
	able := people(openers(x.known, h.Recipients))
	if len(able) < required {
		return h.Records
	}
	for i := range x.h.Agents {
		n := &x.h.Agents[i]
		at := slices.IndexFunc(x.known, func(a Agent) bool { return a.Fingerprint == n.Fingerprint })
		if x.known[at].Revoked || !slices.ContainsFunc(x.known, func(a Agent) bool {
			return slices.Contains(h.Recipients, a.Fingerprint) && sameKey(a.Certificate, x.known[at].Certificate)
		}) {
			continue
		}
		if required == 1 {
			n.Alone += h.Records
		} else {
			n.Together += h.Records
		}
		if len(able) == required && !x.hasDouble(at, h.Recipients) {
			n.Needed += h.Records
		}
	}
	return 0
}

// former adds the names of agents that records are sealed to and that are dismissed or revoked.
func (x *examination) former(h Holding, names map[string]bool) {
	for _, a := range x.known {
		if slices.Contains(h.Recipients, a.Fingerprint) && (a.former || a.Revoked) {
			names[dn.Show(a.Certificate.RawSubject)] = true
		}
	}
}

// hasDouble tells whether the person could open the records also without this certificate.
func (x *examination) hasDouble(at int, recipients []string) bool {
	rest := slices.Delete(slices.Clone(x.known), at, at+1)
	return slices.ContainsFunc(openers(rest, recipients), func(a Agent) bool { return a.samePerson(&x.known[at]) })
}

// orphans are records of policies that the configuration does not name any more.
func (x *examination) orphans(policies []Policy, holdings []Holding) {
	lost := map[string]int64{}
	for _, h := range holdings {
		if !slices.ContainsFunc(policies, func(p Policy) bool { return p.Name == h.Policy }) {
			lost[h.Policy] += h.Records
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lost)) {
		count := lost[name]
		x.h.Policies = append(x.h.Policies, PolicyHealth{Name: name, Level: Critical, Records: count, BelowQuorum: count})
		x.say(Critical, "add it to escrow.policies", "%d records are kept under the recovery policy %q, which is not in the configuration any more", count, name)
	}
}
