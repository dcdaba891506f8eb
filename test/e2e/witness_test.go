package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/test/world"
)

// Two instances: the second watches over the first one's audit log. The first one's database is put back to an earlier state,
// with everything in it intact in itself.
func TestAttackRolledBackDatabaseIsFoundByASecondInstance(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	address := world.Env("LAB_GW_IP") + ":8443"
	in := func(c *config.Config) { c.Data, c.Secret = data, config.Secret{File: filepath.Join(data, "secret")} }
	var logKey string
	t.Run("before", func(t *testing.T) {
		w := world.StartChanged(t, "", in)
		s, err := w.AuditSigner()
		if err != nil {
			t.Fatal(err)
		}
		logKey = s.VerifierKey()
	})
	second := world.StartChanged(t, "", func(c *config.Config) {
		c.Listen.HTTPS, c.Listen.HTTP = address, "off"
		c.Audit.WitnessFor = []string{logKey}
	})
	own, err := second.Witness()
	if err != nil {
		t.Fatal(err)
	}
	watched := func(c *config.Config) {
		in(c)
		c.Audit.Witnesses = []config.WitnessAt{{URL: "https://" + world.Env("LAB_GATEWAY") + ":8443/witness", Key: own.Key(), CAFile: world.Env("LAB_CA_PEM")}}
	}
	backup := filepath.Join(t.TempDir(), "backup")
	t.Run("witnessed", func(t *testing.T) {
		first := world.StartChanged(t, "", watched)
		if _, err := first.Cosign(background); err != nil {
			t.Fatal(err)
		}
		if _, err := first.DB.SQL.Exec("VACUUM INTO ?", backup); err != nil {
			t.Fatal(err)
		}
		archived(t, first)
		if _, err := first.Cosign(background); err != nil {
			t.Fatal(err)
		}
		seen, err := first.Witnessed(background)
		if err != nil || len(seen) != 1 || seen[0].Lines < 3 || seen[0].Time == nil {
			t.Errorf("%+v, %v", seen, err)
		}
	})
	t.Run("put back", func(t *testing.T) {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.RemoveAll(filepath.Join(data, "enrollgate.db"+suffix)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(backup, filepath.Join(data, "enrollgate.db")); err != nil {
			t.Fatal(err)
		}
		_, path := world.Prepare(t, "")
		cfg, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		watched(cfg)
		log, err := gateway.NewLogger(cfg.Log)
		if err != nil {
			t.Fatal(err)
		}
		first, err := gateway.New(background, cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		_, err = first.Cosign(background)
		if err == nil || !strings.Contains(err.Error(), "put back to an earlier state") {
			t.Errorf("the witness says %v", err)
		}
	})
	states, err := own.States(background)
	if err != nil || len(states) != 1 {
		t.Errorf("%+v, %v", states, err)
	}
}
