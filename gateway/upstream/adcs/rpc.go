package adcs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce"
	"github.com/oiweiwei/go-msrpc/msrpc/epm/epm/v3"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ssp"
	"github.com/oiweiwei/go-msrpc/ssp/credential"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
	"github.com/oiweiwei/go-msrpc/ssp/krb5"
)

// maxAnswer is how many octets are read of one connection.
const maxAnswer = 4 << 20

// call makes one CertServerRequest ([MS-ICPR] 3.2.4.1.1) on a connection of its own, with packet privacy and Kerberos. An error before
// the call itself is marked with upstream.NotIssued.
func (ca *CA) call(ctx context.Context, in *icertpassage.CertServerRequestRequest) (*icertpassage.CertServerRequestResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, ca.o.Timeout)
	defer cancel()
	sent := false
	out, err := ca.connectAndCall(ctx, in, &sent)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil && !sent {
		err = upstream.NotIssued(err)
	}
	return out, err
}

func (ca *CA) connectAndCall(ctx context.Context, in *icertpassage.CertServerRequestRequest, sent *bool) (out *icertpassage.CertServerRequestResponse, err error) {
	defer func() {
		if p := recover(); p != nil { // the library does not check everything that it decodes
			out, err = nil, fmt.Errorf("the answer cannot be read: %v", p)
		}
	}()
	ctx = gssapi.NewSecurityContext(ctx)
	dialer := &dialer{ctx: ctx}
	defer dialer.close()
	connect := []dcerpc.Option{dcerpc.WithDialer(dialer), dcerpc.WithTimeout(ca.o.Timeout)}
	endpoint := fmt.Sprintf("ncacn_ip_tcp:[%d]", ca.o.Port)
	if ca.o.Port == 0 {
		endpoint = "ncacn_ip_tcp:"
		connect = append(connect, epm.EndpointMapper(ctx, ca.o.Server, dcerpc.WithInsecure(), dcerpc.WithDialer(dialer), dcerpc.WithTimeout(ca.o.Timeout)))
	}
	conn, err := dcerpc.Dial(ctx, ca.o.Server, connect...)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", ca.o.Server, err)
	}
	defer conn.Close(ctx)
	kerberos := &krb5.Config{KRB5Config: ca.krb5, DCEStyle: true, DisablePAFXFAST: true}
	client, err := icertpassage.NewCertPassageClient(ctx, conn, dcerpc.WithEndpoint(endpoint), dcerpc.WithSeal(), dcerpc.WithTargetName(ca.o.ServicePrincipal),
		dcerpc.WithMechanism(ssp.SPNEGO), dcerpc.WithMechanism(ssp.KRB5, kerberos), dcerpc.WithCredentials(credential.NewFromKeytabV8(ca.o.Principal, ca.keys())))
	if err != nil {
		return nil, fmt.Errorf("log on to %s as %s with Kerberos: %w", ca.o.ServicePrincipal, ca.o.Principal, err)
	}
	*sent = true
	out, err = client.CertServerRequest(ctx, in)
	if out != nil && out.Return != 0 {
		err = nil // the library makes an error of what is an answer
	}
	return out, err
}

// keys are those in the keytab now: the account's password may have changed. A file that cannot be read now leaves the last ones.
func (ca *CA) keys() *keytab.Keytab {
	if now, err := keytab.Load(ca.o.Keytab); err == nil {
		return now
	}
	return ca.keytab
}

// dialer bounds what a server can make the library read, and for how long it waits.
type dialer struct {
	ctx   context.Context
	conns []*boundedConn
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: conn}
	c.stop = context.AfterFunc(d.ctx, func() { _ = conn.SetDeadline(time.Now()) })
	d.conns = append(d.conns, c)
	return c, nil
}

func (d *dialer) close() {
	for _, c := range d.conns {
		c.stop()
		_ = c.Close()
	}
}

type boundedConn struct {
	net.Conn
	read atomic.Int64
	stop func() bool
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.read.Load() > maxAnswer {
		return 0, fmt.Errorf("the answer has more than %d octets", maxAnswer)
	}
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// SetDeadline and the like keep the deadline of the whole call.
func (c *boundedConn) SetDeadline(time.Time) error      { return nil }
func (c *boundedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *boundedConn) SetWriteDeadline(time.Time) error { return nil }

func blob(value []byte) *wcce.CertTransportBlob {
	return &wcce.CertTransportBlob{Length: uint32(len(value)), Buffer: value} //nolint:gosec // a request is below wcce.MaxMessage
}

func octets(b *wcce.CertTransportBlob) []byte {
	if b == nil {
		return nil
	}
	return b.Buffer
}
