package server

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Limits of one connection.
const (
	maxContexts   = 256 // presentation contexts
	maxProtection = 128 // security contexts; DCOM clients open one for each interface
	maxUnfinished = 8   // of these that are not proven yet
	maxRefusals   = 256 // calls that are not run
)

// protection is one security context of a connection: [MS-RPCE] 3.3.1.5.4 lets there be several, each with its own keys and numbers.
type protection struct {
	id        uint32
	provider  pdu.AuthType
	level     pdu.Level
	began     time.Time
	handshake *kerberos.Handshake // until it is complete
	session   *kerberos.Session   // from then on
}

// sid is whose context it is; empty where it is nil, which is nobody's.
func (p *protection) sid() security.SID {
	if p == nil || p.session == nil {
		return ""
	}
	return p.session.Caller.SID
}

// closeContext ends a security context that is no longer among the connection's.
func (k *conn) closeContext(p *protection) {
	if p.handshake != nil {
		p.handshake.Close()
	}
	if p.session != nil {
		p.session.Close()
		k.s.ended(p.sid())
	}
}

// bind answers bind and alter_context (C706 12.6.4.3, [MS-RPCE] 3.3.1.5.3 to 3.3.1.5.6).
func (k *conn) bind(p *pdu.PDU) error {
	b, err := pdu.ParseBind(p)
	if err != nil {
		k.refuseBind(p, pdu.NakNotSpecified, pdu.ProtocolError)
		return &endError{"protocol", err}
	}
	if p.Kind == pdu.KindBind && !k.bound {
		k.maxSend = min(int(b.MaxRecv), pdu.MaxFragment) &^ 7
		k.signing = p.Flags&pdu.HeaderSigning != 0
		k.contexts, k.contextIDs, k.assemblies = map[uint16]*Interface{}, map[uint32]*protection{}, map[uint32]*assembly{}
		k.calls = map[uint32]*running{}
		// Nothing is shared within an association group, so that any number does ([MS-RPCE] 3.3.1.5.6).
		if k.group = b.Group; k.group == 0 {
			k.group = max(1, random32())
		}
	}
	auth, err := k.authenticate(p)
	if err != nil {
		reason, refusal := pdu.NakInvalidToken, "ticket"
		if errors.Is(err, kerberos.ErrNTLM) {
			reason, refusal = pdu.NakAuthType, "ntlm"
		}
		k.refuseBind(p, reason, pdu.AccessDenied)
		return &endError{refusal, err}
	}
	k.bound = true
	flags := p.Flags & pdu.Multiplexing
	if k.signing {
		flags |= p.Flags & pdu.HeaderSigning
	}
	ack := &pdu.BindAck{MaxXmit: pdu.MaxFragment, MaxRecv: pdu.MaxFragment, Group: k.group}
	kind := pdu.KindAlterResponse
	if p.Kind == pdu.KindBind {
		kind, ack.Address = pdu.KindBindAck, k.port()
	}
	for _, e := range b.Elements {
		ack.Results = append(ack.Results, k.negotiate(e))
	}
	return k.write(ack.Encode(kind, flags, p.Call, auth))
}

// negotiate answers one presentation context.
func (k *conn) negotiate(e pdu.Element) pdu.Result {
	if f, ok := e.Transfer[0].Features(); ok {
		return pdu.FeatureResult(f & (pdu.SecurityMultiplexing | pdu.KeepOnOrphan))
	}
	i := k.s.find(e.Interface)
	_, known := k.contexts[e.ID]
	switch {
	case i == nil:
		return pdu.UnknownInterface
	case !slices.Contains(e.Transfer, pdu.NDR): // as where only NDR64 is offered
		return pdu.UnknownTransfer
	case !known && len(k.contexts) >= maxContexts:
		return pdu.LocalLimitsExceeded
	}
	k.contexts[e.ID] = i
	return pdu.Accepted
}

// refuseBind says no to a bind, or to an alter_context.
func (k *conn) refuseBind(p *pdu.PDU, reason pdu.NakReason, status pdu.Status) {
	if p.Kind == pdu.KindBind {
		_ = k.write(pdu.EncodeNak(p.Call, reason)) // the connection ends anyway
		return
	}
	_ = k.fault(p.Call, 0, status)
}

// authenticate takes the token of a bind or alter_context; the answer's token is nil where there is none.
func (k *conn) authenticate(p *pdu.PDU) (*pdu.Auth, error) {
	t := p.Trailer
	if t == nil {
		return nil, nil
	}
	sc := k.contextIDs[t.Context]
	if sc != nil && (p.Kind == pdu.KindBind || sc.session != nil) { // a bind begins anew
		if p.Kind == pdu.KindAlterContext {
			return nil, hresult.New(hresult.AccessDenied, "the client authenticates again under the number %d of a security context in use", t.Context)
		}
		k.forgetContext(sc)
		sc = nil
	}
	if sc == nil {
		var err error
		if sc, err = k.newProtection(t); err != nil {
			return nil, err
		}
	}
	reply, err := k.step(sc, t, p.Token)
	if err != nil || len(reply) == 0 {
		return nil, err
	}
	return &pdu.Auth{Trailer: pdu.Trailer{Type: t.Type, Level: t.Level, Context: t.Context}, Token: reply}, nil
}

// newProtection begins a security context, if its provider and level are acceptable and there is room for one more.
func (k *conn) newProtection(t *pdu.Trailer) (*protection, error) {
	switch {
	case t.Type == pdu.AuthNTLM:
		return nil, kerberos.RefuseNTLM()
	case k.s.opts.Acceptor == nil:
		return nil, hresult.New(hresult.AccessDenied, "nobody is authenticated here")
	case t.Type == pdu.AuthNegotiate, t.Type == pdu.AuthKerberos:
	default:
		return nil, hresult.New(hresult.AccessDenied, "the client authenticates by %v; only Kerberos and SPNEGO with Kerberos are accepted", t.Type)
	}
	switch t.Level {
	case pdu.LevelConnect, pdu.LevelPacket, pdu.LevelIntegrity, pdu.LevelPrivacy:
	default:
		return nil, hresult.New(hresult.AccessDenied, "the client asks for the authentication level %v, which is not served", t.Level).WithFix("use packet privacy")
	}
	if len(k.contextIDs) >= maxProtection || k.unfinished() >= maxUnfinished {
		return nil, hresult.New(hresult.AccessDenied, "the connection has %d security contexts, %d of them unfinished: no more are accepted", len(k.contextIDs), k.unfinished())
	}
	sc := &protection{id: t.Context, provider: t.Type, level: t.Level, began: time.Now(), handshake: k.s.opts.Acceptor.Handshake(t.Type == pdu.AuthNegotiate)}
	k.contextIDs[t.Context] = sc
	return sc, nil
}

// step takes a token; the context is forgotten where it is refused.
func (k *conn) step(sc *protection, t *pdu.Trailer, token []byte) (reply []byte, err error) {
	defer func() {
		if err != nil {
			k.forgetContext(sc)
		}
	}()
	switch {
	case t.Type != sc.provider || t.Level != sc.level:
		return nil, hresult.New(hresult.AccessDenied, "the client changed the authentication from %v at %v to %v at %v", sc.provider, sc.level, t.Type, t.Level)
	case time.Since(sc.began) > k.s.opts.ProofTime:
		return nil, hresult.New(hresult.AccessDenied, "the client took more than %s to authenticate", k.s.opts.ProofTime)
	}
	if reply, err = sc.handshake.Step(k.context, token); err != nil {
		client, service := sc.handshake.Claims()
		k.s.opts.Log.WithFields(logrus.Fields{"remote": k.remote(), "client": client, "service": service}).Debug("a token over RPC was refused")
		return nil, err
	}
	if session := sc.handshake.Session(); session != nil {
		if !k.s.proven(k, session.Caller.SID) {
			return nil, hresult.New(hresult.ServerTooBusy, "%s has too many connections", session.Caller.Principal)
		}
		sc.session, sc.handshake = session, nil
		if sc.level == pdu.LevelConnect {
			k.connect = sc
		}
	}
	return reply, nil
}

// auth3 takes the third leg of bare Kerberos. It has no answer: a refusal shows as a fault of the first call ([MS-RPCE] 2.2.2.10).
func (k *conn) auth3(p *pdu.PDU) error {
	if p.Trailer == nil {
		return protocolError("%v without a token", p.Kind)
	}
	sc := k.contextIDs[p.Trailer.Context]
	if sc == nil || sc.handshake == nil {
		return protocolError("%v for the security context %d, which does not wait for one", p.Kind, p.Trailer.Context)
	}
	if _, err := k.step(sc, p.Trailer, p.Token); err != nil {
		return &endError{"ticket", fmt.Errorf("the client's third token: %w", err)}
	}
	return nil
}

func (k *conn) forgetContext(sc *protection) {
	if k.contextIDs[sc.id] == sc {
		delete(k.contextIDs, sc.id)
	}
	if k.connect == sc {
		k.connect = nil
	}
	k.writing.Lock() // a response may be on its way under its keys
	defer k.writing.Unlock()
	k.closeContext(sc)
}

// unfinished counts security contexts that are not proven.
func (k *conn) unfinished() (n int) {
	for _, sc := range k.contextIDs {
		if sc.session == nil {
			n++
		}
	}
	return n
}
