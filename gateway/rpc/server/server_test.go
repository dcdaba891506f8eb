package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

func TestABindNegotiates(t *testing.T) {
	_, address, _ := serve(t, nil)
	p := connect(t, address)
	newer, major := echoSyntax, echoSyntax
	newer.Minor++
	major.Major++
	older := echoSyntax
	older.Minor = 0
	p.send(bindPDU(pdu.KindBind,
		pdu.Element{ID: 7, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR64, pdu.NDR}},
		pdu.Element{ID: 8, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR64}},
		pdu.Element{ID: 9, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.FeatureSyntax(7)}},
		pdu.Element{ID: 10, Interface: newer, Transfer: []pdu.Syntax{pdu.NDR}},
		pdu.Element{ID: 11, Interface: major, Transfer: []pdu.Syntax{pdu.NDR}},
		pdu.Element{ID: 12, Interface: older, Transfer: []pdu.Syntax{pdu.NDR}}))
	ack := p.receive()
	if ack == nil || ack.Kind != pdu.KindBindAck || ack.Flags != pdu.Whole|pdu.HeaderSigning|pdu.Multiplexing {
		t.Fatalf("%+v", ack)
	}
	group := binary.LittleEndian.Uint32(ack.Body[4:])
	_, port, _ := strings.Cut(address, ":")
	if group == 0 || string(ack.Body[10:10+len(port)]) != port {
		t.Errorf("%x", ack.Body)
	}
	results := ack.Body[len(ack.Body)-6*24:]
	for i, want := range [][2]uint16{{0, 0}, {2, 2}, {3, 3}, {2, 1}, {2, 1}, {0, 0}} {
		if r := results[24*i:]; binary.LittleEndian.Uint16(r) != want[0] || binary.LittleEndian.Uint16(r[2:]) != want[1] {
			t.Errorf("context %d: %x, want %v", 7+i, r[:24], want)
		}
	}
	p.send(bindPDU(pdu.KindAlterContext, pdu.Element{ID: 0, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}}))
	if again := p.receive(); again == nil || again.Kind != pdu.KindAlterResponse || binary.LittleEndian.Uint32(again.Body[4:]) != group {
		t.Errorf("%+v", again)
	}
	p.wantEcho(5, "hello")
	p.send(requestPDU(pdu.Whole, 6, 8, 0, nil))
	p.wantFault(pdu.UnknownContext)
}

func TestABindOfAnotherVersionIsToldOurs(t *testing.T) {
	_, address, _ := serve(t, nil)
	p := connect(t, address)
	b := bindPDU(pdu.KindBind, pdu.Element{Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}})
	b[0] = 6
	p.send(b)
	if nak := p.receive(); nak == nil || nak.Kind != pdu.KindBindNak || nak.Body[0] != byte(pdu.NakVersion) || !bytes.Equal(nak.Body[2:7], []byte{2, 5, 0, 5, 1}) {
		t.Errorf("%+v", nak)
	}
	p.wantClosed()
}

func TestWhatIsNoCallEndsTheConnection(t *testing.T) {
	_, address, log := serve(t, nil)
	bind := bindPDU(pdu.KindBind, pdu.Element{Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}})
	long := requestPDU(pdu.Whole, 2, 0, 0, nil)
	long[8], long[9] = 0xff, 0xff
	for name, sent := range map[string][]byte{
		"a request before a bind": requestPDU(pdu.Whole, 2, 0, 0, nil),
		"HTTP":                    []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a long fragment":         append(bytes.Clone(bind), long...),
		"a response":              append(bytes.Clone(bind), header(pdu.KindResponse, pdu.Whole, 1, make([]byte, 8))...),
		"a bind in parts":         header(pdu.KindBind, pdu.FirstFragment, 1, make([]byte, 60)),
		"an auth3 for nothing":    append(bytes.Clone(bind), header(pdu.KindAuth3, pdu.Whole, 1, nil)...),
	} {
		p := connect(t, address)
		p.send(sent)
		for got := p.receive(); got != nil; got = p.receive() {
			if got.Kind != pdu.KindBindAck && got.Kind != pdu.KindBindNak {
				t.Errorf("%s: answered with %v", name, got.Kind)
			}
		}
	}
	for _, e := range log.AllEntries() {
		if strings.Contains(e.Message, "panic") {
			t.Error(e)
		}
	}
}

func TestProvidersThatAreNotServed(t *testing.T) {
	_, address, log := serve(t, nil)
	for provider, want := range map[pdu.AuthType]pdu.NakReason{pdu.AuthNTLM: pdu.NakAuthType, pdu.AuthTLS: pdu.NakInvalidToken, pdu.AuthNetlogon: pdu.NakInvalidToken} {
		p := connect(t, address)
		b := bindPDU(pdu.KindBind, pdu.Element{Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}})
		token := []byte("NTLMSSP\x00\x01\x00\x00\x00\x00\x00\x00\x00")
		b = append(b, byte(provider), 6, 0, 0, 1, 0, 0, 0)
		b = append(b, token...)
		binary.LittleEndian.PutUint16(b[8:], uint16(len(b)))
		binary.LittleEndian.PutUint16(b[10:], uint16(len(token)))
		p.send(b)
		if nak := p.receive(); nak == nil || nak.Kind != pdu.KindBindNak || binary.LittleEndian.Uint16(nak.Body) != uint16(want) {
			t.Errorf("%v: %+v", provider, nak)
		}
		p.wantClosed()
	}
	said := false
	for _, e := range log.AllEntries() {
		said = said || e.Level == logrus.WarnLevel && strings.Contains(e.Message, "NTLM, which is not accepted")
	}
	if !said {
		t.Error("the log does not say NTLM")
	}
}

func TestACallThatNeedsMoreProtectionIsRefused(t *testing.T) {
	_, address, _ := serve(t, nil)
	p := bound(t, address)
	p.send(requestPDU(pdu.Whole, 2, 1, 0, []byte("x")))
	p.wantFault(pdu.AccessDenied)
	p.send(requestPDU(pdu.Whole, 3, 0, 9, []byte("x")))
	p.wantFault(pdu.AccessDenied)
	// The rest of a refused request is dropped without more faults.
	p.send(requestPDU(pdu.FirstFragment, 4, 1, 0, []byte("x")), requestPDU(0, 4, 1, 0, []byte("x")), requestPDU(pdu.LastFragment, 4, 1, 0, []byte("x")))
	p.wantFault(pdu.AccessDenied)
	p.wantEcho(5, "still here")
}

func TestFragmentsBothWays(t *testing.T) {
	s, address, _ := serve(t, nil)
	p := bound(t, address)
	p.send(requestPDU(pdu.FirstFragment, 2, 0, 0, []byte("one ")), requestPDU(0, 2, 0, 0, []byte("two ")))
	p.wantEcho(3, "in between")
	p.send(requestPDU(pdu.LastFragment, 2, 0, 0, []byte("three")))
	if r := p.receive(); r == nil || string(r.Body[8:]) != "one two three" {
		t.Errorf("%+v", r)
	}
	p.send(requestPDU(pdu.Whole, 4, 0, 5, nil))
	var all []byte
	for {
		r := p.receive()
		if r == nil || r.Length > 5840 || (r.Flags&pdu.FirstFragment != 0) != (len(all) == 0) || int(binary.LittleEndian.Uint32(r.Body)) != 20000-len(all) {
			t.Fatalf("%+v after %d", r, len(all))
		}
		all = append(all, r.Body[8:]...)
		if r.Flags&pdu.LastFragment != 0 {
			break
		}
	}
	if len(all) != 20000 {
		t.Errorf("%d octets", len(all))
	}
	object := pdu.NewUUID()
	raw := requestPDU(pdu.Whole|pdu.HasObject, 5, 0, 6, append(object[:], "stub"...))
	p.send(raw)
	if r := p.receive(); r == nil || !bytes.Equal(r.Body[8:], object[:]) {
		t.Errorf("%+v", r)
	}
	isReserved(t, s, 0)
}

// isReserved waits until so much memory is taken.
func isReserved(t *testing.T, s *Server, want int64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		memory := s.memory
		s.mu.Unlock()
		if memory == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d octets are reserved, want %d", memory, want)
		}
	}
}

func TestFragmentsOutOfOrder(t *testing.T) {
	s, address, _ := serve(t, nil)
	for name, sent := range map[string][][]byte{
		"without a first": {requestPDU(pdu.LastFragment, 2, 0, 0, []byte("x"))},
		"twice first":     {requestPDU(pdu.FirstFragment, 2, 0, 0, []byte("x")), requestPDU(pdu.FirstFragment, 2, 0, 0, []byte("x"))},
		"another op":      {requestPDU(pdu.FirstFragment, 2, 0, 0, []byte("x")), requestPDU(pdu.LastFragment, 2, 0, 3, []byte("x"))},
		"the same call":   {requestPDU(pdu.Whole, 2, 0, 3, []byte("x")), requestPDU(pdu.Whole, 2, 0, 3, []byte("x"))},
	} {
		p := bound(t, address)
		p.send(sent...)
		f := p.receive()
		if f == nil || f.Kind != pdu.KindFault || pdu.Status(binary.LittleEndian.Uint32(f.Body[8:])) != pdu.FragmentOrder {
			t.Errorf("%s: %+v", name, f)
		}
		p.wantClosed()
	}
	time.Sleep(400 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory != 0 || len(s.conns) != 0 {
		t.Errorf("%d octets, %d connections are left", s.memory, len(s.conns))
	}
}

func TestWhatIsTooLarge(t *testing.T) {
	s, address, _ := serve(t, func(o *Options) { o.MaxMemory = 90000 })
	p := bound(t, address)
	part := bytes.Repeat([]byte{'x'}, 5000)
	send := func(p *peer, call uint32, n int) {
		for i := range n {
			flags := pdu.Flags(0)
			if i == 0 {
				flags = pdu.FirstFragment
			}
			p.send(requestPDU(flags, call, 0, 0, part))
		}
	}
	send(p, 2, 11) // more than the interface takes
	p.wantFault(pdu.AccessDenied)
	p.send(requestPDU(pdu.LastFragment, 2, 0, 0, part))
	send(p, 3, 9)
	isReserved(t, s, 9*int64(len(part)))
	q := bound(t, address)
	send(q, 3, 10) // more than all may have
	q.wantFault(pdu.ServerTooBusy)
	q.wantEcho(4, "small")
	p.Close()
	isReserved(t, s, 0)
	for i := range uint32(8) {
		q.send(requestPDU(pdu.FirstFragment, 10+i, 0, 0, []byte("x")))
	}
	q.send(requestPDU(pdu.FirstFragment, 20, 0, 0, []byte("x")))
	q.wantFault(pdu.ServerTooBusy)
}

func TestCallsAtATimeAndCancels(t *testing.T) {
	_, address, log := serve(t, func(o *Options) { o.MaxCalls = 3 })
	p := bound(t, address)
	for call := range uint32(3) {
		p.send(requestPDU(pdu.Whole, 10+call, 0, 2, nil))
	}
	p.send(requestPDU(pdu.Whole, 20, 0, 0, nil))
	p.wantFault(pdu.ServerTooBusy)
	p.send(header(pdu.KindCancel, pdu.Whole, 11, nil))
	p.wantFault(pdu.CallTimeout)
	p.send(header(pdu.KindOrphaned, pdu.Whole, 12, nil))
	time.Sleep(100 * time.Millisecond)
	p.wantEcho(30, "the orphan has no answer")
	p.send(requestPDU(pdu.Whole, 31, 0, 1, nil))
	p.wantFault(pdu.CallFailed)
	p.send(requestPDU(pdu.Whole, 32, 0, 4, nil))
	p.wantFault(pdu.CallFailed)
	p.wantEcho(33, "after a panic")
	p.send(header(pdu.KindCancel, pdu.Whole, 10, nil))
	p.wantFault(pdu.CallTimeout)
	lines := 0
	for _, e := range log.AllEntries() {
		if e.Message == "RPC call" {
			lines++
			if e.Data["operation"] == "Panic" && (e.Level != logrus.ErrorLevel || !strings.Contains(fmt.Sprint(e.Data["stack"]), "echo")) {
				t.Errorf("%v", e.Data)
			}
		}
	}
	if lines < 6 {
		t.Errorf("%d lines", lines)
	}
}

func TestSlowClientsAreLetGo(t *testing.T) {
	_, address, _ := serve(t, func(o *Options) {
		o.FirstTime, o.ReadTime, o.IdleTime, o.CallTime = 200*time.Millisecond, 200*time.Millisecond, 400*time.Millisecond, 300*time.Millisecond
	})
	for name, sent := range map[string][]byte{"nothing": nil, "half a header": {5, 0, 11}, "half a bind": bindPDU(pdu.KindBind, pdu.Element{Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}})[:40]} {
		p := connect(t, address)
		began := time.Now()
		p.send(sent)
		p.wantClosed()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: %s", name, took)
		}
	}
	p := bound(t, address)
	p.send(requestPDU(pdu.FirstFragment, 2, 0, 0, nil))
	p.wantClosed()
	p = bound(t, address)
	p.send(requestPDU(pdu.Whole, 2, 0, 2, nil)) // a handler that is slow is cut off, and the connection is not
	p.wantFault(pdu.CallTimeout)
	p.wantEcho(3, "here")
	p.wantClosed()
}

func TestShutdownLetsCallsEnd(t *testing.T) {
	s, address, _ := serve(t, nil)
	idle, half, busy := bound(t, address), connect(t, address), bound(t, address)
	half.send([]byte{5, 0})
	busy.send(requestPDU(pdu.Whole, 2, 0, 3, []byte("x")))
	time.Sleep(50 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	half.Close()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if r := busy.receive(); r == nil || r.Kind != pdu.KindResponse {
		t.Errorf("%+v", r)
	}
	for _, p := range []*peer{busy, idle} {
		if r := p.receive(); r == nil || r.Kind != pdu.KindShutdown {
			t.Errorf("%+v", r)
		}
		p.wantClosed()
	}
	if _, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		t.Error("the port is still open")
	}
}

func TestShutdownEndsCallsThatDoNotEnd(t *testing.T) {
	s, address, _ := serve(t, nil)
	p := bound(t, address)
	p.send(requestPDU(pdu.Whole, 2, 0, 2, nil))
	time.Sleep(50 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestANewConnectionDisplacesAnUnprovenOne(t *testing.T) {
	s, address, _ := serve(t, func(o *Options) { o.MaxConnections = 20 })
	var peers []*peer
	for range 30 {
		peers = append(peers, bound(t, address))
	}
	for _, p := range peers[:10] {
		p.wantClosed()
	}
	for i, p := range peers[10:] {
		p.wantEcho(uint32(i+2), "served")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) != 20 || s.unproven.Len() != 20 {
		t.Errorf("%d connections", len(s.conns))
	}
}

// TestTenThousandIdleConnections measures what they take, both ends in this process.
func TestTenThousandIdleConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("opens 20,000 sockets")
	}
	n := 10000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < 21000 {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 21000, Max: max(limit.Max, 21000)}); err != nil {
			n = int(limit.Cur-500) / 2
		}
	}
	_, address, _ := serve(t, nil)
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	bind := bindPDU(pdu.KindBind, pdu.Element{ID: 0, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}})
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(i, err)
		}
		defer c.Close()
		if _, err := c.Write(bind); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 60)); err != nil {
			t.Fatal(err)
		}
		conns[i] = c
	}
	each := int64(used()-before) / int64(n)
	began := time.Now()
	p := bound(t, address)
	p.wantEcho(2, "served")
	t.Logf("%d connections take %d octets each, with their other ends; one more is bound and served in %s", n, each, time.Since(began).Round(time.Microsecond))
	if each > 24<<10 || time.Since(began) > time.Second {
		t.Error("too much")
	}
}

// FuzzConnection is a client that sends anything.
func FuzzConnection(f *testing.F) {
	bind := bindPDU(pdu.KindBind, pdu.Element{Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}})
	f.Add(bind)
	f.Add(append(bytes.Clone(bind), requestPDU(pdu.Whole, 2, 0, 0, []byte("abc"))...))
	f.Add(append(bytes.Clone(bind), append(requestPDU(pdu.FirstFragment, 2, 0, 0, []byte("abc")), header(pdu.KindCancel, pdu.Whole, 2, nil)...)...))
	f.Add(append(bytes.Clone(bind), bindPDU(pdu.KindAlterContext, pdu.Element{Interface: otherSyntax, Transfer: []pdu.Syntax{pdu.NDR64, pdu.FeatureSyntax(1)}})...))
	s := New(Options{})
	s.Register(Interface{Name: "echo", Syntax: echoSyntax, Least: pdu.LevelNone, Handle: func(_ context.Context, _ *Call, stub []byte) ([]byte, error) { return stub, nil }})
	f.Fuzz(func(t *testing.T, sent []byte) {
		client, server := net.Pipe()
		s.admit(server)
		go func() { _, _ = io.Copy(io.Discard, client) }()
		_, _ = client.Write(sent)
		client.Close()
		s.running.Wait()
		if s.memory != 0 || len(s.conns) != 0 || len(s.callers) != 0 {
			t.Errorf("%d octets, %d connections, %d callers are left", s.memory, len(s.conns), len(s.callers))
		}
	})
}
