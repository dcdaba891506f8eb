package dcom

import (
	"context"
	"encoding/binary"

	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iobjectexporter "github.com/oiweiwei/go-msrpc/msrpc/dcom/iobjectexporter/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// maxPing bounds the stub of a ping: an account may have 4,096 objects pinged.
const maxPing = 72 << 10

// objectExporter is IObjectExporter ([MS-DCOM] 3.1.2.5.1). Whether the server is there anybody may ask: it is the first question of a client,
// before it knows how to authenticate.
func (x *Exporter) objectExporter() server.Interface {
	return server.Interface{
		Name: "IObjectExporter", Syntax: exporterSyntax, Least: pdu.LevelIntegrity, Levels: map[uint16]pdu.Level{3: pdu.LevelNone, 5: pdu.LevelNone}, MaxStub: maxPing, Quiet: true,
		Operations: map[uint16]string{0: "ResolveOxid", 1: "SimplePing", 2: "ComplexPing", 3: "ServerAlive", 4: "ResolveOxid2", 5: "ServerAlive2"},
		Handle:     server.Operations(map[uint16]server.Handler{0: x.resolve(false), 1: x.simplePing, 2: x.complexPing, 3: x.serverAlive, 4: x.resolve(true), 5: x.serverAlive2}),
	}
}

func version() *msdcom.COMVersion {
	return &msdcom.COMVersion{MajorVersion: comMajor, MinorVersion: comMinor}
}

// noted notes a status for log and metrics.
func noted(call *server.Call, status uint32) uint32 {
	if status != 0 {
		call.Result(statusNames[status])
	}
	return status
}

// serverAlive is [MS-DCOM] 3.1.2.5.1.4.
func (x *Exporter) serverAlive(context.Context, *server.Call, []byte) ([]byte, error) {
	return ndr.Marshal(&iobjectexporter.ServerAliveResponse{})
}

// serverAlive2 is [MS-DCOM] 3.1.2.5.1.6.
func (x *Exporter) serverAlive2(context.Context, *server.Call, []byte) ([]byte, error) {
	return ndr.Marshal(&iobjectexporter.ServerAlive2Response{COMVersion: version(), ObjectResolverBindings: x.resolver})
}

// maxSequences is more than there are.
const maxSequences = 64

// parseResolve reads the OXID of ResolveOxid; the protocol sequences that the client names make no difference, as there is one.
func parseResolve(stub []byte) (uint64, error) {
	r := orpc.NewReader(stub)
	oxid, n := r.U64(), r.U16()
	r.Take(2 * r.Count("protocol sequences", uint32(n), maxSequences, 2))
	return oxid, r.Err()
}

// resolve is ResolveOxid and ResolveOxid2 ([MS-DCOM] 3.1.2.5.1.1, 3.1.2.5.1.5).
func (x *Exporter) resolve(second bool) server.Handler {
	return func(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
		oxid, err := parseResolve(stub)
		if err != nil {
			return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
		}
		out := iobjectexporter.ResolveOxid2Response{OXIDBindings: x.exporter(call), RemoteUnknown: (*msdcom.IPID)(guid(x.unknown)), AuthnHint: uint32(pdu.LevelPrivacy), COMVersion: version()}
		if oxid != x.oxid {
			out = iobjectexporter.ResolveOxid2Response{COMVersion: version(), Return: noted(call, statusInvalidOXID)}
		}
		if second {
			return ndr.Marshal(&out)
		}
		return ndr.Marshal(&iobjectexporter.ResolveOXIDResponse{OXIDBindings: out.OXIDBindings, RemoteUnknown: out.RemoteUnknown, AuthnHint: out.AuthnHint, Return: out.Return})
	}
}

func (x *Exporter) simplePing(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
	r := orpc.NewReader(stub)
	id := r.U64()
	if r.Err() != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: r.Err()}
	}
	return ndr.Marshal(&iobjectexporter.SimplePingResponse{Return: noted(call, x.table.simplePing(sidOf(call), id))})
}

func (x *Exporter) complexPing(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
	p, err := parseComplexPing(stub)
	if err != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
	}
	set, status := x.table.complexPing(sidOf(call), p)
	return ndr.Marshal(&iobjectexporter.ComplexPingResponse{SetID: set, Return: noted(call, status)})
}

// parseComplexPing reads the stub by the IDL of [MS-DCOM] 3.1.2.5.1.3, where both arrays are unique pointers; go-msrpc leaves them out.
func parseComplexPing(stub []byte) (pings, error) {
	r := orpc.NewReader(stub)
	p := pings{set: r.U64(), sequence: r.U16()}
	added, removed := r.U16(), r.U16()
	p.add = readOIDs(r, "AddToSet", added)
	p.remove = readOIDs(r, "DelFromSet", removed)
	return p, r.Err()
}

func readOIDs(r *orpc.Reader, what string, announced uint16) []uint64 {
	if !r.Pointer() {
		if announced != 0 {
			r.Failf("%s: %d were announced, and there are none", what, announced)
		}
		return nil
	}
	n := r.Count(what, uint32(announced), maxPing/8, 8)
	r.Align(8)
	b := r.Take(8 * n)
	out := make([]uint64, len(b)/8)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return out
}
