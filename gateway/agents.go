package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/sirupsen/logrus"
)

// Candidate is a certificate in the directory's KRA container that no agent has. It is an offer: whoever may write there, which
// needs no right on this gateway, could have put it there.
type Candidate struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Objects     []string  `json:"objects"`          // names of the objects that have it: sanitized names of CAs
	Refused     string    `json:"refused"`          // why it cannot be an agent's; "" where it can
	Not         string    `json:"not_by_itself"`    // why it is not designated without a person; "" where it would be
	Request     int64     `json:"request,omitzero"` // that it was issued for here

	Certificate *x509.Certificate `json:"-"`
}

// maxCandidates bounds what is looked at: who writes into the container decides how much there is.
const maxCandidates = 1000

// Candidates reads the KRA container ([MS-WCCE] 3.2.2.1.4: where certificates of templates with
// CT_FLAG_PUBLISH_TO_KRA_CONTAINER go, [MS-CRTD] 2.26) and returns what is not designated, by subject.
func (g *Gateway) Candidates(ctx context.Context) ([]Candidate, error) {
	objects, err := g.Forest.KRAContainer(ctx)
	if err != nil {
		return nil, fmt.Errorf("the KRA container cannot be read: %w", err)
	}
	agents, err := g.Escrow.Agents(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]*Candidate{}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		for _, der := range objects[name] {
			sum := sha256.Sum256(der)
			fingerprint := hex.EncodeToString(sum[:])
			if slices.ContainsFunc(agents, func(a escrow.Agent) bool { return a.Fingerprint == fingerprint }) {
				continue
			}
			c := found[fingerprint]
			if c == nil {
				if len(found) == maxCandidates {
					return nil, fmt.Errorf("the KRA container has more than %d certificates: remove what does not belong there", maxCandidates)
				}
				c = &Candidate{Fingerprint: fingerprint}
				found[fingerprint] = c
				if err := g.judge(ctx, c, der); err != nil {
					return nil, err
				}
			}
			c.Objects = append(c.Objects, name)
		}
	}
	out := []Candidate{}
	for _, c := range found {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Candidate) int {
		return strings.Compare(a.Subject+"\x00"+a.Fingerprint, b.Subject+"\x00"+b.Fingerprint)
	})
	return out, nil
}

// judge finds out whether a certificate can be an agent's, and whether it may become one without a person. An error means that
// this cannot be known now.
func (g *Gateway) judge(ctx context.Context, c *Candidate, der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.Subject, c.Refused, c.Not = "(not a certificate)", "the value is not a certificate", "the value is not a certificate"
		return nil
	}
	c.Certificate, c.Subject, c.NotAfter = cert, dn.Show(cert.RawSubject), cert.NotAfter.UTC()
	if err := g.Escrow.MayBeAgent(cert); err != nil {
		c.Refused, c.Not = err.Error(), err.Error()
		return nil
	}
	row, err := g.issuedHere(ctx, cert)
	if err != nil {
		return err
	}
	removed, err := g.Escrow.WasAgent(ctx, c.Fingerprint)
	if err != nil {
		return err
	}
	switch {
	case row == nil:
		c.Not = "no CA of this gateway has issued it"
	case !row.Revoked.IsZero():
		c.Refused, c.Not = "the certificate is revoked", "the certificate is revoked"
	case row.Template == "":
		c.Not = "it was not issued from a template"
	case row.DecidedBy == "":
		c.Not = fmt.Sprintf("no certificate manager has approved request %d: the template %q issues by itself", row.ID, row.Template)
	case removed:
		c.Not = "its designation was ended by a person"
	}
	if row != nil {
		c.Request = row.ID
	}
	return nil
}

// issuedHere is the request that a certificate was issued for; nil where no CA of the gateway has signed it or the ledger does
// not have it.
func (g *Gateway) issuedHere(ctx context.Context, cert *x509.Certificate) (*ledger.Row, error) {
	for _, issuer := range g.issuers() {
		row, err := g.Ledger.BySerial(ctx, issuer, ledger.SerialText(cert))
		if errors.Is(err, ledger.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		signed := slices.ContainsFunc(g.everyCertificateOf(issuer), func(c *x509.Certificate) bool { return cert.CheckSignatureFrom(c) == nil })
		if signed && row.State == ledger.Issued && bytes.Equal(row.Certificate, cert.Raw) {
			return row, nil
		}
	}
	return nil, nil
}

// DesignateFromDirectory designates the candidates that need no person, where the configuration says so. Each has its line in the
// audit log.
func (g *Gateway) DesignateFromDirectory(ctx context.Context) error {
	if g.Config.Escrow.Agents.FromDirectory != config.FromDirectoryDesignate {
		return nil
	}
	candidates, err := g.Candidates(ctx)
	if err != nil {
		return err
	}
	for _, c := range candidates {
		if c.Not != "" {
			continue
		}
		if err := g.Escrow.AddAgent(ctx, c.Certificate, fmt.Sprintf("gateway, from the KRA container (request %d)", c.Request)); err != nil {
			return err
		}
		g.Log.WithFields(logrus.Fields{"agent": c.Subject, "fingerprint": c.Fingerprint, "request": c.Request}).Warn("a key recovery agent was designated from the KRA container")
	}
	return nil
}

// AgentOf finds the certificate that was issued for a request, by its number or by the certificate's serial number.
func (g *Gateway) AgentOf(ctx context.Context, text string) (*x509.Certificate, error) {
	row, err := g.requestOf(ctx, text)
	if err != nil {
		return nil, err
	}
	if row.State != ledger.Issued {
		return nil, fmt.Errorf("request %d is %s: it has no certificate", row.ID, row.State)
	}
	return x509.ParseCertificate(row.Certificate)
}

func (g *Gateway) requestOf(ctx context.Context, text string) (*ledger.Row, error) {
	for _, issuer := range g.issuers() {
		row, err := g.Ledger.BySerial(ctx, issuer, text)
		if !errors.Is(err, ledger.ErrNotFound) {
			return row, err
		}
	}
	var id int64
	if _, err := fmt.Sscanf(text, "%d", &id); err != nil || fmt.Sprint(id) != text {
		return nil, fmt.Errorf("no CA here has issued a certificate with the serial number %q; see enrollgate requests list", text)
	}
	return g.Ledger.Get(ctx, id)
}

const (
	agentPeriod  = 10 * time.Minute // how often the KRA container is read and records are counted
	healthPeriod = 24 * time.Hour   // how often it is logged what is wrong with agents
)

// Health looks at the recovery agents; revoked has what CRLs of other CAs say.
func (g *Gateway) Health(ctx context.Context, revoked map[string]bool) (*escrow.Health, error) {
	holdings, err := g.Escrow.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	g.holdings.Store(&holdings)
	return g.Escrow.Health(ctx, holdings, g.Config.Escrow.Agents.WarnBefore, revoked)
}

// healthNow is Health with records as they were counted last, at most agentPeriod ago; nil where that was never done.
func (g *Gateway) healthNow(ctx context.Context) (*escrow.Health, error) {
	holdings := g.holdings.Load()
	if holdings == nil {
		return nil, nil
	}
	return g.Escrow.Health(ctx, *holdings, g.Config.Escrow.Agents.WarnBefore, nil)
}

// watchAgents designates from the directory and looks at the agents' health until ctx ends.
func (g *Gateway) watchAgents(ctx context.Context) {
	var logged time.Time
	for {
		h, err := g.Health(ctx, nil)
		if err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("the health of recovery agents cannot be told")
		}
		if now := g.now(); err == nil && now.Sub(logged) >= healthPeriod {
			logged = now
			g.logHealth(h)
			g.logUnknownNames(ctx)
		}
		if err := g.DesignateFromDirectory(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("recovery agents cannot be taken from the KRA container")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(agentPeriod):
		}
	}
}

func (g *Gateway) logHealth(h *escrow.Health) {
	for _, w := range h.Warnings {
		log := g.Log.WithFields(logrus.Fields{"part": "recovery agents", "fix": w.Fix})
		if w.Level == escrow.Critical {
			log.Error(w.Text)
		} else {
			log.Warn(w.Text)
		}
	}
}

// logUnknownNames says which recovery policies name accounts or groups that cannot be found: nobody has a role of those, and the
// keys of owners that only their groups tell are not archived. So it is with certificate managers.
func (g *Gateway) logUnknownNames(ctx context.Context) {
	for _, name := range g.Config.CertificateManagers {
		if _, err := g.sids.of(ctx, g, name); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("no certificate manager can work over RPC now: is the name under certificate_managers right?")
			break
		}
	}
	for _, p := range g.Escrow.Policies() {
		for _, name := range slices.Concat(p.Groups, p.Managers, p.Approvers) {
			if _, err := g.sids.of(ctx, g, name); err != nil && ctx.Err() == nil {
				g.Log.WithField("policy", p.Name).WithError(err).Error("the recovery policy cannot be used now: is the name under escrow.policies right?")
				break
			}
		}
	}
}
