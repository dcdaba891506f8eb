package rpc

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/midl/uuid"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	"github.com/oiweiwei/go-msrpc/ssp"
	"github.com/oiweiwei/go-msrpc/ssp/credential"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
	"github.com/oiweiwei/go-msrpc/ssp/krb5"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/test/world"
)

// serve offers COM interfaces without the objects that DCOM has before them: any object will do.
func serve(t testing.TB, interfaces ...server.Interface) {
	t.Helper()
	acceptor, err := kerberos.New(kerberos.Options{KeytabFile: world.Env("LAB_KEYTAB_SVC"), Log: logrus.New()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", world.Env("LAB_GW_IP")+":49300")
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetLevel(logrus.ErrorLevel)
	s := server.New(server.Options{Name: "COM", Acceptor: acceptor.ForRPC(), Log: log})
	for _, i := range interfaces {
		s.Register(i)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(background, 10*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
	})
}

// comClient binds a typed client of go-msrpc's to the port of serve.
func comClient[C any](t testing.TB, account string, level dcerpc.Option, bind func(context.Context, dcerpc.Conn, ...dcerpc.Option) (C, error)) C {
	t.Helper()
	ctx := comContext(t)
	conf, err := config.Load(world.Env("KRB5_CONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dcerpc.Dial(ctx, world.Env("LAB_GATEWAY"), dcerpc.WithTimeout(10*time.Second), dcerpc.WithDialer(&net.Dialer{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(background) })
	object := (*dcom.IPID)(dtyp.GUIDFromUUID(uuid.MustParse("11111111-2222-3333-4444-555555555555")))
	c, err := bind(ctx, conn, dcerpc.WithEndpoint("ncacn_ip_tcp:[49300]"), level, dcerpc.WithTargetName("host/"+world.Env("LAB_GATEWAY")), dcerpc.WithMechanism(ssp.SPNEGO),
		dcerpc.WithMechanism(ssp.KRB5, &krb5.Config{KRB5Config: conf, DCEStyle: true, DisablePAFXFAST: true}),
		dcerpc.WithCredentials(credential.NewFromPassword(account+"@"+world.Env("LAB_REALM"), world.Env("LAB_PASSWORD"))), dcom.WithIPID(object))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func comContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(background), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// this is what each call of a COM method begins with.
func this() *dcom.ORPCThis {
	return &dcom.ORPCThis{Version: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &dcom.CID{}}
}

func dialD2(t testing.TB, account string, level dcerpc.Option) icertrequestd2.CertRequestD2Client {
	return comClient(t, account, level, icertrequestd2.NewCertRequestD2Client)
}

func dialD(t testing.TB, account string, level dcerpc.Option) icertrequestd.CertRequestDClient {
	return comClient(t, account, level, icertrequestd.NewCertRequestDClient)
}
