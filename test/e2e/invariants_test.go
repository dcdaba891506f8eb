package e2e

import (
	"bytes"
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/world"
)

// listening records what the CA is given.
type listening struct {
	upstream.Issuer
	orders []upstream.Order
}

func (c *listening) Submit(ctx context.Context, o upstream.Order) (upstream.Result, error) {
	c.orders = append(c.orders, o)
	return c.Issuer.Submit(ctx, o)
}

func TestTheCAGetsTheCSRAndNothingElse(t *testing.T) {
	w := world.Start(t)
	ca := &listening{Issuer: w.CAs[0].Issuer}
	w.CAs[0].Issuer = ca
	alice := w.Client(t, "alice")
	der, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if _, err := alice.Submit(t, der); err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(ca.orders) != 1 || !bytes.Equal(ca.orders[0].CSR, r.CSR.Raw) {
		t.Fatalf("%d orders", len(ca.orders))
	}
	if bytes.Contains(ca.orders[0].CSR, r.Archived.Raw[40:]) {
		t.Error("the enclosed key went to the CA")
	}
}

func TestWithoutADurableRecordTheCAHearsNothing(t *testing.T) {
	w := world.Start(t)
	ca := &listening{Issuer: w.CAs[0].Issuer}
	w.CAs[0].Issuer = ca
	alice := w.Client(t, "alice")
	der, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if _, err := w.DB.SQL.Exec("CREATE TRIGGER full BEFORE INSERT ON escrow_records BEGIN SELECT RAISE(ABORT, 'disk full'); END"); err != nil {
		t.Fatal(err)
	}
	_, err := alice.Submit(t, der)
	wantFault(t, err, hresult.ServerUnavailable, "recorded")
	rows, err := w.Ledger.List(background, "", 10)
	if err != nil || len(rows) != 0 || len(ca.orders) != 0 {
		t.Errorf("%d rows, %d orders, %v: neither may exist without the archived key", len(rows), len(ca.orders), err)
	}
}

func TestNoPrivateKeyIsLeftOnDisk(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	der, key := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if _, err := alice.Submit(t, der); err != nil {
		t.Fatal(err)
	}
	if _, err := w.DB.SQL.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	for _, n := range [][]byte{key.Primes[0].Bytes(), key.Primes[1].Bytes(), key.D.Bytes()} {
		big := n[16:80] // a part is enough, and survives other encodings
		little := slices.Clone(big)
		slices.Reverse(little)
		secrets = append(secrets, big, little)
	}
	public := key.N.Bytes()[16:80]
	sawPublic := false
	for _, dir := range []string{w.Config.Data, os.TempDir()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // other processes' files come and go
			}
			if info, err := d.Info(); err != nil || info.Size() > 64<<20 {
				return nil //nolint:nilerr // the same
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return nil //nolint:nilerr // the same
			}
			sawPublic = sawPublic || bytes.Contains(content, public)
			for _, s := range secrets {
				if bytes.Contains(content, s) {
					t.Errorf("a part of the private key is in %s", path)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !sawPublic {
		t.Error("the public key was not found either: the search does not work")
	}
}

func TestCoreDumpsAreForbidden(t *testing.T) {
	world.Start(t)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 || limit.Max != 0 {
		t.Errorf("%+v, %v", limit, err)
	}
}

func TestOnlyKerberosGetsIn(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	for name, header := range map[string]string{"nothing": "", "Basic": "Basic YWxpY2U6TGFiLVBhc3N3MHJk", "NTLM": "NTLM TlRMTVNTUAABAAAAB4IIAAAAAAAAAAAAAAAAAAAAAAA=",
		"NTLM in Negotiate": "Negotiate TlRMTVNTUAABAAAAB4IIAAAAAAAAAAAAAAAAAAAAAAA="} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(http.MethodPost, alice.CES, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			if header != "" {
				req.Header.Set("Authorization", header)
			}
			resp, err := w.HTTP().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Negotiate") {
				t.Errorf("%s, %q", resp.Status, resp.Header.Get("WWW-Authenticate"))
			}
		})
	}
}
