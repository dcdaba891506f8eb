package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/oiweiwei/go-msrpc/ndr"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

const (
	defaultMaxStub = 64 << 10
	// maxStub is the most that [MS-RPCE] 3.3.3.5.2 lets a server take for one request.
	maxStub = 4 << 20
)

// Handler answers one call: the stub of the request in, that of the response out. It may keep neither. ctx ends when the client
// cancels the call or goes away, and when Options.CallTime is over. A *Fault is sent as it is; any other error is a fault that tells
// nothing, and goes to the log. A panic is an error of this call alone.
type Handler func(ctx context.Context, call *Call, stub []byte) ([]byte, error)

// Interface is what a server offers under one abstract syntax.
type Interface struct {
	Name       string // "ICertPassage", for logs and metrics
	Syntax     pdu.Syntax
	Least      pdu.Level            // calls at a lower level are refused with ERROR_ACCESS_DENIED before they are run
	Levels     map[uint16]pdu.Level // the same for single operations
	MaxStub    int                  // octets of a request; 64 KiB if zero, and never more than 4 MiB
	Operations map[uint16]string    // names for logs and metrics
	Handle     Handler
	Quiet      bool // calls are logged at debug level, as there are many that mean nothing
}

func (i *Interface) least(operation uint16) pdu.Level {
	if l, ok := i.Levels[operation]; ok {
		return l
	}
	return i.Least
}

func (i *Interface) operation(n uint16) string {
	if name, ok := i.Operations[n]; ok {
		return name
	}
	return "unknown" // a number would make a metric of whatever a client sends
}

// Call is one call of an operation.
type Call struct {
	Caller    *templates.Caller // nil where nobody is proven
	Level     pdu.Level
	Provider  pdu.AuthType
	Object    pdu.UUID // zero where the request names none
	Interface *Interface
	Operation uint16
	Context   uint16 // presentation context
	ID        uint32 // call_id, unique on the connection while the call runs
	Remote    net.Addr
	Local     net.Addr

	result string
	fields logrus.Fields
}

// Result says what the call came to where its answer is no fault: the symbolic name of an HRESULT, or a state. It becomes the
// outcome in the metrics, so that it must be one of few; and "code" in the log line.
func (c *Call) Result(result string) { c.result = result }

// Log adds a field to the call's log line.
func (c *Call) Log(name string, value any) {
	if c.fields == nil {
		c.fields = logrus.Fields{}
	}
	c.fields[name] = value
}

// sid is the caller's; empty where there is none.
func (c *Call) sid() security.SID {
	if c.Caller == nil {
		return ""
	}
	return c.Caller.SID
}

// Fault is an error that the client is told as a fault.
type Fault struct {
	Status pdu.Status
	Cause  error // for the log
}

func (f *Fault) Error() string {
	if f.Cause == nil {
		return f.Status.String()
	}
	return fmt.Sprintf("%v (%v)", f.Cause, f.Status)
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Cause }

// Operations makes a Handler of one for each operation number; others are the fault nca_op_rng_error.
func Operations(list map[uint16]Handler) Handler {
	return func(ctx context.Context, call *Call, stub []byte) ([]byte, error) {
		if h := list[call.Operation]; h != nil {
			return h(ctx, call, stub)
		}
		return nil, &Fault{Status: pdu.UnknownOperation}
	}
}

// Stub makes a Handler of a method on the request and response types of a go-msrpc stub, such as icertpassage.CertServerRequestRequest.
// What cannot be decoded is the fault RPC_X_BAD_STUB_DATA: that the decoder panics, as it does where a pointer is repeated, too. The
// decoders allocate what counts in the stub say in places (ndr.ReadUTF16NString): where a type has such, check the counts before.
func Stub[In any, P interface {
	*In
	ndr.Unmarshaler
}, Out ndr.Marshaler](method func(ctx context.Context, call *Call, in *In) (Out, error)) Handler {
	return func(ctx context.Context, call *Call, stub []byte) ([]byte, error) {
		in := new(In)
		if err := decode(ctx, stub, P(in)); err != nil {
			return nil, &Fault{pdu.BadStub, err}
		}
		out, err := method(ctx, call, in)
		if err != nil {
			return nil, err
		}
		b, err := ndr.Marshal(out)
		if err != nil {
			return nil, fmt.Errorf("encode the response: %w", err)
		}
		return b, nil
	}
}

func decode(ctx context.Context, stub []byte, in ndr.Unmarshaler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decode the request: %v", p)
		}
	}()
	if err := in.UnmarshalNDR(ctx, ndr.NDR20(stub)); err != nil {
		return fmt.Errorf("decode the request: %w", err)
	}
	return nil
}

func random32() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// logCall writes the one line of a call.
func (k *conn) logCall(call *Call, took time.Duration, err error) {
	outcome, level := "ok", logrus.InfoLevel
	switch f, isFault := errors.AsType[*Fault](err); {
	case isFault:
		outcome, level = f.Status.Name(), logrus.WarnLevel
	case err != nil:
		outcome, level = pdu.CallFailed.Name(), logrus.ErrorLevel
	case call.result != "":
		outcome = call.result
	}
	name, operation := call.Interface.Name, call.Interface.operation(call.Operation)
	k.s.opts.Observer.Called(name, operation, outcome, took)
	if call.Interface.Quiet && err == nil {
		level = logrus.DebugLevel
	}
	log := k.s.opts.Log.WithFields(logrus.Fields{"remote": k.remote(), "interface": name, "operation": operation, "level": call.Level.String(),
		"code": outcome, "ms": float64(took.Microseconds()) / 1000}).WithFields(call.fields)
	if call.Caller != nil {
		log = log.WithField("caller", call.Caller.Principal)
	}
	if call.Interface.operation(call.Operation) == "unknown" {
		log = log.WithField("opnum", call.Operation)
	}
	if err != nil {
		log = log.WithError(err)
	}
	log.Log(level, "RPC call")
}
