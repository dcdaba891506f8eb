// Package settle tells when a lost order cannot be under way to a CA any more. It is for drivers whose CA can be searched, but does not
// recognize an order that it gets twice: that nothing is found means something only then.
package settle

import (
	"sync"
	"time"
)

// Orders remembers since when orders are lost. It is safe for concurrent use.
type Orders struct {
	after time.Duration
	now   func() time.Time

	mu    sync.Mutex
	since map[string]time.Time
}

// Default is long enough for every CA that gives a request up after some time, as all do behind a load balancer.
const Default = 5 * time.Minute

// New makes it. after is how long a request can be under way; 0 for Default.
func New(after time.Duration, now func() time.Time) *Orders {
	if after == 0 {
		after = Default
	}
	return &Orders{after: after, now: now, since: map[string]time.Time{}}
}

// maxOrders bounds the memory; a forgotten order waits anew.
const maxOrders = 10_000

// Lost notes that an order may be under way from now on.
func (o *Orders) Lost(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.since) >= maxOrders {
		clear(o.since)
	}
	o.since[id] = o.now()
}

// Wait is for how long from now an order may still be under way; 0 or less: no more. The first time that an order is asked for that was
// never Lost here, because another instance has submitted it or this one has been started since, it counts from then.
func (o *Orders) Wait(id string) time.Duration {
	o.mu.Lock()
	since, ok := o.since[id]
	o.mu.Unlock()
	if !ok {
		o.Lost(id)
		return o.after
	}
	return o.after - o.now().Sub(since)
}

// Done forgets an order.
func (o *Orders) Done(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.since, id)
}
