// Package certrequest is the COM interfaces of certificate enrollment: ICertRequestD and ICertRequestD2 ([MS-WCCE] 3.2.1.4.2, 3.2.1.4.3).
// Their methods to request a certificate are package request; the properties of a CA, which the others ask for, are computed from a CA,
// which the Backend has at hand without asking anybody.
//
// Every method demands packet privacy: below it the result is E_ACCESSDENIED, in the answer and not as a fault, as clients of COM expect it.
package certrequest

import (
	"context"
	"crypto/x509"
	"maps"

	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// CLSID is the class CCertRequestD ([MS-WCCE] 1.9).
var CLSID = pdu.MustUUID("d99e6e74-fc88-11d0-b498-00a0c90312f3")

// The interfaces ([MS-WCCE] 1.9).
var (
	Syntax  = pdu.Syntax{UUID: pdu.MustUUID("d99e6e70-fc88-11d0-b498-00a0c90312f3")} // ICertRequestD
	Syntax2 = pdu.Syntax{UUID: pdu.MustUUID("5422fd3a-d4b8-4cef-a12e-e87d4ca22e90")} // ICertRequestD2
)

// Backend is the gateway.
type Backend interface {
	request.Backend
	// Facts are what is known of a CA by the name that clients call it, "" for the first one; nil where there is none. Nobody is asked:
	// neither the directory nor a CA.
	Facts(ctx context.Context, authority string) *CA
	// Exchange is the current exchange certificate of a CA, which is made where there is none.
	Exchange(ctx context.Context, ca string) (*x509.Certificate, error)
}

// Limits of parameters ([MS-WCCE] 3.2.1.4.2.1, 3.2.1.4.3.1), in UTF-16 units.
const (
	maxAttributes = request.MaxAttributes / 2
	maxSerial     = 64
)

// Interfaces are ICertRequestD and ICertRequestD2 as a server has them.
func Interfaces(b Backend) []server.Interface {
	m := &methods{b}
	authority := orpc.String(request.MaxAuthority)
	one := map[uint16]server.Handler{
		3: orpc.Handler(orpc.Layout{orpc.Long, authority, orpc.Long, orpc.String(maxAttributes), orpc.Blob(wcce.MaxMessage)}, m.request),
		4: orpc.Handler(orpc.Layout{orpc.Long, authority}, m.getCACert),
		5: orpc.Handler(orpc.Layout{authority}, m.ping),
	}
	two := map[uint16]server.Handler{
		6: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.String(maxSerial), orpc.Long, orpc.String(maxAttributes), orpc.Blob(wcce.MaxMessage)}, m.request2),
		7: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.Long, orpc.Long}, m.getCAProperty),
		8: orpc.Handler(orpc.Layout{authority}, m.getCAPropertyInfo),
		9: orpc.Handler(orpc.Layout{authority}, m.ping2),
	}
	maps.Copy(two, one)
	names := map[uint16]string{3: "Request", 4: "GetCACert", 5: "Ping"}
	names2 := map[uint16]string{6: "Request2", 7: "GetCAProperty", 8: "GetCAPropertyInfo", 9: "Ping2"}
	maps.Copy(names2, names)
	return []server.Interface{
		{Name: "ICertRequestD", Syntax: Syntax, Least: pdu.LevelIntegrity, MaxStub: request.MaxStub, Operations: names, Handle: server.Operations(one)},
		{Name: "ICertRequestD2", Syntax: Syntax2, Least: pdu.LevelIntegrity, MaxStub: request.MaxStub, Operations: names2, Handle: server.Operations(two)},
	}
}

type methods struct{ backend Backend }

// request is ICertRequestD::Request ([MS-WCCE] 3.2.1.4.2.1).
func (m *methods) request(ctx context.Context, call *server.Call, in *icertrequestd.RequestRequest) (*icertrequestd.RequestResponse, error) {
	out := request.Serve(ctx, call, m.backend, request.Args{Flags: in.Flags, Authority: in.Authority, RequestID: in.RequestID, Attributes: in.Attributes, Request: request.Octets(in.Request)})
	return &icertrequestd.RequestResponse{RequestID: out.RequestID, Disposition: out.Disposition, CertChain: request.Blob(out.Chain), EncodedCert: request.Blob(out.Certificate),
		DispositionMessage: request.Blob(request.EncodeText(out.Message)), Return: out.Result.Int32()}, nil
}

// request2 is ICertRequestD2::Request2 ([MS-WCCE] 3.2.1.4.3.1).
func (m *methods) request2(ctx context.Context, call *server.Call, in *icertrequestd2.Request2Request) (*icertrequestd2.Request2Response, error) {
	out := request.Serve(ctx, call, m.backend, request.Args{Flags: in.Flags, Authority: in.Authority, RequestID: in.RequestID, Serial: in.SerialNumber, Attributes: in.Attributes, Request: request.Octets(in.Request)})
	return &icertrequestd2.Request2Response{RequestID: out.RequestID, Disposition: out.Disposition, FullResponse: request.Blob(out.Chain), EncodedCert: request.Blob(out.Certificate),
		DispositionMessage: request.Blob(request.EncodeText(out.Message)), Return: out.Result.Int32()}, nil
}

// facts finds the CA of a call that asks for properties.
func (m *methods) facts(ctx context.Context, call *server.Call, authority string) (*CA, error) {
	if err := request.Private(call); err != nil {
		return nil, err
	}
	ca := m.backend.Facts(ctx, authority)
	if ca == nil {
		return nil, hresult.New(hresult.InvalidArg, "there is no CA %q here", authority)
	}
	return ca, nil
}

// getCACert is ICertRequestD::GetCACert ([MS-WCCE] 3.2.1.4.2.2).
func (m *methods) getCACert(ctx context.Context, call *server.Call, in *icertrequestd.GetCACertRequest) (*icertrequestd.GetCACertResponse, error) {
	ca, err := m.facts(ctx, call, in.Authority)
	var value []byte
	if err == nil {
		value, err = m.caCert(ctx, ca, in.Chain)
	}
	call.Log("what", in.Chain)
	return &icertrequestd.GetCACertResponse{Out: request.Blob(value), Return: request.Failed(call, err)}, nil
}

// getCAProperty is ICertRequestD2::GetCAProperty ([MS-WCCE] 3.2.1.4.3.2).
func (m *methods) getCAProperty(ctx context.Context, call *server.Call, in *icertrequestd2.GetCAPropertyRequest) (*icertrequestd2.GetCAPropertyResponse, error) {
	ca, err := m.facts(ctx, call, in.Authority)
	var value []byte
	if err == nil {
		value, err = m.property(ctx, ca, in.PropertyID, in.PropertyIndex, in.PropertyType)
	}
	call.Log("property", in.PropertyID)
	return &icertrequestd2.GetCAPropertyResponse{PropertyValue: request.Blob(value), Return: request.Failed(call, err)}, nil
}

// getCAPropertyInfo is ICertRequestD2::GetCAPropertyInfo ([MS-WCCE] 3.2.1.4.3.3).
func (m *methods) getCAPropertyInfo(_ context.Context, call *server.Call, in *icertrequestd2.GetCAPropertyInfoRequest) (*icertrequestd2.GetCAPropertyInfoResponse, error) {
	if err := m.here(call, in.Authority); err != nil {
		return &icertrequestd2.GetCAPropertyInfoResponse{PropertyInfo: request.Blob(nil), Return: request.Failed(call, err)}, nil
	}
	count, table := PropertyInfo()
	return &icertrequestd2.GetCAPropertyInfoResponse{PropertyCount: count, PropertyInfo: request.Blob(table)}, nil
}

// here tells whether a CA is here, "" being the first one.
func (m *methods) here(call *server.Call, authority string) error {
	err := request.Private(call)
	if err == nil && authority != "" && m.backend.CA(authority) == "" {
		err = hresult.New(hresult.InvalidArg, "there is no CA %q here", authority)
	}
	return err
}

// ping is ICertRequestD::Ping ([MS-WCCE] 3.2.1.4.2.3).
func (m *methods) ping(_ context.Context, call *server.Call, in *icertrequestd.PingRequest) (*icertrequestd.PingResponse, error) {
	return &icertrequestd.PingResponse{Return: request.Failed(call, m.here(call, in.Authority))}, nil
}

// ping2 is ICertRequestD2::Ping2 ([MS-WCCE] 3.2.1.4.3.4).
func (m *methods) ping2(_ context.Context, call *server.Call, in *icertrequestd2.Ping2Request) (*icertrequestd2.Ping2Response, error) {
	return &icertrequestd2.Ping2Response{Return: request.Failed(call, m.here(call, in.Authority))}, nil
}
