package rpc

import (
	"context"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"

	"github.com/enrollgate/enrollgate/test/msrpc"
)

func comContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(background), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func dialD2(t testing.TB, account string, level dcerpc.Option) icertrequestd2.CertRequestD2Client {
	return msrpc.Object(msrpc.Dial(t, account, level), msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd2.NewCertRequestD2Client)
}

func dialD(t testing.TB, account string, level dcerpc.Option) icertrequestd.CertRequestDClient {
	return msrpc.Object(msrpc.Dial(t, account, level), msrpc.ClassRequest, icertrequestd.CertRequestDIID, icertrequestd.NewCertRequestDClient)
}

func dialAdmin(t testing.TB, account string, level dcerpc.Option) icertadmind2.CertAdminD2Client {
	return msrpc.Object(msrpc.Dial(t, account, level), msrpc.ClassAdmin, icertadmind2.CertAdminD2IID, icertadmind2.NewCertAdminD2Client)
}
