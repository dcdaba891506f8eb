package e2e

import (
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/test/world"
)

// A gateway that is asked to end answers what it has begun: each request that the ledger knows was answered.
func TestAStopFinishesWhatWasBegun(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	alice := w.Client(t, "alice")
	exchange := alice.Exchange(t)
	var requests [][]byte
	for range 24 {
		requests = append(requests, first(world.Request(t, "LabUserSMIME", exchange)))
	}
	var mu sync.Mutex
	var once sync.Once
	answered, busy := map[string]bool{}, make(chan struct{})
	var wg sync.WaitGroup
	for _, der := range requests {
		wg.Go(func() {
			reply, err := alice.Submit(t, der)
			if err != nil {
				return // it came too late
			}
			once.Do(func() { close(busy) })
			mu.Lock()
			defer mu.Unlock()
			answered[reply.RequestID] = true
		})
	}
	select {
	case <-busy: // the first is answered, others are under way
	case <-time.After(10 * time.Second):
		t.Fatal("no request was answered")
	}
	begin := time.Now()
	state, log := p.Stop(t)
	took := time.Since(begin)
	wg.Wait()
	if state.ExitCode() != 0 {
		t.Errorf("it ended with %s:\n%s", state, log)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(background, filepath.Join(cfg.Data, "enrollgate.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := ledger.New(db, time.Now).List(background, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.State != ledger.Issued || !answered[strconv.FormatInt(r.ID, 10)] {
			t.Errorf("request %d is %s, answered: %v", r.ID, r.State, answered[strconv.FormatInt(r.ID, 10)])
		}
	}
	t.Logf("stopped in %s: %d requests were answered, %d came too late", took.Round(time.Millisecond), len(rows), len(requests)-len(rows))
}
