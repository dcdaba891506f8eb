package gateway

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/sirupsen/logrus"
)

// newForest prepares the connections to the directory, and to that of other domains. What is not said of those is as for the
// own one.
func newForest(cfg *config.Config, own ldapsync.Config, log logrus.FieldLogger) (*ldapsync.Forest, error) {
	var others []ldapsync.Config
	for i, d := range cfg.Directory.Domains {
		c := own
		c.Servers, c.Domain, c.Site, c.StateFile, c.StartTLS = d.Servers, d.Domain, "", "", d.StartTLS
		c.CAFile = cmp.Or(d.CAFile, c.CAFile)
		if d.Bind.Method != "" {
			var err error
			if c.Auth, err = bindAuth(fmt.Sprintf("directory.domains[%d].bind", i), d.Bind, cfg.Directory.Krb5Conf); err != nil {
				return nil, err
			}
		}
		others = append(others, c)
	}
	return ldapsync.NewForest(own, others, log)
}

// DirectoryConfig is how the gateway connects to the directory.
func DirectoryConfig(cfg *config.Config) (c ldapsync.Config, err error) {
	d := cfg.Directory
	c = ldapsync.Config{
		Servers: d.Servers, Domain: d.Domain, Site: d.Site, StartTLS: d.StartTLS, CAFile: d.CAFile,
		Timeout: d.Timeout, Poll: d.Poll, FullRead: d.FullRead, FailBack: d.FailBack,
		StateFile: filepath.Join(cfg.Data, "directory.json"),
	}
	c.Auth, err = bindAuth("directory.bind", d.Bind, d.Krb5Conf)
	return c, err
}

// ChainOf returns the certificates above what a CA issues; nil for a CA that is not configured.
func (g *Gateway) ChainOf(name string) []*x509.Certificate {
	ca := g.Signer(name)
	if ca == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), chainTimeout)
	defer cancel()
	if chain, err := ca.Issuer.Chain(ctx); err == nil {
		return chain
	}
	if ca.Identity == nil {
		return nil
	}
	return ca.Identity.Chain()
}

// Advice lists what in a valid configuration could be better.
func (g *Gateway) Advice() []string {
	advice := []string{}
	note := func(when bool, format string, args ...any) {
		if when {
			advice = append(advice, fmt.Sprintf(format, args...))
		}
	}
	c := g.Config
	note(c.Kerberos.AllowRC4, "kerberos.allow_rc4: RC4 tickets can be cracked offline; set msDS-SupportedEncryptionTypes to 24 on the service account instead")
	note(c.Directory.MaxAge == 0 || c.Directory.MaxAge > 7*24*time.Hour, "directory.max_age: decisions may rest on a directory that was read more than a week ago")
	note(len(c.Directory.Servers) == 1, "directory.servers: with one domain controller enrollment stops when it does")
	note(c.Listen.HTTP == "off", "listen.http: clients cannot fetch the embedded CA's revocation list")
	for _, ca := range g.CAs {
		end := ca.issuing().NotAfter
		note(time.Until(end) < 365*24*time.Hour, "CA %q: its certificate ends on %s, and certificates end with it", ca.Name, end.Format(time.DateOnly))
	}
	err := g.Escrow.Ready()
	note(err != nil, "escrow: templates that archive keys are refused: %v", err)
	for _, p := range g.Escrow.Policies() {
		err := g.Escrow.ReadyFor(&p)
		note(err != nil, "escrow: keys under the policy %q are not archived: %v", p.Name, err)
	}
	return append(advice, g.riskAdvice()...)
}
