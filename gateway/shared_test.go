package gateway

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/sirupsen/logrus"
)

// Two gateways on one database show the same small CA to clients, and sign one audit log with one key.
func TestGatewaysOnOneDatabaseHaveKeysInCommon(t *testing.T) {
	db := storetest.Again(t, storetest.ForTest(t).New(t))
	ctx, secret := context.Background(), []byte("a secret that both have")
	open := func() (*Gateway, upstream.Identity, *audit.Signer) {
		t.Helper()
		g := &Gateway{DB: db, Config: &config.Config{Data: t.TempDir()}, Log: logrus.New()}
		g.auditSigner = func() (*audit.Signer, error) { return loadAuditSigner(g.Config.Data, "enroll.corp.example", secret) }
		if err := g.takeShared(ctx); err != nil {
			t.Fatal(err)
		}
		own, err := identity.Own(g.Config.Data, "Corp CA", secret, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.giveShared(ctx); err != nil {
			t.Fatal(err)
		}
		signer, err := g.AuditSigner()
		if err != nil {
			t.Fatal(err)
		}
		return g, own, signer
	}
	_, first, log := open()
	_, second, same := open()
	if !first.Certificate().Equal(second.Certificate()) || log.VerifierKey() != same.VerifierKey() {
		t.Error("they have keys of their own")
	}
}

// Who can write to the database changes no other file of a gateway through it.
func TestAttackTheDatabaseNamesFiles(t *testing.T) {
	for _, name := range []string{"identity-Corp%20CA.key", "identity-Corp%20CA.pem", "audit.key", "witness.key"} {
		if !isShared(name) {
			t.Errorf("%s is not shared", name)
		}
	}
	for _, name := range []string{"secret", "../identity-x.key", "identity-x.key/../secret", "/etc/identity-x.key", ".", "", "identity-x.key\x00", "enrollgate.db"} {
		if isShared(name) {
			t.Errorf("%q is shared", name)
		}
	}
	db := storetest.Again(t, storetest.ForTest(t).New(t))
	if db.Kind != store.Postgres {
		t.Fatal("not PostgreSQL")
	}
	dir := t.TempDir()
	g := &Gateway{DB: db, Config: &config.Config{Data: dir}, Log: logrus.New()}
	put := func(name string) {
		t.Helper()
		if err := db.Write(context.Background(), func(tx *sql.Tx) error {
			_, err := tx.Exec("INSERT INTO shared_files (name, content) VALUES (?, ?)", name, []byte("x"))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	put("identity-CA.pem")
	if err := g.takeShared(context.Background()); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "identity-CA.pem")); err != nil || string(text) != "x" {
		t.Errorf("%q, %v", text, err)
	}
	put("secret")
	if err := g.takeShared(context.Background()); err == nil {
		t.Error("the database puts a secret into the data folder")
	}
	if _, err := os.Stat(filepath.Join(dir, "secret")); err == nil {
		t.Error("it is there")
	}
}
