// Package icpr is the ICertPassage remote protocol ([MS-ICPR]): certificate requests over RPC without DCOM. Its one method means what
// ICertRequestD::Request means, which is package request.
package icpr

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	dcomwcce "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Syntax is ICertPassage ([MS-ICPR] 1.9).
var Syntax = pdu.Syntax{UUID: pdu.MustUUID("91ae6020-9e3c-11cf-8d7c-00aa00c091be")}

// MaxStub is enough for the largest request, its attributes and the name of a CA.
const MaxStub = wcce.MaxMessage + request.MaxAttributes + 8<<10

// Interface is ICertPassage as a server has it. Packet privacy is demanded of every call ([MS-ICPR] 3.2.4.1.1): others are refused with
// the fault ERROR_ACCESS_DENIED.
func Interface(b request.Backend) server.Interface {
	p := &passage{backend: b}
	certServerRequest := server.Stub(p.certServerRequest)
	return server.Interface{
		Name: "ICertPassage", Syntax: Syntax, Least: pdu.LevelPrivacy, MaxStub: MaxStub, Operations: map[uint16]string{0: "CertServerRequest"},
		Handle: server.Operations(map[uint16]server.Handler{0: func(ctx context.Context, call *server.Call, stub []byte) ([]byte, error) {
			if err := checkAuthority(stub); err != nil {
				return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
			}
			return certServerRequest(ctx, call, stub)
		}}),
	}
}

// maxAuthority is the range of pwszAuthority ([MS-WCCE] 3.2.1.4.2.1), in UTF-16 units with the final zero.
const maxAuthority = 1536

// checkAuthority looks at the length of pwszAuthority, which the decoder of the stub allocates as it stands there.
func checkAuthority(stub []byte) error {
	if len(stub) < 8 {
		return errors.New("the stub ends before pwszAuthority")
	}
	if binary.LittleEndian.Uint32(stub[4:]) == 0 {
		return nil
	}
	if len(stub) < 20 {
		return errors.New("the stub ends in pwszAuthority")
	}
	size, offset, length := binary.LittleEndian.Uint32(stub[8:]), binary.LittleEndian.Uint32(stub[12:]), binary.LittleEndian.Uint32(stub[16:])
	if length == 0 || length > maxAuthority || size < length || offset != 0 || int(2*length) > len(stub)-20 {
		return fmt.Errorf("pwszAuthority has %d of %d characters at %d; 1 to %d are allowed", length, size, offset, maxAuthority)
	}
	return nil
}

type passage struct{ backend request.Backend }

// certServerRequest is [MS-ICPR] 3.2.4.1.1.
func (p *passage) certServerRequest(ctx context.Context, call *server.Call, in *icertpassage.CertServerRequestRequest) (*icertpassage.CertServerRequestResponse, error) {
	if call.Caller == nil || call.Level < pdu.LevelPrivacy { // the server has refused such a call already
		return nil, &server.Fault{Status: pdu.AccessDenied}
	}
	out, err := p.answer(ctx, call, in)
	if err != nil {
		e := hresult.From(err)
		call.Result(e.Code.Name())
		call.Log("text", e.Text)
		if e.Cause != nil {
			call.Log("cause", e.Cause.Error())
		}
	} else {
		call.Result(map[uint32]string{request.Issued: "issued", request.UnderSubmission: "pending", request.Revoked: "revoked"}[out.Disposition])
	}
	if out.RequestID != 0 {
		call.Log("request", out.RequestID)
	}
	return &icertpassage.CertServerRequestResponse{RequestID: out.RequestID, Disposition: out.Disposition, Cert: blob(out.Chain), EncodedCert: blob(out.Certificate),
		DispositionMessage: blob(request.EncodeText(out.Message)), Return: uint32(out.Result)}, nil
}

func (p *passage) answer(ctx context.Context, call *server.Call, in *icertpassage.CertServerRequestRequest) (request.Answer, error) {
	args := request.Args{Flags: in.Flags, Authority: in.Authority, RequestID: in.RequestID}
	attributes, err := octets(in.Attributes, "attributes")
	if err == nil {
		args.Attributes, err = request.DecodeText(attributes)
	}
	if err == nil {
		args.Request, err = octets(in.Request, "request")
	}
	if err != nil {
		return request.Answer{Disposition: uint32(hresult.InvalidArg), Result: hresult.InvalidArg, Message: hresult.From(err).ClientText()}, err
	}
	return request.Do(ctx, p.backend, *call.Caller, args)
}

// octets opens a CERTTRANSBLOB ([MS-WCCE] 2.2.2.2), which says its length twice.
func octets(b *dcomwcce.CertTransportBlob, what string) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	if int64(b.Length) != int64(len(b.Buffer)) {
		return nil, hresult.New(hresult.InvalidArg, "the %s have %d octets, and say %d", what, len(b.Buffer), b.Length)
	}
	return b.Buffer, nil
}

func blob(value []byte) *dcomwcce.CertTransportBlob {
	return &dcomwcce.CertTransportBlob{Length: uint32(len(value)), Buffer: value} //nolint:gosec // made here, far below 4 GiB
}
