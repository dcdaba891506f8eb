package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/limit"
)

// orderTime bounds one attempt at an order, over all CAs that are tried: after ledger.ClaimTime another gateway may take it over.
const orderTime = ledger.ClaimTime - 15*time.Second

// errQueued is why a new order is not sent: others wait for the same CA.
var errQueued = errors.New("other orders wait for the CA already")

// dispatch asks about an order that was sent, or sends one that certainly no CA has. first says that the order was recorded this
// moment, as being on its way, and nothing was done yet.
//
// The error of an order that no CA has is marked with upstream.NotIssued. signer is the CA that was asked last.
func (g *Gateway) dispatch(ctx context.Context, row *ledger.Row, order upstream.Order, first bool) (signer *CA, answer upstream.Result, err error) {
	if !first && !row.Sent.IsZero() {
		if signer = g.Signer(row.Issuer); signer == nil {
			return nil, answer, fmt.Errorf("CA %q, which has the order, is not configured any more", row.Issuer)
		}
		answer, err = signer.Issuer.Find(ctx, order, row.CAToken)
		if err != nil { // it may well be one that is marked, and that says nothing of an order sent before
			return signer, answer, errors.New(err.Error())
		}
		if answer.State != upstream.Unknown {
			return signer, answer, nil
		}
	}
	return g.send(ctx, row, order, first)
}

// send submits an order that no CA has to the first one of its route that takes it.
func (g *Gateway) send(ctx context.Context, row *ledger.Row, order upstream.Order, first bool) (signer *CA, answer upstream.Result, err error) {
	route := row.Route
	if len(route) == 0 {
		route = []string{row.Issuer}
	}
	for i, name := range route {
		ca := g.Signer(name)
		switch {
		case ca == nil:
			err = errors.Join(err, fmt.Errorf("CA %q is not configured any more", name))
			continue
		case first && ca.Limits.Backlog():
			signer, err = ca, errors.Join(err, fmt.Errorf("CA %q: %w", name, errQueued))
			continue
		}
		signer = ca
		if journaled := first && i == 0; !journaled {
			if err := g.Ledger.Send(ctx, row.ID, name); err != nil {
				return ca, answer, upstream.NotIssued(err)
			}
		}
		row.Issuer, row.Sent = name, g.now()
		var failed error
		if answer, failed = ca.Issuer.Submit(ctx, order); failed == nil || !upstream.IsNotIssued(failed) {
			return ca, answer, failed
		}
		err = errors.Join(err, failed)
	}
	return signer, answer, upstream.NotIssued(err)
}

// Waits between attempts.
const (
	firstRetry = time.Second
	maxRetry   = 5 * time.Minute
	firstPoll  = 5 * time.Second
	maxPoll    = 10 * time.Minute
)

// unanswered is how a row goes on whose order has no answer.
func (g *Gateway) unanswered(row *ledger.Row, signer *CA, cause error) ledger.Result {
	r := ledger.Result{State: ledger.Waiting, Message: messagePending, CAToken: row.CAToken, Unsent: upstream.IsNotIssued(cause), Issuer: row.Issuer}
	if len(row.Route) > 0 { // it begins anew with the first
		r.Issuer = row.Route[0]
	}
	if r.Unsent && (errors.Is(cause, limit.ErrBusy) || errors.Is(cause, limit.ErrDown) || errors.Is(cause, errQueued)) {
		// It keeps its place in the queue.
		if r.Due = row.Due; r.Due.IsZero() {
			r.Due = g.now()
		}
		if signer != nil {
			signer.Limits.SetBacklog(true)
		}
		return r
	}
	r.Trouble = cause.Error()
	r.Due = g.now().Add(jitter(min(firstRetry<<min(row.Attempts, 10), maxRetry)))
	return r
}

// pollAgain is when a CA that has taken an order is asked about it next: the longer it takes, the less often.
func (g *Gateway) pollAgain(row *ledger.Row) time.Time {
	age := time.Duration(0)
	if !row.Sent.IsZero() {
		age = g.now().Sub(row.Sent)
	}
	return g.now().Add(jitter(min(max(age/4, firstPoll), maxPoll)))
}

// jitter spreads what would come at the same moment, by a quarter.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/4+1) }
