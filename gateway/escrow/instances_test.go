package escrow_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// instance is what a gateway does with its database.
type instance struct {
	db     *store.DB
	ledger *ledger.Ledger
	escrow *escrow.Escrow
}

// Several gateways share a database: nothing is lost, nothing is done twice, and the audit log is one chain.
func TestGatewaysShareADatabase(t *testing.T) {
	const instances, each = 3, 40
	address := storetest.New(t)
	var all []*instance
	for range instances {
		i := &instance{db: storetest.Again(t, address)}
		i.ledger = ledger.New(i.db, time.Now)
		var err error
		if i.escrow, err = escrow.New(background, escrow.Options{DB: i.db, Secret: []byte("test secret"), Now: time.Now}); err != nil {
			t.Fatal(err)
		}
		all = append(all, i)
	}
	ca := testpki.CA(t, all[0].db, time.Now)
	var wg sync.WaitGroup
	for n, i := range all {
		wg.Go(func() {
			if _, err := i.escrow.Exchange(background, "Test CA", ca.Identity()); err != nil {
				t.Error(err)
			}
		})
		for k := range each {
			wg.Go(func() {
				if err := i.enroll(fmt.Sprintf("user%d-%d@LAB.TEST", n, k)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for query, want := range map[string]int{"SELECT count(*) FROM exchange_keys": 1, "SELECT count(*) FROM requests": instances * each,
		"SELECT count(DISTINCT request_id) FROM escrow_records": instances * each, "SELECT count(*) FROM audit WHERE event = 'key-archived'": instances * each} {
		var got int
		if err := all[0].db.SQL.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", query, got, err, want)
		}
	}
	claimEverything(t, all, instances*each)
	if lines, err := audit.Verify(background, all[0].db.SQL); err != nil || lines < instances*each {
		t.Errorf("%d lines, %v", lines, err)
	}
}

// enroll records a request together with a sealed key.
func (i *instance) enroll(owner string) error {
	record := &escrow.Record{Source: "enrollment", Owner: owner, Algorithm: "RSA", Bits: 2048, KeyID: []byte(rand.Text()), Policy: "default", Required: 1,
		Format: escrow.FormatCMS, Recipients: []string{"x"}, Sealed: []byte(rand.Text())}
	row := &ledger.Row{State: ledger.Open, Caller: owner, CallerSID: "S-1-5-21-1", Template: "T", CA: "C", Transport: "test", Fingerprint: []byte(rand.Text())}
	_, err := i.ledger.Begin(context.Background(), row, func(tx *sql.Tx, id int64) error {
		_, err := record.Insert(tx, time.Now(), id, "gateway", owner, "CN="+owner)
		return err
	})
	return err
}

// claimEverything lets every gateway try to take every request once its claim is over: each is taken by one.
func claimEverything(t *testing.T, all []*instance, want int) {
	t.Helper()
	rows, err := all[0].ledger.Unfinished(background, 1000)
	if err != nil || len(rows) != want {
		t.Fatalf("%d unfinished requests, %v, want %d", len(rows), err, want)
	}
	if ok, err := all[1].ledger.Claim(background, rows[0].ID, time.Now()); ok || err != nil {
		t.Errorf("a request that was just recorded was taken from who works on it: %v", err)
	}
	time.Sleep(2 * time.Millisecond) // the clock of claims has milliseconds
	over := time.Now().Add(ledger.ClaimTime - time.Millisecond)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for _, i := range all {
		wg.Go(func() {
			for _, r := range rows {
				ok, err := i.ledger.Claim(background, r.ID, over)
				if err != nil {
					t.Error(err)
				}
				if ok {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != int64(want) {
		t.Errorf("%d requests were taken, by several gateways together, want %d", n, want)
	}
	if err := all[0].ledger.Release(background, rows[0].ID, time.Time{}); err != nil {
		t.Error(err)
	}
	if ok, err := all[2].ledger.Claim(background, rows[0].ID, time.Now()); !ok || err != nil {
		t.Errorf("a request that was given back could not be taken: %v", err)
	}
}

// meanwhile is an identity that has something else done while it issues.
type meanwhile struct {
	upstream.Identity
	do func()
}

func (m *meanwhile) IssueExchange(order upstream.Order) (*x509.Certificate, error) {
	m.do()
	return m.Identity.IssueExchange(order)
}

// TestAnImportedKeyIsUsedByAllInstances although one of them makes a key of its own while another imports: the imported key has the lower number then.
func TestAnImportedKeyIsUsedByAllInstances(t *testing.T) {
	v := newVault(t)
	other, err := escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: func() time.Time { return v.now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0)); v.AddAgent(background, kra, "test") != nil {
		t.Fatal("no agent")
	}
	key, cert := testpki.Agent(t, "imported", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	own := &meanwhile{Identity: v.ca.Identity(), do: func() {
		if err := other.ImportExchange(background, "Test CA", cert, key, v.now.Add(time.Hour), "test"); err != nil {
			t.Error(err)
		}
	}}
	if _, err := v.Exchange(background, "Test CA", own); err != nil {
		t.Fatal(err)
	}
	_, second := testpki.Agent(t, "second", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.ImportExchange(background, "Test CA", second, testpki.RSA(t, 2048), v.now.Add(time.Hour), "test"); err == nil {
		t.Error("a key of another certificate")
	}
	thirdKey, third := testpki.Agent(t, "third", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.ImportExchange(background, "Test CA", third, thirdKey, v.now.Add(time.Hour), "test"); err != nil { // reads what there is
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{cert, third} {
		if _, err := v.Open("Test CA", request(t, c), alice); err != nil {
			t.Errorf("%s: %v", c.Subject, err)
		}
	}
	if cert := v.exchange(t); cert.Equal(third) {
		t.Error("an imported certificate is given out")
	}
}
