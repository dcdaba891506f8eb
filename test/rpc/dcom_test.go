package rpc

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremunknown2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown2/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/dcom"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/world"
)

const (
	classNotRegistered = 0x80040154
	noInterface        = 0x80004002
	disconnected       = 0x80010108
)

// exporter is DCOM with a class that only answers pings.
type exporter struct {
	*dcom.Exporter
	mu    sync.Mutex
	pings []string // who has called Ping2, and at which level
}

// startDCOM serves DCOM on ports 135 and 49200 with the tickets of the lab's gateway.
func startDCOM(t testing.TB, change func(*dcom.Options)) *exporter {
	t.Helper()
	inlab.Need(t)
	acceptor, err := kerberos.New(kerberos.Options{KeytabFile: world.Env("LAB_KEYTAB_SVC"), SPNs: []string{"HTTP/" + world.Env("LAB_GATEWAY")}})
	if err != nil {
		t.Fatal(err)
	}
	x := &exporter{}
	face := func(name, iid string, calls map[uint16]server.Handler) server.Interface {
		return server.Interface{Name: name, Syntax: pdu.Syntax{UUID: pdu.MustUUID(iid)}, Least: pdu.LevelIntegrity,
			Operations: map[uint16]string{5: "Ping", 9: "Ping2"}, Handle: server.Operations(calls)}
	}
	ping := server.Stub(func(context.Context, *server.Call, *icertrequestd.PingRequest) (*icertrequestd.PingResponse, error) {
		return &icertrequestd.PingResponse{That: &msdcom.ORPCThat{}}, nil
	})
	opts := dcom.Options{Names: []string{world.Env("LAB_GATEWAY"), "enroll"}, Port: 49200, Address: net.ParseIP(world.Env("LAB_GW_IP")), Classes: []dcom.Class{{Name: "CCertRequestD",
		CLSID: pdu.MustUUID("d99e6e74-fc88-11d0-b498-00a0c90312f3"), Interfaces: []server.Interface{
			face("ICertRequestD", "d99e6e70-fc88-11d0-b498-00a0c90312f3", map[uint16]server.Handler{5: ping}),
			face("ICertRequestD2", "5422fd3a-d4b8-4cef-a12e-e87d4ca22e90", map[uint16]server.Handler{5: ping, 9: server.Stub(x.ping2)}),
		}}}}
	if change != nil {
		change(&opts)
	}
	if x.Exporter, err = dcom.New(opts); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	for port, register := range map[string]func(*server.Server){"135": x.RegisterResolver, "49200": x.RegisterObjects} {
		l, err := net.Listen("tcp", world.Env("LAB_GW_IP")+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		s := server.New(server.Options{Name: port, Acceptor: acceptor.ForRPC(), Log: log})
		register(s)
		serve(t, s, l)
	}
	return x
}

func (x *exporter) ping2(_ context.Context, call *server.Call, in *icertrequestd2.Ping2Request) (*icertrequestd2.Ping2Response, error) {
	out := &icertrequestd2.Ping2Response{That: &msdcom.ORPCThat{}}
	if call.Level < pdu.LevelPrivacy {
		out.Return = hresult.AccessDenied.Int32()
		return out, nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pings = append(x.pings, call.Caller.Principal+" "+in.Authority)
	return out, nil
}

// dcomClient is go-msrpc's client of an account.
type dcomClient struct {
	*msrpc.Client
	reopen bool
}

func dialDCOM(t testing.TB, account string, level dcerpc.Option) *dcomClient {
	t.Helper()
	return &dcomClient{Client: msrpc.Dial(t, account, level)}
}

// ping2 calls ICertRequestD2::Ping2 by an IPID.
func (c *dcomClient) ping2(ipid *msdcom.IPID) error {
	c.T.Helper()
	c.again()
	d2, err := icertrequestd2.NewCertRequestD2Client(c.Ctx, c.Calls, append(c.Options, msdcom.WithIPID(ipid))...)
	if err != nil {
		return err
	}
	_, err = d2.Ping2(c.Ctx, &icertrequestd2.Ping2Request{This: msrpc.This(), Authority: "CA"})
	c.reopen = err != nil
	return err
}

func (c *dcomClient) unknown(ipid *msdcom.IPID) iremunknown2.RemoteUnknown2Client {
	c.T.Helper()
	c.again()
	u, err := iremunknown2.NewRemoteUnknown2Client(c.Ctx, c.Calls, append(c.Options, msdcom.WithIPID(ipid))...)
	if err != nil {
		c.T.Fatal(err)
	}
	return u
}

// again opens the connection for calls anew after a fault, upon which the client closes it.
func (c *dcomClient) again() {
	c.T.Helper()
	if c.reopen {
		c.Calls, c.reopen = c.Open("ncacn_ip_tcp:[49200]"), false
	}
}
