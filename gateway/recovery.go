package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// recoveryPolicies are the configured ones.
func recoveryPolicies(c config.Escrow) []escrow.Policy {
	var out []escrow.Policy
	for _, p := range c.Policies {
		out = append(out, escrow.Policy(p.WithDefaults()))
	}
	return out
}

// retentionRules are the configured ones.
func retentionRules(c config.Escrow) []escrow.Rule {
	var out []escrow.Rule
	for _, r := range c.Retention.Rules {
		out = append(out, escrow.Rule(r))
	}
	return out
}

// Retention destroys archived keys that were kept long enough.
func (g *Gateway) Retention() *escrow.Retention {
	r := g.Config.Escrow.Retention
	return escrow.NewRetention(g.Escrow, escrow.RetentionOptions{Every: r.Every, MaxPerRun: r.MaxPerRun, Log: g.Log.WithField("part", "retention")})
}

// ownerOf says whose key is archived, so that the escrow finds the policy: whom the certificate is for, which is not the
// caller where an enrollment agent asks.
func (g *Gateway) ownerOf(ctx context.Context, in templates.Input) escrow.Owner {
	name, member := in.Caller.Principal, in.Caller.Token()
	if in.Subject.SID != in.Caller.SID { // enrolled by an agent
		name = in.Subject.SAMAccount + "@" + strings.ToUpper(in.Subject.Domain.DNS)
		member = security.NewToken(append(in.Subject.Groups, in.Subject.SID)...)
	}
	template := "" // a request that names none that exists is refused by the decision
	if s, ref := in.Snapshot, in.Template; s != nil {
		found := s.TemplateByName(ref.Name)
		if ref.OID != "" {
			found = s.TemplateByOID(ref.OID)
		}
		if found != nil {
			template = found.Name
		}
	}
	return escrow.Owner{Name: name, Template: template, MemberOf: func(groups []string) (bool, error) { return g.isOneOf(ctx, member, groups) }}
}

// archival tells whether the owner's policy can be kept now.
func (g *Gateway) archival(o escrow.Owner) error {
	p, err := g.Escrow.PolicyFor(o)
	if err != nil {
		return hresult.Wrap(hresult.ServerUnavailable, err, "the recovery policy for the key cannot be found out; try again")
	}
	return g.Escrow.ReadyFor(p)
}

// ImportOwner is whose key is imported, and by which template it counts. Where a policy is for members of groups, the directory is asked.
func (g *Gateway) ImportOwner(ctx context.Context, name, template string) escrow.Owner {
	return escrow.Owner{Name: name, Template: template, MemberOf: func(groups []string) (bool, error) {
		subject, err := g.Directory.SubjectByName(ctx, name)
		if err != nil {
			return false, err
		}
		return g.isOneOf(ctx, security.NewToken(append(subject.Groups, subject.SID)...), groups)
	}}
}

// BlobSigner is the CA that signs the recovery blob of a key whose certificate a CA has issued; of an imported key ("") the
// first configured one. In front of a foreign CA it is the gateway's own.
func (g *Gateway) BlobSigner(ctx context.Context, name string) (s escrow.Signer, err error) {
	ca := g.CA(name)
	if ca == nil && len(g.CAs) > 0 {
		ca = g.CAs[0]
	}
	if ca == nil {
		return s, errors.New("there is no CA that signs the recovery blob")
	}
	s.Certificate, s.Key, s.Hash, err = ca.Identity.ResponseSigner(ctx)
	s.Chain = ca.Identity.Chain()
	return s, err
}

// isOneOf tells whether a token holds one of the accounts or groups.
func (g *Gateway) isOneOf(ctx context.Context, token security.Token, names []string) (bool, error) {
	for _, name := range names {
		sid, err := g.sids.of(ctx, g, name)
		if err != nil {
			return false, err
		}
		if token.Has(sid) {
			return true, nil
		}
	}
	return false, nil
}

// isStillOneOf is isOneOf for a caller whose ticket may be hours old: the directory must say the same now.
func (g *Gateway) isStillOneOf(ctx context.Context, caller templates.Caller, names []string) (bool, error) {
	member, err := g.isOneOf(ctx, caller.Token(), names)
	if err != nil || !member {
		return false, err
	}
	subject, err := g.Directory.SubjectByName(ctx, string(caller.SID))
	if err != nil {
		return false, err
	}
	if !strings.EqualFold(caller.Realm, subject.Domain.DNS) { // a trusted realm vouches for its own accounts only
		return false, hresult.New(hresult.AccessDenied, "the ticket of %s names the SID of an account of the domain %s", caller.Principal, subject.Domain.DNS)
	}
	if subject.Disabled {
		return false, hresult.New(hresult.AccountDisabled, "the account %s is disabled", subject.SAMAccount)
	}
	return g.isOneOf(ctx, templates.Caller{SID: subject.SID, Groups: subject.Groups}.Token(), names)
}

// sidCache remembers the SIDs of configured names for a minute: a name that moves to another account is a rare event, an
// enrollment is not.
type sidCache struct {
	mu    sync.Mutex // guards known
	known map[string]knownSID
}

type knownSID struct {
	sid   security.SID
	until time.Time
}

const sidValidity = time.Minute

func (c *sidCache) of(ctx context.Context, g *Gateway, name string) (security.SID, error) {
	now := g.now()
	c.mu.Lock()
	k, ok := c.known[name]
	c.mu.Unlock()
	if ok && now.Before(k.until) {
		return k.sid, nil
	}
	sids, err := g.Directory.SIDsOf(ctx, []string{name})
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]knownSID{}
	}
	c.known[name] = knownSID{sids[0], now.Add(sidValidity)}
	return sids[0], nil
}

// recoveryHandler serves recovery cases and batches to people with Kerberos tickets.
//
// Each refusal is a line in the audit log: who is refused too often has to wait, so that nobody can fill it.
func (g *Gateway) recoveryHandler() http.Handler {
	next := http.NewServeMux()
	batches := batch.Handler(g.Batches, g.Log)
	next.Handle(people.Prefix, cases.Handler(g.Cases, g.Log))
	next.Handle(people.Prefix+batch.Path, batches)
	next.Handle(people.Prefix+batch.Path+"/", batches)
	brake := &brake{now: g.now, failures: map[string]*attempts{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, ok := kerberos.CallerFrom(r.Context())
		if err := brake.check(caller.Principal); ok && err != nil {
			g.Log.WithField("caller", caller.Principal).WithError(err).Warn("recovery refused")
			http.Error(w, hresult.From(err).Text, http.StatusTooManyRequests)
			return
		}
		seen := &statusWriter{ResponseWriter: w}
		if next.ServeHTTP(seen, r); ok && seen.status >= 400 && seen.status < 500 {
			brake.failed(caller.Principal)
		}
	})
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// newCases joins the cases and the batches with the directory and the ledger.
func (g *Gateway) newCases() (*cases.Cases, *batch.Batches) {
	roles := *g.roles()
	return cases.New(cases.Options{Roles: roles, Chain: g.ChainOf}),
		batch.New(batch.Options{Roles: roles})
}

// roles tell who is a manager or an approver of a recovery policy.
func (g *Gateway) roles() *people.Roles {
	account := func(ctx context.Context, name string) (templates.Subject, error) {
		return g.Directory.SubjectByName(ctx, name)
	}
	holder := func(ctx context.Context, cert *x509.Certificate) (security.SID, error) {
		p, err := g.proof(ctx, cert)
		return p.Owner, err
	}
	return &people.Roles{DB: g.DB, Escrow: g.Escrow, Now: g.now, IsOneOf: g.isStillOneOf, Account: account, HolderOf: holder}
}
