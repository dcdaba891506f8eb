// Package rpc enrolls over RPC with clients that were not written here: go-msrpc's, impacket, Samba's and tshark as the judge. Run it with:
// test/lab/lab.sh ns go test ./test/rpc
package rpc

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	dcomwcce "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce"
	"github.com/oiweiwei/go-msrpc/msrpc/epm/epm/v3"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ssp"
	"github.com/oiweiwei/go-msrpc/ssp/credential"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
	"github.com/oiweiwei/go-msrpc/ssp/krb5"

	gatewayconfig "github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/test/world"
)

var background = context.Background()

// start runs a gateway with RPC on.
func start(t testing.TB) *world.World {
	t.Helper()
	return world.StartChanged(t, "", listen)
}

// listen opens the ports of RPC and of the endpoint mapper, and so DCOM.
func listen(c *gatewayconfig.Config) {
	c.Listen.RPC, c.Listen.EPM = rpcAddress(), world.Env("LAB_GW_IP")+":135"
}

func rpcAddress() string { return world.Env("LAB_GW_IP") + ":49200" }

// how a client protects its calls.
type how struct {
	level  dcerpc.Option
	bare   bool   // Kerberos without SPNEGO
	target string // service principal; host/<gateway> if empty
	port   bool   // go to the port without asking the endpoint mapper
	dialer dcerpc.Dialer
}

// dial binds go-msrpc's client to ICertPassage as an account.
func dial(t testing.TB, account string, h how) (icertpassage.CertPassageClient, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(background), 20*time.Second)
	t.Cleanup(cancel)
	conf, err := config.Load(world.Env("KRB5_CONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	if h.level == nil {
		h.level = dcerpc.WithSeal()
	}
	if h.target == "" {
		h.target = "host/" + world.Env("LAB_GATEWAY")
	}
	if h.dialer == nil {
		h.dialer = &net.Dialer{}
	}
	connect := []dcerpc.Option{dcerpc.WithTimeout(10 * time.Second), dcerpc.WithDialer(h.dialer)}
	endpoint := "ncacn_ip_tcp:"
	if h.port {
		endpoint = "ncacn_ip_tcp:[49200]"
	} else {
		connect = append(connect, epm.EndpointMapper(ctx, world.Env("LAB_GATEWAY"), dcerpc.WithInsecure(), dcerpc.WithTimeout(10*time.Second)))
	}
	conn, err := dcerpc.Dial(ctx, world.Env("LAB_GATEWAY"), connect...)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close(ctx) })
	kerberos := &krb5.Config{KRB5Config: conf, DCEStyle: true, DisablePAFXFAST: true}
	bind := []dcerpc.Option{dcerpc.WithEndpoint(endpoint), h.level, dcerpc.WithTargetName(h.target)}
	if h.bare {
		bind = append(bind, dcerpc.WithSecurtyProvider(dcerpc.AuthTypeKerberos))
	} else {
		bind = append(bind, dcerpc.WithMechanism(ssp.SPNEGO))
	}
	bind = append(bind, dcerpc.WithMechanism(ssp.KRB5, kerberos), dcerpc.WithCredentials(credential.NewFromPassword(account+"@"+world.Env("LAB_REALM"), world.Env("LAB_PASSWORD"))))
	return icertpassage.NewCertPassageClient(ctx, conn, bind...)
}

func mustDial(t testing.TB, account string, h how) icertpassage.CertPassageClient {
	t.Helper()
	c, err := dial(t, account, h)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask makes one call; the client makes an error of an answer with a result.
func ask(t testing.TB, c icertpassage.CertPassageClient, in *icertpassage.CertServerRequestRequest) *icertpassage.CertServerRequestResponse {
	t.Helper()
	if in.Authority == "" {
		in.Authority = world.CAName
	}
	if in.Attributes == nil {
		in.Attributes = blob(nil)
	}
	if in.Request == nil {
		in.Request = blob(nil)
	}
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(background), 20*time.Second)
	defer cancel()
	out, err := c.CertServerRequest(ctx, in)
	if out == nil {
		t.Fatal(err)
	}
	return out
}

func blob(value []byte) *dcomwcce.CertTransportBlob {
	return &dcomwcce.CertTransportBlob{Length: uint32(len(value)), Buffer: value}
}

func template(name string) *dcomwcce.CertTransportBlob {
	return blob(utf16Text("CertificateTemplate:" + name + "\n\x00"))
}

func utf16Text(text string) (out []byte) {
	for _, u := range utf16.Encode([]rune(text)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

func text(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b); i += 2 {
		units = append(units, binary.LittleEndian.Uint16(b[i:]))
	}
	return string(utf16.Decode(units))
}

func need(t testing.TB, program string) {
	t.Helper()
	if _, err := os.Stat(program); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: run test/deps.sh", program)
	}
	t.Skipf("needs %s, which test/deps.sh installs", program)
}
