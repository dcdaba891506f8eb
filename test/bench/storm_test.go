package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/world"
)

// BenchmarkStorm lets many enroll at once at a CA that takes so many orders a second, and compares the time until all have their
// certificates with that which the CA's limit makes of it. Clients are told to come back meanwhile.
func BenchmarkStorm(b *testing.B) {
	const requests = 2000
	fmt.Printf("\n%-10s %10s %14s %14s %8s %16s %14s\n", "CA takes", "requests", "by limit, s", "drained in, s", "ratio", "at once, median", "told pending")
	for _, rate := range []float64{25, 250} {
		n := min(requests, int(rate)*20)
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			w := world.StartChanged(b, "", func(c *config.Config) { c.CAs[0].Limits = config.Limits{Rate: rate, Burst: 1} })
			subject, err := w.Forest.SubjectByName(background, "alice")
			if err != nil {
				b.Fatal(err)
			}
			caller := templates.Caller{Principal: "alice@LAB.TEST", SID: subject.SID, Groups: subject.Groups}
			messages := make([][]byte, n)
			for i := range messages {
				key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
				if err != nil {
					b.Fatal(err)
				}
				if messages[i], err = wcce.NewRequest(wcce.RequestOptions{Key: key, Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("LabV4")}}}); err != nil {
					b.Fatal(err)
				}
			}
			took, pending := make([]time.Duration, n), 0
			var mu sync.Mutex
			begin := time.Now()
			var clients sync.WaitGroup
			enroll := func(i int) {
				at := time.Now()
				reply, err := w.Enroll(background, gateway.Submission{Caller: caller, CA: world.CAName, Transport: "bench", Request: messages[i]})
				took[i] = time.Since(at)
				if err != nil {
					b.Error(err)
				} else if reply.State != ledger.Issued {
					mu.Lock()
					pending++
					mu.Unlock()
				}
			}
			for i := range n {
				clients.Go(func() { enroll(i) })
			}
			clients.Wait()
			for {
				waiting, err := w.Ledger.Queues(background)
				if err != nil {
					b.Fatal(err)
				}
				if len(waiting) == 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			drained, limit := time.Since(begin).Seconds(), float64(n-1)/rate
			slices.Sort(took)
			fmt.Printf("%7.0f/s  %10d %14.2f %14.2f %8.2f %13.0f ms %14d\n", rate, n, limit, drained, drained/limit, ms(took[n/2]), pending)
			b.ReportMetric(drained/limit, "ratio")
		})
	}
}
