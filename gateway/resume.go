package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
)

// void is until when a claim counts for nothing.
func (g *Gateway) void() time.Time {
	now := g.now()
	if begin := g.started.Add(ledger.ClaimTime); g.DB.Kind == store.SQLite && begin.After(now) {
		return begin // nobody else works with the file: what an earlier process claimed is free
	}
	return now
}

// takeOver issues a request that nobody works on now; nil where somebody does.
func (g *Gateway) takeOver(ctx context.Context, ca *CA, row *ledger.Row) (*Reply, error) {
	if ok, err := g.Ledger.Claim(ctx, row.ID, g.void()); err != nil || !ok {
		return nil, err
	}
	return g.claimed(ctx, ca, row)
}

// claimed issues a request that is claimed.
func (g *Gateway) claimed(ctx context.Context, ca *CA, row *ledger.Row) (*Reply, error) {
	reply, err := g.issue(ctx, ca, row, false)
	if err != nil {
		err = errors.Join(err, g.Ledger.Release(context.WithoutCancel(ctx), row.ID, g.now().Add(jitter(firstPoll))))
	}
	return reply, err
}

// Resume finishes what a crash or an unreachable CA left behind, what a manager has approved and what waits for its turn, as far
// as it is due. A request that is under way, here or in another gateway, is left alone. answered tells whether every CA that
// was asked has answered.
func (g *Gateway) Resume(ctx context.Context) (answered bool, err error) {
	answered = true
	for _, signer := range g.signers {
		for {
			n, waiting, failed := g.resume(ctx, signer, false)
			answered, err = answered && waiting == 0, errors.Join(err, failed)
			if failed != nil || n == 0 || waiting == n {
				break
			}
		}
	}
	return answered, err
}

// resume works on due orders of one CA, as many at once as it takes; routed: only on those that may go to another one. It returns
// how many there were, and how many of them have no answer still.
func (g *Gateway) resume(ctx context.Context, signer *CA, routed bool) (n, waiting int, err error) {
	rows, err := g.Ledger.ClaimDue(ctx, signer.Name, g.void(), signer.Limits.AtOnce(), routed)
	if err != nil {
		return 0, 0, err
	}
	var all sync.WaitGroup
	var silent atomic.Int64
	for _, row := range rows {
		ca := g.CA(row.CA)
		if ca == nil {
			g.Log.WithField("request", row.ID).Errorf("cannot resume: CA %q is not configured any more", row.CA)
			continue // the claim ends by itself, and the next attempt is then
		}
		all.Go(func() {
			reply, err := g.claimed(ctx, ca, row)
			if err != nil {
				g.Log.WithError(err).WithField("request", row.ID).Warn("resumed request ended with an error")
			} else if reply.State == ledger.Waiting {
				silent.Add(1)
			}
		})
	}
	all.Wait()
	return len(rows), int(silent.Load()), nil
}

// resumeLoop works on the orders of one CA while there are any due, and looks again each second.
func (g *Gateway) resumeLoop(ctx context.Context, signer *CA) {
	for ctx.Err() == nil {
		down := signer.Limits.Down()
		n, _, err := g.resume(ctx, signer, down)
		if err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("unfinished requests cannot be resumed")
		}
		if !down {
			signer.Limits.SetBacklog(n == signer.Limits.AtOnce())
		}
		if n > 0 && err == nil && !down {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(housekeepPeriod):
		}
	}
}
