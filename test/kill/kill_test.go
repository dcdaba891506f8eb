// Package kill ends the gateway with SIGKILL at random moments while clients enroll, and then reads ledger, escrow and audit
// log to see that the invariants hold. KILL_ROUNDS says how often; make test-kill does it a few hundred times.
package kill

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
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
	w, path := world.Prepare(t, "")
	v := world.NewProcess(t, w, path)
	v.Start(t)
	clients := []*world.Client{w.Client(t, "alice"), w.Client(t, "erin")}
	exchange := clients[0].Exchange(t)
	requests := newRequests(t, exchange)
	var mu sync.Mutex
	received := map[string][]byte{} // request number → certificate
	var answered atomic.Int64
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
					answered.Add(1)
					mu.Lock()
					if old := received[reply.RequestID]; old != nil && !bytes.Equal(old, reply.Certificate) {
						t.Errorf("request %s gave two certificates", reply.RequestID)
					}
					received[reply.RequestID] = reply.Certificate
					mu.Unlock()
				}
			})
		}
		time.Sleep(rand.N(120 * time.Millisecond))
		v.Kill()
		stop()
		wg.Wait()
		v.Start(t)
	}
	time.Sleep(3 * time.Second) // what the kills left open is finished in the background
	v.Kill()
	t.Logf("%d answers, %d certificates received", answered.Load(), len(received))
	check(t, path, received)
	if answered.Load() == 0 {
		t.Error("no request was ever answered: the test has tested nothing")
	}
}

// newRequests returns a source of ever new requests, archival ones and plain ones in turn. They share a few keys: making
// keys must not be what takes the time.
func newRequests(t *testing.T, exchange *x509.Certificate) func() []byte {
	var keys []*rsa.PrivateKey
	for range 8 {
		keys = append(keys, testpki.RSA(t, 2048))
	}
	var n atomic.Int64
	return func() []byte {
		i := n.Add(1)
		o := wcce.RequestOptions{Key: keys[i%8], Extensions: []wcce.Extension{
			{OID: wcce.OIDTemplateName, Value: wcce.BMPString("LabUserAuth")}, {OID: "1.3.6.1.4.1.55555.1", Value: []byte(crand.Text())}}}
		if i%2 == 0 {
			o.Exchange, o.Extensions[0].Value = exchange, wcce.BMPString("LabUserSMIME")
		}
		der, err := wcce.NewRequest(o)
		if err != nil {
			t.Error(err)
		}
		return der
	}
}

// check reads what is on disk, as an auditor would.
func check(t *testing.T, path string, received map[string][]byte) {
	t.Helper()
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	db, err := store.Open(ctx, filepath.Join(cfg.Data, "enrollgate.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := ledger.New(db, time.Now).List(ctx, "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	serials := map[string]int64{}
	for _, r := range rows {
		if r.State != ledger.Issued {
			t.Errorf("request %d is %s after the restart: %s", r.ID, r.State, r.Message)
			continue
		}
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := wcce.ParseCSR(r.CSR)
		if err != nil || !bytes.Equal(csr.RawSPKI, cert.RawSubjectPublicKeyInfo) {
			t.Errorf("request %d: the certificate has another key: %v", r.ID, err)
		}
		if other, ok := serials[r.Serial]; ok {
			t.Errorf("requests %d and %d have one serial number", r.ID, other)
		}
		serials[r.Serial] = r.ID
		if got := received[strconv.FormatInt(r.ID, 10)]; got != nil && !bytes.Equal(got, r.Certificate) {
			t.Errorf("request %d: the client has another certificate than the ledger", r.ID)
		}
		delete(received, strconv.FormatInt(r.ID, 10))
		if r.Template == "LabUserSMIME" {
			keyID := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
			var n int
			if err := db.SQL.QueryRow("SELECT count(*) FROM escrow_records WHERE request_id = ? AND key_id = ?", r.ID, keyID[:]).Scan(&n); err != nil || n != 1 {
				t.Errorf("request %d: %d archived keys, %v: a certificate without its key in escrow", r.ID, n, err)
			}
		}
	}
	for id := range received {
		t.Errorf("the client has a certificate for request %s, which the ledger does not know", id)
	}
	var orphans int
	if err := db.SQL.QueryRow("SELECT count(*) FROM escrow_records e LEFT JOIN requests r ON r.id = e.request_id WHERE r.id IS NULL").Scan(&orphans); err != nil || orphans != 0 {
		t.Errorf("%d archived keys without a request, %v", orphans, err)
	}
	lines, err := audit.Verify(ctx, db.SQL)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d requests, all issued once; %d audit lines, whole", len(rows), lines)
}
