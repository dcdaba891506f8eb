package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/cmp"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// openCMP loads what is needed to talk to a CA by CMP.
func (g *Gateway) openCMP(c config.CA) (upstream.Issuer, error) {
	fail := func(what string, err error) (upstream.Issuer, error) {
		return nil, fmt.Errorf("CA %q: %s: %w", c.Name, what, err)
	}
	o := cmp.Options{Name: c.Name, URL: c.CMP.URL, Reference: c.CMP.Reference, PBMAC1: c.CMP.PBMAC1, PKCS10: c.CMP.PKCS10, Ignore: unsaid(c, c.CMP.Ignore),
		ImplicitConfirm: c.CMP.ImplicitConfirm, NoRevocation: c.CMP.NoRevocation, ChainFile: g.chainFile(c.Name), Timeout: c.CMP.Timeout, Now: g.now}
	if err := g.loadCertificates(c, certificates{c.CMP.Root, &o.Roots}, certificates{c.CMP.Issuing, &o.Issuing}, certificates{c.CMP.Responders, &o.Responders}, certificates{c.CMP.Certificate, &o.Certificates}); err != nil {
		return nil, err
	}
	var err error
	if o.TLS, err = trusting(c.CMP.CAFile); err != nil {
		return fail("ca_file", err)
	}
	if c.CMP.Secret.Set() {
		if o.Secret, err = c.CMP.Secret.Read(); err != nil {
			return fail("secret", err)
		}
	} else if o.Key, err = localKey(config.LocalCA{Key: c.CMP.Key, Passphrase: c.CMP.Passphrase}); err != nil {
		return fail("key", err)
	}
	return cmp.New(o)
}

// trusting checks TLS servers with the roots in a file; "" is for the system's.
func trusting(path string) (*tls.Config, error) {
	if path == "" {
		return nil, nil
	}
	certs, err := local.LoadCertificates(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}
