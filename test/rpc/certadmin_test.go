package rpc

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"
	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// startManaged runs a gateway whose certificate managers are LAB\Certificate Managers (helpdesk) and carol; keys are managed by carol.
func startManaged(t testing.TB, required int) *world.World {
	t.Helper()
	return world.StartChanged(t, "", func(c *config.Config) {
		listen(c)
		c.CertificateManagers = []string{`LAB\Certificate Managers`, "carol"}
		c.Escrow.Policies = []config.RecoveryPolicy{{Name: "mail", Required: required, Managers: []string{"carol"}, Approvers: []string{"kra1"}}}
	})
}

// pend is a request of helpdesk's that waits for a manager.
func pend(t testing.TB, c icertrequestd2.CertRequestD2Client, name string) uint32 {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, testpki.RSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	out := request2(t, c, &icertrequestd2.Request2Request{Flags: pkcs10, Attributes: "CertificateTemplate:LabWebServer\n", Request: blob(der)})
	if out.Disposition != 5 {
		t.Fatalf("0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	return out.RequestID
}

func resubmit(t testing.TB, c icertadmind2.CertAdminD2Client, id uint32) (uint32, hresult.Code) {
	t.Helper()
	out, err := c.CertAdminD().ResubmitRequest(comContext(t), &icertadmind.ResubmitRequestRequest{This: msrpc.This(), Authority: world.CAName, RequestID: id})
	if out == nil {
		t.Fatal(err)
	}
	return out.Disposition, hresult.Code(uint32(out.Return))
}

func deny(t testing.TB, c icertadmind2.CertAdminD2Client, id uint32) hresult.Code {
	t.Helper()
	out, err := c.CertAdminD().DenyRequest(comContext(t), &icertadmind.DenyRequestRequest{This: msrpc.This(), Authority: world.CAName, RequestID: id})
	if out == nil {
		t.Fatal(err)
	}
	return hresult.Code(uint32(out.Return))
}

func TestManagersApproveAndDeny(t *testing.T) {
	w := startManaged(t, 1)
	requester := dialD2(t, "helpdesk", dcerpc.WithSeal())
	carol, helpdesk, bob := dialAdmin(t, "carol", dcerpc.WithSeal()), dialAdmin(t, "helpdesk", dcerpc.WithSeal()), dialAdmin(t, "bob", dcerpc.WithSeal())
	one, two := pend(t, requester, "one.lab.test"), pend(t, requester, "two.lab.test")

	if _, code := resubmit(t, bob, one); code != hresult.AccessDenied {
		t.Errorf("no manager approves: %v", code)
	}
	if _, code := resubmit(t, helpdesk, one); code != hresult.AccessDenied {
		t.Errorf("a manager approves his own request: %v", code)
	}
	if code := deny(t, helpdesk, one); code != hresult.AccessDenied {
		t.Errorf("a manager denies his own request: %v", code)
	}
	if row, err := w.Ledger.Get(background, int64(one)); err != nil || row.State != ledger.Pending {
		t.Fatal(row, err)
	}
	if disposition, code := resubmit(t, carol, one); disposition != 3 || code != 0 {
		t.Fatalf("0x%x, %v", disposition, code)
	}
	if disposition, code := resubmit(t, carol, one); hresult.Code(disposition) != hresult.BadRequestStatus || code != 0 {
		t.Errorf("approved twice: 0x%x, %v", disposition, code)
	}
	if _, code := resubmit(t, carol, 99999); code != hresult.PropertyEmpty {
		t.Errorf("an unknown request: %v", code)
	}
	out := request2(t, requester, &icertrequestd2.Request2Request{RequestID: one})
	if out.Disposition != 3 || testpki.Cert(t, out.EncodedCert.Buffer).Subject.CommonName != "one.lab.test" {
		t.Errorf("0x%x", out.Disposition)
	}
	if code := deny(t, bob, two); code != hresult.AccessDenied {
		t.Errorf("no manager denies: %v", code)
	}
	if code := deny(t, carol, two); code != 0 {
		t.Error(code)
	}
	if code := deny(t, carol, two); code != hresult.BadRequestStatus {
		t.Errorf("denied twice: %v", code)
	}
	if out := request2(t, requester, &icertrequestd2.Request2Request{RequestID: two}); out.Disposition != 2 || !strings.Contains(text(out.DispositionMessage.Buffer), "Denied by carol@LAB.TEST") {
		t.Errorf("0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	wantAudit(t, w, "carol@LAB.TEST", "request-approved", "request-rejected")
}

// wantAudit wants events of an actor in the audit log.
func wantAudit(t testing.TB, w *world.World, actor string, events ...string) {
	t.Helper()
	for _, event := range events {
		var n int
		if err := w.DB.SQL.QueryRowContext(background, "SELECT count(*) FROM audit WHERE actor = ? AND event = ?", actor, event).Scan(&n); err != nil || n == 0 {
			t.Errorf("%d lines %s of %s in the audit log, %v", n, event, actor, err)
		}
	}
}

func TestManagersRevoke(t *testing.T) {
	w := startManaged(t, 1)
	row := enrollOne(t, w, dialD2(t, "alice", dcerpc.WithSeal()))
	carol, bob := dialAdmin(t, "carol", dcerpc.WithSeal()), dialAdmin(t, "bob", dcerpc.WithSeal())
	valid := func() int32 {
		t.Helper()
		out, err := carol.CertAdminD().IsValidCertificate(comContext(t), &icertadmind.IsValidCertificateRequest{This: msrpc.This(), Authority: world.CAName, SerialNumber: row.Serial})
		if err != nil {
			t.Fatal(err)
		}
		return out.Disposition
	}
	revoke := func(c icertadmind2.CertAdminD2Client, serial string, reason uint32) hresult.Code {
		t.Helper()
		out, err := c.CertAdminD().RevokeCertificate(comContext(t), &icertadmind.RevokeCertificateRequest{This: msrpc.This(), Authority: world.CAName, SerialNumber: serial, Reason: reason})
		if out == nil {
			t.Fatal(err)
		}
		return hresult.Code(uint32(out.Return))
	}
	if got := valid(); got != 3 {
		t.Errorf("disposition %d", got)
	}
	for _, c := range []struct {
		client icertadmind2.CertAdminD2Client
		serial string
		reason uint32
		want   hresult.Code
	}{
		{bob, row.Serial, 1, hresult.AccessDenied}, {carol, "12", 1, hresult.InvalidArg}, {carol, "xyz", 1, hresult.InvalidArg}, {carol, row.Serial, 7, hresult.InvalidArg},
		{carol, row.Serial, 0xffffffff, hresult.NotSupported}, {carol, row.Serial, 1, 0}, {carol, row.Serial, 1, hresult.InvalidData},
	} {
		if got := revoke(c.client, c.serial, c.reason); got != c.want {
			t.Errorf("%s for %d: %v, want %v", c.serial, c.reason, got, c.want)
		}
	}
	if got := valid(); got != 2 {
		t.Errorf("disposition %d", got)
	}
	out, err := carol.CertAdminD().GetCRL(comContext(t), &icertadmind.GetCRLRequest{This: msrpc.This(), Authority: world.CAName})
	if err != nil {
		t.Fatal(err)
	}
	shown, err := testpki.OpenSSL(t, out.CRL.Buffer, "crl", "-inform", "DER", "-noout", "-text")
	if err != nil || !strings.Contains(strings.ToLower(string(shown)), "serial number: "+row.Serial) || !strings.Contains(string(shown), "Key Compromise") {
		t.Errorf("%v: %s", err, shown)
	}
	wantAudit(t, w, "carol@LAB.TEST", "certificate-revoked")
}

// listed is one row of a view: its number, and its columns by their numbers.
type listed struct {
	id      uint32
	columns map[uint32][]byte
}

// parseRows reads CERTTRANSDBRESULTROWs; total is -1 where the view does not end with them.
func parseRows(t testing.TB, b []byte) (out []listed, total int) {
	t.Helper()
	u32 := func(at uint32) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	for len(b) > 0 {
		id, n, size := u32(0), u32(4), u32(8)
		if n == ^id && len(b) == 12 {
			return out, int(id)
		}
		r := listed{id, map[uint32][]byte{}}
		for i := range n {
			at := 12 + 16*i
			offset, length := u32(at+8), u32(at+12)
			if offset%4 != 0 || offset+length > size {
				t.Fatalf("a column at %d with %d octets in a row of %d", offset, length, size)
			}
			r.columns[u32(at+4)] = b[offset : offset+length]
		}
		out, b = append(out, r), b[size:]
	}
	return out, -1
}

func openView(t testing.TB, c icertadmind2.CertAdminD2Client, first, count uint32, columns []uint32, restrictions ...*csra.CertViewRestriction) ([]listed, int) {
	t.Helper()
	for _, r := range restrictions {
		r.ValueLength = uint32(len(r.Value))
	}
	out, err := c.CertAdminD().OpenView(comContext(t), &icertadmind.OpenViewRequest{This: msrpc.This(), Authority: world.CAName, CertViewRestrictionCount: uint32(len(restrictions)),
		CertViewRestrictions: restrictions, ColumnsCountOut: uint32(len(columns)), ColumnsOut: columns, ID: first, Count: count})
	if err != nil {
		t.Fatal(err)
	}
	rows, total := parseRows(t, out.ResultRows.Buffer)
	if len(rows) != int(out.Fetched) {
		t.Errorf("%d rows, said to be %d", len(rows), out.Fetched)
	}
	return rows, total
}

func closeView(t testing.TB, c icertadmind2.CertAdminD2Client) {
	t.Helper()
	if _, err := c.CertAdminD().CloseView(comContext(t), &icertadmind.CloseViewRequest{This: msrpc.This(), Authority: world.CAName}); err != nil {
		t.Fatal(err)
	}
}

func u32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

func ids(rows []listed) (out []uint32) {
	for _, r := range rows {
		out = append(out, r.id)
	}
	return out
}

func TestManagersListRequests(t *testing.T) {
	w := startManaged(t, 1)
	alice, requester := dialD2(t, "alice", dcerpc.WithSeal()), dialD2(t, "helpdesk", dcerpc.WithSeal())
	issued := enrollOne(t, w, alice)
	revoked := enrollOne(t, w, alice)
	if err := w.Revoke(background, revoked, "test", 1); err != nil {
		t.Fatal(err)
	}
	pending := pend(t, requester, "pending.lab.test")
	denied := pend(t, requester, "denied.lab.test")
	if err := w.Ledger.Decide(background, int64(denied), "test", false, "no"); err != nil {
		t.Fatal(err)
	}
	carol := dialAdmin(t, "carol", dcerpc.WithSeal())
	columns := []uint32{0x1000, 0x1009, 0x1010, 0x101a, 0x100a, 0x1001, 0x2006, 0x2001, 0x2003, 0x2009, 0x100b}
	everything := []uint32{uint32(issued.ID), uint32(revoked.ID), pending, denied}
	rows, total := openView(t, carol, 0, 100, columns)
	closeView(t, carol)
	if total != 4 || !slices.Equal(ids(rows), everything) {
		t.Fatalf("%v of %d", ids(rows), total)
	}
	checkRows(t, rows, issued)
	first := rows[0].columns
	equal := func(column uint32, value []byte) *csra.CertViewRestriction {
		return &csra.CertViewRestriction{ColumnIndex: column, SeekOperator: 1, Value: value}
	}
	for name, c := range map[string]struct {
		restrictions []*csra.CertViewRestriction
		want         []uint32
	}{
		"pending":          {[]*csra.CertViewRestriction{equal(0x1009, u32(9))}, []uint32{pending}},
		"issued":           {[]*csra.CertViewRestriction{equal(0x1009, u32(20))}, []uint32{uint32(issued.ID)}},
		"revoked":          {[]*csra.CertViewRestriction{equal(0x1009, u32(21))}, []uint32{uint32(revoked.ID)}},
		"the failed view":  {[]*csra.CertViewRestriction{equal(0xfffffffd, nil)}, []uint32{denied}},
		"refused ones":     {[]*csra.CertViewRestriction{{ColumnIndex: 0x1009, SeekOperator: 8, Value: u32(30)}}, []uint32{denied}},
		"after a number":   {[]*csra.CertViewRestriction{{ColumnIndex: 0x1000, SeekOperator: 16, Value: u32(pending)}}, []uint32{denied}},
		"alice's":          {[]*csra.CertViewRestriction{equal(0x1010, append(utf16Text(`LAB\alice`), 0, 0))}, everything[:2]},
		"nobody's":         {[]*csra.CertViewRestriction{equal(0x1010, utf16Text("nosuch\x00"))}, nil},
		"a serial number":  {[]*csra.CertViewRestriction{equal(0x2006, utf16Text("0"+issued.Serial))}, []uint32{uint32(issued.ID)}},
		"a template":       {[]*csra.CertViewRestriction{equal(0x2003, first[0x2003])}, everything[:2]},
		"newest first":     {[]*csra.CertViewRestriction{{ColumnIndex: 0x1000, SortOrder: 2}}, []uint32{denied, pending, uint32(revoked.ID), uint32(issued.ID)}},
		"what ends":        {[]*csra.CertViewRestriction{{ColumnIndex: 0x2009, SeekOperator: 8, Value: first[0x2009]}}, everything[:2]},
		"what is past":     {[]*csra.CertViewRestriction{{ColumnIndex: 0x100b, SeekOperator: 2, Value: first[0x100b]}}, nil},
		"what is nothing":  {[]*csra.CertViewRestriction{equal(0x1009, u32(9)), equal(0x1009, u32(20))}, nil},
		"alice's, pending": {[]*csra.CertViewRestriction{equal(0x1010, utf16Text("alice")), equal(0x1009, u32(9))}, nil},
	} {
		rows, total := openView(t, carol, 0, 100, []uint32{0x1000}, c.restrictions...)
		closeView(t, carol)
		if !slices.Equal(ids(rows), c.want) || total != len(c.want) {
			t.Errorf("%s: %v of %d, want %v", name, ids(rows), total, c.want)
		}
	}
	checkPages(t, carol, everything)
}

// checkRows wants an issued, a revoked, a pending and a denied request.
func checkRows(t *testing.T, rows []listed, issued *ledger.Row) {
	t.Helper()
	for i, disposition := range []uint32{20, 21, 9, 31} {
		if !bytes.Equal(rows[i].columns[0x1009], u32(disposition)) || !bytes.Equal(rows[i].columns[0x1000], u32(rows[i].id)) || len(rows[i].columns[0x100b]) != 8 {
			t.Errorf("row %d: %x", i, rows[i].columns)
		}
	}
	first := rows[0].columns
	if text(first[0x1010]) != "alice@LAB.TEST\x00" || !bytes.Equal(first[0x2001], issued.Certificate) || !strings.HasSuffix(text(first[0x2006]), issued.Serial+"\x00") || !strings.HasPrefix(text(first[0x2003]), "1.3.6.1.4.1.311.21.8.") {
		t.Errorf("%q, %q, %q", text(first[0x1010]), text(first[0x2006]), text(first[0x2003]))
	}
	if p := rows[2].columns; text(p[0x101a]) != "pending.lab.test\x00" || len(p[0x2001]) != 0 || len(p[0x1001]) < 500 {
		t.Errorf("%q", text(p[0x101a]))
	}
}

// checkPages reads a view in pieces, from 0 and from 1.
func checkPages(t *testing.T, c icertadmind2.CertAdminD2Client, want []uint32) {
	t.Helper()
	for base := range uint32(2) {
		got, total := openView(t, c, base, 1, []uint32{0x1000})
		for total < 0 {
			out, err := c.CertAdminD().EnumView(comContext(t), &icertadmind.EnumViewRequest{This: msrpc.This(), Authority: world.CAName, ID: base + uint32(len(got)), Count: 2})
			if err != nil {
				t.Fatal(err)
			}
			var rows []listed
			rows, total = parseRows(t, out.ResultRows.Buffer)
			got = append(got, rows...)
		}
		if !slices.Equal(ids(got), want) || total != len(want) {
			t.Errorf("from %d: %v of %d", base, ids(got), total)
		}
		again, err := c.CertAdminD().EnumView(comContext(t), &icertadmind.EnumViewRequest{This: msrpc.This(), Authority: world.CAName, ID: base + 1, Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		if rows, _ := parseRows(t, again.ResultRows.Buffer); !slices.Equal(ids(rows), want[1:2]) {
			t.Errorf("the second row again: %v", ids(rows))
		}
		second, _ := c.CertAdminD().OpenView(comContext(t), &icertadmind.OpenViewRequest{This: msrpc.This(), Authority: world.CAName, ColumnsCountOut: 1, ColumnsOut: []uint32{0x1000}})
		if second == nil || hresult.Code(uint32(second.Return)) != hresult.Unexpected {
			t.Errorf("a second view: %+v", second)
		}
		closeView(t, c)
	}
	closed, _ := c.CertAdminD().EnumView(comContext(t), &icertadmind.EnumViewRequest{This: msrpc.This(), Authority: world.CAName, Count: 1})
	if closed == nil || hresult.Code(uint32(closed.Return)) != hresult.InvalidHandle {
		t.Errorf("a closed view: %+v", closed)
	}
}

func TestManagersFetchSealedKeys(t *testing.T) {
	w := startManaged(t, 1)
	der, key := world.Request(t, "LabUserSMIME", exchange(t, w))
	out := request2(t, dialD2(t, "alice", dcerpc.WithSeal()), &icertrequestd2.Request2Request{Flags: cmc | full, Request: blob(der)})
	if out.Disposition != 3 {
		t.Fatalf("0x%x", out.Disposition)
	}
	get := func(account string, id uint32) ([]byte, hresult.Code) {
		t.Helper()
		out, err := dialAdmin(t, account, dcerpc.WithSeal()).GetArchivedKey(comContext(t), &icertadmind2.GetArchivedKeyRequest{This: msrpc.This(), Authority: world.CAName, RequestID: id})
		if out == nil {
			t.Fatal(err)
		}
		return out.ArchivedKey.Buffer, hresult.Code(uint32(out.Return))
	}
	for account, want := range map[string]hresult.Code{"bob": hresult.AccessDenied, "helpdesk": hresult.AccessDenied, "kra1": hresult.AccessDenied, "alice": hresult.AccessDenied} {
		if b, code := get(account, out.RequestID); code != want || len(b) != 0 {
			t.Errorf("%s: %v", account, code)
		}
	}
	if _, code := get("carol", 99999); code != hresult.PropertyEmpty {
		t.Errorf("an unknown request: %v", code)
	}
	sealed, code := get("carol", out.RequestID)
	if code != 0 {
		t.Fatal(code)
	}
	opened := openBlob(t, w, sealed)
	if !key.PublicKey.Equal(opened) {
		t.Error("another key")
	}
	wantAudit(t, w, "carol@LAB.TEST", "key-exported")
	wantAudit(t, w, "helpdesk@LAB.TEST", "recovery-refused")
}

// openBlob does with OpenSSL what certutil -recoverkey does.
func openBlob(t testing.TB, w *world.World, sealed []byte) *rsa.PublicKey {
	t.Helper()
	ca := testpki.PEM(t, "CERTIFICATE", w.CAs[0].Identity.Certificate().Raw)
	enveloped, err := testpki.OpenSSL(t, sealed, "cms", "-verify", "-inform", "DER", "-CAfile", ca, "-partial_chain", "-binary", "-purpose", "any")
	if err != nil {
		t.Fatal(err)
	}
	content, err := testpki.OpenSSL(t, enveloped, "cms", "-decrypt", "-inform", "DER", "-inkey", testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(w.AgentKey)), "-recip", testpki.PEM(t, "CERTIFICATE", w.Agent.Raw))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.blob")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	public, err := testpki.OpenSSL(t, nil, "rsa", "-inform", "MSBLOB", "-pubout", "-in", path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(public)
	got, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return got.(*rsa.PublicKey)
}

func TestAQuorumsKeyIsNotFetchedByRPC(t *testing.T) {
	w := startManaged(t, 2)
	if _, second := testpki.Agent(t, "kra-2", w.Agent.NotBefore, w.Agent.NotAfter); w.Escrow.AddAgent(background, second, "test") != nil {
		t.Fatal("no second agent")
	}
	der, _ := world.Request(t, "LabUserSMIME", exchange(t, w))
	out := request2(t, dialD2(t, "alice", dcerpc.WithSeal()), &icertrequestd2.Request2Request{Flags: cmc | full, Request: blob(der)})
	if out.Disposition != 3 {
		t.Fatalf("0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	got, err := dialAdmin(t, "carol", dcerpc.WithSeal()).GetArchivedKey(comContext(t), &icertadmind2.GetArchivedKeyRequest{This: msrpc.This(), Authority: world.CAName, RequestID: out.RequestID})
	if got == nil || hresult.Code(uint32(got.Return)) != hresult.AccessDenied || len(got.ArchivedKey.Buffer) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
