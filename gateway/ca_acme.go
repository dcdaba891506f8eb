package gateway

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/acme"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// openACME loads what is needed to order at an ACME CA.
func (g *Gateway) openACME(c config.CA) (upstream.Issuer, error) {
	fail := func(what string, err error) (upstream.Issuer, error) {
		return nil, fmt.Errorf("CA %q: %s: %w", c.Name, what, err)
	}
	o := acme.Options{Name: c.Name, Directory: c.ACME.Directory, Contact: c.ACME.Contact, KeyID: c.ACME.KeyID, Ignore: unsaid(c, c.ACME.Ignore), ChainFile: g.chainFile(c.Name),
		Dir: filepath.Join(g.Config.Data, "acme-"+url.PathEscape(c.Name)), Timeout: c.ACME.Timeout, Wait: c.ACME.Wait, Now: g.now}
	var err error
	if o.Roots, err = local.LoadCertificates(c.ACME.Root); err != nil {
		return fail("root", err)
	}
	if o.TLS, err = trusting(c.ACME.CAFile); err != nil {
		return fail("ca_file", err)
	}
	if o.Key, err = localKey(config.LocalCA{Key: c.ACME.Key, Passphrase: c.ACME.Passphrase}); err != nil {
		return fail("key", err)
	}
	if c.ACME.MACKey.Set() {
		text, err := c.ACME.MACKey.Read()
		if err != nil {
			return fail("mac_key", err)
		}
		defer clear(text)
		if o.MACKey, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(string(text), "=")); err != nil {
			return fail("mac_key", errors.New("it is not base64url, as CAs give it"))
		}
	}
	return acme.New(o)
}
