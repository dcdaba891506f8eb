// Package gateway is the enrollment gateway: it joins the directory, the policy, the escrow, the ledger and the CAs, and
// serves clients.
//
// New builds it from a configuration, Run serves until its context ends. The journey of a request is Enroll, in
// enroll.go; the command line uses the same Gateway for everything it does.
package gateway

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
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
}

// CA is one configured certification authority.
type CA struct {
	Name     string // as the directory publishes it
	Issuer   upstream.Issuer
	Identity upstream.Identity
	Local    *local.CA // nil for foreign CAs
}

// Gateway is the whole service. All methods are safe for concurrent use.
type Gateway struct {
	Config    *config.Config
	Log       *logrus.Logger
	Ledger    *ledger.Ledger
	Escrow    *escrow.Escrow
	DB        *store.DB
	CAs       []*CA
	Directory Directory
	// Forest is the live directory, nil where Directory is something else.
	Forest *ldapsync.Directory

	now      func() time.Time
	policies policyCache
	metrics  *metrics
}

// New opens the database, loads keys and prepares the connection to the directory. Nothing is served yet; Close it.
func New(ctx context.Context, cfg *config.Config, log *logrus.Logger) (g *Gateway, err error) {
	g = &Gateway{Config: cfg, Log: log, now: time.Now, metrics: newMetrics()}
	defer func() {
		if err != nil && g.DB != nil {
			g.DB.Close()
		}
	}()
	if err := forbidCoreDumps(); err != nil {
		return nil, err
	}
	if g.DB, err = store.Open(ctx, filepath.Join(cfg.Data, "enrollgate.db")); err != nil {
		return nil, err
	}
	g.Ledger = ledger.New(g.DB, g.now)
	secret, err := readOrCreateSecret(cfg)
	if err != nil {
		return nil, err
	}
	g.Escrow, err = escrow.New(ctx, escrow.Options{DB: g.DB, Secret: secret, ExchangeValidity: cfg.Escrow.ExchangeValidity, Grace: cfg.Escrow.Grace, Now: g.now})
	if err != nil {
		return nil, err
	}
	for _, c := range cfg.CAs {
		ca, err := g.openLocalCA(c)
		if err != nil {
			return nil, err
		}
		g.CAs = append(g.CAs, ca)
	}
	if g.Forest, err = newForest(cfg, log); err != nil {
		return nil, err
	}
	g.Directory = g.Forest
	return g, nil
}

// Close releases the directory and the database.
func (g *Gateway) Close() error {
	g.Forest.Close()
	return g.DB.Close()
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

// openLocalCA loads the embedded CA.
func (g *Gateway) openLocalCA(c config.CA) (*CA, error) {
	certs, err := local.LoadCertificates(c.Local.Certificate)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	above, err := local.SortChain(certs[0], certs[1:])
	if err != nil {
		return nil, fmt.Errorf("CA %q: %s: %w", c.Name, c.Local.Certificate, err)
	}
	passphrase, err := c.Local.Passphrase.Read()
	if err != nil {
		return nil, fmt.Errorf("CA %q: passphrase: %w", c.Name, err)
	}
	defer clear(passphrase)
	key, err := local.LoadKey(c.Local.Key, passphrase)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.Name, err)
	}
	name := urlName(c.Name)
	ca, err := local.New(local.Options{Name: c.Name, Certificate: certs[0], Above: above, Key: key, DB: g.DB, Now: g.now, CRLValidity: c.Local.CRLValidity,
		CRLURLs: []string{"http://" + g.Config.PublicName + "/crl/" + name + ".crl"},
		AIAURLs: []string{"http://" + g.Config.PublicName + "/aia/" + name + ".crt"}})
	if err != nil {
		return nil, err
	}
	return &CA{Name: c.Name, Issuer: ca.Issuer(), Identity: ca.Identity(), Local: ca}, nil
}

// authority is what policy has to know of a CA.
func (g *Gateway) authority(ca *CA) templates.Authority {
	return templates.Authority{Service: ca.Name, NotAfter: ca.Identity.Certificate().NotAfter, Archival: g.Escrow.Ready()}
}

// rootFirst orders a chain as Windows replies do.
func rootFirst(chain []*x509.Certificate) []*x509.Certificate {
	out := make([]*x509.Certificate, len(chain))
	for i, c := range chain {
		out[len(chain)-1-i] = c
	}
	return out
}
