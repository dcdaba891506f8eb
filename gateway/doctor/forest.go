package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/native"
	"github.com/enrollgate/enrollgate/templates/security"
)

// publishAll is what makes the directory's objects what they should be.
const publishAll = "enrollgate init --native shows what is missing, with --apply and --bind-principal ADMIN@REALM it writes it"

// directory tells whether a domain controller answers, and how the connection is protected.
func directory(ctx context.Context, p *patient) ([]Finding, error) {
	if p.forestErr != nil {
		what := strings.Join(p.cfg.Directory.Servers, ", ")
		if what == "" {
			what = p.cfg.Directory.Domain
		}
		return []Finding{bad(what, "correct what the message names: DNS, firewall (389 and 88, or 636), account or roots", "it cannot be read: %v", p.forestErr)}, nil
	}
	c, err := p.forest.Controller(ctx)
	if err != nil {
		return nil, err
	}
	s := p.forest.Snapshot()
	out := []Finding{well(c.URL, "%s answers, %s; %d templates, %d enrollment services", c.Host, c.Protected, len(s.Templates), len(s.Services))}
	if host := p.forest.Status().Rollback; host != "" {
		out = append(out, bad(host, "demote the controller and promote it again", "its database went back in time: it does not replicate"))
	}
	return out, nil
}

// services compares what clients are told of each published CA with what runs here.
func services(ctx context.Context, p *patient) ([]Finding, error) {
	s, err := p.snapshot()
	if err == nil {
		err = p.needGateway()
	}
	if err != nil {
		return nil, err
	}
	f, err := p.forest.NativeForest(ctx, nil)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, ca := range p.gateway.CAs {
		found, err := p.service(ctx, ca, f)
		if err != nil {
			out = append(out, unknown(ca.Name, "%v", err))
			continue
		}
		if service := s.Service(ca.Name); service != nil && !someoneEnrolls(service.Security) {
			found = append(found, bad(ca.Name, publishAll, "nobody has the Enroll right on the enrollment service: Windows shows its templates to nobody"))
		}
		if len(found) == 0 {
			found = append(found, well(ca.Name, "published as it runs"))
		}
		out = append(out, found...)
	}
	return out, nil
}

// service plans, without what is a matter of choice, and without certificates of the signing CA, which authorities looks at.
func (p *patient) service(ctx context.Context, ca *gateway.CA, f *native.Forest) (out []Finding, err error) {
	wanted, err := p.gateway.NativeCAs(ctx, ca.Name)
	if err != nil {
		return nil, err
	}
	signing, err := ca.Issuer.Chain(ctx)
	if err != nil {
		return nil, err
	}
	var own []native.CA
	for _, w := range wanted {
		if w.Published {
			w.Logon, w.Servers = nil, nil
			w.Roots, w.Intermediates = without(w.Roots, signing), without(w.Intermediates, signing)
			if native.RevocationListServes(f, &w, time.Now()) {
				w.CRL = nil
			}
			own = append(own, w)
		}
	}
	plan, err := native.NewPlan(f, own, p.path, time.Now())
	if err != nil {
		return nil, err
	}
	for _, d := range plan.Differences {
		if d.Create {
			out = append(out, bad(ca.Name, publishAll, "the forest has no %s", d.Object))
			continue
		}
		for _, c := range d.Changes {
			out = append(out, bad(ca.Name, publishAll, "%s: %s is %s, and should be %s", d.Object, c.Key, quoted(c.Old), quoted(c.New)))
		}
	}
	for _, w := range plan.Warnings {
		if w != native.OffersNothing(ca.Name) { // the check of templates says it
			out = append(out, bad(ca.Name, publishAll, "%s", w))
		}
	}
	if end := ca.Identity.Certificate().NotAfter; time.Until(end) < endsSoon && !slices.ContainsFunc(signing, ca.Identity.Certificate().Equal) {
		out = append(out, bad(ca.Name, "renew it and publish the new one with enrollgate init --native --apply", "the certificate that clients see ends on %s", end.UTC().Format(time.DateOnly)))
	}
	return out, nil
}

func without[T interface{ Equal(T) bool }](list, others []T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(c T) bool { return slices.ContainsFunc(others, c.Equal) })
}

func quoted(list []string) string {
	if len(list) == 0 {
		return "missing"
	}
	return "“" + strings.Join(list, "”, “") + "”"
}

// someoneEnrolls tells whether any entry gives the right to enroll, with no denial of everybody before it.
func someoneEnrolls(d *security.Descriptor) bool {
	if d == nil || !d.HasDACL {
		return false
	}
	for i := range d.DACL {
		a := &d.DACL[i]
		if a.Problem == "" && a.Allows() && a.Applies() && d.ControlAccess(security.NewToken(a.SID, security.Everyone, security.AuthenticatedUsers), security.RightEnroll).Granted {
			return true
		}
	}
	return false
}

// offers looks at the templates that the published CAs offer.
func offers(_ context.Context, p *patient) ([]Finding, error) {
	s, err := p.snapshot()
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, ca := range p.cfg.CAs {
		service := s.Service(ca.Name)
		if !ca.IsPublished() || service == nil {
			continue
		}
		found := judgeOffers(s, service)
		if len(found) == 0 {
			found = append(found, well(service.Name, "%d templates are offered, all exist, and somebody may enroll for each", len(service.Templates)))
		}
		out = append(out, found...)
	}
	return out, nil
}

func judgeOffers(s *templates.Snapshot, service *templates.EnrollmentService) (out []Finding) {
	if len(service.Templates) == 0 {
		out = append(out, bad(service.Name, "enrollgate init --native --templates NAME,NAME --apply", "it offers no template: there is nothing to enroll for"))
	}
	for _, name := range service.Templates {
		t := s.TemplateByName(name)
		subject := service.Name + ": " + name
		reason, unusable := s.Unusable[name]
		switch {
		case t == nil && unusable:
			out = append(out, bad(subject, "correct the template, or offer it no longer", "it cannot be understood: %s", reason))
		case t == nil:
			out = append(out, bad(subject, "make the template (enrollgate templates apply), or offer it no longer: Remove-CATemplate, or offered_by in templates' files", "the forest has no such template"))
		case !someoneEnrolls(t.Security):
			out = append(out, bad(subject, "give Enroll to a group, in the Certificate Templates console or with acl in the template's file", "nobody may enroll for it"))
		}
	}
	return out
}

// authorities is what enrollgate ca list advises about every CA that signs.
func authorities(ctx context.Context, p *patient) ([]Finding, error) {
	if err := p.needGateway(); err != nil {
		return nil, err
	}
	list, err := p.gateway.CAStatus(ctx)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, s := range list {
		before := len(out)
		if s.State != "answers" {
			out = append(out, bad(s.Name, "see whether the CA runs and what enrollgate ca list and the gateway's log say", "%s", strings.TrimSuffix(fmt.Sprintf("%s: %s", s.State, s.Error), ": ")))
		}
		for _, text := range s.Advice {
			switch {
			case text == gateway.AdviceNoRevocation: // how it is, not what is wrong
				out = append(out, well(s.Name, "%s", text))
			case strings.Contains(text, "certutil -dspublish"):
				reason, by, _ := strings.Cut(text, "certutil ")
				out = append(out, bad(s.Name, "certutil "+by+"; or "+publishAll, "%s", strings.TrimRight(reason, ":; ")))
			default:
				reason, renew := strings.CutSuffix(text, ": renew it")
				fix := "enrollgate ca list"
				if renew {
					fix = "renew it, and publish the new one: enrollgate init --native --apply"
				}
				out = append(out, bad(s.Name, fix, "%s", reason))
			}
		}
		if len(out) == before {
			out = append(out, well(s.Name, "%s, good until %s", s.State, s.NotAfter.Format(time.DateOnly)))
		}
	}
	if p.forestErr != nil {
		return out, notMade{"whether the forest trusts them needs the directory, which cannot be read"}
	}
	return out, nil
}

// agents is what enrollgate escrow agents health warns of, where a template archives keys.
func agents(ctx context.Context, p *patient) ([]Finding, error) {
	if err := p.needGateway(); err != nil {
		return nil, err
	}
	h, err := p.gateway.Health(ctx, nil)
	if err != nil {
		return nil, err
	}
	if s, err := p.snapshot(); err == nil && len(h.Agents) == 0 && !archives(s, p.gateway.CAs) {
		return []Finding{well("", "there is none, and no template that is offered archives keys")}, nil
	}
	const designate = "enrollgate escrow agents add CERTIFICATE, of at least two people"
	var out []Finding
	if err := p.gateway.Escrow.Ready(); err != nil {
		out = append(out, bad("", designate, "templates that archive keys are refused: %v", err))
	}
	for _, policy := range p.gateway.Escrow.Policies() {
		if err := p.gateway.Escrow.ReadyFor(&policy); err != nil {
			out = append(out, bad("policy "+policy.Name, designate, "keys are not archived: %v", err))
		}
	}
	for _, w := range h.Warnings {
		out = append(out, bad("", w.Fix, "%s", w.Text))
	}
	if len(out) == 0 && h.Level == escrow.Healthy {
		out = append(out, well("", "%d agents, ready", len(h.Agents)))
	}
	return out, nil
}

// archives tells whether a template that is offered here demands it.
func archives(s *templates.Snapshot, cas []*gateway.CA) bool {
	for _, ca := range cas {
		service := s.Service(ca.Name)
		if service != nil && slices.ContainsFunc(s.Templates, func(t *templates.Template) bool { return t.Archives() && service.Offers(t.Name) }) {
			return true
		}
	}
	return false
}
