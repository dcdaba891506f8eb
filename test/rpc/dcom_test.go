package rpc

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremotescmactivator "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremotescmactivator/v0"
	iremunknown2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown2/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/ssp"
	"github.com/oiweiwei/go-msrpc/ssp/credential"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
	"github.com/oiweiwei/go-msrpc/ssp/krb5"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/dcom"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/inlab"
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
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(background, 5*time.Second)
			defer cancel()
			if err := s.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, server.ErrClosed) {
				t.Error(err)
			}
		})
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
	t        testing.TB
	ctx      context.Context
	options  []dcerpc.Option
	resolver dcerpc.Conn // port 135
	calls    dcerpc.Conn // the other
	reopen   bool
}

func dialDCOM(t testing.TB, account string, level dcerpc.Option) *dcomClient {
	t.Helper()
	conf, err := config.Load(world.Env("KRB5_CONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(background), 2*time.Minute)
	t.Cleanup(cancel)
	c := &dcomClient{t: t, ctx: ctx, options: []dcerpc.Option{level, dcerpc.WithTargetName("RPCSS/" + world.Env("LAB_GATEWAY")), dcerpc.WithMechanism(ssp.SPNEGO),
		dcerpc.WithMechanism(ssp.KRB5, &krb5.Config{KRB5Config: conf, DCEStyle: true, DisablePAFXFAST: true}),
		dcerpc.WithCredentials(credential.NewFromPassword(account+"@"+world.Env("LAB_REALM"), world.Env("LAB_PASSWORD")))}}
	c.resolver = c.dial("ncacn_ip_tcp:[135]")
	return c
}

func (c *dcomClient) dial(endpoint ...string) dcerpc.Conn {
	c.t.Helper()
	options := []dcerpc.Option{dcerpc.WithTimeout(10 * time.Second)}
	for _, e := range endpoint {
		options = append(options, dcerpc.WithEndpoint(e))
	}
	conn, err := dcerpc.Dial(c.ctx, world.Env("LAB_GATEWAY"), options...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close(c.ctx) })
	return conn
}

// activated is what an activation has told.
type activated struct {
	code    uint32
	results []int32
	ipids   []*msdcom.IPID
	oids    []uint64
	unknown *msdcom.IPID
	reply   *msdcom.CustomRemoteReplySCMInfo
}

// activate creates an instance; the class is CCertRequestD where none is named.
func (c *dcomClient) activate(class *msdcom.ClassID, iids ...*msdcom.IID) (*activated, error) {
	c.t.Helper()
	client, err := iremotescmactivator.NewRemoteSCMActivatorClient(c.ctx, c.resolver, c.options...)
	if err != nil {
		return nil, err
	}
	if class == nil {
		class = classOf(classRequest)
	}
	in := &msdcom.ActivationProperties{DestinationContext: 2, Properties: []msdcom.ActivationProperty{
		&msdcom.InstantiationInfoData{ClassID: class, IID: iids, ClientCOMVersion: &msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}},
		&msdcom.LocationInfoData{}, &msdcom.SCMRequestInfoData{RemoteRequest: &msdcom.CustomRemoteRequestSCMInfo{RequestedProtocolSequences: []uint16{7}}},
	}}
	pointer, err := in.ActivationPropertiesIn()
	if err != nil {
		return nil, err
	}
	r, err := client.RemoteCreateInstance(c.ctx, &iremotescmactivator.RemoteCreateInstanceRequest{ORPCThis: this(), ActPropertiesIn: pointer})
	if r == nil {
		return nil, err
	}
	out := &activated{code: uint32(r.Return)}
	if r.Return != 0 {
		return out, nil
	}
	var props msdcom.ActivationProperties
	if err := props.Parse(r.ActPropertiesOut); err != nil {
		return nil, err
	}
	info := props.PropertiesOutInfo()
	out.results = info.HResults
	for i, p := range info.InterfaceData {
		if info.HResults[i] == 0 {
			std := p.GetStandardObjectReference().Std
			out.ipids, out.oids = append(out.ipids, std.IPID), append(out.oids, std.OID)
		} else {
			out.ipids, out.oids = append(out.ipids, nil), append(out.oids, 0)
		}
	}
	out.reply = props.SCMReplyInfoData().RemoteReply
	out.unknown = out.reply.IPIDRemoteUnknown
	return out, nil
}

func (c *dcomClient) mustActivate(iids ...*msdcom.IID) *activated {
	c.t.Helper()
	return c.mustActivateClass(classRequest, iids...)
}

func (c *dcomClient) mustActivateClass(class string, iids ...*msdcom.IID) *activated {
	c.t.Helper()
	a, err := c.activate(classOf(class), iids...)
	if err != nil || a.code != 0 {
		c.t.Fatalf("%+v, %v", a, err)
	}
	if c.calls == nil {
		var endpoints []string
		for _, b := range a.reply.OXIDBindings.GetStringBindings() {
			endpoints = append(endpoints, b.String())
		}
		c.calls = c.dial(endpoints...)
	}
	return a
}

// ping2 calls ICertRequestD2::Ping2 by an IPID.
func (c *dcomClient) ping2(ipid *msdcom.IPID) error {
	c.t.Helper()
	c.again()
	d2, err := icertrequestd2.NewCertRequestD2Client(c.ctx, c.calls, append(c.options, msdcom.WithIPID(ipid))...)
	if err != nil {
		return err
	}
	_, err = d2.Ping2(c.ctx, &icertrequestd2.Ping2Request{This: this(), Authority: "CA"})
	c.reopen = err != nil
	return err
}

func (c *dcomClient) unknown(ipid *msdcom.IPID) iremunknown2.RemoteUnknown2Client {
	c.t.Helper()
	c.again()
	u, err := iremunknown2.NewRemoteUnknown2Client(c.ctx, c.calls, append(c.options, msdcom.WithIPID(ipid))...)
	if err != nil {
		c.t.Fatal(err)
	}
	return u
}

// again opens the connection for calls anew after a fault, upon which the client closes it.
func (c *dcomClient) again() {
	c.t.Helper()
	if c.reopen {
		c.calls, c.reopen = c.dial("ncacn_ip_tcp:[49200]"), false
	}
}
