// Package gateway is the enrollment gateway: it joins the directory, the policy, the escrow, the ledger and the CAs, and
// serves clients.
//
// New builds it from a configuration, Run serves until its context ends. The journey of a request is Enroll, in
// enroll.go; the command line uses the same Gateway for everything it does.
package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	"github.com/enrollgate/enrollgate/gateway/publish"
	"github.com/enrollgate/enrollgate/gateway/rpc/dcom"
	"github.com/enrollgate/enrollgate/gateway/store"
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

// Gateway is the whole service. All methods are safe for concurrent use.
type Gateway struct {
	Config    *config.Config
	Log       *logrus.Logger
	Ledger    *ledger.Ledger
	Escrow    *escrow.Escrow
	Cases     *cases.Cases
	Batches   *batch.Batches
	DB        *store.DB
	CAs       []*CA // that the directory publishes
	Directory Directory
	// Forest is the live directory, nil where Directory is something else.
	Forest *ldapsync.Forest
	// Publisher writes certificates to the directory, over the connection writer; both are nil where publishing is off.
	Publisher *publish.Publisher

	signers  []*CA // CAs, and those that only routes lead to
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
	chains      chainStore
	caStatus    atomic.Pointer[[]CAStatus] // as looked at last
	cosigning   sync.Mutex                 // held while the audit log is signed and sent to the witnesses
	secret      []byte                     // encrypts keys at rest
	sids        sidCache
	dcom        *dcom.Exporter // nil without RPC
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
	if err := g.loadChains(ctx); err != nil {
		return nil, err
	}
	if err := g.takeShared(ctx); err != nil {
		return nil, err
	}
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
		g.signers = append(g.signers, ca)
		if c.IsPublished() {
			g.CAs = append(g.CAs, ca)
		}
	}
	if err := g.giveShared(ctx); err != nil {
		return nil, err
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
