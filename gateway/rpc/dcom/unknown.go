package dcom

import (
	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iremunknown "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown/v0"
	iremunknown2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown2/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// maxChanges bounds the references that one call adds or releases.
const maxChanges = 1024

// remUnknown is IRemUnknown, or IRemUnknown2, which has a method more ([MS-DCOM] 3.1.1.5.6, 3.1.1.5.7).
func (x *Exporter) remUnknown(name string, iid pdu.UUID, second bool) server.Interface {
	i := server.Interface{
		Name: name, Syntax: pdu.Syntax{UUID: iid}, Least: pdu.LevelIntegrity, MaxStub: 40 << 10, Quiet: true,
		Operations: map[uint16]string{3: "RemQueryInterface", 4: "RemAddRef", 5: "RemRelease"},
	}
	handlers := map[uint16]server.Handler{3: x.guardUnknown(x.queryInterface), 4: x.guardUnknown(x.addRef), 5: x.guardUnknown(x.release)}
	if second {
		i.Operations[6], handlers[6] = "RemQueryInterface2", x.guardUnknown(x.queryInterface2)
	}
	i.Handle = server.Operations(handlers)
	return i
}

// parseQuery reads the parameters of RemQueryInterface; RemQueryInterface2 has no number of references.
func parseQuery(r *orpc.Reader, counted bool) (ipid pdu.UUID, references uint32, iids []pdu.UUID, err error) {
	ipid = r.UUID()
	if references = 1; counted {
		references = r.U32()
	}
	iids = r.UUIDs("IIDs", uint32(r.U16()), maxInterfaces)
	return ipid, references, iids, r.Err()
}

func (x *Exporter) queryInterface(call *server.Call, r *orpc.Reader) ([]byte, error) {
	ipid, references, iids, err := parseQuery(r, true)
	if err != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
	}
	results, code := x.table.query(sidOf(call), ipid, iids, references)
	told(call, code, nil)
	out := &iremunknown.RemoteQueryInterfaceResponse{That: &msdcom.ORPCThat{}, IIDsCount: uint16(len(results)), Return: code.Int32()} //nolint:gosec // at most maxInterfaces
	for _, q := range results {
		answer := &msdcom.RemoteQueryInterfaceResult{HResult: q.code.Int32(), Std: &msdcom.StdObjectReference{}}
		if q.code == hresult.OK {
			answer.Std = x.standard(q.ref)
		}
		out.QueryInterfaceResults = append(out.QueryInterfaceResults, answer)
	}
	return ndr.Marshal(out)
}

func (x *Exporter) queryInterface2(call *server.Call, r *orpc.Reader) ([]byte, error) {
	ipid, references, iids, err := parseQuery(r, false)
	if err != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
	}
	results, code := x.table.query(sidOf(call), ipid, iids, references)
	told(call, code, nil)
	out := &iremunknown2.RemoteQueryInterface2Response{That: &msdcom.ORPCThat{}, IIDsCount: uint16(len(iids)), Return: code.Int32(), //nolint:gosec // at most maxInterfaces
		HResult: make([]int32, len(iids)), Interface: make([]*msdcom.InterfacePointer, len(iids))}
	for i := range iids {
		if out.HResult[i] = code.Int32(); results == nil { // no such object: the arrays have their size even so
			continue
		}
		if out.HResult[i] = results[i].code.Int32(); results[i].code == hresult.OK {
			out.Interface[i] = &msdcom.InterfacePointer{Data: x.objref(results[i].iid, results[i].ref)}
		}
	}
	return ndr.Marshal(out)
}

// parseChanges reads an array of REMINTERFACEREF ([MS-DCOM] 2.2.23).
func parseChanges(r *orpc.Reader) ([]change, error) {
	out := make([]change, r.Count("references", uint32(r.U16()), maxChanges, 24))
	for i := range out {
		out[i] = change{r.UUID(), r.U32(), r.U32()}
	}
	return out, r.Err()
}

func (x *Exporter) addRef(call *server.Call, r *orpc.Reader) ([]byte, error) {
	changes, err := parseChanges(r)
	if err != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
	}
	out := &iremunknown.RemoteAddReferenceResponse{That: &msdcom.ORPCThat{}, InterfaceReferencesCount: uint16(len(changes))} //nolint:gosec // at most maxChanges
	for _, code := range x.table.addReferences(sidOf(call), changes) {
		told(call, code, nil)
		out.Results = append(out.Results, code.Int32())
	}
	return ndr.Marshal(out)
}

func (x *Exporter) release(call *server.Call, r *orpc.Reader) ([]byte, error) {
	changes, err := parseChanges(r)
	if err != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
	}
	x.table.release(sidOf(call), changes)
	return ndr.Marshal(&iremunknown.RemoteReleaseResponse{That: &msdcom.ORPCThat{}})
}
