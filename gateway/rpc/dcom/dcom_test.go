package dcom

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremotescmactivator "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremotescmactivator/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

var (
	classD = pdu.MustUUID("d99e6e74-fc88-11d0-b498-00a0c90312f3")
	iidD   = pdu.MustUUID("d99e6e70-fc88-11d0-b498-00a0c90312f3")
	iidD2  = pdu.MustUUID("5422fd3a-d4b8-4cef-a12e-e87d4ca22e90")
)

const (
	alice security.SID = "S-1-5-21-1-2-3-1001"
	bob   security.SID = "S-1-5-21-1-2-3-1002"
)

// lab is an exporter with a clock that tests move.
type lab struct {
	*Exporter
	t       testing.TB
	now     time.Time
	handled int
	faces   map[string]*server.Interface
}

func newLab(t testing.TB, change func(*Options)) *lab {
	t.Helper()
	l := &lab{t: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), faces: map[string]*server.Interface{}}
	face := func(name string, iid pdu.UUID) server.Interface {
		return server.Interface{Name: name, Syntax: pdu.Syntax{UUID: iid}, Handle: func(context.Context, *server.Call, []byte) ([]byte, error) {
			l.handled++
			return []byte(name), nil
		}}
	}
	opts := Options{Names: []string{"enroll.corp.example", "enroll"}, Port: 49200, Now: func() time.Time { return l.now },
		Classes: []Class{{Name: "CCertRequestD", CLSID: classD, Interfaces: []server.Interface{face("D", iidD), face("D2", iidD2)}}}}
	if change != nil {
		change(&opts)
	}
	var err error
	if l.Exporter, err = New(opts); err != nil {
		t.Fatal(err)
	}
	for _, i := range append([]server.Interface{l.objectExporter(), l.activator(), l.remUnknown("IRemUnknown", iidRemUnknown, false),
		l.remUnknown("IRemUnknown2", iidRemUnknown2, true), l.classFactory()}, l.offered...) {
		l.faces[i.Name] = &i
	}
	return l
}

// call makes a call of an interface as the server does.
func (l *lab) call(sid security.SID, face string, operation uint16, object pdu.UUID, stub []byte) ([]byte, error) {
	c := &server.Call{Level: pdu.LevelPrivacy, Object: object, Interface: l.faces[face], Operation: operation}
	if sid != "" {
		c.Caller = &templates.Caller{Principal: "somebody", SID: sid}
	}
	return l.faces[face].Handle(context.Background(), c, stub)
}

// activate returns the references of a new object.
func (l *lab) activate(sid security.SID, iids ...pdu.UUID) []result {
	l.t.Helper()
	out, code := l.table.activate(sid, l.classes[classD], false, iids)
	if code != hresult.OK {
		l.t.Fatal(codeName(code))
	}
	return out
}

// d2 activates an object with ICertRequestD2.
func (l *lab) d2(sid security.SID) reference {
	l.t.Helper()
	return l.activate(sid, iidD2)[0].ref
}

func (l *lab) live(sid security.SID, ref reference) bool { return l.table.live(sid, ref.ipid, iidD2) }

// head is ORPCTHIS of a call over the network.
func head(minor uint16, flags uint32, more ...byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint16(le.AppendUint16(nil, 5), minor), flags)
	b = append(b, make([]byte, 20)...)
	if more == nil {
		more = make([]byte, 4)
	}
	return append(b, more...)
}

func wantFault(t testing.TB, err error, status pdu.Status) {
	t.Helper()
	f, ok := errors.AsType[*server.Fault](err)
	if !ok || f.Status != status {
		t.Errorf("%v, want %v", err, status)
	}
}

func TestACallNeedsAReferenceOfTheCallersOwn(t *testing.T) {
	l := newLab(t, nil)
	refs := l.activate(alice, iidD2, iidD, iidUnknown)
	for _, c := range []struct {
		sid    security.SID
		face   string
		object pdu.UUID
		status pdu.Status // 0 where it reaches the handler
	}{
		{alice, "D2", refs[0].ref.ipid, 0},
		{alice, "D", refs[1].ref.ipid, 0},
		{alice, "D", refs[0].ref.ipid, pdu.Disconnected},
		{alice, "D2", refs[2].ref.ipid, pdu.Disconnected},
		{alice, "D2", l.unknown, pdu.Disconnected},
		{alice, "D2", pdu.UUID{}, pdu.Disconnected},
		{bob, "D2", refs[0].ref.ipid, pdu.Disconnected},
		{"", "D2", refs[0].ref.ipid, pdu.Disconnected},
	} {
		before := l.handled
		out, err := l.call(c.sid, c.face, 3, c.object, head(7, 0))
		if c.status == 0 {
			if err != nil || string(out) != c.face {
				t.Errorf("%+v: %q, %v", c, out, err)
			}
			continue
		}
		wantFault(t, err, c.status)
		if l.handled != before {
			t.Errorf("%+v reached the handler", c)
		}
	}
}

func TestTheHeaderOfACallIsChecked(t *testing.T) {
	l := newLab(t, nil)
	ref := l.d2(alice)
	extent := func(size, pointers uint32, more ...byte) []byte {
		le := binary.LittleEndian
		b := le.AppendUint32(nil, 0x20000)
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, size), 0), 0x20004)
		return append(le.AppendUint32(b, pointers), more...)
	}
	good, err := ndr.Marshal(&iremotescmactivator.RemoteCreateInstanceRequest{ORPCThis: &msdcom.ORPCThis{Version: &msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &msdcom.CID{},
		Extensions: &msdcom.ORPCExtentArray{Size: 1, Extent: []*msdcom.ORPCExtent{{ID: &dtyp.GUID{Data1: 1, Data4: make([]byte, 8)}, Size: 5, Data: []byte("12345678")}}}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stub   []byte
		status pdu.Status
	}{
		"5.7":                     {head(7, 0), 0},
		"5.1":                     {head(1, 0), 0},
		"an extension":            {good, 0},
		"5.8":                     {head(8, 0), pdu.VersionMismatch},
		"6.0":                     {append([]byte{6, 0, 0, 0}, head(0, 0)[4:]...), pdu.VersionMismatch},
		"flags":                   {head(7, 1), pdu.InvalidHeader},
		"nothing":                 {nil, pdu.BadStub},
		"an end":                  {head(7, 0)[:31], pdu.BadStub},
		"4 billion extensions":    {head(7, 0, extent(0xffffffff, 0)...), pdu.InvalidExtension},
		"17 extensions":           {head(7, 0, extent(17, 18, make([]byte, 72)...)...), pdu.InvalidExtension},
		"fewer than they say":     {head(7, 0, extent(4, 4)...), pdu.BadStub},
		"an extension of 4 GiB":   {head(7, 0, extent(1, 2, append(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0xf8, 0xff, 0xff, 0xff}, make([]byte, 16)...), 0xf8, 0xff, 0xff, 0xff)...)...), pdu.InvalidExtension},
		"an extension beyond all": {head(7, 0, extent(1, 2, append(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0}, make([]byte, 16)...), 9, 0, 0, 0)...)...), pdu.InvalidExtension},
	} {
		_, err := l.call(alice, "D2", 3, ref.ipid, c.stub)
		if c.status == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		t.Log(name)
		wantFault(t, err, c.status)
	}
	_, err = l.call(alice, "IRemUnknown", 5, ref.ipid, head(7, 0))
	wantFault(t, err, pdu.Disconnected)
	_, err = l.call(alice, "IRemUnknown", 6, l.unknown, head(7, 0))
	wantFault(t, err, pdu.UnknownOperation)
	_, err = l.call(alice, "IRemUnknown2", 6, l.unknown, head(7, 0))
	wantFault(t, err, pdu.BadStub)
}

func TestClassesAreToldApart(t *testing.T) {
	i := server.Interface{Name: "D", Syntax: pdu.Syntax{UUID: iidD}}
	for name, c := range map[string]Options{
		"no name":                {Port: 1},
		"no port":                {Names: []string{"a"}},
		"both have the CLSID":    {Names: []string{"a"}, Port: 1, Classes: []Class{{Name: "A", CLSID: classD}, {Name: "B", CLSID: classD}}},
		"is one of A already":    {Names: []string{"a"}, Port: 1, Classes: []Class{{Name: "A", CLSID: classD, Interfaces: []server.Interface{i}}, {Name: "B", CLSID: iidD, Interfaces: []server.Interface{i}}}},
		"has a version":          {Names: []string{"a"}, Port: 1, Classes: []Class{{Name: "A", Interfaces: []server.Interface{{Syntax: pdu.Syntax{UUID: iidD, Major: 1}}}}}},
		"is one of DCOM already": {Names: []string{"a"}, Port: 1, Classes: []Class{{Name: "A", Interfaces: []server.Interface{{Syntax: pdu.Syntax{UUID: iidUnknown}}}}}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(name, "no ") && !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// activationStub is what a client sends for RemoteCreateInstance.
func activationStub(t testing.TB, properties ...msdcom.ActivationProperty) []byte {
	t.Helper()
	pointer, err := (&msdcom.ActivationProperties{DestinationContext: 2, Properties: properties}).ActivationPropertiesIn()
	if err != nil {
		t.Fatal(err)
	}
	stub, err := ndr.Marshal(&iremotescmactivator.RemoteCreateInstanceRequest{ORPCThis: &msdcom.ORPCThis{Version: &msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, Flags: 1, CID: &msdcom.CID{}},
		ActPropertiesIn: pointer})
	if err != nil {
		t.Fatal(err)
	}
	return stub
}

func instantiation(class pdu.UUID, iids ...pdu.UUID) *msdcom.InstantiationInfoData {
	out := &msdcom.InstantiationInfoData{ClassID: (*msdcom.ClassID)(guid(class)), ClientCOMVersion: &msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}}
	for _, iid := range iids {
		out.IID = append(out.IID, (*msdcom.IID)(guid(iid)))
	}
	return out
}

func (l *lab) create(sid security.SID, stub []byte) (hresult.Code, *msdcom.ActivationProperties) {
	l.t.Helper()
	out, err := l.call(sid, "IRemoteSCMActivator", 4, pdu.UUID{}, stub)
	if err != nil {
		l.t.Fatal(err)
	}
	var r iremotescmactivator.RemoteCreateInstanceResponse
	if err := ndr.Unmarshal(out, &r); err != nil {
		l.t.Fatal(err)
	}
	if r.ActPropertiesOut == nil {
		return hresult.Code(r.Return), nil //nolint:gosec // as it travels
	}
	var p msdcom.ActivationProperties
	if err := p.Parse(r.ActPropertiesOut); err != nil {
		l.t.Fatal(err)
	}
	return hresult.Code(r.Return), &p //nolint:gosec // as it travels
}

func TestActivationTellsWhereObjectsAre(t *testing.T) {
	l := newLab(t, nil)
	code, p := l.create(alice, activationStub(t, &msdcom.SpecialPropertiesData{}, instantiation(classD, iidD2, iidRemUnknown, iidUnknown), &msdcom.LocationInfoData{}))
	if code != 0 || p == nil || len(p.Properties) != 2 || p.DestinationContext != 2 {
		t.Fatalf("%v, %+v", code, p)
	}
	info, reply := p.Properties[0].(*msdcom.PropertiesOutInfo), p.Properties[1].(*msdcom.SCMReplyInfoData).RemoteReply
	if len(info.HResults) != 3 || info.HResults[0] != 0 || hresult.Code(info.HResults[1]) != codeNoInterface || info.HResults[2] != 0 || info.InterfaceData[1] != nil { //nolint:gosec // as it travels
		t.Errorf("%+v", info)
	}
	std := info.InterfaceData[0].GetStandardObjectReference()
	if std.Std.PublicReferencesCount != 5 || std.Std.OXID != reply.OXID || std.Std.OID != info.InterfaceData[2].GetStandardObjectReference().Std.OID {
		t.Errorf("%+v", std.Std)
	}
	var where []string
	for _, b := range append(std.ResolverAddr.GetStringBindings(), reply.OXIDBindings.GetStringBindings()...) {
		where = append(where, b.NetworkAddr)
	}
	for _, b := range append(std.ResolverAddr.GetSecurityBindings(), reply.OXIDBindings.GetSecurityBindings()...) {
		where = append(where, b.PrincipalName)
	}
	if got := strings.Join(where, " "); got != "enroll.corp.example enroll enroll.corp.example[49200] enroll[49200]   host/enroll.corp.example host/enroll.corp.example" {
		t.Error(got)
	}
	if reply.AuthnHint != 6 || *reply.ServerVersion != (msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}) || l.Stats().Objects != 1 {
		t.Errorf("%+v", reply)
	}
}

func TestWhatIsNoActivationIsToldSo(t *testing.T) {
	l := newLab(t, nil)
	good := activationStub(t, instantiation(classD, iidD2))
	older := append([]byte{5, 0, 8, 0}, good[4:]...)
	aggregated, err := ndr.Marshal(&iremotescmactivator.RemoteCreateInstanceRequest{ORPCThis: &msdcom.ORPCThis{Version: &msdcom.COMVersion{MajorVersion: 5}, CID: &msdcom.CID{}},
		UnknownOuter: &msdcom.InterfacePointer{Data: []byte("MEOW")}})
	if err != nil {
		t.Fatal(err)
	}
	objref := append([]byte(nil), good...)
	copy(objref[len(objref)-len(good)+48:], "WOOF")
	for name, c := range map[string]struct {
		stub []byte
		code hresult.Code
	}{
		"good":               {good, 0},
		"5.8":                {older, codeVersionMismatch},
		"aggregated":         {aggregated, codeNoAggregation},
		"no properties":      {append(append([]byte(nil), good[:32]...), make([]byte, 8)...), hresult.InvalidArg},
		"no instantiation":   {activationStub(t, &msdcom.LocationInfoData{}), hresult.InvalidArg},
		"two":                {activationStub(t, instantiation(classD, iidD2), instantiation(classD, iidD2)), hresult.InvalidArg},
		"many":               {activationStub(t, instantiation(classD, make([]pdu.UUID, maxInterfaces+1)...)), hresult.InvalidArg},
		"another class":      {activationStub(t, instantiation(iidD, iidD2)), codeClassNotReg},
		"another interface":  {activationStub(t, instantiation(classD, iidClassFactory)), codeNoInterface},
		"what is no OBJREF":  {objref, codeInvalidObjref},
		"another's and ours": {activationStub(t, instantiation(classD, iidRemUnknown, iidD)), 0},
	} {
		if code, _ := l.create(alice, c.stub); code != c.code {
			t.Errorf("%s: %s, want %s", name, codeName(code), codeName(c.code))
		}
	}
	if code, _ := l.create("", good); code != hresult.AccessDenied {
		t.Error(code)
	}
	_, err = l.call(alice, "IRemoteSCMActivator", 4, pdu.UUID{}, good[:60])
	wantFault(t, err, pdu.BadStub)
	for _, i := range []string{"IRemoteSCMActivator", "IRemUnknown", "IRemUnknown2", "IClassFactory"} {
		if l.faces[i].Least != pdu.LevelIntegrity {
			t.Errorf("%s at %v", i, l.faces[i].Least)
		}
	}
}

func uuidOf(g *dtyp.GUID) (u pdu.UUID) {
	le := binary.LittleEndian
	le.PutUint32(u[:], g.Data1)
	le.PutUint16(u[4:], g.Data2)
	le.PutUint16(u[6:], g.Data3)
	copy(u[8:], g.Data4)
	return u
}

func TestAFactoryMakesObjects(t *testing.T) {
	l := newLab(t, nil)
	out, code := l.table.activate(alice, l.classes[classD], true, []pdu.UUID{iidClassFactory, iidD2})
	if code != hresult.OK || out[1].code != codeNoInterface {
		t.Fatalf("%+v, %v", out, code)
	}
	factory := out[0].ref.ipid
	for iid, want := range map[pdu.UUID]hresult.Code{iidD2: hresult.OK, iidUnknown: hresult.OK, iidClassFactory: codeNoInterface, iidRemUnknown: codeNoInterface} {
		answer, err := l.call(alice, "IClassFactory", 3, factory, append(head(7, 0), iid[:]...))
		if err != nil {
			t.Fatal(err)
		}
		if got := hresult.Code(binary.LittleEndian.Uint32(answer[len(answer)-4:])); got != want || (want == hresult.OK) != (len(answer) > 100) {
			t.Errorf("%s: %v in %d octets", iid, codeName(got), len(answer))
		}
	}
	if answer, err := l.call(alice, "IClassFactory", 4, factory, append(head(7, 0), 1, 0, 0, 0)); err != nil || len(answer) != 12 || l.Stats().Objects != 3 {
		t.Errorf("%x, %v", answer, err)
	}
	_, err := l.call(bob, "IClassFactory", 3, factory, append(head(7, 0), iidD2[:]...))
	wantFault(t, err, pdu.Disconnected)
	_, err = l.call(alice, "IClassFactory", 3, factory, head(7, 0))
	wantFault(t, err, pdu.BadStub)
}
