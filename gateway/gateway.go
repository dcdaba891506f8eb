// Package gateway is the enrollment gateway: it joins the directory, the policy, the escrow, the ledger and the CAs, and
// serves clients.
//
// New builds it from a configuration, Run serves until its context ends. The journey of a request is Enroll, in
// enroll.go; the command line uses the same Gateway for everything it does.
package gateway

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/audit/witness"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/lint"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/publish"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/sirupsen/logrus"
)

// Directory is what the gateway asks of the directory. ldapsync.Directory is the real one.
type Directory interface {
	// Snapshot returns the last good snapshot without waiting; nil before the first.
	Snapshot() *templates.Snapshot
	// Subject returns what the directory says about an account.
	Subject(ctx context.Context, sid security.SID) (templates.Subject, error)
	// SubjectByName is the same by an account name, with the groups that a ticket would bring.
	SubjectByName(ctx context.Context, name string) (templates.Subject, error)
	// SIDsOf returns the SIDs of accounts and groups by name; a name that does not exist is an error.
	SIDsOf(ctx context.Context, names []string) ([]security.SID, error)
}

// CA is one configured certification authority.
type CA struct {
	Name   string // as the directory publishes it
	Issuer upstream.Issuer
	// Tolerance is in what the CA may differ from the decision.
	Tolerance upstream.Tolerance
	Identity  upstream.Identity
	Local     *local.CA // nil for foreign CAs
}

// Gateway is the whole service. All methods are safe for concurrent use.
type Gateway struct {
	Config    *config.Config
	Log       *logrus.Logger
	Ledger    *ledger.Ledger
	Escrow    *escrow.Escrow
	Cases     *cases.Cases
	Batches   *batch.Batches
	DB        *store.DB
	CAs       []*CA
	Directory Directory
	// Forest is the live directory, nil where Directory is something else.
	Forest *ldapsync.Forest
	// Publisher writes certificates to the directory, over the connection writer; both are nil where publishing is off.
	Publisher *publish.Publisher

	writer   *ldapsync.Forest
	now      func() time.Time
	started  time.Time
	policies policyCache
	risks    hazardCache
	holdings atomic.Pointer[[]escrow.Holding] // as counted last
	watched  atomic.Pointer[coverage.Watched] // likewise
	metrics  *metrics
	linter   *lint.Linter
	// auditSigner opens the audit log's key, once; that takes a moment, which a start need not wait for.
	auditSigner func() (*audit.Signer, error)
	witnesses   []*witness.Client
	cosigning   sync.Mutex // held while the audit log is signed and sent to the witnesses
	secret      []byte     // encrypts keys at rest
	sids        sidCache
}

// New opens the database, loads keys and prepares the connection to the directory. Nothing is served yet; Close it.
func New(ctx context.Context, cfg *config.Config, log *logrus.Logger) (g *Gateway, err error) {
	g = &Gateway{Config: cfg, Log: log, now: time.Now, started: time.Now(), metrics: newMetrics()}
	opened := g // an error sets g to nil
	defer func() {
		if err != nil && opened.DB != nil {
			opened.DB.Close()
		}
	}()
	if err := memory.ForbidCoreDumps(); err != nil {
		return nil, err
	}
	if g.linter, err = lint.New(cfg.Lint.Accept); err != nil {
		return nil, err
	}
	if g.DB, err = OpenDatabase(ctx, cfg); err != nil {
		return nil, err
	}
	g.Ledger = ledger.New(g.DB, g.now)
	secret, err := readOrCreateSecret(cfg)
	if err != nil {
		return nil, err
	}
	g.Escrow, err = escrow.New(ctx, escrow.Options{DB: g.DB, Secret: secret, ExchangeValidity: cfg.Escrow.ExchangeValidity, Grace: cfg.Escrow.Grace, ExchangeToken: cfg.Escrow.ExchangeToken,
		Policies: recoveryPolicies(cfg.Escrow), Retention: retentionRules(cfg.Escrow), Now: g.now})
	if err != nil {
		return nil, err
	}
	g.secret = secret
	if g.witnesses, err = newWitnesses(cfg.Audit.Witnesses); err != nil {
		return nil, err
	}
	g.auditSigner = sync.OnceValues(func() (*audit.Signer, error) { return loadAuditSigner(cfg.Data, cfg.PublicName, secret) })
	for _, c := range cfg.CAs {
		ca, err := g.openCA(ctx, c, secret)
		if err != nil {
			return nil, err
		}
		g.CAs = append(g.CAs, ca)
	}
	own, err := DirectoryConfig(cfg)
	if err != nil {
		return nil, err
	}
	if g.Forest, err = newForest(cfg, own, log.WithField("part", "directory")); err != nil {
		return nil, err
	}
	g.Directory = g.Forest
	if cfg.Publish.Enabled {
		if g.Publisher, g.writer, err = newPublisher(g); err != nil {
			return nil, err
		}
	}
	g.Cases, g.Batches = g.newCases()
	return g, nil
}

// OpenDatabase opens the configured database: on a PostgreSQL server, or the file in the data folder.
func OpenDatabase(ctx context.Context, cfg *config.Config) (*store.DB, error) {
	if cfg.Database.URL == "" {
		return store.Open(ctx, filepath.Join(cfg.Data, "enrollgate.db"))
	}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil { // for keys
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	var password []byte
	if cfg.Database.Password.Set() {
		var err error
		if password, err = cfg.Database.Password.Read(); err != nil {
			return nil, fmt.Errorf("database.password: %w", err)
		}
		defer clear(password)
	}
	return store.OpenPostgres(ctx, cfg.Database.URL, password)
}

// Close releases the directory and the database.
func (g *Gateway) Close() error {
	g.Forest.Close()
	if g.writer != nil {
		g.writer.Close()
	}
	return errors.Join(g.Escrow.Close(), g.DB.Close())
}

// CA finds a configured CA by the name that the directory has for it.
func (g *Gateway) CA(name string) *CA {
	for _, ca := range g.CAs {
		if strings.EqualFold(ca.Name, name) {
			return ca
		}
	}
	return nil
}

// readOrCreateSecret reads what encrypts keys at rest. Where it is the default file and missing, it is made.
func readOrCreateSecret(cfg *config.Config) ([]byte, error) {
	if cfg.Secret.Env == "" {
		if _, err := os.Stat(cfg.Secret.File); errors.Is(err, fs.ErrNotExist) {
			var random [32]byte
			rand.Read(random[:])
			text := base64.StdEncoding.EncodeToString(random[:]) + "\n"
			f, err := os.OpenFile(cfg.Secret.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("create secret: %w", err)
			}
			if err == nil {
				_, err = f.WriteString(text)
				if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
					return nil, fmt.Errorf("create secret: %w", err)
				}
			}
		}
	}
	return cfg.Secret.Read()
}

// openCA makes a configured CA ready.
func (g *Gateway) openCA(ctx context.Context, c config.CA, secret []byte) (*CA, error) {
	var ca *CA
	switch c.Driver {
	case "step-ca":
		issuer, err := g.openStepCA(c)
		if err != nil {
			return nil, err
		}
		ca = &CA{Name: c.Name, Issuer: issuer}
	case "cmp", "adcs", "scep", "acme", "aws-pca":
		issuer, err := g.openProtocol(c)
		if err != nil {
			return nil, err
		}
		ca = &CA{Name: c.Name, Issuer: issuer}
	default:
		return g.openLocalCA(c, secret)
	}
	var err error
	if c.EnrollmentIdentity() == config.IdentityUpstream {
		ca.Identity, err = identity.Foreign(ctx, identity.Options{Dir: g.Config.Data, CA: c.Name, Secret: secret, Issuer: ca.Issuer, Now: g.now})
	} else {
		ca.Identity, err = identity.Own(g.Config.Data, c.Name, secret, g.now)
	}
	return ca, err
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
		ChainFile: filepath.Join(g.Config.Data, "chain-"+url.PathEscape(c.Name)+".pem"), Timeout: c.StepCA.Timeout, Now: g.now})
}

// openLocalCA loads the embedded CA.
func (g *Gateway) openLocalCA(c config.CA, secret []byte) (*CA, error) {
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
	ca, err := local.New(local.Options{Name: c.Name, Certificate: certs[0], Above: above, Key: key, Secret: secret, DB: g.DB, Now: g.now, CRLValidity: c.Local.CRLValidity,
		CRLURLs: []string{"http://" + g.Config.PublicName + "/crl/" + name + ".crl"},
		AIAURLs: []string{"http://" + g.Config.PublicName + "/aia/" + name + ".crt"}})
	if err != nil {
		return nil, err
	}
	return &CA{Name: c.Name, Issuer: ca.Issuer(), Identity: ca.Identity(), Local: ca}, nil
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

// authority is what policy has to know of a CA. No certificate outlives the CA that issues it.
func (g *Gateway) authority(ca *CA) templates.Authority {
	return templates.Authority{Service: ca.Name, NotAfter: ca.issuing().NotAfter, Archival: g.Escrow.Ready()}
}

// chainTimeout bounds how long a decision waits for a foreign CA whose chain is not known yet.
const chainTimeout = 2 * time.Second

// issuing is the certificate of the CA that signs. While a foreign CA has never been reached, only the published one is
// known.
func (ca *CA) issuing() *x509.Certificate {
	ctx, cancel := context.WithTimeout(context.Background(), chainTimeout)
	defer cancel()
	if chain, err := ca.Issuer.Chain(ctx); err == nil && len(chain) > 0 {
		return chain[0]
	}
	return ca.Identity.Certificate()
}

// replyChain is what travels with a response, root first: the chains of the CA that issues and of the one that is
// published. A foreign CA that cannot be asked now must not keep an issued certificate from its owner.
func (ca *CA) replyChain(ctx context.Context) []*x509.Certificate {
	issuing, _ := ca.Issuer.Chain(ctx)
	chain := rootFirst(issuing)
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
