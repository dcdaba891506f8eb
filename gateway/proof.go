package gateway

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// facts are what policy looks at.
func (g *Gateway) facts(ctx context.Context, r *wcce.Request) (*templates.Request, error) {
	f := &templates.Request{
		CMC: r.Format == wcce.CMC, PublicKey: r.CSR.PublicKey, Subject: r.CSR.RawSubject,
		ArchivedKey: r.Archived != nil, ArchivedHash: r.ArchivedHash, RejectArchival: r.ArchivedErr, RequestorName: r.RequestorName,
	}
	for _, e := range r.CSR.Extensions {
		f.Extensions = append(f.Extensions, templates.Extension(e))
	}
	for _, s := range r.Signers {
		if s.Certificate == nil {
			continue
		}
		proof, err := g.proof(ctx, s.Certificate)
		if err != nil {
			return nil, err
		}
		if s.Role == "renewed certificate" {
			f.Renewal = &proof
		} else {
			f.Signatures = append(f.Signatures, proof)
		}
	}
	return f, nil
}

// proof tells what it proves that the key of a certificate has signed: who has it, if a CA served here issued it. The
// ledger knows; what the certificate says about itself, and what other CAs may have revoked, counts for nothing.
func (g *Gateway) proof(ctx context.Context, cert *x509.Certificate) (templates.Proof, error) {
	p := templates.Proof{Certificate: cert, Distrust: errors.New("no CA of this gateway has issued it")}
	for _, issuer := range g.issuers() {
		row, err := g.Ledger.BySerial(ctx, issuer, ledger.SerialText(cert))
		switch {
		case errors.Is(err, ledger.ErrNotFound):
			continue
		case err != nil:
			return p, hresult.Wrap(hresult.ServerUnavailable, err, "the ledger cannot be read; try again")
		case row.State != ledger.Issued || !bytes.Equal(row.Certificate, cert.Raw):
			continue
		}
		now := g.now()
		switch {
		case !row.Revoked.IsZero():
			p.Distrust = fmt.Errorf("it was revoked on %s", row.Revoked.Format(time.DateOnly))
		case now.After(cert.NotAfter):
			p.Distrust = fmt.Errorf("it ended at %s", cert.NotAfter.Format(time.RFC3339))
		case row.SubjectSID == "":
			p.Distrust = errors.New("the ledger does not know whose it is")
		default:
			p.Distrust, p.Owner = nil, row.SubjectSID
		}
		return p, nil
	}
	return p, nil
}

// parties finds out whom the certificate is for: the caller, or the account that an enrollment agent names.
func (g *Gateway) parties(ctx context.Context, caller templates.Caller, r *wcce.Request) (in templates.Input, err error) {
	in.Caller = caller
	own, err := g.Directory.Subject(ctx, caller.SID)
	if err != nil || r.RequestorName == "" {
		in.Subject = own
		return in, err
	}
	if !strings.EqualFold(caller.Realm, own.Domain.DNS) { // as Decide requires of a caller who is the subject
		return in, hresult.New(hresult.AccessDenied, "the ticket of %s names the SID of an account of the domain %s", caller.Principal, own.Domain.DNS)
	}
	in.CallerDisabled = own.Disabled
	if in.Subject, err = g.Directory.SubjectByName(ctx, r.RequestorName); err != nil {
		return in, err
	}
	in.Agents, err = g.agentRules(ctx)
	return in, err
}

// agentRules are the configured ones, with SIDs in place of names. A rule that names an account which the directory does
// not know lets nobody enroll.
func (g *Gateway) agentRules(ctx context.Context) ([]templates.AgentRule, error) {
	var out []templates.AgentRule
	for i, rule := range g.Config.EnrollmentAgents {
		agents, err := g.Directory.SIDsOf(ctx, rule.Agents)
		if err != nil {
			return nil, fmt.Errorf("enrollment_agents, rule %d: %w", i+1, err)
		}
		subjects, err := g.Directory.SIDsOf(ctx, rule.Subjects)
		if err != nil {
			return nil, fmt.Errorf("enrollment_agents, rule %d: %w", i+1, err)
		}
		out = append(out, templates.AgentRule{Agents: agents, Subjects: subjects, Templates: rule.Templates})
	}
	return out, nil
}

// Revoke revokes an issued certificate at its CA, with a CRLReason (RFC 5280 5.3.1), and records who did. The archived key
// stays: mail that was encrypted to it has to remain readable.
func (g *Gateway) Revoke(ctx context.Context, row *ledger.Row, actor string, reason int) error {
	return g.revoke(ctx, row, actor, reason, "")
}

// revoke is Revoke with words for the audit log.
func (g *Gateway) revoke(ctx context.Context, row *ledger.Row, actor string, reason int, why string) error {
	ca := g.Signer(row.Issuer)
	if ca == nil {
		return fmt.Errorf("request %d: there is no CA %q in the configuration", row.ID, row.Issuer)
	}
	cert, err := x509.ParseCertificate(row.Certificate)
	if err != nil {
		return fmt.Errorf("request %d: stored certificate: %w", row.ID, err)
	}
	if err := ca.Issuer.Revoke(ctx, cert.SerialNumber, reason); err != nil {
		return err
	}
	return g.Ledger.Revoked(ctx, row.ID, actor, reason, why)
}
