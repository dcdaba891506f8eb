package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

var (
	echoSyntax  = pdu.Syntax{UUID: pdu.MustUUID("01234567-89ab-cdef-0123-456789abcdef"), Major: 1, Minor: 2}
	otherSyntax = pdu.Syntax{UUID: pdu.MustUUID("11111111-89ab-cdef-0123-456789abcdef")}
)

// echo answers with the stub; its operations do other things too.
func echo(ctx context.Context, call *Call, stub []byte) ([]byte, error) {
	switch call.Operation {
	case 1:
		panic("at the disco")
	case 2:
		<-ctx.Done()
		return nil, ctx.Err()
	case 3:
		time.Sleep(300 * time.Millisecond)
	case 4:
		return nil, errors.New("broken")
	case 5:
		return bytes.Repeat([]byte{'x'}, 20000), nil
	case 6:
		return call.Object[:], nil
	}
	return stub, nil
}

// serve runs a server with the echo interface, which anybody may call, and another that needs privacy.
func serve(t testing.TB, change func(*Options)) (s *Server, address string, log *test.Hook) {
	t.Helper()
	logger, hook := test.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	opts := Options{Name: "test", Log: logger, MaxAnonymous: 1 << 20}
	if change != nil {
		change(&opts)
	}
	s = New(opts)
	s.Register(Interface{Name: "echo", Syntax: echoSyntax, Least: pdu.LevelNone, Levels: map[uint16]pdu.Level{9: pdu.LevelPrivacy}, MaxStub: 50000, Handle: echo,
		Operations: map[uint16]string{0: "Echo", 1: "Panic", 2: "Wait"}})
	s.Register(Interface{Name: "other", Syntax: otherSyntax, Least: pdu.LevelPrivacy, Handle: echo})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return s, l.Addr().String(), hook
}

// peer is a client that says what a test wants.
type peer struct {
	t testing.TB
	net.Conn
}

func connect(t testing.TB, address string) *peer {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &peer{t, c}
}

func header(kind pdu.Kind, flags pdu.Flags, call uint32, body []byte) []byte {
	b := []byte{5, 0, byte(kind), byte(flags), 0x10, 0, 0, 0}
	b = binary.LittleEndian.AppendUint16(b, uint16(pdu.HeaderSize+len(body)))
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, call)
	return append(b, body...)
}

func bindPDU(kind pdu.Kind, elements ...pdu.Element) []byte {
	b := []byte{0xd0, 0x16, 0xd0, 0x16, 0, 0, 0, 0, byte(len(elements)), 0, 0, 0}
	for _, e := range elements {
		b = binary.LittleEndian.AppendUint16(b, e.ID)
		b = append(b, byte(len(e.Transfer)), 0)
		for _, s := range append([]pdu.Syntax{e.Interface}, e.Transfer...) {
			b = append(b, s.UUID[:]...)
			b = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, s.Major), s.Minor)
		}
	}
	return header(kind, pdu.Whole|pdu.HeaderSigning|pdu.Multiplexing, 1, b)
}

func requestPDU(flags pdu.Flags, call uint32, context, operation uint16, stub []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(stub)))
	b = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, context), operation)
	return header(pdu.KindRequest, flags, call, append(b, stub...))
}

func (p *peer) send(parts ...[]byte) {
	p.t.Helper()
	if _, err := p.Write(bytes.Join(parts, nil)); err != nil {
		p.t.Fatal(err)
	}
}

// receive reads one PDU; nil where the server has closed the connection.
func (p *peer) receive() *pdu.PDU {
	p.t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(10 * time.Second))
	raw := make([]byte, pdu.HeaderSize)
	if _, err := io.ReadFull(p, raw); err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			p.t.Fatal("no answer within 10 s")
		}
		return nil
	}
	raw = append(raw, make([]byte, int(binary.LittleEndian.Uint16(raw[8:]))-len(raw))...)
	if _, err := io.ReadFull(p, raw[pdu.HeaderSize:]); err != nil {
		p.t.Fatal(err)
	}
	out, err := pdu.Parse(raw)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// bound is a connection with context 0 for echo and 1 for the other interface.
func bound(t testing.TB, address string) *peer {
	t.Helper()
	p := connect(t, address)
	p.send(bindPDU(pdu.KindBind, pdu.Element{ID: 0, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}}, pdu.Element{ID: 1, Interface: otherSyntax, Transfer: []pdu.Syntax{pdu.NDR}}))
	if ack := p.receive(); ack == nil || ack.Kind != pdu.KindBindAck {
		t.Fatalf("%+v", ack)
	}
	return p
}

// wantFault reads a fault with this status.
func (p *peer) wantFault(status pdu.Status) {
	p.t.Helper()
	f := p.receive()
	if f == nil || f.Kind != pdu.KindFault || pdu.Status(binary.LittleEndian.Uint32(f.Body[8:])) != status {
		p.t.Fatalf("%+v, want a fault %v", f, status)
	}
}

// wantClosed wants no more PDU.
func (p *peer) wantClosed() {
	p.t.Helper()
	if got := p.receive(); got != nil {
		p.t.Fatalf("%v, want the end", got.Kind)
	}
}

// wantEcho calls and wants the stub back.
func (p *peer) wantEcho(call uint32, stub string) {
	p.t.Helper()
	p.send(requestPDU(pdu.Whole, call, 0, 0, []byte(stub)))
	r := p.receive()
	if r == nil || r.Kind != pdu.KindResponse || r.Call != call || string(r.Body[8:]) != stub {
		p.t.Fatalf("%+v", r)
	}
}
