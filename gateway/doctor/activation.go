package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/midl/uuid"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremotescmactivator "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremotescmactivator/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	"github.com/oiweiwei/go-msrpc/ssp"
	"github.com/oiweiwei/go-msrpc/ssp/credential"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
	"github.com/oiweiwei/go-msrpc/ssp/krb5"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// activation does what Windows does for its own enrollment policy, as the gateway's account: a ticket for RPCSS, activation of CCertRequestD by
// the public name, a connection to where its objects are, and a question about each CA ([MS-WCCE] 3.1.1.4, [MS-DCOM] 3.2.4.1.1).
func activation(ctx context.Context, p *patient) ([]Finding, error) {
	if len(dcomNames(p.cfg)) == 0 {
		return []Finding{well("", "DCOM is off (listen.rpc, listen.epm): clients need the policy server, and Windows' own enrollment policy gets no certificates here")}, nil
	}
	if err := p.needGateway(); err != nil {
		return nil, err
	}
	b := p.cfg.Directory.Bind
	if b.Method != "gssapi" || b.Principal == "" || b.Keytab == "" {
		return nil, notMade{"needs an account with a keytab to get a ticket: directory.bind with gssapi"}
	}
	a := &activator{host: p.cfg.PublicName, timeout: p.timeout * 3 / 4}
	if err := a.credentials(p); err != nil {
		return nil, err
	}
	subject := "CCertRequestD at " + a.host
	object, err := a.activate(gssapi.NewSecurityContext(ctx))
	if err != nil {
		return []Finding{bad(subject, a.fix(err), "Windows' own enrollment policy gets no certificates: %v", err)}, nil
	}
	defer object.close(ctx)
	out := []Finding{well(subject, "activated as %s, at %s", b.Principal, object.at)}
	for _, ca := range p.gateway.CAs {
		out = append(out, object.ask(gssapi.NewSecurityContext(ctx), ca))
	}
	return out, nil
}

// activator is a client of DCOM.
type activator struct {
	host    string
	timeout time.Duration
	options []dcerpc.Option
}

func (a *activator) credentials(p *patient) error {
	b := p.cfg.Directory.Bind
	conf, err := config.Load(p.cfg.Directory.Krb5Conf)
	if err != nil {
		return fmt.Errorf("%s: %w", p.cfg.Directory.Krb5Conf, err)
	}
	keys, err := keytab.Load(b.Keytab)
	if err != nil {
		return fmt.Errorf("%s: %w", b.Keytab, err)
	}
	principal := b.Principal
	if !strings.Contains(principal, "@") {
		principal += "@" + conf.LibDefaults.DefaultRealm
	}
	a.options = []dcerpc.Option{dcerpc.WithSeal(), dcerpc.WithTargetName("RPCSS/" + a.host), dcerpc.WithMechanism(ssp.SPNEGO),
		dcerpc.WithMechanism(ssp.KRB5, &krb5.Config{KRB5Config: conf, DCEStyle: true, DisablePAFXFAST: true}),
		dcerpc.WithCredentials(credential.NewFromKeytabV8(principal, keys))}
	return nil
}

// fix says what to do about an activation that failed.
func (a *activator) fix(err error) string {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return "see the checks of dns and port: clients need TCP 135 and the port of listen.rpc, by the public name"
	}
	return "see the checks of spn, keytab and ticket (HOST/" + a.host + "), and the gateway's log, which has the reason of each refusal"
}

// object is an instance of CCertRequestD.
type object struct {
	conns []dcerpc.Conn
	at    string
	d2    icertrequestd2.CertRequestD2Client
}

func (o *object) close(ctx context.Context) {
	for _, c := range o.conns {
		_ = c.Close(ctx)
	}
}

// activate makes an object and binds to ICertRequestD2.
func (a *activator) activate(ctx context.Context) (o *object, err error) {
	o = &object{}
	defer func() {
		if err != nil {
			o.close(ctx)
		}
	}()
	open := func(endpoints ...string) (dcerpc.Conn, error) {
		options := []dcerpc.Option{dcerpc.WithTimeout(a.timeout)}
		for _, e := range endpoints {
			options = append(options, dcerpc.WithEndpoint(e))
		}
		c, err := dcerpc.Dial(ctx, a.host, options...)
		if err == nil {
			o.conns = append(o.conns, c)
		}
		return c, err
	}
	resolver, err := open("ncacn_ip_tcp:[135]")
	if err != nil {
		return o, err
	}
	client, err := iremotescmactivator.NewRemoteSCMActivatorClient(ctx, resolver, a.options...)
	if err != nil {
		return o, fmt.Errorf("port 135: %w", err)
	}
	pointer, err := properties()
	if err != nil {
		return o, err
	}
	r, err := client.RemoteCreateInstance(ctx, &iremotescmactivator.RemoteCreateInstanceRequest{ORPCThis: this(), ActPropertiesIn: pointer})
	if err != nil {
		return o, fmt.Errorf("activation: %w", err)
	}
	ipid, endpoints, err := parts(r.ActPropertiesOut)
	if err != nil {
		return o, fmt.Errorf("activation: %w", err)
	}
	o.at = strings.Join(endpoints, ", ")
	calls, err := open(endpoints...)
	if err != nil {
		return o, err
	}
	if o.d2, err = icertrequestd2.NewCertRequestD2Client(ctx, calls, append(a.options, dcom.WithIPID(ipid))...); err != nil {
		return o, fmt.Errorf("%s: %w", o.at, err)
	}
	return o, nil
}

// parts are what an activation's answer says: which object, and where.
func parts(answer *dcom.InterfacePointer) (*dcom.IPID, []string, error) {
	var props dcom.ActivationProperties
	if err := props.Parse(answer); err != nil {
		return nil, nil, err
	}
	info, reply := props.PropertiesOutInfo(), props.SCMReplyInfoData()
	if info == nil || len(info.InterfaceData) != 1 || reply == nil || reply.RemoteReply == nil {
		return nil, nil, errors.New("the answer has no object")
	}
	var endpoints []string
	for _, b := range reply.RemoteReply.OXIDBindings.GetStringBindings() {
		endpoints = append(endpoints, b.String())
	}
	return info.InterfaceData[0].GetStandardObjectReference().Std.IPID, endpoints, nil
}

// properties ask for ICertRequestD2 of CCertRequestD.
func properties() (*dcom.InterfacePointer, error) {
	class := (*dcom.ClassID)(dtyp.GUIDFromUUID(uuid.MustParse("d99e6e74-fc88-11d0-b498-00a0c90312f3")))
	in := &dcom.ActivationProperties{DestinationContext: 2, Properties: []dcom.ActivationProperty{
		&dcom.InstantiationInfoData{ClassID: class, IID: []*dcom.IID{icertrequestd2.CertRequestD2IID}, ClientCOMVersion: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}},
		&dcom.LocationInfoData{}, &dcom.SCMRequestInfoData{RemoteRequest: &dcom.CustomRemoteRequestSCMInfo{RequestedProtocolSequences: []uint16{7}}},
	}}
	return in.ActivationPropertiesIn()
}

func this() *dcom.ORPCThis {
	return &dcom.ORPCThis{Version: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &dcom.CID{}}
}

// propTemplates is the list of templates ([MS-WCCE] 3.2.1.4.3.2.29).
const (
	propTemplates = 0x1d
	typeString    = 4
)

// ask asks a CA which templates it offers, as certutil -CATemplates does.
func (o *object) ask(ctx context.Context, ca *gateway.CA) Finding {
	r, err := o.d2.GetCAProperty(ctx, &icertrequestd2.GetCAPropertyRequest{This: this(), Authority: ca.Name, PropertyID: propTemplates, PropertyType: typeString})
	switch {
	case r == nil || r.Return == 0 && r.PropertyValue == nil:
		return bad(ca.Name, "see the gateway's log, which has the reason", "a call over DCOM failed: %v", err)
	case r.Return != 0:
		return bad(ca.Name, "see the gateway's log, which has the reason", "asked over DCOM, it answers %v", hresult.Code(uint32(r.Return))) //nolint:gosec // the same bits
	}
	var units []uint16
	for b := r.PropertyValue.Buffer; len(b) >= 2; b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return well(ca.Name, "answers over DCOM; %d templates are offered", strings.Count(string(utf16.Decode(units)), "\n")/2)
}
