package gateway

import (
	"context"
	"fmt"

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
	caller := templates.Caller{Principal: principal, SID: subject.SID, Groups: subject.Groups, Machine: subject.Machine}
	e := &Explanation{Principal: principal, DN: subject.DN, Decision: templates.Decide(templates.Input{
		Snapshot: s, MaxAge: g.Config.Directory.MaxAge, Authority: g.authority(ca), Caller: caller, Subject: subject,
		Template: templates.Reference{Name: template, Major: -1, Minor: -1}, Now: g.now(),
	})}
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
