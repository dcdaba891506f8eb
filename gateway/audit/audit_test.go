package audit_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestChangedAndRemovedLinesShow(t *testing.T) {
	for name, c := range map[string]struct{ tamper, want string }{
		"a changed detail":  {"UPDATE audit SET detail = '{\"n\":9}' WHERE seq = 2", "line 2"},
		"a changed actor":   {"UPDATE audit SET actor = 'nobody' WHERE seq = 3", "line 3"},
		"a changed time":    {"UPDATE audit SET time = time + 1 WHERE seq = 1", "line 1"},
		"a removed line":    {"DELETE FROM audit WHERE seq = 2", "line 2"},
		"a rewritten chain": {"UPDATE audit SET previous = hash WHERE seq = 2", "line 2"},
		"nothing":           {"SELECT 1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			db := testpki.DB(t)
			_, v := newSigner(t)
			for i := range 3 {
				if err := db.Write(context.Background(), func(tx *sql.Tx) error {
					return audit.Append(tx, time.Now(), "test", audit.KeyArchived, map[string]int{"n": i})
				}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := db.SQL.Exec("DELETE FROM audit"); err == nil {
				t.Error("the database lets lines be deleted")
			}
			// Somebody with the file in hand is not stopped by triggers.
			storetest.Unlock(t, db)
			if _, err := db.SQL.Exec(c.tamper); err != nil {
				t.Fatal(err)
			}
			n, err := audit.VerifySigned(context.Background(), db.SQL, v)
			if c.want == "" && (err != nil || n != 3) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%d lines, %v, want %q", n, err, c.want)
			}
		})
	}
}
