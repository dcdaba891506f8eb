package rpc

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremunknown "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown/v0"
	iremunknown2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown2/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/dcom"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/world"
)

// impacketDCOM runs dcom.py and checks what each step came to.
func impacketDCOM(t *testing.T, x *exporter) {
	t.Helper()
	out := run(t, tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY")), "/usr/bin/python3", "dcom.py", world.Env("LAB_GATEWAY"), "alice")
	var said map[string]any
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for step, want := range map[string]string{
		"ServerAlive2": `["enroll.lab.test","enroll"]`, "Ping2": "0", "RemAddRef": "0", "ComplexPing": "true", "SimplePing": "0", "AddAndDelete": "0", "UnknownSet": "0x778",
		"ResolveOxid": `["enroll.lab.test[49200]","enroll[49200]","127.0.0.20[49200]"]`, "ResolveOxid2": `["enroll.lab.test[49200]","enroll[49200]","127.0.0.20[49200]"]`, "UnknownOxid": "0x776", "RemRelease": "0",
		"Released": "RPC_E_DISCONNECTED", "UnknownClass": "REGDB_E_CLASSNOTREG", "UnknownInterface": "E_NOINTERFACE", "RemoteGetClassObject": "0",
	} {
		if got, _ := json.Marshal(said[step]); !strings.Contains(string(got), want) {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
	}
	// The object, the factory and what that made; two sets.
	if got := x.Stats(); got != (dcom.Stats{Objects: 3, PingSets: 2}) {
		t.Errorf("%+v", got)
	}
}

func TestImpacketGoesThroughDCOM(t *testing.T) {
	python(t, "impacket")
	impacketDCOM(t, startDCOM(t, nil))
}

// TestTsharkUnderstandsDCOM has tshark read and decrypt DCOM with both clients.
func TestTsharkUnderstandsDCOM(t *testing.T) {
	need(t, "/usr/bin/tshark")
	python(t, "impacket")
	x := startDCOM(t, nil)
	file := capture(t, func() {
		impacketDCOM(t, x)
		c := dialDCOM(t, "alice", dcerpc.WithSeal())
		a := c.MustActivate(msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd.CertRequestDIID, iremunknown.RemoteUnknownIID)
		u := c.unknown(a.Unknown)
		if _, err := u.RemoteQueryInterface2(c.Ctx, &iremunknown2.RemoteQueryInterface2Request{This: msrpc.This(), IPID: a.IPIDs[0].GUID(),
			IIDs: []*msdcom.IID{icertrequestd.CertRequestDIID, iremunknown.RemoteUnknownIID}}); err != nil {
			t.Error(err)
		}
		if err := c.ping2(a.IPIDs[0]); err != nil {
			t.Error(err)
		}
	})
	// Where it understands a body, as most of these, it does not show it as decrypted_stub_data.
	judge(t, file, map[string]int{"dcerpc.decrypted_stub_data": 8, "isystemactivator && dcerpc.pkt_type == 2": 5, "remunk && dcerpc.pkt_type == 2": 2, "remunk2 && dcerpc.pkt_type == 2": 1,
		"oxid && dcerpc.pkt_type == 2": 8, "dcom.dualstringarray.security_princ_name contains \"host/\"": 3})
}
