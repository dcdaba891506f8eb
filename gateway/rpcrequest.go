package gateway

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/rpc/certrequest"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Poll implements request.Backend.
func (b rpcBackend) Poll(ctx context.Context, caller templates.Caller, requestID string) (*request.Reply, error) {
	r, err := b.g.Poll(ctx, caller, requestID)
	out, err := b.reply(ctx, r, err)
	refusal, refused := errors.AsType[*request.Refusal](err)
	if err != nil && !refused {
		return nil, err
	}
	if refused {
		out = &request.Reply{RequestID: refusal.RequestID}
	}
	row, failure := b.g.Ledger.Get(ctx, out.RequestID)
	if failure != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, failure, "the request could not be looked up; try again")
	}
	if refused {
		refusal.CA = row.CA
		return nil, refusal
	}
	out.CA, out.Revoked = row.CA, !row.Revoked.IsZero()
	return out, nil
}

// PollSerial implements request.Backend.
func (b rpcBackend) PollSerial(ctx context.Context, caller templates.Caller, ca, serial string) (*request.Reply, error) {
	id, err := b.bySerial(ctx, caller, ca, serial)
	if err != nil {
		return nil, err
	}
	return b.Poll(ctx, caller, id)
}

// bySerial is the number of the request of a certificate. Like Poll it tells only its own caller that there is one.
func (b rpcBackend) bySerial(ctx context.Context, caller templates.Caller, ca, serial string) (string, error) {
	for _, issuer := range b.g.issuers() {
		row, err := b.g.Ledger.BySerial(ctx, issuer, serial)
		switch {
		case errors.Is(err, ledger.ErrNotFound):
		case err != nil:
			return "", hresult.Wrap(hresult.ServerUnavailable, err, "the certificate could not be looked up; try again")
		case row.CallerSID == caller.SID && strings.EqualFold(row.CA, ca) && row.State == ledger.Issued:
			return fmt.Sprint(row.ID), nil
		}
	}
	return "", hresult.New(hresult.PropertyEmpty, "there is no certificate %q of yours", serial)
}

// Exchange implements certrequest.Backend.
func (b rpcBackend) Exchange(ctx context.Context, ca string) (*x509.Certificate, error) {
	der, err := b.g.ExchangeCertificate(ctx, ca)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Facts implements certrequest.Backend. It asks neither the directory nor a CA: what is told of a foreign CA is as it was looked at last.
func (b rpcBackend) Facts(ctx context.Context, authority string) *certrequest.CA {
	g := b.g
	name := b.CA(authority)
	if authority == "" && len(g.CAs) > 0 {
		name = g.CAs[0].Name
	}
	ca := g.CA(name)
	if ca == nil {
		return nil
	}
	out := &certrequest.CA{Name: ca.Name, Short: wcce.SanitizedShortName(ca.Name), DNSName: g.Config.PublicName, Version: fileVersion(), Locale: "en-US", Now: g.now(), Required: 1}
	out.Signing = g.signing(ctx, ca)
	if p, err := g.Escrow.Policy(escrow.DefaultPolicy); err == nil {
		out.Required = max(p.Minimum, p.Required, 1)
	}
	for _, a := range g.Escrow.AgentsAtHand() {
		out.Agents = append(out.Agents, certrequest.Agent{Certificate: a.Certificate, State: g.agentState(&a)})
	}
	snapshot := g.Directory.Snapshot()
	if snapshot == nil {
		return out
	}
	if s := snapshot.Service(ca.Name); s != nil {
		for _, name := range s.Templates {
			if t := snapshot.TemplateByName(name); t != nil {
				out.Templates = append(out.Templates, certrequest.Template{Name: t.Name, OID: t.OID})
			}
		}
	}
	if above := out.Signing[len(out.Signing)-1].Above; len(above) > 0 {
		for _, s := range snapshot.Services {
			if slices.ContainsFunc(s.Certificates, above[0].Equal) {
				out.Parent = s.DNSHostName + `\` + s.Name
			}
		}
	}
	return out
}

func (g *Gateway) agentState(a *escrow.Agent) certrequest.AgentState {
	now := g.now()
	switch {
	case a.Revoked:
		return certrequest.AgentRevoked
	case now.After(a.Certificate.NotAfter):
		return certrequest.AgentExpired
	case a.Status(now) != "valid":
		return certrequest.AgentInvalid
	}
	return certrequest.AgentValid
}

// signing are the certificates of a CA, oldest first. In front of a foreign CA they are those that sign certificates, and the published
// one, which signs for the gateway, is the last.
func (g *Gateway) signing(ctx context.Context, ca *CA) []certrequest.Signing {
	published := ca.Identity.Certificate()
	g.chains.mu.Lock()
	pool := slices.Clone(g.chains.known[ca.Name])
	g.chains.mu.Unlock()
	for _, c := range ca.Identity.Chain() {
		if !slices.ContainsFunc(pool, c.Equal) {
			pool = append(pool, c)
		}
	}
	issuing, s := published, g.statusOf(ca.Name)
	if s != nil && s.issuing != nil {
		issuing = s.issuing
	}
	certs := slices.DeleteFunc(slices.Clone(pool), func(c *x509.Certificate) bool {
		return !bytes.Equal(c.RawSubject, issuing.RawSubject) || c.Equal(published)
	})
	slices.SortStableFunc(certs, func(a, b *x509.Certificate) int { return a.NotBefore.Compare(b.NotBefore) })
	var out []certrequest.Signing
	for _, c := range append(certs, published) {
		signing := certrequest.Signing{Certificate: c, Above: aboveIn(pool, c)}
		g.revocationOf(ctx, ca, s, &signing)
		out = append(out, signing)
	}
	return out
}

// revocationOf adds the revocation list that a CA certificate's key has signed, and the addresses that the CA puts into certificates.
func (g *Gateway) revocationOf(ctx context.Context, ca *CA, s *CAStatus, out *certrequest.Signing) {
	switch {
	case ca.Local != nil:
		if !bytes.Equal(out.Certificate.RawSubjectPublicKeyInfo, ca.Local.Certificate().RawSubjectPublicKeyInfo) {
			return
		}
		out.CRL = func() ([]byte, error) {
			crl, err := ca.Local.CRL(ctx)
			if err != nil {
				return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the revocation list cannot be made now")
			}
			return crl, nil
		}
		address := "http://" + g.Config.PublicName
		out.CDP, out.AIA = []string{address + "/crl/" + urlName(ca.Name) + ".crl"}, []string{address + "/aia/" + urlName(ca.Name) + ".crt"}
		return
	case s == nil || s.issuing == nil || !bytes.Equal(out.Certificate.RawSubject, s.issuing.RawSubject): // the key signs for the gateway alone
		out.NoCRL = true
		return
	}
	newest := s.newest
	if newest == nil || !issuedBy(newest, out.Certificate) {
		return
	}
	if s.CRL != nil && s.CRL.list != nil {
		out.CRL = func() ([]byte, error) { return s.CRL.list, nil }
	}
	out.CDP, out.AIA, out.OCSP = newest.CRLDistributionPoints, newest.IssuingCertificateURL, newest.OCSPServer
}

// crlsFor are the revocation lists that certificates of a chain have signed, of those that are here: the embedded CA's own, and what was
// fetched of a foreign CA when it was looked at last. [MS-WCCE] 3.2.1.4.1.3 has a CA fetch all of them, those of the CAs above it too; a reply
// does not wait for the network here, and leaves them out.
func (g *Gateway) crlsFor(ctx context.Context, chain []*x509.Certificate) (out [][]byte) {
	for _, ca := range g.signers {
		var der []byte
		if ca.Local != nil {
			var err error
			if der, err = ca.Local.CRL(ctx); err != nil {
				g.Log.WithError(err).WithField("ca", ca.Name).Warn("a reply is without the revocation list that the client wants")
				continue
			}
		} else if s := g.statusOf(ca.Name); s != nil && s.CRL != nil {
			der = s.CRL.list
		}
		list, err := x509.ParseRevocationList(der)
		if err == nil && slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return list.CheckSignatureFrom(c) == nil }) {
			out = append(out, der)
		}
	}
	return out
}

// statusOf is what was last found out about a CA; nil before the first time.
func (g *Gateway) statusOf(ca string) *CAStatus {
	list := g.caStatus.Load()
	if list == nil {
		return nil
	}
	for i := range *list {
		if (*list)[i].Name == ca {
			return &(*list)[i]
		}
	}
	return nil
}

// aboveIn finds the issuers of a certificate.
func aboveIn(pool []*x509.Certificate, cert *x509.Certificate) (out []*x509.Certificate) {
	for cur := cert; len(out) < 8 && !bytes.Equal(cur.RawIssuer, cur.RawSubject); {
		i := slices.IndexFunc(pool, func(c *x509.Certificate) bool { return issuedBy(cur, c) })
		if i < 0 {
			break
		}
		cur = pool[i]
		out = append(out, cur)
	}
	return out
}

// fileVersion is the version of the program as Windows writes versions ([MS-WCCE] 3.2.1.4.3.2.1).
func fileVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		var a, b, c int
		if n, _ := fmt.Sscanf(info.Main.Version, "v%d.%d.%d", &a, &b, &c); n == 3 {
			return fmt.Sprintf("%d.%d.%d.0", a, b, c)
		}
	}
	return "0.0.0.0"
}

// RequestInterfaces are the COM interfaces of enrollment, for a class of objects: certrequest.CLSID.
func (g *Gateway) RequestInterfaces() []server.Interface {
	return certrequest.Interfaces(rpcBackend{g})
}
