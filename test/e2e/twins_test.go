package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// twins are two gateways on one database.
type twins struct {
	a, b    *world.Process
	address storetest.Address
	w       *world.World
}

const portB = ":8443"

func startTwins(t *testing.T) *twins {
	t.Helper()
	w, path := world.Prepare(t, "")
	address := onPostgres(t, path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(w.Dir(), "b")
	ip := world.Env("LAB_GW_IP")
	changed := strings.NewReplacer("data: "+filepath.Join(w.Dir(), "data"), "data: "+other, `"`+ip+`:443"`, `"`+ip+portB+`"`, `"`+ip+`:80"`, `"off"`).Replace(string(text))
	config := filepath.Join(w.Dir(), "b.yaml")
	if err := os.WriteFile(config, []byte(changed+"secret: {file: "+filepath.Join(w.Dir(), "data", "secret")+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tw := &twins{a: world.NewProcess(t, w, path), address: address, w: w}
	tw.b = tw.a.Twin(t, config, portB)
	tw.a.Start(t)
	tw.b.Start(t)
	return tw
}

// client is an account's client of one of the two.
func (tw *twins) client(t *testing.T, account, port string) *world.Client {
	t.Helper()
	c := tw.w.Client(t, account)
	host := world.Env("LAB_GATEWAY")
	c.CES, c.CEP = strings.Replace(c.CES, host, host+port, 1), strings.Replace(c.CEP, host, host+port, 1)
	return c
}

func TestTwoGatewaysOnOneDatabaseServeEachOthersRequests(t *testing.T) {
	tw := startTwins(t)
	a, b := tw.client(t, "alice", ""), tw.client(t, "alice", portB)
	if !bytes.Equal(a.Exchange(t).Raw, b.Exchange(t).Raw) {
		t.Error("they have two exchange certificates")
	}
	// The key is enclosed for what one has published, and the request goes to the other.
	der, _ := world.Request(t, "LabUserSMIME", a.Exchange(t))
	if reply, err := b.Submit(t, der); err != nil || reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	// It waits at one, is approved on the machine of the other, and picked up there.
	csr, err := testpki.OpenSSL(t, nil, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", t.TempDir()+"/k", "-subj", "/CN=www.lab.test",
		"-addext", "subjectAltName=DNS:www.lab.test", "-addext", "1.3.6.1.4.1.311.20.2=ASN1:BMPSTRING:LabWebServer", "-outform", "DER")
	if err != nil {
		t.Fatal(err)
	}
	a, b = tw.client(t, "helpdesk", ""), tw.client(t, "helpdesk", portB)
	reply, err := a.Submit(t, csr)
	if err != nil || !reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	if _, code := tw.b.Output(t, "requests", "approve", reply.RequestID); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	id := reply.RequestID
	eventually(t, "the certificate", func() bool {
		reply, err = b.Poll(t, id)
		return err == nil && !reply.Pending
	})
	// One audit log, of which both sign the same.
	for _, p := range []*world.Process{tw.a, tw.b} {
		if out, code := p.Output(t, "audit", "verify"); code != 0 || !strings.Contains(out, "intact") {
			t.Errorf("audit verify: %d, %s", code, out)
		}
	}
}

// One of two is killed while clients enroll at both. The other goes on, and takes over what was under way.
func TestOneOfTwoGatewaysIsKilledUnderLoad(t *testing.T) {
	tw := startTwins(t)
	exchange := tw.client(t, "alice", "").Exchange(t)
	clients := []*world.Client{tw.client(t, "alice", ""), tw.client(t, "alice", portB)}
	db := storetest.Again(t, tw.address)
	l := ledger.New(db, time.Now)
	var mu sync.Mutex
	got := map[string][]byte{}
	var wg sync.WaitGroup
	atB := 0
	for i := range 48 {
		der := first(world.Request(t, "LabUserSMIME", exchange))
		wg.Go(func() {
			reply, err := clients[i%2].Submit(t, der)
			if err != nil { // Windows goes to the next address of the policy
				reply, err = clients[1].Submit(t, der)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			if i%2 == 1 {
				atB++
			}
			if !reply.Pending {
				if got[reply.RequestID] != nil {
					t.Errorf("request %s was answered twice", reply.RequestID)
				}
				got[reply.RequestID] = reply.Certificate
			}
		})
	}
	eventually(t, "some certificates", func() bool {
		rows, err := l.List(background, ledger.Issued, 5)
		return err == nil && len(rows) == 5
	})
	tw.a.Kill()
	wg.Wait()
	if _, err := db.SQL.Exec("UPDATE requests SET claimed = 0"); err != nil { // as if a minute had passed
		t.Fatal(err)
	}
	eventually(t, "an end of every request", func() bool {
		rows, err := l.Unfinished(background, 1)
		return err == nil && len(rows) == 0
	})
	rows, err := l.List(background, "", 200)
	if err != nil {
		t.Fatal(err)
	}
	fingerprints := map[string]bool{}
	for _, r := range rows {
		if r.State != ledger.Issued || fingerprints[string(r.Fingerprint)] {
			t.Errorf("request %d is %s; its octets came before: %v", r.ID, r.State, fingerprints[string(r.Fingerprint)])
		}
		fingerprints[string(r.Fingerprint)] = true
	}
	var bare int
	if err := db.SQL.QueryRow("SELECT count(*) FROM requests r LEFT JOIN escrow_records e ON e.request_id = r.id WHERE e.id IS NULL").Scan(&bare); err != nil || bare != 0 {
		t.Errorf("%d requests without their key, %v", bare, err)
	}
	if len(got) == 0 || atB != 24 || len(rows) != 48 {
		t.Errorf("%d certificates received, %d requests at the one that lives, %d rows", len(got), atB, len(rows))
	}
	if out, code := tw.b.Output(t, "audit", "verify"); code != 0 || !strings.Contains(out, "intact") {
		t.Errorf("audit verify: %d, %s", code, out)
	}
}
