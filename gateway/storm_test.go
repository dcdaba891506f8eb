package gateway

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/limit"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// orders notes when orders come.
type orders struct {
	*fakeCA
	mu  sync.Mutex
	ids []string
}

func (o *orders) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	o.mu.Lock()
	o.ids = append(o.ids, order.ID)
	o.mu.Unlock()
	return upstream.Result{State: upstream.Refused, Reason: "this one signs nothing"}, nil
}

// Far more requests at once than the CA takes: clients are told to come back, nothing is lost, the queue drains in the order in which
// they came, and what waits is in the database, not in memory.
func TestAStormDrainsInOrder(t *testing.T) {
	const requests, rate = 10_000, 4000
	db := testpki.DB(t)
	ca := &orders{fakeCA: &fakeCA{real: testpki.CA(t, testpki.DB(t), time.Now)}}
	d := newDesk(t, db, time.Now, ca.fakeCA)
	d.signers[0].Limits = limit.New(ca, limit.Options{Name: "CA0", Rate: rate, Burst: 10, Concurrent: 16, Queue: 50 * time.Millisecond})
	d.signers[0].Issuer = d.signers[0].Limits
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var loop sync.WaitGroup
	loop.Go(func() { d.resumeLoop(ctx, d.signers[0]) })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	row := *d.row(t, 0, []string{"CA0"})
	next := make(chan int)
	var clients sync.WaitGroup
	for range 64 {
		clients.Go(func() {
			for n := range next {
				r := row
				r.Fingerprint = []byte(fmt.Sprint("storm ", n))
				if err := d.begin(ctx, &r, nil); err != nil {
					t.Error(err)
					return
				}
				if reply, err := d.issue(ctx, d.CAs[0], &r, true); err == nil && reply.State != ledger.Waiting {
					t.Errorf("request %d is %s", r.ID, reply.State)
				}
			}
		})
	}
	for n := range requests {
		next <- n
	}
	close(next)
	clients.Wait()
	waiting, err := d.Ledger.Queues(ctx)
	if err != nil || len(waiting) == 1 && waiting[0].Waiting < requests/10 {
		t.Logf("few waited: %+v, %v", waiting, err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	begin := time.Now()
	for len(waiting) > 0 && time.Since(begin) < time.Minute {
		time.Sleep(50 * time.Millisecond)
		if waiting, err = d.Ledger.Queues(ctx); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	loop.Wait()
	seen, last, late := map[string]bool{}, 0, 0
	for _, id := range ca.ids {
		var n int
		if _, err := fmt.Sscanf(id, "%d-", &n); err != nil || seen[id] {
			t.Fatalf("order %q came twice, or has no number: %v", id, err)
		}
		if seen[id] = true; n < last-1000 {
			late++
		}
		last = max(last, n)
	}
	if len(seen) != requests || late > 0 {
		t.Errorf("the CA had %d orders, %d of them after a thousand younger ones", len(seen), late)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d MiB more in memory while they wait", grown>>20)
	}
}
