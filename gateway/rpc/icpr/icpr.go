// Package icpr is the ICertPassage remote protocol ([MS-ICPR]): certificate requests over RPC without DCOM. Its one method means what
// ICertRequestD::Request means, which is package request.
package icpr

import (
	"context"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Syntax is ICertPassage ([MS-ICPR] 1.9).
var Syntax = pdu.Syntax{UUID: pdu.MustUUID("91ae6020-9e3c-11cf-8d7c-00aa00c091be")}

// layout is that of CertServerRequest: dwFlags, pwszAuthority, pdwRequestId, pctbAttribs, pctbRequest.
var layout = orpc.Layout{orpc.Long, orpc.String(request.MaxAuthority), orpc.Long, orpc.Blob(request.MaxAttributes), orpc.Blob(wcce.MaxMessage)}

// Interface is ICertPassage as a server has it. Packet privacy is demanded of every call ([MS-ICPR] 3.2.4.1.1): others are refused with
// the fault ERROR_ACCESS_DENIED.
func Interface(b request.Backend) server.Interface {
	p := &passage{backend: b}
	certServerRequest := server.Stub(p.certServerRequest)
	return server.Interface{
		Name: "ICertPassage", Syntax: Syntax, Least: pdu.LevelPrivacy, MaxStub: request.MaxStub, Operations: map[uint16]string{0: "CertServerRequest"},
		Handle: server.Operations(map[uint16]server.Handler{0: func(ctx context.Context, call *server.Call, stub []byte) ([]byte, error) {
			if err := layout.Walk(orpc.NewReader(stub)); err != nil {
				return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
			}
			return certServerRequest(ctx, call, stub)
		}}),
	}
}

type passage struct{ backend request.Backend }

// certServerRequest is [MS-ICPR] 3.2.4.1.1.
func (p *passage) certServerRequest(ctx context.Context, call *server.Call, in *icertpassage.CertServerRequestRequest) (*icertpassage.CertServerRequestResponse, error) {
	if err := request.Private(call); err != nil { // the server has refused such a call already
		return nil, &server.Fault{Status: pdu.AccessDenied, Cause: err}
	}
	out := request.Answer{Disposition: uint32(hresult.InvalidArg), Result: hresult.InvalidArg}
	attributes, err := request.DecodeText(request.Octets(in.Attributes))
	if err != nil {
		request.Failed(call, err)
		out.Message = hresult.From(err).ClientText()
	} else {
		out = request.Serve(ctx, call, p.backend, request.Args{Flags: in.Flags, Authority: in.Authority, RequestID: in.RequestID, Attributes: attributes,
			Request: request.Octets(in.Request)})
	}
	return &icertpassage.CertServerRequestResponse{RequestID: out.RequestID, Disposition: out.Disposition, Cert: request.Blob(out.Chain), EncodedCert: request.Blob(out.Certificate),
		DispositionMessage: request.Blob(request.EncodeText(out.Message)), Return: uint32(out.Result)}, nil
}
