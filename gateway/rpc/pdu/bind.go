package pdu

import (
	"encoding/binary"
	"fmt"
)

// Element is one presentation context that a client proposes: an interface, and the transfer syntaxes it could use.
type Element struct {
	ID        uint16
	Interface Syntax
	Transfer  []Syntax
}

// Bind is the body of bind and alter_context (C706 12.6.4.3, 12.6.4.1).
type Bind struct {
	MaxXmit, MaxRecv uint16
	Group            uint32
	Elements         []Element
}

// ParseBind reads the body of a bind or alter_context. What stands after the presentation contexts does not count: impacket's
// alter_context has them twice.
func ParseBind(p *PDU) (*Bind, error) {
	c := &cursor{rest: p.Body}
	b := &Bind{MaxXmit: c.u16(), MaxRecv: c.u16(), Group: c.u32()}
	n := int(c.u8())
	c.take(3)
	for range n {
		e := Element{ID: c.u16()}
		count := int(c.u8())
		c.take(1)
		e.Interface = c.syntax()
		if c.bad || count*20 > len(c.rest) {
			return nil, fmt.Errorf("%v: %d presentation contexts do not fit in %d octets", p.Kind, n, len(p.Body))
		}
		e.Transfer = make([]Syntax, 0, count)
		for range count {
			e.Transfer = append(e.Transfer, c.syntax())
		}
		if count == 0 {
			return nil, fmt.Errorf("%v: presentation context %d has no transfer syntax", p.Kind, e.ID)
		}
		b.Elements = append(b.Elements, e)
	}
	switch {
	case c.bad:
		return nil, fmt.Errorf("%v: the body ends within its header", p.Kind)
	case n == 0:
		return nil, fmt.Errorf("%v: no presentation context", p.Kind)
	case b.MaxRecv < MinFragment && p.Kind == KindBind:
		return nil, fmt.Errorf("%v: the client takes fragments of %d octets only; the least is %d", p.Kind, b.MaxRecv, MinFragment)
	}
	return b, nil
}

// Result is the answer to one presentation context (C706 12.6.3.1, p_result_t; [MS-RPCE] 2.2.2.4).
type Result struct {
	Result   uint16
	Reason   uint16
	Transfer Syntax
}

// Accepted, and what a server may say instead.
const (
	resultAcceptance   = 0
	resultUserReject   = 1
	resultProvider     = 2
	resultNegotiateAck = 3

	reasonNone        = 0
	reasonInterface   = 1 // abstract syntax not supported
	reasonTransfer    = 2 // proposed transfer syntaxes not supported
	reasonLocalLimits = 3 // local limit exceeded
)

// The results of presentation contexts.
var (
	Accepted            = Result{resultAcceptance, reasonNone, NDR}
	UnknownInterface    = Result{Result: resultProvider, Reason: reasonInterface}
	UnknownTransfer     = Result{Result: resultProvider, Reason: reasonTransfer}
	LocalLimitsExceeded = Result{Result: resultProvider, Reason: reasonLocalLimits}
)

// FeatureResult acknowledges features, which stand where the reason stands else ([MS-RPCE] 2.2.2.4).
func FeatureResult(f Features) Result { return Result{Result: resultNegotiateAck, Reason: uint16(f)} }

// BindAck is the body of bind_ack and alter_context_resp (C706 12.6.4.4, 12.6.4.2).
type BindAck struct {
	MaxXmit, MaxRecv uint16
	Group            uint32
	Address          string // secondary address: the port; empty in alter_context_resp
	Results          []Result
}

// Auth is what an answer with a token has at its end; nil where there is none.
type Auth struct {
	Trailer
	Token []byte
}

// Encode returns the whole PDU, kind KindBindAck or KindAlterResponse.
func (a *BindAck) Encode(kind Kind, flags Flags, call uint32, auth *Auth) []byte {
	b := make([]byte, HeaderSize, 128+24*len(a.Results))
	b = binary.LittleEndian.AppendUint16(b, a.MaxXmit)
	b = binary.LittleEndian.AppendUint16(b, a.MaxRecv)
	b = binary.LittleEndian.AppendUint32(b, a.Group)
	if a.Address == "" {
		b = binary.LittleEndian.AppendUint16(b, 0)
	} else {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(a.Address)+1)) //nolint:gosec // a port number
		b = append(append(b, a.Address...), 0)
	}
	b = align(b, 4)
	b = append(b, byte(len(a.Results)), 0, 0, 0)
	for _, r := range a.Results {
		b = binary.LittleEndian.AppendUint16(b, r.Result)
		b = binary.LittleEndian.AppendUint16(b, r.Reason)
		b = r.Transfer.append(b)
	}
	return finish(b, kind, flags|Whole, call, auth)
}

// NakReason is why a bind is refused (C706 12.6.3.1, [MS-RPCE] 2.2.2.5).
type NakReason uint16

// The reasons of bind_nak.
const (
	NakNotSpecified   NakReason = 0
	NakVersion        NakReason = 4
	NakAuthType       NakReason = 8
	NakInvalidToken   NakReason = 9
	versionsSupported           = 2
)

// EncodeNak returns a bind_nak (C706 12.6.4.5), which says the versions spoken: 5.0 and 5.1.
func EncodeNak(call uint32, reason NakReason) []byte {
	b := make([]byte, HeaderSize, HeaderSize+8)
	b = binary.LittleEndian.AppendUint16(b, uint16(reason))
	b = append(b, versionsSupported, 5, 0, 5, 1)
	return finish(align(b, 4), KindBindNak, Whole, call, nil)
}

// EncodeShutdown asks the client to close the connection (C706 12.6.4.11).
func EncodeShutdown() []byte {
	return finish(make([]byte, HeaderSize), KindShutdown, Whole, 0, nil)
}

func align(b []byte, to int) []byte {
	for len(b)%to != 0 {
		b = append(b, 0)
	}
	return b
}

// finish adds trailer and token and writes the header.
func finish(b []byte, kind Kind, flags Flags, call uint32, auth *Auth) []byte {
	token := 0
	if auth != nil {
		before := len(b)
		b = align(b, 4)
		t := auth.Trailer
		t.Pad = len(b) - before
		b = append(t.append(b), auth.Token...)
		token = len(auth.Token)
	}
	putHeader(b, Header{Kind: kind, Flags: flags, Length: len(b), AuthLength: token, Call: call})
	return b
}

func (t Trailer) append(b []byte) []byte {
	b = append(b, byte(t.Type), byte(t.Level), byte(t.Pad), 0) //nolint:gosec // a pad is at most 15
	return binary.LittleEndian.AppendUint32(b, t.Context)
}

func putHeader(b []byte, h Header) {
	copy(b, []byte{5, 0, byte(h.Kind), byte(h.Flags), 0x10, 0, 0, 0})
	binary.LittleEndian.PutUint16(b[8:], uint16(h.Length))      //nolint:gosec // at most MaxBind, by who builds it
	binary.LittleEndian.PutUint16(b[10:], uint16(h.AuthLength)) //nolint:gosec // shorter than the whole
	binary.LittleEndian.PutUint32(b[12:], h.Call)
}
