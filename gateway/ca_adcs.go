package gateway

import (
	"crypto/x509"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/adcs"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// openADCS loads what is needed to enroll at an AD CS.
func (g *Gateway) openADCS(c config.CA) (upstream.Issuer, error) {
	o := adcs.Options{Name: c.Name, Server: c.ADCS.Server, Port: c.ADCS.Port, Authority: c.ADCS.Authority, Template: c.ADCS.Template, Ignore: c.ADCS.Ignore,
		Principal: c.ADCS.Principal, Keytab: c.ADCS.Keytab, Krb5Conf: g.Config.Directory.Krb5Conf, ServicePrincipal: c.ADCS.ServicePrincipal,
		ChainFile: g.chainFile(c.Name), Timeout: c.ADCS.Timeout, Now: g.now}
	for path, to := range map[string]*[]*x509.Certificate{c.ADCS.Root: &o.Roots, c.ADCS.Issuing: &o.Issuing} {
		if path == "" {
			continue
		}
		var err error
		if *to, err = local.LoadCertificates(path); err != nil {
			return nil, fmt.Errorf("CA %q: certificates: %w", c.Name, err)
		}
	}
	return adcs.New(o)
}
