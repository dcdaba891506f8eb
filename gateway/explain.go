package gateway

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strings"
	"sync"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Explanation is what would happen if an account asked for a certificate now.
type Explanation struct {
	Principal string `json:"principal"`
	DN        string `json:"dn"`
	templates.Decision
	OtherCAs       []string                 `json:"other_cas,omitempty"` // that offer the template too
	Signers        []Share                  `json:"signers"`             // who signs, in the order in which they are tried
	AutoEnrollment templates.AutoEnrollment `json:"auto_enrollment"`
}

// Explain decides for an account by name, without a ticket and without a request: the same Decide that serving uses.
func (g *Gateway) Explain(ctx context.Context, principal, template, caName string) (*Explanation, error) {
	in, err := g.explainInput(ctx, principal)
	if err != nil {
		return nil, err
	}
	return g.explain(ctx, in, template, caName)
}

// ExplainAll is Explain for every template of the forest, in the order of their names.
func (g *Gateway) ExplainAll(ctx context.Context, principal, caName string) ([]*Explanation, error) {
	in, err := g.explainInput(ctx, principal)
	if err != nil {
		return nil, err
	}
	var out []*Explanation
	for _, t := range in.Snapshot.Templates {
		e, err := g.explain(ctx, in, t.Name, caName)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// explainInput looks the account up.
func (g *Gateway) explainInput(ctx context.Context, principal string) (in templates.Input, err error) {
	in = templates.Input{Snapshot: g.Directory.Snapshot(), MaxAge: g.Config.Directory.MaxAge, NoPublishing: !g.Config.Publish.Enabled, Now: g.now()}
	if in.Snapshot == nil {
		return in, hresult.New(hresult.ServerUnavailable, "the directory has not been read yet")
	}
	in.Hazards, _ = g.hazards(in.Snapshot)
	if in.Subject, err = g.Directory.SubjectByName(ctx, principal); err != nil {
		return in, err
	}
	in.Caller = templates.Caller{Principal: principal, SID: in.Subject.SID, Groups: in.Subject.Groups, Machine: in.Subject.Machine}
	return in, nil
}

func (g *Gateway) explain(ctx context.Context, in templates.Input, template, caName string) (*Explanation, error) {
	ca, err := g.caFor(in.Snapshot, template, caName)
	if err != nil {
		return nil, err
	}
	in.Template = templates.Reference{Name: template, Major: -1, Minor: -1}
	where, err := g.planFor(ctx, ca, template, in)
	if err != nil {
		return nil, err
	}
	in.Authority = g.authority(ca, where)
	in.Authority.Archival = g.archival(g.ownerOf(ctx, in))
	e := &Explanation{Principal: in.Caller.Principal, DN: in.Subject.DN, Decision: templates.Decide(in), Signers: where.shares()}
	if t := in.Snapshot.TemplateByName(template); t != nil && !t.EnrolleeSuppliesSubject() { // without names there is nothing to lint
		key, err := sampleKey(t)
		if err != nil {
			return nil, err
		}
		g.lintCertificate(&e.Decision, key)
	}
	e.AutoEnrollment = templates.AutoEnrolls(in, &e.Decision)
	for _, other := range g.CAs {
		if service := in.Snapshot.Service(other.Name); other != ca && service != nil && service.Offers(template) {
			e.OtherCAs = append(e.OtherCAs, other.Name)
		}
	}
	return e, nil
}

// caFor picks the configured CA that offers the template; the first one where none does, so that the decision says so.
func (g *Gateway) caFor(s *templates.Snapshot, template, name string) (*CA, error) {
	if name != "" {
		if ca := g.CA(name); ca != nil {
			return ca, nil
		}
		return nil, fmt.Errorf("there is no CA %q in the configuration", name)
	}
	for _, ca := range g.CAs {
		if service := s.Service(ca.Name); service != nil && service.Offers(template) {
			return ca, nil
		}
	}
	return g.CAs[0], nil
}

// The keys that explain makes a certificate for: it is never issued, so that they can be the same every time.
var (
	sampleRSA = sync.OnceValues(func() (crypto.PublicKey, error) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	})
	sampleEC = sync.OnceValues(func() (crypto.PublicKey, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	})
)

// sampleKey is a public key of the kind that a client would make for the template.
func sampleKey(t *templates.Template) (crypto.PublicKey, error) {
	if strings.HasPrefix(t.AsymmetricAlg, "EC") {
		return sampleEC()
	}
	return sampleRSA()
}

// lintCertificate adds what the linter says of the certificate to the checks of a decision that would issue it.
func (g *Gateway) lintCertificate(d *templates.Decision, key crypto.PublicKey) {
	if d.Outcome == templates.Deny {
		return
	}
	check := templates.Check{Name: "lint", Pass: true, Reason: "no rule has anything to say about the certificate", Code: hresult.BadRequestStatus}
	for i, f := range g.linter.Check(&d.Profile, key) {
		text := f.Rule + ": " + f.Text
		if i == 0 {
			check.Pass, check.Reason, check.Spec = !f.Error, text, f.Citation
			continue
		}
		check.Reason += "; " + text
	}
	if !check.Pass {
		check.Fix = "change the template or the account's attributes, or accept the rule under lint in the configuration"
	}
	d.Add(check)
}
