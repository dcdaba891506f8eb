// Package msrpc enrolls for tests with go-msrpc's clients, which were not written here, and the tickets of the lab: Dial connects to the
// endpoint mapper's port of the gateway, Object activates a class there and binds a typed client to what it is given, as Windows does, and
// Passage binds one to ICertPassage.
package msrpc

import (
	"context"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/midl/uuid"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremotescmactivator "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremotescmactivator/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ssp"
	"github.com/oiweiwei/go-msrpc/ssp/credential"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
	"github.com/oiweiwei/go-msrpc/ssp/krb5"

	"github.com/enrollgate/enrollgate/test/world"
)

// The classes ([MS-WCCE] 1.9, [MS-CSRA] 1.9).
const (
	ClassRequest = "d99e6e74-fc88-11d0-b498-00a0c90312f3" // CCertRequestD
	ClassAdmin   = "d99e6e73-fc88-11d0-b498-00a0c90312f3" // CCertAdminD
)

// Client is an account's.
type Client struct {
	T        testing.TB
	Host     string
	Ctx      context.Context // ends two minutes after Dial
	Options  []dcerpc.Option // of binds
	Resolver dcerpc.Conn     // port 135
	Calls    dcerpc.Conn     // the other, once something is activated
}

// Dial connects to the gateway as an account with the lab's password.
func Dial(t testing.TB, account string, level dcerpc.Option) *Client {
	t.Helper()
	return DialHost(t, world.Env("LAB_GATEWAY"), account, level)
}

// DialHost connects to a host by its name.
func DialHost(t testing.TB, host, account string, level dcerpc.Option) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(context.Background()), 2*time.Minute)
	t.Cleanup(cancel)
	c := &Client{T: t, Host: host, Ctx: ctx, Options: append(Credentials(t, account), level, dcerpc.WithTargetName("RPCSS/"+host))}
	c.Resolver = c.Open("ncacn_ip_tcp:[135]")
	return c
}

// Credentials are those of an account, for SPNEGO.
func Credentials(t testing.TB, account string) []dcerpc.Option {
	t.Helper()
	conf, err := config.Load(world.Env("KRB5_CONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	return []dcerpc.Option{dcerpc.WithMechanism(ssp.SPNEGO), dcerpc.WithMechanism(ssp.KRB5, &krb5.Config{KRB5Config: conf, DCEStyle: true, DisablePAFXFAST: true}),
		dcerpc.WithCredentials(credential.NewFromPassword(account+"@"+world.Env("LAB_REALM"), world.Env("LAB_PASSWORD")))}
}

// Open makes a connection to the host.
func (c *Client) Open(endpoint ...string) dcerpc.Conn {
	c.T.Helper()
	options := []dcerpc.Option{dcerpc.WithTimeout(10 * time.Second)}
	for _, e := range endpoint {
		options = append(options, dcerpc.WithEndpoint(e))
	}
	conn, err := dcerpc.Dial(c.Ctx, c.Host, options...)
	if err != nil {
		c.T.Fatal(err)
	}
	c.T.Cleanup(func() { conn.Close(c.Ctx) })
	return conn
}

// Activated is what an activation has told.
type Activated struct {
	Code    uint32
	Results []int32
	IPIDs   []*dcom.IPID // nil where there is no such interface
	OIDs    []uint64
	Unknown *dcom.IPID
	Reply   *dcom.CustomRemoteReplySCMInfo
}

// Activate creates an instance of a class. A refusal is a Code and no error.
func (c *Client) Activate(class string, iids ...*dcom.IID) (*Activated, error) {
	c.T.Helper()
	client, err := iremotescmactivator.NewRemoteSCMActivatorClient(c.Ctx, c.Resolver, c.Options...)
	if err != nil {
		return nil, err
	}
	in := &dcom.ActivationProperties{DestinationContext: 2, Properties: []dcom.ActivationProperty{
		&dcom.InstantiationInfoData{ClassID: (*dcom.ClassID)(dtyp.GUIDFromUUID(uuid.MustParse(class))), IID: iids, ClientCOMVersion: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}},
		&dcom.LocationInfoData{}, &dcom.SCMRequestInfoData{RemoteRequest: &dcom.CustomRemoteRequestSCMInfo{RequestedProtocolSequences: []uint16{7}}},
	}}
	pointer, err := in.ActivationPropertiesIn()
	if err != nil {
		return nil, err
	}
	r, err := client.RemoteCreateInstance(c.Ctx, &iremotescmactivator.RemoteCreateInstanceRequest{ORPCThis: This(), ActPropertiesIn: pointer})
	if r == nil {
		return nil, err
	}
	out := &Activated{Code: uint32(r.Return)}
	if r.Return != 0 {
		return out, nil
	}
	var props dcom.ActivationProperties
	if err := props.Parse(r.ActPropertiesOut); err != nil {
		return nil, err
	}
	info := props.PropertiesOutInfo()
	out.Results = info.HResults
	for i, p := range info.InterfaceData {
		if info.HResults[i] == 0 {
			std := p.GetStandardObjectReference().Std
			out.IPIDs, out.OIDs = append(out.IPIDs, std.IPID), append(out.OIDs, std.OID)
		} else {
			out.IPIDs, out.OIDs = append(out.IPIDs, nil), append(out.OIDs, 0)
		}
	}
	out.Reply = props.SCMReplyInfoData().RemoteReply
	out.Unknown = out.Reply.IPIDRemoteUnknown
	return out, nil
}

// MustActivate activates, and connects to where the objects are.
func (c *Client) MustActivate(class string, iids ...*dcom.IID) *Activated {
	c.T.Helper()
	a, err := c.Activate(class, iids...)
	if err != nil || a.Code != 0 {
		c.T.Fatalf("%+v, %v", a, err)
	}
	if c.Calls == nil {
		var endpoints []string
		for _, b := range a.Reply.OXIDBindings.GetStringBindings() {
			endpoints = append(endpoints, b.String())
		}
		c.Calls = c.Open(endpoints...)
	}
	return a
}

// Object activates a class and binds a typed client to one of its interfaces.
func Object[C any](c *Client, class string, iid *dcom.IID, bind func(context.Context, dcerpc.Conn, ...dcerpc.Option) (C, error)) C {
	c.T.Helper()
	a := c.MustActivate(class, iid)
	client, err := bind(c.Ctx, c.Calls, append(c.Options, dcom.WithIPID(a.IPIDs[0]))...)
	if err != nil {
		c.T.Fatal(err)
	}
	return client
}

// This is what each call of a COM method begins with.
func This() *dcom.ORPCThis {
	return &dcom.ORPCThis{Version: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &dcom.CID{}}
}

// Passage binds a client of ICertPassage by packet privacy.
func Passage(t testing.TB, account string) icertpassage.CertPassageClient {
	t.Helper()
	c := &Client{T: t, Host: world.Env("LAB_GATEWAY"), Ctx: gssapi.NewSecurityContext(context.Background())}
	options := append(Credentials(t, account), dcerpc.WithSeal(), dcerpc.WithTargetName("host/"+world.Env("LAB_GATEWAY")))
	p, err := icertpassage.NewCertPassageClient(c.Ctx, c.Open("ncacn_ip_tcp:[49200]"), options...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
