package limit_test

import (
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/limit"
)

var background = context.Background()

// ca does what a test says, and counts.
type ca struct {
	submit         func(ctx context.Context) (upstream.Result, error)
	calls, at, max atomic.Int64
}

func (c *ca) Submit(ctx context.Context, _ upstream.Order) (upstream.Result, error) {
	c.calls.Add(1)
	now := c.at.Add(1)
	defer c.at.Add(-1)
	for seen := c.max.Load(); now > seen && !c.max.CompareAndSwap(seen, now); seen = c.max.Load() {
	}
	return c.submit(ctx)
}

func (c *ca) Find(ctx context.Context, o upstream.Order, _ string) (upstream.Result, error) {
	return c.Submit(ctx, o)
}
func (c *ca) Revoke(context.Context, *big.Int, int) error        { return nil }
func (c *ca) Chain(context.Context) ([]*x509.Certificate, error) { return nil, nil }

func issued(context.Context) (upstream.Result, error) {
	return upstream.Result{State: upstream.Issued}, nil
}

func TestNoMoreCallsAtOnceThanAllowed(t *testing.T) {
	c := &ca{submit: func(ctx context.Context) (upstream.Result, error) {
		time.Sleep(5 * time.Millisecond)
		return issued(ctx)
	}}
	l := limit.New(c, limit.Options{Name: "CA", Concurrent: 3})
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			if r, err := l.Submit(background, upstream.Order{}); err != nil || r.State != upstream.Issued {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	all.Wait()
	if c.max.Load() != 3 || c.calls.Load() != 30 {
		t.Errorf("%d at once, %d calls", c.max.Load(), c.calls.Load())
	}
}

func TestWhoFindsNoTurnIsToldThatNothingWasIssued(t *testing.T) {
	hold := make(chan struct{})
	c := &ca{submit: func(ctx context.Context) (upstream.Result, error) { <-hold; return issued(ctx) }}
	l := limit.New(c, limit.Options{Name: "CA", Concurrent: 1, Queue: 20 * time.Millisecond})
	go func() { _, _ = l.Submit(background, upstream.Order{}) }()
	for c.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := l.Submit(background, upstream.Order{}); !errors.Is(err, limit.ErrBusy) || !upstream.IsNotIssued(err) {
		t.Errorf("%v", err)
	}
	close(hold)
	slow := limit.New(&ca{submit: issued}, limit.Options{Name: "CA", Rate: 1, Burst: 1, Queue: 20 * time.Millisecond})
	if _, err := slow.Submit(background, upstream.Order{}); err != nil {
		t.Error(err)
	}
	if _, err := slow.Submit(background, upstream.Order{}); !errors.Is(err, limit.ErrBusy) || !upstream.IsNotIssued(err) {
		t.Errorf("%v", err)
	}
	if n := slow.AtOnce(); n != 1 {
		t.Errorf("%d at once are worth being started", n)
	}
}

func TestTheRateIsKept(t *testing.T) {
	c := &ca{submit: issued}
	l := limit.New(c, limit.Options{Name: "CA", Rate: 200, Burst: 5})
	begin := time.Now()
	var all sync.WaitGroup
	for range 45 {
		all.Go(func() { _, _ = l.Submit(background, upstream.Order{}) })
	}
	all.Wait()
	if took := time.Since(begin); took < 150*time.Millisecond || c.calls.Load() != 45 { // 40 after the first five, one each 5 ms
		t.Errorf("%d calls in %s", c.calls.Load(), took)
	}
}

// A CA that does not answer is left alone for a while; then one order finds out whether it does.
func TestACAThatDoesNotAnswerIsLeftAlone(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	c := &ca{submit: func(ctx context.Context) (upstream.Result, error) {
		if broken.Load() {
			return upstream.Result{}, errors.New("no answer")
		}
		return issued(ctx)
	}}
	l := limit.New(c, limit.Options{Name: "CA", Failures: 3, Pause: 50 * time.Millisecond})
	for range 3 {
		if _, err := l.Submit(background, upstream.Order{}); err == nil || upstream.IsNotIssued(err) {
			t.Errorf("%v", err)
		}
	}
	if _, err := l.Submit(background, upstream.Order{}); !errors.Is(err, limit.ErrDown) || !upstream.IsNotIssued(err) || !l.Down() || c.calls.Load() != 3 {
		t.Errorf("%v, down %v, %d calls", err, l.Down(), c.calls.Load())
	}
	if err := l.Revoke(background, big.NewInt(1), 0); !errors.Is(err, limit.ErrDown) {
		t.Errorf("%v", err)
	}
	broken.Store(false)
	time.Sleep(60 * time.Millisecond)
	if _, err := l.Submit(background, upstream.Order{}); err != nil || l.Down() {
		t.Errorf("%v, down %v", err, l.Down())
	}
	// A refusal is an answer.
	c.submit = func(context.Context) (upstream.Result, error) { return upstream.Result{State: upstream.Refused}, nil }
	for range 10 {
		if _, err := l.Submit(background, upstream.Order{}); err != nil {
			t.Error(err)
		}
	}
}

// A client that goes away does not end the call that was made for it; a CA that never answers does not hold it for ever.
func TestCallsEndByThemselves(t *testing.T) {
	ended := make(chan error, 1)
	c := &ca{submit: func(ctx context.Context) (upstream.Result, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return upstream.Result{}, ctx.Err()
	}}
	l := limit.New(c, limit.Options{Name: "CA", Timeout: 30 * time.Millisecond})
	ctx, cancel := context.WithCancel(background)
	begin := time.Now()
	go cancel()
	_, err := l.Submit(ctx, upstream.Order{})
	if upstream.IsNotIssued(err) { // the client went away before its turn
		return
	}
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) < 25*time.Millisecond {
		t.Errorf("the call ended after %s: %v", time.Since(begin), err)
	}
}
