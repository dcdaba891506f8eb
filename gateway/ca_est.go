package gateway

import (
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/est"
)

// openEST loads what is needed to talk to an EST server.
func (g *Gateway) openEST(c config.CA) (upstream.Issuer, error) {
	roots, t, err := openConnection(c.EST.Connection)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	o := est.Options{Name: c.Name, URL: c.EST.URL, Label: c.EST.Label, TLS: t, User: c.EST.User, Roots: roots, FromProfile: c.EST.Profile,
		Tolerance: upstream.Tolerance(c.Tolerate), ChainFile: g.chainFile(c.Name), Timeout: c.EST.Timeout, Now: g.now}
	if c.EST.Password.Set() {
		o.Password = c.EST.Password.Read
	}
	return est.New(o)
}
