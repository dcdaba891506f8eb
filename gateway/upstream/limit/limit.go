// Package limit stands before a CA: it asks no more of it than it may, no longer than it has time for, and leaves it alone while
// it does not answer.
package limit

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"
)

// Options are how much a CA is asked.
type Options struct {
	Name       string
	Rate       float64       // orders a second; 0: as many as come
	Burst      int           // orders at once after a rest; at least 1
	Concurrent int           // calls at the same time; 0: 16
	Timeout    time.Duration // of one call; 0: 30 s
	Queue      time.Duration // how long an order waits for its turn before the client is told to come back; 0: 5 s
	Failures   int           // in a row, after which the CA is left alone; 0: 5
	Pause      time.Duration // for how long; 0: 30 s
	// Seen is told of each call's end; nil for nobody.
	Seen func(call string, took time.Duration, err error)
}

// The reasons why a CA is not asked. They mean that nothing was issued.
var (
	ErrBusy = errors.New("it has as many orders as it takes")
	ErrDown = errors.New("it does not answer, and is left alone for a while")
)

// CA is an upstream.Issuer before another.
type CA struct {
	issuer  upstream.Issuer
	o       Options
	slots   chan struct{}
	rate    *rate.Limiter
	breaker *gobreaker.TwoStepCircuitBreaker[any]
	backlog atomic.Bool
}

// New puts limits before an issuer.
func New(issuer upstream.Issuer, o Options) *CA {
	orDefault := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	orDefault(&o.Timeout, 30*time.Second)
	orDefault(&o.Queue, 5*time.Second)
	orDefault(&o.Pause, 30*time.Second)
	if o.Concurrent == 0 {
		o.Concurrent = 16
	}
	if o.Failures == 0 {
		o.Failures = 5
	}
	limit := rate.Limit(o.Rate)
	if o.Rate == 0 {
		limit = rate.Inf
	}
	return &CA{issuer: issuer, o: o, slots: make(chan struct{}, o.Concurrent), rate: rate.NewLimiter(limit, max(o.Burst, 1)),
		breaker: gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{Name: o.Name, Timeout: o.Pause,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(o.Failures) }})}
}

// Issuer is the CA behind the limits.
func (c *CA) Issuer() upstream.Issuer { return c.issuer }

// AtOnce is how many orders are worth being started at the same time: each gets its turn before its time in the queue is over.
func (c *CA) AtOnce() int {
	if c.o.Rate == 0 {
		return c.o.Concurrent
	}
	return max(1, min(c.o.Concurrent, int(c.o.Rate*c.o.Queue.Seconds()/2)))
}

// Traits implements upstream.Described.
func (c *CA) Traits() upstream.Traits { return upstream.TraitsOf(c.issuer) }

// Check implements upstream.Checker.
func (c *CA) Check(order upstream.Order) error { return upstream.Check(c.issuer, order) }

// Down tells whether the CA is left alone now.
func (c *CA) Down() bool { return c.breaker.State() == gobreaker.StateOpen }

// SetBacklog says whether orders wait for this CA already: then a new one is not sent before them.
func (c *CA) SetBacklog(waiting bool) { c.backlog.Store(waiting) }

// Backlog tells whether orders wait for this CA.
func (c *CA) Backlog() bool { return c.backlog.Load() }

// Submit implements upstream.Issuer. Where the CA's limits leave no room in time, or it is left alone, the error is marked with
// upstream.NotIssued.
func (c *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := c.turn(ctx); err != nil {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	return call(ctx, c, "submit", true, func(ctx context.Context) (upstream.Result, error) { return c.issuer.Submit(ctx, order) })
}

// Find implements upstream.Issuer.
func (c *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	if err := c.turn(ctx); err != nil {
		return upstream.Result{}, err
	}
	return call(ctx, c, "find", true, func(ctx context.Context) (upstream.Result, error) { return c.issuer.Find(ctx, order, token) })
}

// Revoke implements upstream.Issuer. It has a slot of its own: what must not be trusted any more does not queue.
func (c *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	_, err := call(ctx, c, "revoke", false, func(ctx context.Context) (struct{}, error) { return struct{}{}, c.issuer.Revoke(ctx, serial, reason) })
	return err
}

// Chain implements upstream.Issuer. Drivers keep the chain: it is not counted.
func (c *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return c.issuer.Chain(ctx) }

// turn waits until the rate lets an order through, unless that takes longer than the queue is.
func (c *CA) turn(ctx context.Context) error {
	if c.Down() { // no turn is used up for a CA that is not asked
		return fmt.Errorf("CA %q: %w", c.o.Name, ErrDown)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Queue)
	defer cancel()
	if err := c.rate.Wait(ctx); err != nil {
		return fmt.Errorf("CA %q: %w", c.o.Name, ErrBusy)
	}
	return nil
}

// call makes one call, in a slot where slot says so.
func call[T any](ctx context.Context, c *CA, name string, slot bool, do func(context.Context) (T, error)) (out T, err error) {
	if slot {
		wait := time.NewTimer(c.o.Queue)
		defer wait.Stop()
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-wait.C:
			return out, upstream.NotIssued(fmt.Errorf("CA %q: %w", c.o.Name, ErrBusy))
		case <-ctx.Done():
			return out, upstream.NotIssued(ctx.Err())
		}
	}
	done, err := c.breaker.Allow()
	if err != nil {
		return out, upstream.NotIssued(fmt.Errorf("CA %q: %w", c.o.Name, ErrDown))
	}
	begin := time.Now()
	// The call is not the client's alone: a client that goes away does not leave behind an order whose answer nobody has read.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.o.Timeout)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		var stop context.CancelFunc
		limited, stop = context.WithDeadline(limited, deadline)
		defer stop()
	}
	out, err = do(limited)
	done(err)
	if c.o.Seen != nil {
		c.o.Seen(name, time.Since(begin), err)
	}
	return out, err
}
