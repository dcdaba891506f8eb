package gateway

import (
	"context"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/escrow/verify"
	"golang.org/x/mod/sumdb/note"
)

// coveragePeriod is how often the gateway counts whose keys are archived and can be opened.
const coveragePeriod = time.Hour

// CoverageOptions are what a look at encryption certificates works with; the directory is read where directory says so.
func (g *Gateway) CoverageOptions(directory bool) coverage.Options {
	o := coverage.Options{DB: g.DB, Ledger: g.Ledger, Escrow: g.Escrow, Now: g.now()}
	if directory {
		o.Published = g.Forest.Published
	}
	return o
}

// VerifyOptions are what a verification of archived keys works with; the audit log has it under the actor's name.
func (g *Gateway) VerifyOptions(actor string) (verify.Options, error) {
	v, err := g.LogVerifier()
	return verify.Options{DB: g.DB, Escrow: g.Escrow, Log: v, Now: g.now, Actor: actor}, err
}

// LogVerifier verifies checkpoints of the audit log.
func (g *Gateway) LogVerifier() (note.Verifier, error) {
	s, err := g.AuditSigner()
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(s.VerifierKey())
}

// watchCoverage counts again and again until ctx ends.
func (g *Gateway) watchCoverage(ctx context.Context) {
	w := coverage.Watcher{Options: g.CoverageOptions(false)}
	for {
		found, err := w.Pass(ctx, g.now())
		switch {
		case err == nil:
			g.watched.Store(found)
		case ctx.Err() == nil:
			g.Log.WithError(err).Error("it cannot be counted whose keys are archived")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(coveragePeriod):
		}
	}
}
