package request

import (
	"context"

	dcomwcce "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Private refuses calls that others could have read, or that nobody has proven to be of.
func Private(call *server.Call) error {
	if call.Caller == nil || call.Level < pdu.LevelPrivacy {
		return hresult.New(hresult.AccessDenied, "the call is not protected by packet privacy").WithFix("let the client ask for RPC_C_AUTHN_LEVEL_PKT_PRIVACY")
	}
	return nil
}

// Failed notes for log and metrics why a method did not succeed, and is its result; 0 for no error.
func Failed(call *server.Call, err error) int32 {
	if err == nil {
		return 0
	}
	e := hresult.From(err)
	call.Result(e.Code.Name())
	call.Log("text", e.Text)
	if e.Cause != nil {
		call.Log("cause", e.Cause.Error())
	}
	return e.Code.Int32()
}

// Serve is Do for a call, whose log and metrics are told what became of it.
func Serve(ctx context.Context, call *server.Call, b Backend, in Args) (out Answer) {
	err := Private(call)
	if err == nil {
		out, err = Do(ctx, b, *call.Caller, in)
	} else {
		out = refusal(in, err)
	}
	if Failed(call, err); err == nil {
		call.Result(map[uint32]string{Issued: "issued", UnderSubmission: "pending", Revoked: "revoked"}[out.Disposition])
	}
	if out.RequestID != 0 {
		call.Log("request", out.RequestID)
	}
	return out
}

// Octets opens a CERTTRANSBLOB ([MS-WCCE] 2.2.2.2), of which the stub was looked at before.
func Octets(b *dcomwcce.CertTransportBlob) []byte {
	if b == nil {
		return nil
	}
	return b.Buffer
}

// Blob makes a CERTTRANSBLOB.
func Blob(value []byte) *dcomwcce.CertTransportBlob {
	return &dcomwcce.CertTransportBlob{Length: uint32(len(value)), Buffer: value} //nolint:gosec // made here, far below 4 GiB
}
