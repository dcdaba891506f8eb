package rpc

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"
	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/oaut"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/world"
)

// results calls methods of ICertAdminD2 that are not to succeed; each has its HRESULT in the answer, and none is a fault.
func results(t testing.TB, c icertadmind2.CertAdminD2Client) map[string]hresult.Code {
	t.Helper()
	ctx, one := comContext(t), c.CertAdminD()
	out := map[string]hresult.Code{}
	add := func(name string, fault bool, result int32) {
		if fault {
			t.Errorf("%s: a fault", name)
		}
		out[name] = hresult.Code(uint32(result))
	}
	ca := world.CAName
	a, _ := one.SetExtension(ctx, &icertadmind.SetExtensionRequest{This: msrpc.This(), Authority: ca, RequestID: 1, ExtensionName: "1.2.3", Type: 3, Value: &csra.CertTransportBlob{Length: 1, Buffer: []byte{1}}})
	add("SetExtension", a == nil, a.Return)
	b, _ := one.SetAttributes(ctx, &icertadmind.SetAttributesRequest{This: msrpc.This(), Authority: ca, RequestID: 1, Attributes: "a:b\n"})
	add("SetAttributes", b == nil, b.Return)
	d, _ := one.PublishCRL(ctx, &icertadmind.PublishCRLRequest{This: msrpc.This(), Authority: ca, FileTime: &dtyp.Filetime{}})
	add("PublishCRL", d == nil, d.Return)
	e, _ := one.ServerControl(ctx, &icertadmind.ServerControlRequest{This: msrpc.This(), Authority: ca, ControlFlags: 1})
	add("ServerControl", e == nil, e.Return)
	f, _ := one.ImportCertificate(ctx, &icertadmind.ImportCertificateRequest{This: msrpc.This(), Authority: ca, Certificate: &csra.CertTransportBlob{Length: 1, Buffer: []byte{1}}})
	add("ImportCertificate", f == nil, f.Return)
	g, _ := one.BackupPrepare(ctx, &icertadmind.BackupPrepareRequest{This: msrpc.This(), Authority: ca})
	add("BackupPrepare", g == nil, g.Return)
	h, _ := one.BackupEnd(ctx, &icertadmind.BackupEndRequest{This: msrpc.This()})
	add("BackupEnd", h == nil, h.Return)
	i, _ := c.PublishCRLs(ctx, &icertadmind2.PublishCRLsRequest{This: msrpc.This(), Authority: ca, FileTime: &dtyp.Filetime{}})
	add("PublishCRLs", i == nil, i.Return)
	j, _ := c.SetCAProperty(ctx, &icertadmind2.SetCAPropertyRequest{This: msrpc.This(), Authority: ca, PropertyID: 24, PropertyType: 1, PropertyValue: &csra.CertTransportBlob{Length: 4, Buffer: []byte{1, 0, 0, 0}}})
	add("SetCAProperty", j == nil, j.Return)
	k, _ := c.GetCASecurity(ctx, &icertadmind2.GetCASecurityRequest{This: msrpc.This(), Authority: ca})
	add("GetCASecurity", k == nil, k.Return)
	l, _ := c.SetCASecurity(ctx, &icertadmind2.SetCASecurityRequest{This: msrpc.This(), Authority: ca, SD: &csra.CertTransportBlob{Length: 1, Buffer: []byte{1}}})
	add("SetCASecurity", l == nil, l.Return)
	m, _ := c.GetAuditFilter(ctx, &icertadmind2.GetAuditFilterRequest{This: msrpc.This(), Authority: ca})
	add("GetAuditFilter", m == nil, m.Return)
	n, _ := c.SetAuditFilter(ctx, &icertadmind2.SetAuditFilterRequest{This: msrpc.This(), Authority: ca})
	add("SetAuditFilter", n == nil, n.Return)
	o, _ := c.GetOfficerRights(ctx, &icertadmind2.GetOfficerRightsRequest{This: msrpc.This(), Authority: ca})
	add("GetOfficerRights", o == nil, o.Return)
	p, _ := c.SetOfficerRights(ctx, &icertadmind2.SetOfficerRightsRequest{This: msrpc.This(), Authority: ca, SD: &csra.CertTransportBlob{}})
	add("SetOfficerRights", p == nil, p.Return)
	q, _ := c.SetConfigEntry(ctx, &icertadmind2.SetConfigEntryRequest{This: msrpc.This(), Authority: ca, Entry: "CRLPeriodUnits", Variant: &oaut.Variant{}})
	add("SetConfigEntry", q == nil, q.Return)
	r, _ := c.ImportKey(ctx, &icertadmind2.ImportKeyRequest{This: msrpc.This(), Authority: ca, RequestID: 1, Key: &csra.CertTransportBlob{Length: 1, Buffer: []byte{1}}})
	add("ImportKey", r == nil, r.Return)
	s, _ := c.DeleteRow(ctx, &icertadmind2.DeleteRowRequest{This: msrpc.This(), Authority: ca, FileTime: &dtyp.Filetime{}, RowID: 1})
	add("DeleteRow", s == nil, s.Return)
	return out
}

func TestWhatManagersDoNotDoIsRefusedInTheAnswer(t *testing.T) {
	startManaged(t, 1)
	for account, want := range map[string]hresult.Code{"carol": hresult.NotImplemented, "bob": hresult.AccessDenied} {
		for name, code := range results(t, dialAdmin(t, account, dcerpc.WithSeal())) {
			if code != want {
				t.Errorf("%s, %s: %v, want %v", account, name, code, want)
			}
		}
	}
	for name, code := range results(t, dialAdmin(t, "carol", dcerpc.WithSign())) {
		if code != hresult.AccessDenied {
			t.Errorf("below privacy, %s: %v", name, code)
		}
	}
}

// reads calls the methods that read.
func reads(t testing.TB, c icertadmind2.CertAdminD2Client) map[string]hresult.Code {
	t.Helper()
	ctx, one, ca := comContext(t), c.CertAdminD(), world.CAName
	out := map[string]hresult.Code{}
	a, _ := one.Ping(ctx, &icertadmind.PingRequest{This: msrpc.This(), Authority: ca})
	out["Ping"] = hresult.Code(uint32(a.Return))
	b, _ := c.Ping2(ctx, &icertadmind2.Ping2Request{This: msrpc.This()})
	out["Ping2"] = hresult.Code(uint32(b.Return))
	d, _ := one.GetCRL(ctx, &icertadmind.GetCRLRequest{This: msrpc.This(), Authority: ca})
	out["GetCRL"] = hresult.Code(uint32(d.Return))
	e, _ := c.GetCAProperty(ctx, &icertadmind2.GetCAPropertyRequest{This: msrpc.This(), Authority: ca, PropertyID: 6, PropertyType: 4})
	out["GetCAProperty"] = hresult.Code(uint32(e.Return))
	f, _ := c.GetCAPropertyInfo(ctx, &icertadmind2.GetCAPropertyInfoRequest{This: msrpc.This(), Authority: ca})
	out["GetCAPropertyInfo"] = hresult.Code(uint32(f.Return))
	g, _ := one.EnumViewColumn(ctx, &icertadmind.EnumViewColumnRequest{This: msrpc.This(), Authority: ca, ColumnCount: 1000})
	out["EnumViewColumn"] = hresult.Code(uint32(g.Return))
	h, _ := c.EnumViewColumnTable(ctx, &icertadmind2.EnumViewColumnTableRequest{This: msrpc.This(), Authority: ca, ColumnCount: 1000})
	out["EnumViewColumnTable"] = hresult.Code(uint32(h.Return))
	i, _ := one.GetViewDefaultColumnSet(ctx, &icertadmind.GetViewDefaultColumnSetRequest{This: msrpc.This(), Authority: ca, ColumnSetDefault: 0xfffffffe})
	out["GetViewDefaultColumnSet"] = hresult.Code(uint32(i.Return))
	j, _ := one.OpenView(ctx, &icertadmind.OpenViewRequest{This: msrpc.This(), Authority: ca, ColumnsCountOut: 1, ColumnsOut: []uint32{0x1000}, Count: 1})
	out["OpenView"] = hresult.Code(uint32(j.Return))
	k, _ := one.EnumView(ctx, &icertadmind.EnumViewRequest{This: msrpc.This(), Authority: ca, Count: 1})
	out["EnumView"] = hresult.Code(uint32(k.Return))
	l, _ := one.CloseView(ctx, &icertadmind.CloseViewRequest{This: msrpc.This(), Authority: ca})
	out["CloseView"] = hresult.Code(uint32(l.Return))
	return out
}

func TestManagersAloneRead(t *testing.T) {
	startManaged(t, 1)
	carol, bob := dialAdmin(t, "carol", dcerpc.WithSeal()), dialAdmin(t, "bob", dcerpc.WithSeal())
	for c, want := range map[icertadmind2.CertAdminD2Client]hresult.Code{carol: 0, bob: hresult.AccessDenied, dialAdmin(t, "carol", dcerpc.WithSign()): hresult.AccessDenied} {
		for name, code := range reads(t, c) {
			if code != want {
				t.Errorf("%s: %v, want %v", name, code, want)
			}
		}
	}
	for c, want := range map[icertadmind2.CertAdminD2Client][2]uint32{carol: {0x302, 1}, bob: {0x200, 0}} {
		roles, err := c.GetMyRoles(comContext(t), &icertadmind2.GetMyRolesRequest{This: msrpc.This(), Authority: world.CAName})
		if err != nil || uint32(roles.Roles) != want[0] {
			t.Errorf("%+v, %v", roles, err)
		}
		state, err := c.CertAdminD().GetServerState(comContext(t), &icertadmind.GetServerStateRequest{This: msrpc.This(), Authority: world.CAName})
		if err != nil || state.State != want[1] {
			t.Errorf("%+v, %v", state, err)
		}
	}
	table, err := carol.CertAdminD().EnumViewColumn(comContext(t), &icertadmind.EnumViewColumnRequest{This: msrpc.This(), Authority: world.CAName, ColumnCount: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range int(table.ColumnOutCount) {
		at := binary.LittleEndian.Uint32(table.ColumnInfo.Buffer[20*i+12:])
		name, _, _ := strings.Cut(text(table.ColumnInfo.Buffer[at:]), "\x00")
		names = append(names, name)
	}
	if all := strings.Join(names, " "); !strings.HasPrefix(all, "Request.RequestID Request.RawRequest Request.RawArchivedKey ") || !strings.Contains(all, " NotAfter SubjectKeyIdentifier ") {
		t.Error(all)
	}
}

func TestExtensionsAndAttributesOfARequestAreListed(t *testing.T) {
	w := startManaged(t, 1)
	row := enrollOne(t, w, dialD2(t, "alice", dcerpc.WithSeal()))
	one := dialAdmin(t, "carol", dcerpc.WithSeal()).CertAdminD()
	items := func(flags uint32, last string) (names []string) {
		t.Helper()
		out, err := one.EnumAttributesOrExtensions(comContext(t), &icertadmind.EnumAttributesOrExtensionsRequest{This: msrpc.This(), Authority: world.CAName, RowID: uint32(row.ID), Flags: flags, Last: last, Count: 100})
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(out.Fetched) {
			at := binary.LittleEndian.Uint32(out.Out.Buffer[(8+8*int(flags))*i:])
			name, _, _ := strings.Cut(text(out.Out.Buffer[at:]), "\x00")
			names = append(names, name)
		}
		return names
	}
	if got := items(0, ""); len(got) != 1 || got[0] != "CertificateTemplate" {
		t.Errorf("%q", got)
	}
	all := items(1, "")
	if !strings.Contains(strings.Join(all, " "), "2.5.29.37") || len(all) < 5 {
		t.Errorf("%q", all)
	}
	if rest := items(1, all[1]); len(rest) != len(all)-2 || rest[0] != all[2] {
		t.Errorf("after %s: %q", all[1], rest)
	}
}

func TestConfigurationEntriesAreVariants(t *testing.T) {
	startManaged(t, 1)
	carol := dialAdmin(t, "carol", dcerpc.WithSeal())
	entry := func(node, name string) *icertadmind2.GetConfigEntryResponse {
		t.Helper()
		out, err := carol.GetConfigEntry(comContext(t), &icertadmind2.GetConfigEntryRequest{This: msrpc.This(), Authority: world.CAName, NodePath: node, Entry: name})
		if out == nil || out.Variant == nil {
			t.Fatal(name, err)
		}
		return out
	}
	name, ok := entry("", "CommonName").Variant.VarUnion.Value.(*oaut.Variant_VarUnion_BSTR)
	if !ok || name.BSTR.Data != world.CAName {
		t.Errorf("%+v", name)
	}
	kind, ok := entry("", "InterfaceFlags").Variant.VarUnion.Value.(*oaut.Variant_VarUnion_Long)
	if !ok || kind.Long != 0x600 {
		t.Errorf("%+v", kind)
	}
	if out := entry("CSP", "Provider"); hresult.Code(uint32(out.Return)) != hresult.FileNotFound || out.Variant.VT != 0 {
		t.Errorf("%+v", out)
	}
}
