package certadmin

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"
	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/rpc/server/servertest"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// backend has some requests, and managers by name.
type backend struct {
	rows  []*Row
	last  int64 // 0: of rows
	asked []Query
	calls int
}

func (b *backend) CA(string) string { return "Corp CA" }

func (b *backend) Manager(_ context.Context, caller templates.Caller) (bool, error) {
	return strings.HasPrefix(caller.Principal, "manager"), nil
}

func (b *backend) Approve(context.Context, templates.Caller, string, int64) (uint32, error) {
	b.calls++
	return 3, nil
}

func (b *backend) Deny(context.Context, templates.Caller, string, int64) error { b.calls++; return nil }

func (b *backend) Revoke(context.Context, templates.Caller, string, string, int) error {
	b.calls++
	return nil
}

func (b *backend) ArchivedKey(context.Context, templates.Caller, string, int64) ([]byte, error) {
	b.calls++
	return []byte("sealed"), nil
}

func (b *backend) Property(_ context.Context, _ string, id, _, kind int32) ([]byte, error) {
	if kind == typeString {
		return request.EncodeText("Corp CA"), nil
	}
	return []byte{byte(id), 0, 0, 0}, nil
}

func (b *backend) PropertyInfo() (int32, []byte) { return 0, nil }

func (b *backend) Rows(_ context.Context, q Query) (out []*Row, err error) {
	b.asked = append(b.asked, q)
	rows := slices.Clone(b.rows)
	if q.Descending {
		slices.Reverse(rows)
	}
	for _, r := range rows {
		if r.ID >= q.First && (q.Last == 0 || r.ID <= q.Last) && (q.Dispositions == nil || slices.Contains(q.Dispositions, r.Disposition)) {
			out = append(out, r)
		}
	}
	out = out[min(q.Skip, len(out)):]
	return out[:min(q.Limit, len(out))], nil
}

func (b *backend) Last(context.Context) (int64, error) { return max(b.last, int64(len(b.rows))), nil }

func (b *backend) Account(_ context.Context, name string) (Account, error) {
	if name == "nobody" {
		return Account{}, hresult.New(hresult.NoSuchUser, "no %s", name)
	}
	return Account{security.SID("S-1-5-" + name)}, nil
}

func filled(n int) *backend {
	b := &backend{}
	for i := range n {
		b.rows = append(b.rows, &Row{ID: int64(i + 1), Disposition: dispositions[i%len(dispositions)], Requester: "alice@CORP.EXAMPLE", Submitted: time.Unix(1e9, 0)})
	}
	return b
}

func callOf(principal string, object byte) *server.Call {
	return &server.Call{Caller: &templates.Caller{Principal: principal, SID: security.SID("S-1-5-21-" + principal)}, Level: pdu.LevelPrivacy, Object: pdu.UUID{object},
		Interface: &server.Interface{Operations: map[uint16]string{}}}
}

func openOf(columns []uint32, restrictions ...*csra.CertViewRestriction) *icertadmind.OpenViewRequest {
	return &icertadmind.OpenViewRequest{CertViewRestrictions: restrictions, ColumnsOut: columns, Count: 10}
}

// numbers are the row numbers of an answer; total is -1 where it is not the end.
func numbers(b []byte) (out []uint32, total int) {
	for len(b) > 0 {
		id, n, size := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
		if n == ^id {
			return out, int(id)
		}
		out, b = append(out, id), b[size:]
	}
	return out, -1
}

func TestALongViewIsReadInPages(t *testing.T) {
	b := filled(1000)
	a := New(b, nil)
	call := callOf("manager", 1)
	for name, r := range map[string]*csra.CertViewRestriction{"up": {ColumnIndex: colRequestID, SortOrder: 1}, "down": {ColumnIndex: colRequestID, SortOrder: orderDescending}} {
		b.asked = nil
		in := openOf([]uint32{colRequestID, colDisposition}, r)
		in.Count = 100
		n, rows, err := a.open(t.Context(), call, in)
		if err != nil || n != 100 {
			t.Fatal(n, err)
		}
		got, total := numbers(rows)
		b.rows = append(b.rows, &Row{ID: 1001}) // it came after the view was opened
		for total < 0 {
			out, err := a.enumView(t.Context(), call, &icertadmind.EnumViewRequest{ID: uint32(len(got)), Count: 5000})
			if err != nil || out.Return != 0 {
				t.Fatal(out, err)
			}
			var more []uint32
			more, total = numbers(out.ResultRows.Buffer)
			if got = append(got, more...); len(more) > pageRows {
				t.Errorf("%s: %d rows at once", name, len(more))
			}
		}
		b.rows = b.rows[:1000]
		slices.Sort(got)
		if len(got) != 1000 || got[0] != 1 || got[999] != 1000 || total != 1000 {
			t.Errorf("%s: %d rows of %d", name, len(got), total)
		}
		for _, q := range b.asked {
			if q.Skip != 0 || q.Limit > pageRows+1 {
				t.Errorf("%s: reading on counts rows off: %+v", name, q)
			}
		}
		if err := a.views.remove(keyOf(call)); err != nil {
			t.Error(err)
		}
	}
}

func TestAViewOfNothingEndsAtOnce(t *testing.T) {
	a := New(filled(10), nil)
	_, rows, err := a.open(t.Context(), callOf("manager", 1), openOf(nil, &csra.CertViewRestriction{ColumnIndex: colRequester, SeekOperator: opEqual, Value: request.EncodeText("nobody")}))
	if got, total := numbers(rows); err != nil || len(got) != 0 || total != 0 {
		t.Errorf("%v of %d, %v", got, total, err)
	}
}

func TestNoRequestHasTheNumberOfAnother(t *testing.T) {
	b := filled(3)
	b.last = 1<<32 + 2
	b.rows = append(b.rows, &Row{ID: b.last}) // in 32 bits: 2
	_, rows, err := New(b, nil).open(t.Context(), callOf("manager", 1), openOf([]uint32{colRequestID}))
	if got, total := numbers(rows); err != nil || !slices.Equal(got, []uint32{1, 2, 3}) || total != 3 {
		t.Errorf("%v of %d, %v", got, total, err)
	}
}

func TestWhatACertificateIsLookedForBy(t *testing.T) {
	hash := strings.Repeat("ab ", 20)
	for name, c := range map[string]struct {
		list []*csra.CertViewRestriction
		want Query
	}{
		"common name": {[]*csra.CertViewRestriction{{ColumnIndex: colCommonName, SeekOperator: opEqual, Value: request.EncodeText("Alice")}}, Query{CommonName: "Alice"}},
		"UPN":         {[]*csra.CertViewRestriction{{ColumnIndex: colUPN, SeekOperator: opEqual, Value: request.EncodeText("alice@lab.test")}}, Query{UPN: "alice@lab.test"}},
		"hash":        {[]*csra.CertViewRestriction{{ColumnIndex: colHash, SeekOperator: opEqual, Value: request.EncodeText(strings.ToUpper(hash))}}, Query{Hash: strings.ReplaceAll(hash, " ", "")}},
		"key":         {[]*csra.CertViewRestriction{{ColumnIndex: colKeyID, SeekOperator: opEqual, Value: request.EncodeText("01 AB")}}, Query{SubjectKeyID: "01ab"}},
	} {
		b := filled(3)
		_, _, err := New(b, nil).open(t.Context(), callOf("manager", 1), openOf(nil, c.list...))
		if err != nil || len(b.asked) != 1 {
			t.Fatalf("%s: %v, %v", name, b.asked, err)
		}
		if got := b.asked[0]; got.CommonName != c.want.CommonName || got.UPN != c.want.UPN || got.Hash != c.want.Hash || got.SubjectKeyID != c.want.SubjectKeyID || got.Nobody {
			t.Errorf("%s: %+v", name, got)
		}
		again := *c.list[0]
		if again.Value = request.EncodeText("0" + hash[1:]); c.list[0].ColumnIndex != colHash && c.list[0].ColumnIndex != colKeyID {
			again.Value = request.EncodeText("bob")
		}
		b.asked = nil
		if _, rows, err := New(b, nil).open(t.Context(), callOf("manager", 1), openOf(nil, c.list[0], &again)); err != nil || len(b.asked) != 0 || len(rows) != 12 {
			t.Errorf("%s: two at once: %d octets, %v", name, len(rows), err)
		}
	}
}

func TestRestrictionsThatCannotBeKeptAreRefused(t *testing.T) {
	a := New(filled(1), nil)
	word := request.EncodeText("x")
	for name, list := range map[string][]*csra.CertViewRestriction{
		"an unknown column":      {{ColumnIndex: 0x9999, SeekOperator: opEqual, Value: word}},
		"a column that is shown": {{ColumnIndex: 0x101a, SeekOperator: opEqual, Value: word}},
		"a short number":         {{ColumnIndex: colRequestID, SeekOperator: opEqual, Value: []byte{1}}},
		"a short date":           {{ColumnIndex: colSubmitted, SeekOperator: opEqual, Value: []byte{1, 2, 3, 4}}},
		"half a character":       {{ColumnIndex: colTemplate, SeekOperator: opEqual, Value: []byte{1}}},
		"no text":                {{ColumnIndex: colTemplate, SeekOperator: opEqual}},
		"two texts":              {{ColumnIndex: colTemplate, SeekOperator: opEqual, Value: append(word, word...)}},
		"a text that is less":    {{ColumnIndex: colRequester, SeekOperator: opLess, Value: word}},
		"an operator":            {{ColumnIndex: colRequestID, SeekOperator: 3, Value: []byte{1, 0, 0, 0}}},
		"a date's operator":      {{ColumnIndex: colNotAfter, SeekOperator: 3, Value: make([]byte, 8)}},
		"a hash":                 {{ColumnIndex: colHash, SeekOperator: opEqual, Value: request.EncodeText(strings.Repeat("ab", 19))}},
		"no key identifier":      {{ColumnIndex: colKeyID, SeekOperator: opEqual, Value: word}},
		"a text in place of it":  {{ColumnIndex: colHash, SeekOperator: opEqual, Value: word}},
		"a name that is more":    {{ColumnIndex: colUPN, SeekOperator: opGreater, Value: word}},
		"a serial number":        {{ColumnIndex: colSerial, SeekOperator: opEqual, Value: word}},
		"an order":               {{ColumnIndex: colSubmitted, SortOrder: 1}},
		"two orders":             {{ColumnIndex: colRequestID, SortOrder: 1}, {ColumnIndex: colRequestID, SortOrder: 2}},
	} {
		if _, _, err := a.open(t.Context(), callOf("manager", 1), openOf(nil, list...)); hresult.From(err).Code != hresult.InvalidArg {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := a.open(t.Context(), callOf("manager", 1), openOf([]uint32{1})); hresult.From(err).Code != hresult.InvalidArg {
		t.Errorf("a column to show: %v", err)
	}
	if len(a.views.open) != 0 {
		t.Error("a refused view is open")
	}
}

func TestOneManagersViewsAreBounded(t *testing.T) {
	now := time.Now()
	a := New(filled(3), func() time.Time { return now })
	for i := range byte(viewsPerCaller + 5) {
		now = now.Add(time.Second)
		if _, _, err := a.open(t.Context(), callOf("manager", i), openOf(nil)); err != nil {
			t.Fatal(i, err)
		}
	}
	if _, _, err := a.open(t.Context(), callOf("manager2", 1), openOf(nil)); err != nil || len(a.views.open) != viewsPerCaller+1 {
		t.Errorf("%d views, %v", len(a.views.open), err)
	}
	if _, err := a.views.get(keyOf(callOf("manager", 4))); err == nil {
		t.Error("the oldest view is open still")
	}
	if _, err := a.views.get(keyOf(callOf("manager", 5))); err != nil {
		t.Error(err)
	}
	if _, _, err := a.open(t.Context(), callOf("manager", 5), openOf(nil)); hresult.From(err).Code != hresult.Unexpected {
		t.Errorf("two views of one object: %v", err)
	}
	now = now.Add(viewTime)
	if _, err := a.views.get(keyOf(callOf("manager2", 1))); hresult.From(err).Code != hresult.InvalidHandle {
		t.Errorf("an abandoned view: %v", err)
	}
	if _, _, err := a.open(t.Context(), callOf("manager2", 9), openOf(nil)); err != nil || len(a.views.open) != 1 {
		t.Errorf("%d views, %v", len(a.views.open), err)
	}
}

func TestDatesAreFiletimes(t *testing.T) {
	at := time.Date(2027, 3, 4, 5, 6, 7, 800e6, time.UTC)
	b := date(at)
	got, err := dateOf(&column{}, b)
	if err != nil || !got.Equal(at) || !fromFiletime(0x01d9_0000_0000_0000).After(time.Unix(0, 0)) || date(time.Time{}) != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, v := range []uint64{0, 1, 1 << 62, 1<<64 - 1} { // no ledger has such
		if got, err := dateOf(&column{}, binary.LittleEndian.AppendUint64(nil, v)); err != nil || got.Year() < 1970 {
			t.Errorf("%x: %v, %v", v, got, err)
		}
	}
}

// stubs are good requests of every operation that looks at its parameters.
func stubs(t testing.TB) map[uint16][]byte {
	this := &dcom.ORPCThis{Version: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &dcom.CID{}}
	const ca = "Corp CA"
	out := map[uint16][]byte{}
	for operation, in := range map[uint16]ndr.Marshaler{
		5:  &icertadmind.ResubmitRequestRequest{This: this, Authority: ca, RequestID: 1},
		6:  &icertadmind.DenyRequestRequest{This: this, Authority: ca, RequestID: 1},
		7:  &icertadmind.IsValidCertificateRequest{This: this, Authority: ca, SerialNumber: "12"},
		9:  &icertadmind.GetCRLRequest{This: this, Authority: ca},
		10: &icertadmind.RevokeCertificateRequest{This: this, Authority: ca, SerialNumber: "12", FileTime: &dtyp.Filetime{}},
		11: &icertadmind.EnumViewColumnRequest{This: this, Authority: ca, ColumnCount: 9},
		12: &icertadmind.GetViewDefaultColumnSetRequest{This: this, Authority: ca, ColumnSetDefault: 0xffffffff},
		13: &icertadmind.EnumAttributesOrExtensionsRequest{This: this, Authority: ca, RowID: 1, Last: "CertificateTemplate", Count: 9},
		14: &icertadmind.OpenViewRequest{This: this, Authority: ca, CertViewRestrictionCount: 1, ColumnsCountOut: 1, ColumnsOut: []uint32{colRequestID}, Count: 9,
			CertViewRestrictions: []*csra.CertViewRestriction{{ColumnIndex: colRequestID, SeekOperator: opGreater, Value: make([]byte, 4), ValueLength: 4}}},
		15: &icertadmind.EnumViewRequest{This: this, Authority: ca, Count: 9},
		16: &icertadmind.CloseViewRequest{This: this, Authority: ca},
		18: &icertadmind.PingRequest{This: this, Authority: ca},
		19: &icertadmind.GetServerStateRequest{This: this, Authority: ca},
		32: &icertadmind2.GetCAPropertyRequest{This: this, Authority: ca, PropertyID: 6, PropertyType: 4},
		34: &icertadmind2.GetCAPropertyInfoRequest{This: this, Authority: ca},
		35: &icertadmind2.EnumViewColumnTableRequest{This: this, Authority: ca, ColumnCount: 9},
		38: &icertadmind2.Ping2Request{This: this},
		39: &icertadmind2.GetArchivedKeyRequest{This: this, Authority: ca, RequestID: 1},
		44: &icertadmind2.GetConfigEntryRequest{This: this, Authority: ca, Entry: "CommonName"},
		47: &icertadmind2.GetMyRolesRequest{This: this, Authority: ca},
	} {
		b, err := ndr.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out[operation] = b
	}
	return out
}

func TestEveryOperationIsServedOrRefused(t *testing.T) {
	b := filled(3)
	for n, i := range New(b, nil).Interfaces() {
		if want := []int{28, 46}[n]; len(i.Operations) != want {
			t.Errorf("%s has %d operations, not %d", i.Name, len(i.Operations), want)
		}
		for operation := range i.Operations {
			for name, c := range map[string]*server.Call{"nobody": {Level: pdu.LevelPrivacy, Interface: &i}, "too low": {Caller: callOf("manager", 1).Caller, Level: pdu.LevelIntegrity, Interface: &i}} {
				c.Operation = operation
				out, err := i.Handle(t.Context(), c, stubs(t)[operation])
				if err != nil || hresult.Code(binary.LittleEndian.Uint32(out[len(out)-4:])) != hresult.AccessDenied {
					t.Errorf("%s, %s of %s: %x, %v", name, i.Operations[operation], i.Name, out, err)
				}
			}
		}
	}
	if b.calls != 0 {
		t.Error("the backend was called")
	}
}

func TestLengthsOf4GiBTakeNoMemory(t *testing.T) {
	i := New(filled(3), nil).Interfaces()[1]
	servertest.Lengths(t, i, stubs(t), func() *server.Call { return callOf("manager", 1) }, 16<<20)
}

func FuzzStubs(f *testing.F) {
	for operation, stub := range stubs(f) {
		f.Add(operation, stub)
	}
	i := New(filled(3), nil).Interfaces()[1]
	f.Fuzz(func(t *testing.T, operation uint16, stub []byte) {
		c := callOf("manager", 1)
		c.Operation = operation
		_, _ = i.Handle(t.Context(), c, stub)
	})
}

func TestColumnsHaveTheirNumbersInOrder(t *testing.T) {
	for i := 1; i < len(columns); i++ {
		if was, is := columns[i-1].id, columns[i].id; is <= was || is-was > 1 && is != colCertID && is != 0x1022 && is != 0x2001 {
			t.Errorf("0x%x %s follows 0x%x %s", is, columns[i].name, was, columns[i-1].name)
		}
	}
	for set, list := range columnSets {
		for _, id := range list {
			if columnOf(id) == nil {
				t.Errorf("the set 0x%x has the unknown column 0x%x", set, id)
			}
		}
	}
}
