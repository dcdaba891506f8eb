//go:build cgo

package escrow_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/test/softhsm"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestExchangeKeysInATokenNeverLeaveItAndAreDestroyed(t *testing.T) {
	hsm := softhsm.New(t)
	inToken := func(o *escrow.Options) { o.ExchangeToken = hsm.URI("") }
	v := newVault(t, inToken)
	t.Cleanup(func() { _ = v.Close() })
	key, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	first := v.exchange(t)
	r := request(t, first)
	entry := v.archive(t, r)
	if _, err := v.Recover(background, entry, key, kra, "test", "lost laptop"); err != nil {
		t.Error(err)
	}
	if list := hsm.Tool(t, "--list-objects", "--type", "privkey"); strings.Count(list, "Private Key Object") != 1 || !strings.Contains(list, "never extractable") {
		t.Errorf("the token holds\n%s", list)
	}
	// What the database has of the key is its name.
	var stored []byte
	if err := v.db.SQL.QueryRow("SELECT private_key FROM exchange_keys").Scan(&stored); err != nil || !bytes.HasPrefix(stored, []byte("pkcs11:id=")) {
		t.Errorf("%q, %v", stored, err)
	}
	// Another process opens what was sent to the key, also after the key was replaced.
	again, err := escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: func() time.Time { return v.now }, ExchangeToken: hsm.URI("")})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	v.now = v.now.Add(6*24*time.Hour + time.Hour)
	if v.exchange(t).Equal(first) {
		t.Error("the key was not replaced")
	}
	if _, err := again.Open("Test CA", r, alice); err != nil {
		t.Errorf("another process: %v", err)
	}
	if err := v.DestroyExpired(background); err != nil {
		t.Fatal(err)
	}
	v.now = first.NotAfter.Add(14*24*time.Hour + time.Minute)
	for range 2 {
		if err := v.DestroyExpired(background); err != nil {
			t.Fatal(err)
		}
	}
	if list := hsm.Tool(t, "--list-objects", "--type", "privkey"); strings.Count(list, "Private Key Object") != 1 {
		t.Errorf("after the grace period the token holds\n%s", list)
	}
	wantEvents(t, v, "exchange-key-destroyed", 1)
}

// A token that goes away and comes back, as after a restart of its machine, is found again without a restart of the gateway.
func TestAnExchangeTokenThatCameBackIsUsed(t *testing.T) {
	hsm := softhsm.New(t)
	v := newVault(t, func(o *escrow.Options) { o.ExchangeToken = hsm.URI("") })
	t.Cleanup(func() { _ = v.Close() })
	_, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	r := request(t, v.exchange(t))
	away := hsm.Dir + ".away"
	if err := os.Rename(hsm.Dir, away); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open("Test CA", r, alice); err == nil {
		t.Error("opened without the token")
	}
	if err := os.Rename(away, hsm.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open("Test CA", r, alice); err != nil {
		t.Errorf("after the token came back: %v", err)
	}
}

func TestAnExchangeTokenThatIsGoneRefusesByName(t *testing.T) {
	hsm := softhsm.New(t)
	v := newVault(t, func(o *escrow.Options) { o.ExchangeToken = hsm.URI("") })
	_, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	r := request(t, v.exchange(t))
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	plain, err := escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: func() time.Time { return v.now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Open("Test CA", r, alice); err == nil || !strings.Contains(err.Error(), "escrow.exchange_token is not configured") {
		t.Errorf("without the token: %v", err)
	}
}
