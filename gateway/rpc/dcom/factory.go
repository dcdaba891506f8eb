package dcom

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// classFactory is IClassFactory, which the object of RemoteGetClassObject has: an ORPC interface whose methods on the wire are
// RemoteCreateInstance and RemoteLockServer of the IDL of IClassFactory.
func (x *Exporter) classFactory() server.Interface {
	return server.Interface{
		Name: "IClassFactory", Syntax: pdu.Syntax{UUID: iidClassFactory}, Least: pdu.LevelIntegrity, MaxStub: maxActivation,
		Operations: map[uint16]string{3: "CreateInstance", 4: "LockServer"},
		Handle:     x.guard(server.Operations(map[uint16]server.Handler{3: x.createInstance, 4: x.lockServer})),
	}
}

// createInstance makes an object of the factory's class, with a reference to one interface.
func (x *Exporter) createInstance(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
	r := orpc.NewReader(stub)
	orpc.ReadThis(r)
	iid := r.UUID()
	if r.Err() != nil {
		return nil, &server.Fault{Status: pdu.BadStub, Cause: r.Err()}
	}
	sid := sidOf(call)
	c := x.table.classOf(sid, call.Object)
	if c == nil { // released this moment
		return nil, disconnected(call)
	}
	call.Log("class", c.name)
	results, code := x.table.activate(sid, c, false, []pdu.UUID{iid})
	if code != hresult.OK {
		told(call, code, fmt.Errorf("class %s, interface %s", c.name, iid))
		return orpcAnswer(nil, code), nil
	}
	return orpcAnswer(x.objref(iid, results[0].ref), code), nil
}

// lockServer keeps nothing: the server does not end for want of objects.
func (x *Exporter) lockServer(context.Context, *server.Call, []byte) ([]byte, error) {
	return binary.LittleEndian.AppendUint32(make([]byte, 8), 0), nil
}

// orpcAnswer is ORPCTHAT, an interface pointer and an HRESULT.
func orpcAnswer(objref []byte, code hresult.Code) []byte {
	le := binary.LittleEndian
	b := make([]byte, 8)
	if objref == nil {
		b = le.AppendUint32(b, 0)
	} else {
		b = le.AppendUint32(b, 0x00020000)          // referent
		b = le.AppendUint32(b, uint32(len(objref))) //nolint:gosec // made here
		b = le.AppendUint32(b, uint32(len(objref))) //nolint:gosec // made here
		b = append(b, objref...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	return le.AppendUint32(b, uint32(code))
}

// classOf returns the class whose factory a caller refers to.
func (t *table) classOf(sid security.SID, ipid pdu.UUID) *class {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.find(sid, ipid); f != nil {
		return f.object.class
	}
	return nil
}
