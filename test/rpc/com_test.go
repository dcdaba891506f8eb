package rpc

import (
	"context"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/midl/uuid"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"
)

// The classes ([MS-WCCE] 1.9, [MS-CSRA] 1.9).
const (
	classRequest = "d99e6e74-fc88-11d0-b498-00a0c90312f3"
	classAdmin   = "d99e6e73-fc88-11d0-b498-00a0c90312f3"
)

func classOf(id string) *dcom.ClassID {
	return (*dcom.ClassID)(dtyp.GUIDFromUUID(uuid.MustParse(id)))
}

// comClient activates a class as an account, at port 135, and binds a typed client of go-msrpc's to the object, at the port that it is told.
func comClient[C any](t testing.TB, account string, level dcerpc.Option, class string, iid *dcom.IID, bind func(context.Context, dcerpc.Conn, ...dcerpc.Option) (C, error)) C {
	t.Helper()
	return onObject(dialDCOM(t, account, level), class, iid, bind)
}

// onObject is comClient for somebody who is connected.
func onObject[C any](c *dcomClient, class string, iid *dcom.IID, bind func(context.Context, dcerpc.Conn, ...dcerpc.Option) (C, error)) C {
	c.t.Helper()
	a := c.mustActivateClass(class, iid)
	client, err := bind(c.ctx, c.calls, append(c.options, dcom.WithIPID(a.ipids[0]))...)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
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
	return comClient(t, account, level, classRequest, icertrequestd2.CertRequestD2IID, icertrequestd2.NewCertRequestD2Client)
}

func dialD(t testing.TB, account string, level dcerpc.Option) icertrequestd.CertRequestDClient {
	return comClient(t, account, level, classRequest, icertrequestd.CertRequestDIID, icertrequestd.NewCertRequestDClient)
}

func dialAdmin(t testing.TB, account string, level dcerpc.Option) icertadmind2.CertAdminD2Client {
	return comClient(t, account, level, classAdmin, icertadmind2.CertAdminD2IID, icertadmind2.NewCertAdminD2Client)
}
