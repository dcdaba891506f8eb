package gateway

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/inspect"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Line is one line of a comparison.
type Line struct {
	Field    string `json:"field"`
	Decided  string `json:"decided,omitempty"`
	Returned string `json:"returned,omitempty"`
	Verdict  string `json:"verdict"` // same, the CA's own, tolerated, or DIFFERENT
}

// CATest is what a CA made of an order.
type CATest struct {
	CA        string       `json:"ca"`
	Template  string       `json:"template"`
	Principal string       `json:"principal"`
	Request   int64        `json:"request"`
	State     ledger.State `json:"state"`
	Message   string       `json:"message,omitempty"`
	Serial    string       `json:"serial,omitempty"`
	Revoked   bool         `json:"revoked"`
	Lines     []Line       `json:"lines,omitempty"`
	Names     string       `json:"names"` // where the CA takes names from
}

// pollTest is how often a CA that lets the order wait is asked.
const pollTest = 500 * time.Millisecond

// TestCA orders a certificate for a throw-away key at one CA, as an account would get it by a template, compares what comes back
// with what was decided, and revokes it. It is a request of actor in the ledger like any other. wait is for how long a CA may let
// it pend.
func (g *Gateway) TestCA(ctx context.Context, name, template, principal, actor string, wait time.Duration) (*CATest, error) {
	signer := g.Signer(name)
	if signer == nil {
		return nil, fmt.Errorf("there is no CA %q in the configuration", name)
	}
	e, err := g.Explain(ctx, principal, template, "")
	if err != nil {
		return nil, err
	}
	if refused := e.Err(); refused != nil {
		return nil, fmt.Errorf("%s would not get a certificate by %s: %w", principal, template, refused)
	}
	row, err := g.testRow(e, signer, actor)
	if err != nil {
		return nil, err
	}
	order, err := orderOf(row)
	if err != nil {
		return nil, err
	}
	if err := upstream.Check(signer.Issuer, order); err != nil {
		return nil, err
	}
	if err := g.begin(ctx, row, nil); err != nil {
		return nil, err
	}
	out := &CATest{CA: signer.Name, Template: e.Template, Principal: e.Principal, Request: row.ID, Names: "from what travels beside the request"}
	if upstream.TraitsOf(signer.Issuer).Names == upstream.NamesInCSR {
		out.Names = "from the request: clients have to say them, which Windows does only where the template lets the enrollee supply them"
	}
	if err := g.runTest(ctx, row, order, wait); err != nil {
		return nil, err
	}
	out.State, out.Message, out.Serial = row.State, row.Message, row.Serial
	if row.Certificate == nil {
		return out, nil
	}
	cert, err := x509.ParseCertificate(row.Certificate)
	if err != nil {
		return nil, err
	}
	out.Lines = compareLines(row.Profile, order.PublicKey, cert, signer.Tolerance)
	if row.State == ledger.Issued {
		if err := g.Revoke(ctx, row, actor, reasonCessation); err != nil {
			out.Message += "; it could not be revoked: " + err.Error()
			return out, nil
		}
	}
	if row, err = g.Ledger.Get(ctx, row.ID); err == nil {
		out.Revoked = !row.Revoked.IsZero()
	}
	return out, err
}

// testRow is the request. It belongs to nobody, so that nothing is published and nobody's certificates are revoked with it.
func (g *Gateway) testRow(e *Explanation, signer *CA, actor string) (*ledger.Row, error) {
	profile := e.Profile
	profile.PublishToDS, profile.PublishToKRA = false, false
	key, err := throwAway(g.Directory.Snapshot().TemplateByName(e.Template))
	if err != nil {
		return nil, err
	}
	contents := templates.CertificateProfile{} // as Windows sends it
	if upstream.TraitsOf(signer.Issuer).Names == upstream.NamesInCSR {
		contents = profile
	}
	der, err := upstream.NewCSR(contents, key)
	if err != nil {
		return nil, err
	}
	fingerprint := sha256.Sum256(der)
	return &ledger.Row{State: ledger.Open, Caller: actor, Template: e.Template, CA: e.CA, Issuer: signer.Name, Transport: "test", Fingerprint: fingerprint[:], CSR: der,
		Profile: profile, Checks: e.Checks}, nil
}

// throwAway makes a key of the kind that the template wants.
func throwAway(t *templates.Template) (crypto.Signer, error) {
	if t != nil && strings.HasPrefix(t.AsymmetricAlg, "EC") {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	bits := 2048
	if t != nil {
		bits = max(bits, t.MinKeySize)
	}
	return rsa.GenerateKey(rand.Reader, bits)
}

// runTest sends the order and waits for its end. What is not finished then goes on in the background as any request does.
func (g *Gateway) runTest(ctx context.Context, row *ledger.Row, order upstream.Order, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for first := true; ; first = false {
		result, silent := g.attempt(ctx, row, order, first)
		if err := g.Ledger.Finish(ctx, row.ID, "gateway", result); err != nil {
			return err
		}
		row.CAToken = result.CAToken
		g.finished(ctx, row, result)
		if silent != nil {
			return fmt.Errorf("request %d: %w", row.ID, silent)
		}
		if row.State != ledger.Waiting || result.Doubt != "" || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollTest):
		}
		if ok, err := g.Ledger.Claim(ctx, row.ID, g.void()); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("request %d goes on elsewhere: see enrollgate requests show %d", row.ID, row.ID))
		}
	}
}

// compareLines sets a certificate beside the decision.
func compareLines(p templates.CertificateProfile, key crypto.PublicKey, cert *x509.Certificate, t upstream.Tolerance) []Line {
	verdict := func(same bool) string {
		if same {
			return "same"
		}
		return "DIFFERENT"
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	day := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	lines := []Line{
		{"public key", "of the request", fmt.Sprint(cert.PublicKeyAlgorithm), verdict(ok && public.Equal(key))},
		{"subject", p.SubjectText, dn.Show(cert.RawSubject), verdict(upstream.SameName(cert.RawSubject, p.Subject))},
		{"valid from", day(p.NotBefore), day(cert.NotBefore), "the CA's own"},
		{"valid until", day(p.NotAfter), day(cert.NotAfter), verdict(!cert.NotAfter.After(p.NotAfter.Add(time.Minute)))},
	}
	critical := func(c bool) string {
		if c {
			return "critical: "
		}
		return ""
	}
	for _, d := range p.Extensions {
		l := Line{Field: d.OID, Decided: critical(d.Critical) + inspect.ExtensionText(d.OID, d.Value)}
		i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.String() == d.OID })
		switch {
		case i < 0:
			if l.Verdict = "DIFFERENT"; slices.Contains(t.Missing, d.OID) {
				l.Verdict = "tolerated"
			}
		default:
			e := cert.Extensions[i]
			l.Returned = critical(e.Critical) + inspect.ExtensionText(d.OID, e.Value)
			if l.Verdict = verdict(upstream.SameExtension(d, e)); l.Verdict != "same" && slices.Contains(t.Changed, d.OID) {
				l.Verdict = "tolerated"
			}
		}
		lines = append(lines, l)
	}
	for _, e := range cert.Extensions {
		oid := e.Id.String()
		if slices.ContainsFunc(p.Extensions, func(d templates.Extension) bool { return d.OID == oid }) {
			continue
		}
		l := Line{Field: oid, Returned: critical(e.Critical) + inspect.ExtensionText(oid, e.Value), Verdict: "DIFFERENT"}
		switch {
		case upstream.OwnedByCA(oid):
			l.Verdict = "the CA's own"
		case slices.Contains(t.Added, oid):
			l.Verdict = "tolerated"
		}
		lines = append(lines, l)
	}
	return lines
}
