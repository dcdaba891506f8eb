package rpc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iobjectexporter "github.com/oiweiwei/go-msrpc/msrpc/dcom/iobjectexporter/v0"
	iremunknown "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown/v0"
	iremunknown2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown2/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/dcom"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/msrpc"
)

func TestGoMSRPCActivatesAndCalls(t *testing.T) {
	x := startDCOM(t, nil)
	c := dialDCOM(t, "alice", dcerpc.WithSeal())
	anonymous, err := iobjectexporter.NewObjectExporterClient(c.Ctx, c.Open("ncacn_ip_tcp:[135]"), dcerpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	alive, err := anonymous.ServerAlive2(c.Ctx, &iobjectexporter.ServerAlive2Request{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range alive.ObjectResolverBindings.GetStringBindings() {
		names = append(names, b.String())
	}
	if *alive.COMVersion != (msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}) || strings.Join(names, " ") != "ncacn_ip_tcp:enroll.lab.test ncacn_ip_tcp:enroll" {
		t.Errorf("%+v, %v", alive.COMVersion, names)
	}
	if _, err := anonymous.SimplePing(c.Ctx, &iobjectexporter.SimplePingRequest{SetID: 1}); err == nil {
		t.Error("nobody may ping")
	}
	a := c.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd.CertRequestDIID, iremunknown.RemoteUnknownIID)
	if !slices.Equal(a.Results, []int32{0, 0, -0x7fffbffe}) || a.Reply.AuthnHint != 6 {
		t.Errorf("%x %+v", a.Results, a.Reply)
	}
	if err := c.ping2(a.IPIDs[0]); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(x.pings, []string{"alice@LAB.TEST CA"}) {
		t.Error(x.pings)
	}
}

// wantCode wants an error that names a code.
func wantCode(t testing.TB, err error, code uint32) {
	t.Helper()
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), fmt.Sprintf("%08x", code)) && !strings.Contains(err.Error(), strconv.Itoa(int(int32(code)))) {
		t.Errorf("%v, want 0x%08x", err, code)
	}
}

func TestReferencesAreCounted(t *testing.T) {
	x := startDCOM(t, nil)
	c := dialDCOM(t, "alice", dcerpc.WithSeal())
	a := c.MustActivate(msrpc.ClassRequest, icertrequestd.CertRequestDIID)
	u := c.unknown(a.Unknown)
	found, err := u.RemoteQueryInterface2(c.Ctx, &iremunknown2.RemoteQueryInterface2Request{This: msrpc.This(), IPID: a.IPIDs[0].GUID(),
		IIDs: []*msdcom.IID{icertrequestd2.CertRequestD2IID, iremunknown.RemoteUnknownIID}})
	if err != nil || found.HResult[0] != 0 || uint32(found.HResult[1]) != noInterface || found.Interface[1] != nil {
		t.Fatalf("%+v, %v", found, err)
	}
	d2 := found.Interface[0].GetStandardObjectReference().Std
	if err := c.ping2(d2.IPID); err != nil || d2.OID != a.OIDs[0] || d2.PublicReferencesCount != 1 {
		t.Errorf("%+v, %v", d2, err)
	}
	again, err := u.RemoteUnknown().RemoteQueryInterface(c.Ctx, &iremunknown.RemoteQueryInterfaceRequest{This: msrpc.This(), IPID: a.IPIDs[0].GUID(), ReferencesCount: 3, IIDs: []*msdcom.IID{icertrequestd2.CertRequestD2IID}})
	if err != nil || len(again.QueryInterfaceResults) != 1 || !again.QueryInterfaceResults[0].Std.IPID.GUID().Equal(d2.IPID.GUID()) || again.QueryInterfaceResults[0].Std.PublicReferencesCount != 3 {
		t.Fatalf("%+v, %v", again, err)
	}
	refs := func(ipid *msdcom.IPID, public uint32) []*msdcom.RemoteInterfaceReference {
		return []*msdcom.RemoteInterfaceReference{{IPID: ipid, PublicReferencesCount: public}}
	}
	added, err := u.RemoteUnknown().RemoteAddReference(c.Ctx, &iremunknown.RemoteAddReferenceRequest{This: msrpc.This(), InterfaceReferences: append(refs(d2.IPID, 2), refs(a.Unknown, 1)...)})
	if err != nil || added.Results[0] != 0 || uint32(added.Results[1]) != 0x800401fb {
		t.Errorf("%+v, %v", added, err)
	}
	for _, r := range [][]*msdcom.RemoteInterfaceReference{refs(d2.IPID, 5), refs(d2.IPID, 1)} { // 1 + 3 + 2
		if err := c.ping2(d2.IPID); err != nil {
			t.Fatal(err)
		}
		if _, err := u.RemoteUnknown().RemoteRelease(c.Ctx, &iremunknown.RemoteReleaseRequest{This: msrpc.This(), InterfaceReferences: r}); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, c.ping2(d2.IPID), disconnected)
	u = c.unknown(a.Unknown)
	if _, err := u.RemoteUnknown().RemoteRelease(c.Ctx, &iremunknown.RemoteReleaseRequest{This: msrpc.This(), InterfaceReferences: refs(a.IPIDs[0], 500)}); err != nil || x.Stats() != (dcom.Stats{}) {
		t.Errorf("%v, %+v", err, x.Stats())
	}
	_, err = u.RemoteUnknown().RemoteQueryInterface(c.Ctx, &iremunknown.RemoteQueryInterfaceRequest{This: msrpc.This(), IPID: a.IPIDs[0].GUID(), ReferencesCount: 1, IIDs: []*msdcom.IID{icertrequestd2.CertRequestD2IID}})
	wantCode(t, err, 0x80010114)
}

func TestAReferenceIsItsCallersAlone(t *testing.T) {
	x := startDCOM(t, nil)
	alice := dialDCOM(t, "alice", dcerpc.WithSeal())
	bob := dialDCOM(t, "bob", dcerpc.WithSeal())
	a := alice.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd.CertRequestDIID)
	b := bob.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID)
	wantCode(t, bob.ping2(a.IPIDs[0]), disconnected)
	wantCode(t, alice.ping2(a.IPIDs[1]), disconnected) // of another interface
	wantCode(t, alice.ping2(a.Unknown), disconnected)
	wantCode(t, alice.ping2(&msdcom.IPID{}), disconnected)
	u := bob.unknown(b.Unknown)
	if _, err := u.RemoteUnknown().RemoteRelease(bob.Ctx, &iremunknown.RemoteReleaseRequest{This: msrpc.This(), InterfaceReferences: []*msdcom.RemoteInterfaceReference{{IPID: a.IPIDs[0], PublicReferencesCount: 99}}}); err != nil {
		t.Error(err)
	}
	_, err := u.RemoteUnknown().RemoteQueryInterface(bob.Ctx, &iremunknown.RemoteQueryInterfaceRequest{This: msrpc.This(), IPID: a.IPIDs[0].GUID(), ReferencesCount: 1, IIDs: []*msdcom.IID{icertrequestd2.CertRequestD2IID}})
	wantCode(t, err, 0x80010114)
	if err := errors.Join(alice.ping2(a.IPIDs[0]), bob.ping2(b.IPIDs[0])); err != nil || x.Stats().Objects != 2 {
		t.Errorf("%v, %+v", err, x.Stats())
	}
}

func TestWhatCannotBeActivatedIsToldSo(t *testing.T) {
	x := startDCOM(t, nil)
	c := dialDCOM(t, "alice", dcerpc.WithSeal())
	a, err := c.Activate(msrpc.ClassAdmin, icertrequestd2.CertRequestD2IID)
	if err != nil || a.Code != classNotRegistered {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err = c.Activate(msrpc.ClassRequest, iremunknown.RemoteUnknownIID); err != nil || a.Code != noInterface {
		t.Errorf("%+v, %v", a, err)
	}
	low := dialDCOM(t, "alice", dcerpc.WithSecurityLevel(dcerpc.AuthLevelConnect))
	if _, err := low.Activate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID); err == nil || !strings.Contains(err.Error(), "0x00000005") {
		t.Errorf("at connect level: %v", err)
	}
	if x.Stats() != (dcom.Stats{}) {
		t.Errorf("%+v", x.Stats())
	}
	signed := dialDCOM(t, "alice", dcerpc.WithSign())
	wantCode(t, signed.ping2(signed.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID).IPIDs[0]), uint32(hresult.AccessDenied))
}

func TestSilentClientsLoseTheirObjects(t *testing.T) {
	var later atomic.Int64
	x := startDCOM(t, func(o *dcom.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		o.MaxPerCaller = 4
	})
	c := dialDCOM(t, "alice", dcerpc.WithSeal())
	first := c.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID)
	for range 4 { // a client that dies without releasing what it has
		a := c.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID)
		if err := c.ping2(a.IPIDs[0]); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, c.ping2(first.IPIDs[0]), disconnected)
	last := c.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID)
	later.Store(int64(359 * time.Second))
	if err := c.ping2(last.IPIDs[0]); err != nil {
		t.Fatal(err)
	}
	later.Store(int64(2 * 360 * time.Second))
	wantCode(t, c.ping2(last.IPIDs[0]), disconnected)
	if x.Stats() != (dcom.Stats{}) {
		t.Errorf("%+v", x.Stats())
	}
}
