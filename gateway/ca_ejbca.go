package gateway

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/ejbca"
)

// openEJBCA loads what is needed to talk to an EJBCA. secret is what the passwords of its end entities are made of.
func (g *Gateway) openEJBCA(c config.CA, secret []byte) (upstream.Issuer, error) {
	e := c.EJBCA
	roots, t, err := openConnection(e.Connection)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	address := e.URL
	if u, err := url.Parse(address); err == nil && strings.Trim(u.Path, "/") == "" {
		address = strings.TrimSuffix(address, "/") + "/ejbca/ejbca-rest-api"
	}
	return ejbca.New(ejbca.Options{Name: c.Name, URL: address, TLS: t, Roots: roots, CA: e.CA, CertificateProfile: e.CertificateProfile, EndEntityProfile: e.EndEntityProfile,
		FromRequest: e.Names == "request", FromProfile: e.Profile, Extensions: e.Extensions, NoEnd: e.End != nil && !*e.End, Secret: secret,
		Tolerance: upstream.Tolerance(c.Tolerate), ChainFile: g.chainFile(c.Name), Timeout: e.Timeout, Now: g.now})
}
