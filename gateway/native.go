package gateway

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/templates/native"
)

// NativeCAs says how the CAs of this gateway have to be published, so that Windows finds them in the directory
// ([MS-WCCE] 2.2.2.11). name is one CA, with those that may sign for it, or "" for all. What a foreign CA's chain is has to be
// asked of it: the error says which one does not answer.
func (g *Gateway) NativeCAs(ctx context.Context, name string) ([]native.CA, error) {
	if name != "" && g.CA(name) == nil {
		return nil, fmt.Errorf("there is no published CA %q in the configuration; there are: %s", name, strings.Join(names(g.CAs), ", "))
	}
	var out []native.CA
	for _, ca := range g.signers {
		published := g.CA(ca.Name) == ca
		if name != "" && !strings.EqualFold(ca.Name, name) && (published || !g.mayLeadTo(name, ca.Name)) {
			continue
		}
		chain, err := ca.Issuer.Chain(ctx)
		if err != nil {
			return nil, fmt.Errorf("CA %q does not say what its certificates are: %w", ca.Name, err)
		}
		n := native.CA{Name: ca.Name, Published: published}
		if len(chain) > 0 {
			n.Logon = chain[:1]
		}
		if published {
			if err := g.describeService(ctx, ca, &n); err != nil {
				return nil, err
			}
			n.Intermediates = append(n.Intermediates, n.Certificates...)
			chain = slices.Concat(ca.Identity.Chain(), chain)
		}
		addTrust(&n, chain)
		out = append(out, n)
	}
	return out, nil
}

// describeService says what clients are to be told of a published CA.
func (g *Gateway) describeService(ctx context.Context, ca *CA, n *native.CA) (err error) {
	n.Host, n.Certificates = g.Config.PublicName, []*x509.Certificate{ca.Identity.Certificate()}
	if g.Config.Listen.HTTPS != "off" {
		for _, u := range g.uris(ca.Name) {
			n.Servers = append(n.Servers, native.EnrollmentServer(*u.Priority, uint32(u.ClientAuthentication), u.RenewalOnly, u.URI))
		}
	}
	if ca.Local != nil {
		n.CRL, err = ca.Local.CRL(ctx)
	}
	return err
}

// mayLeadTo tells whether a route from one CA may end at another.
func (g *Gateway) mayLeadTo(from, to string) bool {
	for _, r := range g.Config.Routes {
		if len(r.CAs) > 0 && !slices.ContainsFunc(r.CAs, func(s string) bool { return strings.EqualFold(s, from) }) {
			continue
		}
		for _, share := range (plan{r.To, r.Failover}).shares() {
			if strings.EqualFold(share.CA, to) {
				return true
			}
		}
	}
	return false
}

// addTrust sorts certificates of a chain into roots and what is between.
func addTrust(n *native.CA, chain []*x509.Certificate) {
	for _, c := range chain {
		list := &n.Intermediates
		if issuedBy(c, c) {
			list = &n.Roots
		}
		if !slices.ContainsFunc(*list, c.Equal) {
			*list = append(*list, c)
		}
	}
}

// NativeFromCertificates is a CA of which only the certificates are known, the CA's own first: for machines without the
// gateway's configuration.
func NativeFromCertificates(name, host string, certs []*x509.Certificate) native.CA {
	n := native.CA{Name: name, Published: true, Host: host, Certificates: certs[:1], Logon: certs[:1], Intermediates: slices.Clone(certs[:1])}
	addTrust(&n, certs)
	return n
}

// EnrollmentServer is the value of msPKI-Enrollment-Servers for one way in.
func EnrollmentServer(host, ca string, way soap.Way) string {
	return native.EnrollmentServer(1, uint32(way.Authentication), false, enrollURL(host, way, ca))
}
