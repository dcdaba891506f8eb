// Package kill ends the gateway with SIGKILL while clients enroll, at random moments and at every system call of an
// enrollment that has an effect, and then reads ledger, escrow, audit log and the CA's own list to see that the invariants
// hold. KILL_ROUNDS says how often; make test-kill does it a few hundred times.
package kill

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

func rounds(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("KILL_ROUNDS"))
	if err != nil {
		return 12
	}
	t.Logf("%d rounds", n)
	return n
}

func TestKilledAtAnyMomentNothingIsLostOrIssuedTwice(t *testing.T) {
	withEachCA(t, []string{"embedded", "step-ca", "EJBCA"}, func(t *testing.T, s *setup) {
		s.Start(t)
		clients := []*world.Client{s.Client(t, "alice"), s.Client(t, "erin")}
		requests := newRequests(t, clients[0].Exchange(t), s.ejbca != nil) // whose profile is for mail
		got := &received{certificates: map[string][]byte{}}
		begin := time.Now()
		for range 4 {
			if _, err := clients[0].Submit(t, requests()); err != nil {
				t.Fatal(err)
			}
		}
		window := max(120*time.Millisecond, 2*time.Since(begin)) // on a busy machine an enrollment takes longer
		for range rounds(t) {
			ctx, stop := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for worker := range 4 {
				wg.Go(func() {
					for ctx.Err() == nil {
						reply, err := clients[worker%2].Submit(t, requests())
						if err != nil || reply.Pending {
							continue // the gateway was killed meanwhile
						}
						got.add(t, reply)
					}
				})
			}
			time.Sleep(rand.N(window))
			s.kill(t)
			stop()
			wg.Wait()
			s.Start(t)
		}
		time.Sleep(3 * time.Second) // what the kills left open is finished in the background
		s.kill(t)
		t.Logf("%d answers, %d certificates received", got.answers, len(got.certificates))
		if got.answers == 0 {
			t.Error("no request was ever answered: the test has tested nothing")
		}
		s.check(t, got.certificates)
	})
}

// received is what the clients were given.
type received struct {
	mu           sync.Mutex
	answers      int
	certificates map[string][]byte // by request number
}

func (r *received) add(t *testing.T, reply *soap.TokenReply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers++
	if old := r.certificates[reply.RequestID]; old != nil && !bytes.Equal(old, reply.Certificate) {
		t.Errorf("request %s gave two certificates", reply.RequestID)
	}
	r.certificates[reply.RequestID] = reply.Certificate
}

// newRequests returns a source of ever new requests, archival ones and, unless it is for mail only, plain ones in turn. They share a few keys: making
// keys must not be what takes the time.
func newRequests(t *testing.T, exchange *x509.Certificate, mailOnly bool) func() []byte {
	var keys []*rsa.PrivateKey
	for range 8 {
		keys = append(keys, testpki.RSA(t, 2048))
	}
	var n atomic.Int64
	return func() []byte {
		i := n.Add(1)
		o := wcce.RequestOptions{Key: keys[i%8], Extensions: []wcce.Extension{
			{OID: wcce.OIDTemplateName, Value: wcce.BMPString("LabUserAuth")}, {OID: "1.3.6.1.4.1.55555.1", Value: []byte(crand.Text())}}}
		if mailOnly || i%2 == 0 {
			o.Exchange, o.Extensions[0].Value = exchange, wcce.BMPString("LabUserSMIME")
		}
		der, err := wcce.NewRequest(o)
		if err != nil {
			t.Error(err)
		}
		return der
	}
}
