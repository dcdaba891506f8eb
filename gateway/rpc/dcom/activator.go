package dcom

import (
	"context"
	"errors"
	"fmt"

	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremotescmactivator "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremotescmactivator/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// maxActivation bounds the stub of an activation; what Windows sends has less than 1 KiB.
const maxActivation = 16 << 10

// activator is IRemoteSCMActivator ([MS-DCOM] 3.1.2.5.2.2). Activation below packet integrity is refused, as Windows does since 2023.
func (x *Exporter) activator() server.Interface {
	return server.Interface{
		Name: "IRemoteSCMActivator", Syntax: activatorSyntax, Least: pdu.LevelIntegrity, MaxStub: maxActivation,
		Operations: map[uint16]string{3: "RemoteGetClassObject", 4: "RemoteCreateInstance"},
		Handle: server.Operations(map[uint16]server.Handler{
			3: func(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
				return x.activateCall(call, stub, true)
			},
			4: func(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
				return x.activateCall(call, stub, false)
			},
		}),
	}
}

// activateCall is RemoteGetClassObject and RemoteCreateInstance ([MS-DCOM] 3.1.2.5.2.3.2, 3.1.2.5.2.3.3): of the class's factory, or of
// an object.
func (x *Exporter) activateCall(call *server.Call, stub []byte, factory bool) ([]byte, error) {
	r := orpc.NewReader(stub)
	t := orpc.ReadThis(r)
	outer := !factory && r.Pointer()
	var objref []byte
	if !outer && r.Pointer() {
		objref = readInterfacePointer(r)
	}
	if r.Err() != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: r.Err()}
	}
	var out []byte
	code, why := hresult.OK, error(nil)
	switch {
	case !spoken(t):
		code, why = codeVersionMismatch, fmt.Errorf("DCOM version %d.%d is not spoken, only up to %d.%d", t.Major, t.Minor, comMajor, comMinor)
	case outer:
		code, why = codeNoAggregation, errors.New("an object cannot be part of another")
	case objref == nil:
		code, why = hresult.InvalidArg, errors.New("no activation properties")
	default:
		out, code, why = x.activate(call, objref, factory)
	}
	told(call, code, why)
	var properties *msdcom.InterfacePointer
	if code == hresult.OK {
		properties = &msdcom.InterfacePointer{Data: out}
	}
	var answer ndr.Marshaler = &iremotescmactivator.RemoteCreateInstanceResponse{ORPCThat: &msdcom.ORPCThat{}, ActPropertiesOut: properties, Return: code.Int32()}
	if factory {
		answer = &iremotescmactivator.RemoteGetClassObjectResponse{ORPCThat: &msdcom.ORPCThat{}, ActPropertiesOut: properties, Return: code.Int32()}
	}
	return ndr.Marshal(answer)
}

// readInterfacePointer reads MInterfacePointer ([MS-DCOM] 2.2.14).
func readInterfacePointer(r *orpc.Reader) []byte {
	n := r.U32()
	size := r.U32()
	if n != size {
		r.Failf("an interface pointer of %d octets, and of %d", n, size)
	}
	if uint64(size) > uint64(r.Left()) { //nolint:gosec // a length
		r.Failf("an interface pointer of %d octets in %d", size, r.Left())
	}
	return r.Take(int(size))
}

// activate returns the OBJREF_CUSTOM with the properties that go out.
func (x *Exporter) activate(call *server.Call, objref []byte, factory bool) ([]byte, hresult.Code, error) {
	want, err := parseActivation(objref)
	switch {
	case errors.Is(err, errObjref):
		return nil, codeInvalidObjref, err
	case err != nil:
		return nil, hresult.InvalidArg, err
	}
	c := x.classes[want.class]
	if c == nil {
		return nil, codeClassNotReg, fmt.Errorf("there is no class %s here", want.class)
	}
	call.Log("class", c.name)
	sid := sidOf(call)
	if sid == "" {
		return nil, hresult.AccessDenied, errors.New("the caller has no SID")
	}
	results, code := x.table.activate(sid, c, factory, want.interfaces)
	switch code {
	case hresult.OK:
	case codeNoInterface:
		return nil, code, fmt.Errorf("the class %s has none of the interfaces %v", c.name, want.interfaces)
	default:
		return nil, code, errors.New("there are too many objects, and all in use")
	}
	blob, err := x.propertiesOut(results, x.exporter(call))
	if err != nil {
		return nil, hresult.Unexpected, err
	}
	return customObjref(blob), hresult.OK, nil
}

// propertiesOut builds PropsOutInfo and ScmReplyInfoData, in this order, as Windows does and impacket's client relies on
// ([MS-DCOM] 2.2.22.2.9, 2.2.22.2.8).
func (x *Exporter) propertiesOut(results []result, where *msdcom.DualStringArray) ([]byte, error) {
	out := &msdcom.PropertiesOutInfo{InterfacesCount: uint32(len(results))} //nolint:gosec // at most maxInterfaces
	for _, r := range results {
		var p *msdcom.InterfacePointer
		if r.code == hresult.OK {
			p = &msdcom.InterfacePointer{Data: x.objref(r.iid, r.ref)}
		}
		out.IIDs = append(out.IIDs, (*msdcom.IID)(guid(r.iid)))
		out.HResults = append(out.HResults, r.code.Int32())
		out.InterfaceData = append(out.InterfaceData, p)
	}
	reply := &msdcom.SCMReplyInfoData{RemoteReply: &msdcom.CustomRemoteReplySCMInfo{OXID: x.oxid, OXIDBindings: where, IPIDRemoteUnknown: (*msdcom.IPID)(guid(x.unknown)),
		AuthnHint: uint32(pdu.LevelPrivacy), ServerVersion: &msdcom.COMVersion{MajorVersion: comMajor, MinorVersion: comMinor}}}
	p := msdcom.ActivationProperties{DestinationContext: contextDifferentMachine, Properties: []msdcom.ActivationProperty{out, reply}}
	return p.Marshal()
}

// contextDifferentMachine is the destination context MSHCTX_DIFFERENTMACHINE ([MS-DCOM] 2.2.20).
const contextDifferentMachine = 2
