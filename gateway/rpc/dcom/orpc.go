package dcom

import (
	"context"
	"errors"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// sidOf is the caller's SID; empty where there is none.
func sidOf(call *server.Call) security.SID {
	if call.Caller == nil {
		return ""
	}
	return call.Caller.SID
}

// guard lets calls of an interface through to its handler that come by a live reference ([MS-DCOM] 3.1.1.5.4).
func (x *Exporter) guard(next server.Handler) server.Handler {
	return func(ctx context.Context, call *server.Call, stub []byte) ([]byte, error) {
		r := orpc.NewReader(stub)
		if err := checkThis(orpc.ReadThis(r), r.Err()); err != nil {
			return nil, err
		}
		if !x.table.live(sidOf(call), call.Object, call.Interface.Syntax.UUID) {
			return nil, disconnected(call)
		}
		return next(ctx, call, stub)
	}
}

// guardUnknown does the same for IRemUnknown, whose one IPID everybody has; the handler gets what is behind ORPCTHIS.
func (x *Exporter) guardUnknown(next func(*server.Call, *orpc.Reader) ([]byte, error)) server.Handler {
	return func(_ context.Context, call *server.Call, stub []byte) ([]byte, error) {
		r := orpc.NewReader(stub)
		if err := checkThis(orpc.ReadThis(r), r.Err()); err != nil {
			return nil, err
		}
		if call.Object != x.unknown || sidOf(call) == "" {
			return nil, disconnected(call)
		}
		return next(call, r)
	}
}

func disconnected(call *server.Call) error {
	return &server.Fault{Status: pdu.Disconnected, Cause: fmt.Errorf("the caller has no such reference to the interface %s: it was released, has ended for want of pings, or is another's", call.Interface.Name)}
}

// checkThis judges ORPCTHIS of a call.
func checkThis(t orpc.This, err error) error {
	switch {
	case errors.Is(err, orpc.ErrExtension):
		return &server.Fault{Status: pdu.InvalidExtension, Cause: err}
	case err != nil:
		return &server.Fault{Status: pdu.BadStub, Cause: fmt.Errorf("ORPCTHIS: %w", err)}
	case !spoken(t):
		return &server.Fault{Status: pdu.VersionMismatch, Cause: fmt.Errorf("DCOM version %d.%d is not spoken, only up to %d.%d", t.Major, t.Minor, comMajor, comMinor)}
	case t.Flags != 0:
		return &server.Fault{Status: pdu.InvalidHeader, Cause: fmt.Errorf("ORPCTHIS has the flags 0x%x; a call over the network has none", t.Flags)}
	}
	return nil
}

// spoken tells whether a client's version can be served ([MS-DCOM] 1.7).
func spoken(t orpc.This) bool { return t.Major == comMajor && t.Minor <= comMinor }

// told notes the HRESULT of a call's answer for log and metrics.
func told(call *server.Call, code hresult.Code, why error) {
	if code == hresult.OK {
		return
	}
	call.Result(codeName(code))
	if why != nil {
		call.Log("text", why.Error())
	}
}
