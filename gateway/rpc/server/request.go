package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

// assembly is a request of which some fragments have come.
type assembly struct {
	request pdu.Request // of the first fragment, without its stub
	iface   *Interface
	sc      *protection
	stub    []byte
	began   time.Time
	refused bool // a fault was sent; the rest is read and dropped
}

// request takes one fragment.
func (k *conn) request(p *pdu.PDU) error {
	r, err := pdu.ParseRequest(p)
	if err != nil {
		return &endError{"protocol", err}
	}
	sc, err := k.open(p, r)
	if err != nil {
		_ = k.fault(p.Call, r.Context, pdu.SecurityError)
		return &endError{"token", err}
	}
	stub := r.Stub
	if p.Trailer != nil {
		stub = stub[:len(stub)-p.Trailer.Pad]
	}
	a := k.assemblies[p.Call]
	status := pdu.Status(0)
	if p.Flags&pdu.FirstFragment != 0 {
		a, status = k.begin(p, r, sc, a)
	} else if a == nil {
		return k.outOfOrder(p, r, "it has not begun")
	} else if a.sc != sc || a.request.Context != r.Context || a.request.Operation != r.Operation || a.request.Object != r.Object {
		return k.outOfOrder(p, r, "it is of another call than the first fragment")
	}
	if status == 0 && !a.refused {
		status = k.add(a, stub)
	}
	if status != 0 {
		if status == pdu.FragmentOrder {
			return k.outOfOrder(p, r, "the call has begun already")
		}
		if err := k.refuse(p, a, status); err != nil {
			return err
		}
	}
	if p.Flags&pdu.LastFragment == 0 {
		if k.assemblies[p.Call] = a; len(k.assemblies) > 2*k.s.opts.MaxAssemblies { // refused ones too, as what is to come of them is dropped
			return protocolError("%d requests have begun, and none of them is whole", len(k.assemblies))
		}
		return nil
	}
	delete(k.assemblies, p.Call)
	if a.refused {
		return nil
	}
	return k.dispatch(p, a)
}

// refuse answers a call that is not run, once.
func (k *conn) refuse(p *pdu.PDU, a *assembly, status pdu.Status) error {
	k.s.opts.Observer.Refused(k.s.opts.Name, refusalOf(status))
	k.logRefusal(p, a, status)
	if k.refusals++; k.refusals > maxRefusals {
		return protocolError("%d calls were refused", k.refusals)
	}
	a.refused = true
	k.free(a)
	return k.fault(p.Call, a.request.Context, status)
}

func (k *conn) outOfOrder(p *pdu.PDU, r *pdu.Request, why string) error {
	_ = k.fault(p.Call, r.Context, pdu.FragmentOrder)
	return protocolError("a fragment of call %d is out of order: %s", p.Call, why)
}

// refusalOf is the reason for the metrics.
func refusalOf(s pdu.Status) string {
	switch s {
	case pdu.AccessDenied:
		return "level"
	case pdu.ServerTooBusy:
		return "busy"
	}
	return "protocol"
}

func (k *conn) logRefusal(p *pdu.PDU, a *assembly, status pdu.Status) {
	log := k.s.opts.Log.WithField("remote", k.remote()).WithField("call", p.Call).WithField("code", status.String()).WithField("level", levelOf(a.sc).String())
	if a.iface != nil {
		log = log.WithField("interface", a.iface.Name).WithField("operation", a.iface.operation(a.request.Operation))
	}
	if a.sc != nil && a.sc.session != nil {
		log = log.WithField("caller", a.sc.session.Caller.Principal)
	}
	log.Warn("RPC call refused")
}

func levelOf(sc *protection) pdu.Level {
	if sc == nil {
		return pdu.LevelNone
	}
	return sc.level
}

// open finds the security context of a fragment and removes its protection in place. Whatever is wrong with the call itself is found
// later: the numbers of the tokens go on.
func (k *conn) open(p *pdu.PDU, r *pdu.Request) (*protection, error) {
	if p.Trailer == nil { // at connect level calls have no token; nil is nobody
		if k.connect != nil && k.connect.session.Expired(time.Now()) {
			return nil, nil
		}
		return k.connect, nil
	}
	t := p.Trailer
	sc := k.contextIDs[t.Context]
	if sc == nil || sc.session == nil {
		return nil, fmt.Errorf("call %d: the security context %d is not established", p.Call, t.Context)
	}
	if t.Type != sc.provider || t.Level != sc.level {
		return nil, fmt.Errorf("call %d: protected by %v at %v, agreed are %v at %v", p.Call, t.Type, t.Level, sc.provider, sc.level)
	}
	if sc.session.Expired(time.Now()) {
		return nil, fmt.Errorf("call %d: the ticket of %s has ended", p.Call, sc.session.Caller.Principal)
	}
	var header, trailer []byte
	if k.signing {
		header, trailer = p.Raw[:p.HeaderLength()], p.Security
	}
	var err error
	switch sc.level {
	case pdu.LevelPrivacy:
		err = sc.session.Unseal(p.Token, header, r.Stub, trailer)
	case pdu.LevelPacket, pdu.LevelIntegrity:
		err = sc.session.Verify(p.Token, header, r.Stub, trailer)
	default: // clients send something here at times, which protects nothing
	}
	if err != nil {
		return nil, fmt.Errorf("call %d of %s: %w", p.Call, sc.session.Caller.Principal, err)
	}
	return sc, nil
}

// begin looks at the first fragment of a request. The assembly is never nil.
func (k *conn) begin(p *pdu.PDU, r *pdu.Request, sc *protection, before *assembly) (*assembly, pdu.Status) {
	a := &assembly{request: *r, sc: sc, iface: k.contexts[r.Context], began: time.Now()}
	a.request.Stub = nil // else the whole fragment would be kept, whatever it has around the stub
	k.mu.Lock()
	_, runs := k.calls[p.Call]
	busy := len(k.calls) >= k.s.opts.MaxCalls
	k.mu.Unlock()
	switch {
	case before != nil || runs:
		return a, pdu.FragmentOrder
	case a.iface == nil:
		return a, pdu.UnknownContext
	case levelOf(sc) < a.iface.least(r.Operation):
		return a, pdu.AccessDenied
	case busy || len(k.assemblies) >= k.s.opts.MaxAssemblies:
		return a, pdu.ServerTooBusy
	}
	return a, 0
}

// add appends a fragment's stub.
func (k *conn) add(a *assembly, stub []byte) pdu.Status {
	switch {
	case len(a.stub)+len(stub) > min(a.iface.MaxStub, maxStub):
		return pdu.AccessDenied // as [MS-RPCE] 3.3.3.5.2 has it
	case a.sc == nil && k.anonymous()+len(stub) > k.s.opts.MaxAnonymous:
		return pdu.AccessDenied
	case time.Since(a.began) > k.s.opts.CallTime:
		return pdu.ProtocolError
	case !k.s.reserve(a.sc.sid(), len(stub)):
		return pdu.ServerTooBusy
	}
	a.stub = append(a.stub, stub...)
	return 0
}

// anonymous is how much of requests there is that are nobody's.
func (k *conn) anonymous() (n int) {
	for _, a := range k.assemblies {
		if a.sc == nil {
			n += len(a.stub)
		}
	}
	return n
}

// dispatch runs a whole request in a goroutine of its own.
func (k *conn) dispatch(p *pdu.PDU, a *assembly) error {
	stub, err := pdu.CheckVerification(a.stub, pdu.Expected{HeaderSigning: k.signing, Interface: a.iface.Syntax, Request: &a.request, Call: p.Call})
	if err != nil {
		k.free(a)
		_ = k.fault(p.Call, a.request.Context, pdu.AccessDenied)
		return &endError{"token", fmt.Errorf("call %d: %w", p.Call, err)}
	}
	call := &Call{Level: levelOf(a.sc), Object: a.request.Object, Interface: a.iface, Operation: a.request.Operation, Context: a.request.Context, ID: p.Call,
		Remote: k.c.RemoteAddr(), Local: k.c.LocalAddr()}
	if a.sc != nil {
		caller := a.sc.session.Caller
		call.Caller, call.Provider = &caller, a.sc.provider
	}
	select { // a client that does not read its answers has to, before more of it is read
	case k.slots <- struct{}{}:
	case <-k.context.Done():
		k.free(a)
		return k.context.Err()
	}
	if !k.s.begin(call.sid()) {
		k.free(a)
		<-k.slots
		k.s.opts.Observer.Refused(k.s.opts.Name, "busy")
		return k.fault(p.Call, call.Context, pdu.ServerTooBusy)
	}
	ctx, cancel := context.WithTimeout(k.context, k.s.opts.CallTime)
	r := &running{cancel: cancel}
	k.mu.Lock()
	k.calls[p.Call] = r
	k.mu.Unlock()
	k.done.Add(1)
	go func() {
		defer k.done.Done()
		defer func() { <-k.slots }()
		defer k.s.end(call.sid())
		defer cancel()
		began := time.Now()
		out, err := k.run(ctx, call, stub)
		k.logCall(call, time.Since(began), err)
		k.s.reserve(call.sid(), -len(a.stub))
		k.mu.Lock()
		delete(k.calls, p.Call) // the client may use the number again when it has the answer
		silent := r.orphaned || p.Flags&pdu.Maybe != 0
		k.mu.Unlock()
		if !silent {
			k.answer(call, a.sc, out, err)
		}
	}()
	return nil
}

// run calls the handler. A panic is an error of this call.
func (k *conn) run(ctx context.Context, call *Call, stub []byte) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			call.Log("stack", string(debug.Stack()))
			out, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	out, err = call.Interface.Handle(ctx, call, stub)
	if err != nil && ctx.Err() != nil {
		if _, ok := errors.AsType[*Fault](err); !ok {
			err = &Fault{pdu.CallTimeout, err}
		}
	}
	return out, err
}

// answer sends the response, in as many fragments as it needs, or a fault.
func (k *conn) answer(call *Call, sc *protection, out []byte, err error) {
	if err == nil && !k.s.reserve(call.sid(), len(out)) {
		err = &Fault{Status: pdu.ServerTooBusy}
	}
	if err == nil {
		err = k.respond(call, sc, out)
		k.s.reserve(call.sid(), -len(out))
	} else {
		status := pdu.CallFailed
		if f, ok := errors.AsType[*Fault](err); ok {
			status = f.Status
		}
		err = k.write(pdu.EncodeFault(0, call.ID, call.Context, status))
	}
	if err != nil { // what was decided is in the ledger; the client asks again
		_ = k.c.Close()
	}
}

// respond writes the fragments; each is one token.
func (k *conn) respond(call *Call, sc *protection, out []byte) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	if err := k.patient(len(out)); err != nil {
		return err
	}
	var trailer *pdu.Trailer
	token := 0
	if sc != nil && sc.level > pdu.LevelConnect {
		trailer = &pdu.Trailer{Type: sc.provider, Level: sc.level, Context: sc.id}
		if token = kerberos.SignLength; sc.level == pdu.LevelPrivacy {
			token = kerberos.SealLength
		}
	}
	room := (k.maxSend - pdu.CallSize - pdu.TrailerSize - token) &^ 15
	flags := pdu.FirstFragment
	for {
		part := out[:min(len(out), room)]
		hint := uint32(len(out)) //nolint:gosec // a response is bounded by what was asked
		if out = out[len(part):]; len(out) == 0 {
			flags |= pdu.LastFragment
		}
		f := pdu.NewFragment(flags, call.ID, call.Context, hint, part, trailer, token)
		if err := k.protect(sc, f); err != nil {
			return err
		}
		if _, err := k.c.Write(f.Raw); err != nil {
			return err
		}
		if flags &^= pdu.FirstFragment; flags&pdu.LastFragment != 0 {
			return nil
		}
	}
}

func (k *conn) protect(sc *protection, f *pdu.Fragment) error {
	if f.Token == nil {
		return nil
	}
	var header, trailer []byte
	if k.signing {
		header, trailer = f.Header, f.Security
	}
	if sc.level == pdu.LevelPrivacy {
		return sc.session.Seal(f.Token, header, f.Stub, trailer)
	}
	token, err := sc.session.Sign(header, f.Stub, trailer)
	copy(f.Token, token)
	return err
}
