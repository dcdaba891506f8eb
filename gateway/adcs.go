package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/adcs"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/security"
)

// ADCSImport is what became of an export of AD CS.
type ADCSImport struct {
	Imported int `json:"imported"`
	Known    int `json:"known"`   // were in the ledger before
	Revoked  int `json:"revoked"` // of those imported
	Without  int `json:"without"` // rows without a certificate: failed, denied and pending ones
	// Accounts that the directory does not know: their certificates are imported, and belong to nobody.
	Unknown []string `json:"unknown,omitempty"`
	// Foreign are lines whose certificate is by none of the CA's certificates. They are not imported.
	Foreign []int `json:"foreign,omitempty"`
}

const importAtOnce = 500

// ImportADCS reads a CA database's export into the ledger, as certificates that the CA of this name has issued: renewals by them are
// believed, leavers' are revoked, coverage knows them. chain are the CA's own certificates, of all its keys, and those above. It
// may be repeated: what is there already is left alone.
func (g *Gateway) ImportADCS(ctx context.Context, export io.Reader, ca string, chain []*x509.Certificate, actor string, progress func(done int)) (*ADCSImport, error) {
	if err := g.rememberChain(ctx, ca, chain); err != nil {
		return nil, err
	}
	out := &ADCSImport{}
	accounts := g.newAccounts()
	var rows []ledger.Imported
	flush := func() error {
		imported, err := g.Ledger.Import(ctx, ca, actor, rows)
		out.Imported, out.Known = out.Imported+imported, out.Known+len(rows)-imported
		rows = rows[:0]
		progress(out.Imported + out.Known)
		return err
	}
	without, err := adcs.ReadExport(export, func(e adcs.Entry) error {
		if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return issuedBy(e.Certificate, c) }) {
			out.Foreign = append(out.Foreign, e.Line)
			return nil
		}
		template, err := g.templateNamed(e)
		if err != nil {
			return fmt.Errorf("line %d: %w", e.Line, err)
		}
		revoked := e.Disposition == dispositionRevoked
		if revoked {
			out.Revoked++
		}
		rows = append(rows, ledger.Imported{Caller: e.Requester, SID: accounts.holder(ctx, e), Template: template, Certificate: e.Certificate, Revoked: revoked,
			Subject: dn.Show(e.Certificate.RawSubject)})
		if len(rows) == importAtOnce {
			return flush()
		}
		return nil
	})
	if err == nil && len(rows) > 0 {
		err = flush()
	}
	out.Without, out.Unknown = without, accounts.unknown()
	return out, err
}

const dispositionRevoked = 21

// templateNamed is the name of an entry's template: what the certificate says, else what the CA's database has.
func (g *Gateway) templateNamed(e adcs.Entry) (string, error) {
	ref, err := wcce.CertificateTemplate(e.Certificate)
	if err != nil {
		return "", err
	}
	snapshot := g.Directory.Snapshot()
	if snapshot != nil && ref.OID != "" {
		if t := snapshot.TemplateByOID(ref.OID); t != nil {
			return t.Name, nil
		}
	}
	if ref.Name != "" {
		return ref.Name, nil
	}
	oid, _, _ := strings.Cut(e.Template, " ")
	if snapshot != nil {
		if t := snapshot.TemplateByOID(oid); t != nil {
			return t.Name, nil
		}
	}
	return e.Template, nil
}

// accounts finds requesters in the directory, each once.
type accounts struct {
	g     *Gateway
	known map[string]*templates.Subject // nil: the directory does not know it
}

func (g *Gateway) newAccounts() *accounts { return &accounts{g, map[string]*templates.Subject{}} }

func (a *accounts) find(ctx context.Context, name string) *templates.Subject {
	key := strings.ToLower(name)
	if s, ok := a.known[key]; ok {
		return s
	}
	a.known[key] = nil
	if s, err := a.g.Directory.SubjectByName(ctx, name); err == nil {
		a.known[key] = &s
	}
	return a.known[key]
}

// holder is whose certificate an entry is: who is named by the SID in it ([MS-WCCE] 2.2.2.7.7.4), else who asked for it. Where an
// enrollment agent asked and the certificate does not say for whom, it is nobody's.
func (a *accounts) holder(ctx context.Context, e adcs.Entry) security.SID {
	if sid := adcs.SIDOf(e.Certificate); sid != "" {
		return security.SID(sid)
	}
	s := a.find(ctx, e.Requester)
	if s == nil {
		return ""
	}
	for _, name := range adcs.UPNsOf(e.Certificate) {
		if !strings.EqualFold(name, s.UPN) && !strings.EqualFold(name, s.SAMAccount+"@"+s.Domain.DNS) {
			return ""
		}
	}
	return s.SID
}

func (a *accounts) unknown() (out []string) {
	for name, s := range a.known {
		if s == nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// The outcomes of a shadow.
const (
	ShadowSame      = "same"
	ShadowDifferent = "different"
	ShadowRefused   = "refused by the gateway"
)

// Shadow is the gateway's decision about a request beside what AD CS issued for it.
type Shadow struct {
	Line      int    `json:"line"`
	Request   int64  `json:"request,omitempty"`
	Requester string `json:"requester"`
	Template  string `json:"template"`
	Serial    string `json:"serial"`
	Outcome   string `json:"outcome"`
	Reason    string `json:"reason,omitempty"`
	Lines     []Line `json:"lines,omitempty"` // those that differ
}

// ShadowADCS decides each request of an export as if it came now, and compares the decision with the certificate that AD CS has
// issued. Nothing is issued, and nothing recorded. What is different every time, such as serial numbers and the hour, is not compared.
func (g *Gateway) ShadowADCS(ctx context.Context, export io.Reader, ca string, do func(Shadow) error) (without int, err error) {
	published := g.CA(ca)
	if published == nil {
		return 0, fmt.Errorf("there is no CA %q that the directory publishes in the configuration", ca)
	}
	accounts := g.newAccounts()
	return adcs.ReadExport(export, func(e adcs.Entry) error {
		template, err := g.templateNamed(e)
		if err != nil {
			return fmt.Errorf("line %d: %w", e.Line, err)
		}
		s := Shadow{Line: e.Line, Request: e.RequestID, Requester: e.Requester, Template: template, Serial: ledger.SerialText(e.Certificate)}
		if err := g.shadow(ctx, published, e, accounts, &s); err != nil {
			s.Outcome, s.Reason = ShadowRefused, err.Error()
		}
		return do(s)
	})
}

func (g *Gateway) shadow(ctx context.Context, ca *CA, e adcs.Entry, known *accounts, s *Shadow) error {
	subject := known.find(ctx, e.Requester)
	if subject == nil {
		return fmt.Errorf("the directory knows no account %q", e.Requester)
	}
	decision, err := g.shadowDecision(ctx, ca, e, subject, s.Template)
	if err != nil {
		return err
	}
	if refused := decision.Err(); refused != nil {
		return refused
	}
	p := decision.Profile
	s.Outcome = ShadowSame
	for _, l := range compareLines(p, e.Certificate.PublicKey, e.Certificate, ca.Tolerance) {
		switch {
		case l.Field == "valid until":
			decided, was := p.NotAfter.Sub(p.NotBefore), e.Certificate.NotAfter.Sub(e.Certificate.NotBefore)
			if diff := decided - was; diff > -sameValidity && diff < sameValidity {
				continue
			}
			l = Line{Field: "validity", Decided: decided.String(), Returned: was.String(), Verdict: "DIFFERENT"}
		case l.Verdict != "DIFFERENT":
			continue
		}
		s.Outcome, s.Lines = ShadowDifferent, append(s.Lines, l)
	}
	return nil
}

// sameValidity is how much validities may differ: AD CS begins ten minutes before the request, and a year is not a number of hours.
const sameValidity = 36 * 60 * 60 * 1e9

// shadowDecision decides the request where the export has it, else what a well-formed one would get.
func (g *Gateway) shadowDecision(ctx context.Context, ca *CA, e adcs.Entry, subject *templates.Subject, template string) (*templates.Decision, error) {
	caller := templates.Caller{Principal: subject.SAMAccount + "@" + strings.ToUpper(subject.Domain.DNS), Realm: strings.ToUpper(subject.Domain.DNS), SID: subject.SID,
		Groups: subject.Groups, Machine: subject.Machine}
	if len(e.Request) == 0 {
		x, err := g.Explain(ctx, caller.Principal, template, ca.Name)
		if err != nil {
			return nil, err
		}
		return &x.Decision, nil
	}
	request, err := wcce.ParseRequest(e.Request)
	if err != nil {
		return nil, err
	}
	if request.Template.Name == "" && request.Template.OID == "" {
		if err := request.NameTemplate(template); err != nil {
			return nil, err
		}
	}
	fingerprint := sha256.Sum256(e.Request)
	ruling, err := g.decide(ctx, Submission{Caller: caller, CA: ca.Name, Transport: transportKerberos, Request: fingerprint[:]}, request)
	if err != nil {
		return nil, err
	}
	if d := ruling.decision; d != nil {
		return d, nil
	}
	return nil, errors.New("no decision")
}
