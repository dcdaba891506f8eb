package gateway

import (
	"crypto/x509"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/scep"
)

// openSCEP loads what is needed to talk to a CA by SCEP.
func (g *Gateway) openSCEP(c config.CA) (upstream.Issuer, error) {
	fail := func(what string, err error) (upstream.Issuer, error) {
		return nil, fmt.Errorf("CA %q: %s: %w", c.Name, what, err)
	}
	o := scep.Options{Name: c.Name, URL: c.SCEP.URL, Ignore: unsaid(c, c.SCEP.Ignore), ChainFile: g.chainFile(c.Name), Timeout: c.SCEP.Timeout, Now: g.now}
	var own []*x509.Certificate
	if err := g.loadCertificates(c, certificates{c.SCEP.Root, &o.Roots}, certificates{c.SCEP.Issuing, &o.Issuing}, certificates{c.SCEP.Responders, &o.Responders}, certificates{c.SCEP.Certificate, &own}); err != nil {
		return nil, err
	}
	if len(own) > 0 {
		o.Certificate = own[0]
	}
	var err error
	if o.TLS, err = trusting(c.SCEP.CAFile); err != nil {
		return fail("ca_file", err)
	}
	key, err := localKey(config.LocalCA{Key: c.SCEP.Key, Passphrase: c.SCEP.Passphrase})
	if err != nil {
		return fail("key", err)
	}
	var ok bool
	if o.Key, ok = key.(scep.Key); !ok {
		return fail("key", fmt.Errorf("%T decrypts nothing; SCEP needs an RSA key that may", key))
	}
	return scep.New(o)
}
