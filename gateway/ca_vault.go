package gateway

import (
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/vault"
)

// openVault loads what is needed to talk to a Vault. Its secrets are read when they are needed.
func (g *Gateway) openVault(c config.CA) (upstream.Issuer, error) {
	v := c.Vault
	roots, t, err := openConnection(v.Connection)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	o := vault.Options{Name: c.Name, URL: v.URL, TLS: t, Roots: roots, Namespace: v.Namespace, Mount: v.Mount, Role: v.Role, Verbatim: v.Sign == "verbatim", Issuer: v.Issuer,
		Tolerance: upstream.Tolerance(c.Tolerate), ChainFile: g.chainFile(c.Name), Timeout: v.Timeout, Now: g.now}
	if v.Token.Set() {
		o.Token = v.Token.Read
	} else {
		o.AppRole = &vault.AppRole{Mount: v.AppRole.Mount, RoleID: v.AppRole.RoleID, SecretID: v.AppRole.SecretID.Read}
	}
	return vault.New(o)
}
