package gateway

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/enrollgate/enrollgate/gateway/upstream/limit"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/templates"
)

// CA is one configured certification authority.
type CA struct {
	Name     string // as the directory publishes it
	Driver   string
	Issuer   upstream.Issuer   // Limits
	Limits   *limit.CA         // before the driver
	Identity upstream.Identity // nil where the directory does not publish the CA
	Local    *local.CA         // nil for foreign CAs
	// Tolerance is in what the CA may differ from the decision.
	Tolerance upstream.Tolerance
}

// CA finds a published CA by the name that the directory has for it.
func (g *Gateway) CA(name string) *CA { return caNamed(g.CAs, name) }

// Signer finds a CA by name, published or not.
func (g *Gateway) Signer(name string) *CA { return caNamed(g.signers, name) }

// Signers are all configured CAs, published or not.
func (g *Gateway) Signers() []*CA { return g.signers }

func caNamed(list []*CA, name string) *CA {
	for _, ca := range list {
		if strings.EqualFold(ca.Name, name) {
			return ca
		}
	}
	return nil
}

// openCA makes a configured CA ready.
func (g *Gateway) openCA(ctx context.Context, c config.CA, secret []byte) (*CA, error) {
	ca := &CA{Name: c.Name, Driver: c.DriverName(), Tolerance: upstream.Tolerance(c.Tolerate)}
	issuer, err := g.openIssuer(c, ca, secret)
	if err != nil {
		return nil, err
	}
	l := c.Limits
	ca.Limits = limit.New(issuer, limit.Options{Name: c.Name, Rate: l.Rate, Burst: l.Burst, Concurrent: l.Concurrent, Timeout: l.Timeout, Queue: l.Queue, Failures: l.Failures,
		Pause: l.Pause, Seen: func(call string, took time.Duration, err error) { g.metrics.called(c.Name, call, took, err) }})
	ca.Issuer = ca.Limits
	switch {
	case ca.Local != nil:
		ca.Identity = ca.Local.Identity()
	case !c.IsPublished():
	case c.EnrollmentIdentity() == config.IdentityUpstream:
		ca.Identity, err = identity.Foreign(ctx, identity.Options{Dir: g.Config.Data, CA: c.Name, Secret: secret, Issuer: ca.Issuer, Tolerance: ca.Tolerance, Now: g.now})
	default:
		ca.Identity, err = identity.Own(g.Config.Data, c.Name, secret, g.now)
	}
	return ca, err
}

// openIssuer makes a driver ready.
func (g *Gateway) openIssuer(c config.CA, ca *CA, secret []byte) (issuer upstream.Issuer, err error) {
	switch ca.Driver {
	case "local":
		if ca.Local, err = g.openLocalCA(c, secret); err != nil {
			return nil, err
		}
		return ca.Local.Issuer(), nil
	case "step-ca":
		return g.openStepCA(c)
	case "vault":
		return g.openVault(c)
	case "est":
		return g.openEST(c)
	case "ejbca":
		return g.openEJBCA(c, secret)
	case "hvca":
		return g.openHVCA(c)
	case "cmp":
		return g.openCMP(c)
	case "adcs":
		return g.openADCS(c)
	case "scep":
		return g.openSCEP(c)
	case "acme":
		return g.openACME(c)
	case "aws-pca":
		return g.openAWSPCA(c)
	}
	return nil, fmt.Errorf("CA %q: there is no driver %q", c.Name, ca.Driver)
}

// openStepCA loads what is needed to talk to a step-ca.
func (g *Gateway) openStepCA(c config.CA) (upstream.Issuer, error) {
	roots, err := local.LoadCertificates(c.StepCA.Root)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	key, err := os.ReadFile(c.StepCA.Key)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	password, err := c.StepCA.Password.Read()
	if err != nil {
		return nil, fmt.Errorf("CA %q: password: %w", c.Name, err)
	}
	defer clear(password)
	return stepca.New(stepca.Options{Name: c.Name, URL: c.StepCA.URL, Roots: roots, Provisioner: c.StepCA.Provisioner, Key: key, Password: password,
		ChainFile: g.chainFile(c.Name), Timeout: c.StepCA.Timeout, Now: g.now})
}

// openLocalCA loads the embedded CA.
func (g *Gateway) openLocalCA(c config.CA, secret []byte) (*local.CA, error) {
	certs, err := local.LoadCertificates(c.Local.Certificate)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	above, err := local.SortChain(certs[0], certs[1:])
	if err != nil {
		return nil, fmt.Errorf("CA %q: %s: %w", c.Name, c.Local.Certificate, err)
	}
	key, err := localKey(c.Local)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	name := urlName(c.Name)
	return local.New(local.Options{Name: c.Name, Certificate: certs[0], Above: above, Key: key, Secret: secret, DB: g.DB, Now: g.now, CRLValidity: c.Local.CRLValidity,
		CRLURLs: []string{"http://" + g.Config.PublicName + "/crl/" + name + ".crl"},
		AIAURLs: []string{"http://" + g.Config.PublicName + "/aia/" + name + ".crt"}})
}

// localKey is the key of the embedded CA, from a file or a PKCS#11 token. The passphrase of a token is its PIN.
func localKey(c config.LocalCA) (crypto.Signer, error) {
	var passphrase []byte
	if c.Passphrase.Set() {
		var err error
		if passphrase, err = c.Passphrase.Read(); err != nil {
			return nil, fmt.Errorf("passphrase: %w", err)
		}
		defer clear(passphrase)
	}
	if pkcs11.IsURI(c.Key) {
		return pkcs11.OpenKey(c.Key, string(passphrase))
	}
	return local.LoadKey(c.Key, passphrase)
}

// authority is what policy has to know of a CA, and of those that sign for it. No certificate outlives the CA that issues it.
func (g *Gateway) authority(ca *CA, p plan) templates.Authority {
	out := templates.Authority{Service: ca.Name, Archival: g.Escrow.Ready()}
	for _, s := range p.shares() {
		if signer := g.Signer(s.CA); signer != nil {
			if end := signer.issuing(); end != nil && (out.NotAfter.IsZero() || end.NotAfter.Before(out.NotAfter)) {
				out.NotAfter = end.NotAfter
			}
		}
	}
	if out.NotAfter.IsZero() {
		out.NotAfter = ca.Identity.Certificate().NotAfter
	}
	return out
}

// chainTimeout bounds how long a decision waits for a foreign CA whose chain is not known yet.
const chainTimeout = 2 * time.Second

// issuing is the certificate of the CA that signs. While a foreign CA has never been reached, only the published one is
// known, and of one that is not published nothing: nil.
func (ca *CA) issuing() *x509.Certificate {
	ctx, cancel := context.WithTimeout(context.Background(), chainTimeout)
	defer cancel()
	if chain, err := ca.Issuer.Chain(ctx); err == nil && len(chain) > 0 {
		return chain[0]
	}
	if ca.Identity == nil {
		return nil
	}
	return ca.Identity.Certificate()
}

// replyChain is what travels with a response, root first: the chains of the CA that issues and of the one that is
// published. A foreign CA that cannot be asked now must not keep an issued certificate from its owner.
func (g *Gateway) replyChain(ctx context.Context, ca, signer *CA, cert *x509.Certificate) []*x509.Certificate {
	issuing, _ := signer.Issuer.Chain(ctx)
	chain := rootFirst(g.chainFor(signer.Name, issuing, cert))
	for _, c := range rootFirst(ca.Identity.Chain()) {
		if !slices.ContainsFunc(chain, c.Equal) {
			chain = append(chain, c)
		}
	}
	return chain
}

// rootFirst orders a chain as Windows replies do.
func rootFirst(chain []*x509.Certificate) []*x509.Certificate {
	out := make([]*x509.Certificate, len(chain))
	for i, c := range chain {
		out[len(chain)-1-i] = c
	}
	return out
}
