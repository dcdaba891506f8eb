package gateway

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/risk"
	"github.com/sirupsen/logrus"
)

// hazardCache keeps what is dangerous about the templates of one snapshot, until a risk's acceptance ends.
type hazardCache struct {
	mu         sync.Mutex
	snapshot   *templates.Snapshot
	findings   []risk.Finding
	hazards    map[string][]templates.Hazard
	until      time.Time // when hazards changes with nothing but time; zero for never
	generation int       // counts the changes of hazards
}

// hazards are the dangers that forbid to serve templates of the snapshot now, and the number of this answer: another
// number, another answer. They are found once for each state of the directory; a decision only looks them up.
func (g *Gateway) hazards(s *templates.Snapshot) (map[string][]templates.Hazard, int) {
	if s == nil {
		return nil, 0
	}
	c := &g.risks
	c.mu.Lock()
	defer c.mu.Unlock()
	now := g.now()
	fresh := sameContents(c.snapshot, s)
	if fresh && (c.until.IsZero() || now.Before(c.until)) {
		return c.hazards, c.generation
	}
	if !fresh {
		// Names are for people, and without them nothing that is about templates changes.
		c.snapshot, c.findings = s, risk.Find(s, risk.Gateway{}, nil)
	}
	accepted, until := risk.Accept(c.findings, g.Config.Risks(), now)
	before := c.hazards
	c.hazards, c.until = risk.Hazards(accepted), until
	c.generation++
	g.logHazards(before, c.hazards)
	return c.hazards, c.generation
}

// logHazards says which templates are served no more, and which are again.
func (g *Gateway) logHazards(before, after map[string][]templates.Hazard) {
	for name, hazards := range after {
		if slices.Equal(before[name], hazards) {
			continue
		}
		for _, h := range hazards {
			g.Log.WithFields(logrus.Fields{"template": name, "rule": h.Rule, "fix": h.Fix}).Info("the template is dangerous and not served: " + h.Text)
		}
	}
	for name := range before {
		if len(after[name]) == 0 {
			g.Log.WithField("template", name).Info("the template is not dangerous any more, or accepted")
		}
	}
}

// Unserved lists why a template is not served: what is not supported, and what is dangerous and not accepted.
func (g *Gateway) Unserved(s *templates.Snapshot, t *templates.Template) []string {
	no := templates.Unsupported(t)
	hazards, _ := g.hazards(s)
	for _, h := range hazards[t.Name] {
		no = append(no, fmt.Sprintf("dangerous (%s): %s", h.Rule, h.Text))
	}
	return no
}

// Risks applies every rule to the directory as it is now and to the gateway itself. What is accepted is marked.
func (g *Gateway) Risks(ctx context.Context, configPath string) ([]risk.Finding, error) {
	s := g.Directory.Snapshot()
	if s == nil {
		return nil, fmt.Errorf("the directory has not been read yet")
	}
	names := g.Forest.NamesOf(ctx, risk.SIDs(s))
	found, _ := risk.Accept(risk.Find(s, g.ownRisks(configPath), names), g.Config.Risks(), g.now())
	return found, nil
}

// ownRisks is what the rules look at in the gateway itself.
func (g *Gateway) ownRisks(configPath string) risk.Gateway {
	mode := func(path string) fs.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Mode().Perm()
	}
	own := risk.Gateway{Data: g.Config.Data, DataMode: mode(g.Config.Data), Config: configPath, ConfigMode: mode(configPath), AcceptsRC4: g.Config.Kerberos.AllowRC4, NeedBinding: g.Config.Kerberos.ChannelBinding}
	for _, ca := range g.CAs {
		own.CAs = append(own.CAs, ca.Name)
	}
	return own
}

// riskAdvice says which accepted risks end, have ended, or are about nothing in the directory as it is known.
func (g *Gateway) riskAdvice() []string {
	var findings []risk.Finding
	if s := g.Directory.Snapshot(); s != nil {
		findings = risk.Find(s, g.ownRisks(""), nil)
	}
	return risk.Advice(findings, g.Config.Risks(), g.now())
}
