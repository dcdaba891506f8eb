package e2e

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/test/world"
)

// onPostgres moves a gateway that world.Prepare has configured to a PostgreSQL server of its own.
func onPostgres(t *testing.T, config string) storetest.Address {
	t.Helper()
	address := storetest.ForTest(t).Empty(t)
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "database: {url: %q}\n", address); err != nil {
		t.Fatal(err)
	}
	return address
}

// The process is killed while clients enroll. Every certificate that a client has got is in the database with its key, and
// what was under way is finished after the next start.
func TestAGatewayOnPostgreSQLLosesNothingWhenItIsKilled(t *testing.T) {
	w, path := world.Prepare(t, "")
	address := onPostgres(t, path)
	p := world.NewProcess(t, w, path)
	p.Start(t)
	db := storetest.Again(t, address)
	l := ledger.New(db, time.Now)
	issued := killedWhileEnrolling(t, w, p, l)
	if _, err := db.SQL.Exec("UPDATE requests SET claimed = 0"); err != nil { // as if half a minute had passed
		t.Fatal(err)
	}
	p.Start(t)
	eventually(t, "an end of every request", func() bool {
		rows, err := l.Unfinished(background, 1)
		return err == nil && len(rows) == 0
	})
	rows, err := l.List(background, ledger.Issued, 100)
	if err != nil || len(rows) < len(issued) {
		t.Fatalf("%d requests are issued, %v; clients have %d certificates", len(rows), err, len(issued))
	}
	for _, cert := range issued {
		if !slices.ContainsFunc(rows, func(r *ledger.Row) bool { return bytes.Equal(r.Certificate, cert) }) {
			t.Error("a client has a certificate that the database does not know")
		}
	}
	var bare int
	if err := db.SQL.QueryRow("SELECT count(*) FROM requests r LEFT JOIN escrow_records e ON e.request_id = r.id WHERE e.id IS NULL").Scan(&bare); err != nil || bare != 0 {
		t.Errorf("%d requests without their key, %v", bare, err)
	}
	if out, code := p.Output(t, "audit", "verify"); code != 0 || !strings.Contains(out, "intact") {
		t.Errorf("audit verify: %d, %s", code, out)
	}
	t.Logf("%d certificates were handed out before the kill, %d requests are issued", len(issued), len(rows))
}

// killedWhileEnrolling lets many clients enroll, kills the gateway when some of them are done, and returns their certificates.
func killedWhileEnrolling(t *testing.T, w *world.World, p *world.Process, l *ledger.Ledger) (issued [][]byte) {
	t.Helper()
	alice := w.Client(t, "alice")
	exchange := alice.Exchange(t)
	var requests [][]byte
	for range 32 {
		requests = append(requests, first(world.Request(t, "LabUserSMIME", exchange)))
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, der := range requests {
		wg.Go(func() {
			reply, err := alice.Submit(t, der)
			if err != nil || reply.Pending {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			issued = append(issued, reply.Certificate)
		})
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if rows, err := l.List(background, ledger.Issued, 3); err == nil && len(rows) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no requests were answered")
		}
	}
	p.Kill()
	wg.Wait()
	return issued
}
