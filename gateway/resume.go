package gateway

import (
	"context"
	"errors"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
)

// takeOver issues a request that nobody works on now; nil where somebody does.
func (g *Gateway) takeOver(ctx context.Context, ca *CA, row *ledger.Row) (*Reply, error) {
	void := g.now()
	if begin := g.started.Add(ledger.ClaimTime); g.DB.Kind == store.SQLite && begin.After(void) {
		void = begin // nobody else works with the file: what an earlier process claimed is free
	}
	if ok, err := g.Ledger.Claim(ctx, row.ID, void); err != nil || !ok {
		return nil, err
	}
	reply, err := g.issue(ctx, ca, row)
	if err != nil {
		err = errors.Join(err, g.Ledger.Release(context.WithoutCancel(ctx), row.ID))
	}
	return reply, err
}

// Resume finishes what a crash or an unreachable CA left behind, and what a manager has approved. A request that is under way,
// here or in another gateway, is left alone. A CA that gives no answer is not asked about its other requests in the same
// round; Resume then returns false.
func (g *Gateway) Resume(ctx context.Context) (answered bool, err error) {
	rows, err := g.Ledger.Unfinished(ctx, 100)
	if err != nil {
		return false, err
	}
	silent := map[string]bool{}
	for _, row := range rows {
		if silent[row.CA] {
			continue
		}
		ca := g.CA(row.CA)
		if ca == nil {
			g.Log.WithField("request", row.ID).Errorf("cannot resume: CA %q is not configured any more", row.CA)
			continue
		}
		reply, err := g.takeOver(ctx, ca, row)
		switch {
		case reply == nil && err == nil:
		case err != nil:
			g.Log.WithError(err).WithField("request", row.ID).Warn("resumed request ended with an error")
		case reply.State == ledger.Waiting:
			silent[row.CA] = true
		}
	}
	return len(silent) == 0, nil
}
