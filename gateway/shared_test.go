package gateway

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/sirupsen/logrus"
)

// Who can write to the database changes no other file of a gateway through it.
func TestAttackTheDatabaseNamesFiles(t *testing.T) {
	for _, name := range []string{"own-Corp%20CA.key", "own-Corp%20CA.pem", "audit.key", "witness.key"} {
		if !isShared(name) {
			t.Errorf("%s is not shared", name)
		}
	}
	for _, name := range []string{"secret", "../own-x.key", "own-x.key/../secret", "/etc/own-x.key", ".", "", "own-x.key\x00", "enrollgate.db"} {
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
	put("own-CA.pem")
	if err := g.takeShared(context.Background()); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "own-CA.pem")); err != nil || string(text) != "x" {
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
