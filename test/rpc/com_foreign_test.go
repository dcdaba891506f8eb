package rpc

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/oiweiwei/go-msrpc/dcerpc"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestImpacketCallsTheInterfacesOfEnrollment(t *testing.T) {
	python(t, "impacket")
	w := startManaged(t, 1)
	path := filepath.Join(t.TempDir(), "request.der")
	if err := os.WriteFile(path, csr(t), 0o600); err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Properties      map[string][2]any
		Disposition, ID int64
		Certificate     string
		Released        *int64
	}
	out := run(t, tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY")), "/usr/bin/python3", "com.py", "request", world.Env("LAB_GATEWAY"), "alice", world.CAName, "LabUserAuth", path)
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if answer.Released == nil || *answer.Released != 0 {
		t.Errorf("RemRelease: %s", out)
	}
	if answer.Disposition != 3 || len(testpki.Cert(t, unhex(t, answer.Certificate)).Raw) == 0 {
		t.Errorf("disposition 0x%x", answer.Disposition)
	}
	property := func(id string) []byte {
		p := answer.Properties[id]
		if p[0] != 0.0 {
			t.Errorf("property %s: %v", id, p)
		}
		return unhex(t, p[1].(string))
	}
	if text(property("6")) != world.CAName+"\x00" || len(property("10")) != 4 || !testpki.Cert(t, property("12")).Equal(w.CAs[0].Identity.Certificate()) ||
		!testpki.Cert(t, property("15")).Equal(exchange(t, w)) || !strings.Contains(text(property("29")), "LabUserAuth\n1.3.6.1.4.1.311.") {
		t.Errorf("%+v", answer.Properties)
	}
}

func TestImpacketApprovesForAManager(t *testing.T) {
	python(t, "impacket")
	w := startManaged(t, 1)
	id := pend(t, dialD2(t, "helpdesk", dcerpc.WithSeal()), "www.lab.test")
	var answer struct {
		View struct {
			Return, Fetched int64
			Rows            string
		}
		Disposition, Return int64
	}
	approve := func(account string) {
		t.Helper()
		out := run(t, tickets(t, account, "host/"+world.Env("LAB_GATEWAY")), "/usr/bin/python3", "com.py", "admin", world.Env("LAB_GATEWAY"), account, world.CAName, strconv.Itoa(int(id)))
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if approve("bob"); hresult.Code(answer.Return) != hresult.AccessDenied || hresult.Code(answer.View.Return) != hresult.AccessDenied {
		t.Errorf("%+v", answer)
	}
	approve("carol")
	rows, total := parseRows(t, unhex(t, answer.View.Rows))
	if answer.View.Fetched != 1 || len(rows) != 1 || total != 1 || rows[0].id != id || text(rows[0].columns[0x1010]) != "helpdesk@LAB.TEST\x00" || answer.Disposition != 3 || answer.Return != 0 {
		t.Errorf("%+v: %v", answer, rows)
	}
	if row, err := w.Ledger.Get(background, int64(id)); err != nil || row.State != ledger.Issued || row.DecidedBy != "carol@LAB.TEST" {
		t.Errorf("%+v, %v", row, err)
	}
}
