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

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Explanation is what would happen if an account asked for a certificate now.
type Explanation struct {
	Principal string `json:"principal"`
	DN        string `json:"dn"`
	templates.Decision
	AutoEnrolls    bool   `json:"auto_enrolls"`
	AutoEnrollNote string `json:"auto_enroll_note,omitempty"`
}

// Explain decides for an account by name, without a ticket and without a request: the same Decide that serving uses.
func (g *Gateway) Explain(ctx context.Context, principal, template, caName string) (*Explanation, error) {
	s := g.Directory.Snapshot()
	if s == nil {
		return nil, hresult.New(hresult.ServerUnavailable, "the directory has not been read yet")
	}
	subject, err := g.Forest.SubjectByName(ctx, principal)
	if err != nil {
		return nil, err
	}
	ca, err := g.caFor(s, template, caName)
	if err != nil {
		return nil, err
	}
	hazards, _ := g.hazards(s)
	caller := templates.Caller{Principal: principal, SID: subject.SID, Groups: subject.Groups, Machine: subject.Machine}
	e := &Explanation{Principal: principal, DN: subject.DN, Decision: templates.Decide(templates.Input{
		Snapshot: s, Hazards: hazards, MaxAge: g.Config.Directory.MaxAge, Authority: g.authority(ca), Caller: caller, Subject: subject,
		Template: templates.Reference{Name: template, Major: -1, Minor: -1}, Now: g.now(),
	})}
	if t := s.TemplateByName(template); t != nil && !t.EnrolleeSuppliesSubject() { // without names there is nothing to lint
		key, err := sampleKey(t)
		if err != nil {
			return nil, err
		}
		g.lintCertificate(&e.Decision, key)
	}
	if t, service := s.TemplateByName(template), s.Service(ca.Name); t != nil && service != nil {
		e.AutoEnrollNote = templates.AutoEnrollmentHint(t, service, caller)
		if e.AutoEnrollNote == "" && e.Outcome == templates.Deny {
			e.AutoEnrollNote = "the client would try and be refused"
		}
		e.AutoEnrolls = e.AutoEnrollNote == ""
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

// sampleKey is a public key as a client would make one for the template.
func sampleKey(t *templates.Template) (crypto.PublicKey, error) {
	if strings.HasPrefix(t.AsymmetricAlg, "EC") {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
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
