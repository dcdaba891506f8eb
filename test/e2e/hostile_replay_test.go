package e2e

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/enrollgate/enrollgate/test/world"
)

func TestACapturedTicketIsAcceptedOnceAcrossConnectionsAndEndpoints(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	token := func() []byte {
		b, err := alice.Kerberos.Token("HTTP/" + world.Env("LAB_GATEWAY"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, second := range map[string]string{"the same endpoint": alice.CEP, "another endpoint": alice.CES} {
		captured := token()
		if status, body := postWith(t, w, alice.CEP, captured); status == http.StatusUnauthorized {
			t.Fatalf("the first use: %d %s", status, body)
		}
		if status, body := postWith(t, w, second, captured); status != http.StatusUnauthorized {
			t.Errorf("again on %s: %d %s", name, status, body)
		}
	}
	captured := token()
	var accepted atomic.Int64
	var wg sync.WaitGroup
	for range 16 { // each has a connection of its own: postWith makes a new client
		wg.Go(func() {
			if status, _ := postWith(t, w, alice.CES, captured); status != http.StatusUnauthorized {
				accepted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := accepted.Load(); n != 1 {
		t.Errorf("%d of 16 uses of one token at once were accepted", n)
	}
}
