package gateway

import (
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/hvca"
)

// openHVCA loads what is needed to talk to GlobalSign Atlas. The API secret is read when it is needed.
func (g *Gateway) openHVCA(c config.CA) (upstream.Issuer, error) {
	h := c.HVCA
	roots, t, err := openConnection(h.Connection)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	return hvca.New(hvca.Options{Name: c.Name, URL: h.URL, TLS: t, APIKey: h.APIKey, APISecret: h.APISecret.Read, Roots: roots, PublicKey: h.PublicKey == "bare",
		FromProfile: h.Profile, Extensions: h.Extensions, Tolerance: upstream.Tolerance(c.Tolerate), ChainFile: g.chainFile(c.Name), Timeout: h.Timeout, Now: g.now})
}
