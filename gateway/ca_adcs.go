package gateway

import (
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/adcs"
)

// openADCS loads what is needed to enroll at an AD CS.
func (g *Gateway) openADCS(c config.CA) (upstream.Issuer, error) {
	o := adcs.Options{Name: c.Name, Server: c.ADCS.Server, Port: c.ADCS.Port, Authority: c.ADCS.Authority, Template: c.ADCS.Template, Ignore: unsaid(c, c.ADCS.Ignore),
		Principal: c.ADCS.Principal, Keytab: c.ADCS.Keytab, Krb5Conf: g.Config.Directory.Krb5Conf, ServicePrincipal: c.ADCS.ServicePrincipal,
		ChainFile: g.chainFile(c.Name), Timeout: c.ADCS.Timeout, Now: g.now}
	if err := g.loadCertificates(c, certificates{c.ADCS.Root, &o.Roots}, certificates{c.ADCS.Issuing, &o.Issuing}); err != nil {
		return nil, err
	}
	return adcs.New(o)
}
