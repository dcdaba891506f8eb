package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// TestRequestsThatNeverEndTakeNoMemory begins ever more requests, of which each is refused and none is ended.
func TestRequestsThatNeverEndTakeNoMemory(t *testing.T) {
	s, address, _ := serve(t, nil)
	before := heap()
	p := bound(t, address)
	go func() { // whoever sends this reads the faults too
		buf := make([]byte, 1<<16)
		for {
			if _, err := p.Read(buf); err != nil {
				return
			}
		}
	}()
	sent, part := 0, bytes.Repeat([]byte{'x'}, 5000)
	for call := uint32(2); sent < 100<<20; call++ {
		n, err := p.Write(requestPDU(pdu.FirstFragment, call, 7, 0, part)) // there is no such context
		if sent += n; err != nil {
			break
		}
	}
	s.mu.Lock()
	left := len(s.conns)
	s.mu.Unlock()
	if used := int64(heap()) - int64(before); used > 8<<20 || left != 0 && sent >= 100<<20 {
		t.Errorf("%d octets of requests that do not end take %d; %d connections are left", sent, used, left)
	}
}

func TestAConnectionIsNotRefusedForEver(t *testing.T) {
	_, address, _ := serve(t, nil)
	p := bound(t, address)
	for call := range uint32(maxRefusals) {
		p.send(requestPDU(pdu.Whole, call, 7, 0, nil))
		p.wantFault(pdu.UnknownContext)
	}
	p.send(requestPDU(pdu.Whole, 1, 7, 0, nil))
	p.wantClosed()
}

// TestAClientThatDoesNotReadItsAnswersIsNotReadEither asks for 20,000 octets with 24, again and again.
func TestAClientThatDoesNotReadItsAnswersIsNotReadEither(t *testing.T) {
	s, address, _ := serve(t, func(o *Options) { o.WriteTime = 2 * time.Second })
	p := bound(t, address)
	before, goroutines := heap(), runtime.NumGoroutine()
	_ = p.SetWriteDeadline(time.Now().Add(time.Second))
	sent := 0
	for call := uint32(2); sent < 20<<20; call++ {
		n, err := p.Write(requestPDU(pdu.Whole, call, 0, 5, nil))
		if sent += n; err != nil {
			break
		}
		time.Sleep(100 * time.Microsecond) // never as many at a time as would be refused
	}
	if more := runtime.NumGoroutine() - goroutines; more > 2*s.opts.MaxCalls {
		t.Errorf("%d calls wait for %d octets of requests to be answered", more, sent)
	}
	if used := int64(heap()) - int64(before); used > 8<<20 {
		t.Errorf("%d octets are kept", used)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection is still open")
		}
	}
}

// TestAResponseIsReadInTimeOrNotAtAll reads a little of every fragment in time.
func TestAResponseIsReadInTimeOrNotAtAll(t *testing.T) {
	s, _, _ := serve(t, func(o *Options) { o.WriteTime = 300 * time.Millisecond })
	client, server := net.Pipe()
	s.admit(server)
	p := &peer{t, client}
	p.send(bindPDU(pdu.KindBind, pdu.Element{ID: 0, Interface: echoSyntax, Transfer: []pdu.Syntax{pdu.NDR}}))
	if p.receive() == nil {
		t.Fatal("not bound")
	}
	p.send(requestPDU(pdu.Whole, 2, 0, 5, nil))
	began, n := time.Now(), 0
	for buf := make([]byte, 1000); ; time.Sleep(30 * time.Millisecond) {
		more, err := client.Read(buf)
		if n += more; err != nil {
			break
		}
	}
	if took := time.Since(began); n > 15000 || took > time.Second {
		t.Errorf("%d octets were read in %s", n, took)
	}
}

func TestRequestsOfNobodyAreSmall(t *testing.T) {
	s, address, _ := serve(t, func(o *Options) { o.MaxAnonymous = 4096 })
	p := bound(t, address)
	p.wantEcho(2, string(bytes.Repeat([]byte{'x'}, 4000)))
	part := bytes.Repeat([]byte{'x'}, 1400)
	for call := range uint32(2) { // together they count
		p.send(requestPDU(pdu.FirstFragment, 10+call, 0, 0, part))
	}
	p.send(requestPDU(pdu.FirstFragment, 12, 0, 0, part))
	p.wantFault(pdu.AccessDenied)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory != 2800 {
		t.Errorf("%d octets are reserved", s.memory)
	}
}

func TestAnAccountLeavesMemoryForOthers(t *testing.T) {
	s := New(Options{MaxMemory: 1 << 20})
	took := map[security.SID]int{}
	for _, sid := range []security.SID{"S-1-1", "S-1-2", "S-1-3", "S-1-4"} { // each takes what it can get
		for s.reserve(sid, 1000) {
			took[sid] += 1000
		}
		if took[sid] < 1<<20/32 || took[sid] > 1<<20/8+1000 {
			t.Errorf("%s gets %d octets only", sid, took[sid])
		}
	}
	for sid, n := range took {
		if !s.reserve(sid, -n) {
			t.Error("what is given back is not taken")
		}
	}
	if s.memory != 0 || len(s.callers) != 0 {
		t.Errorf("%d octets of %d accounts are left", s.memory, len(s.callers))
	}
}

// TestLargeBindsThatDoNotComeGiveWay begins many binds of 60 kB, of which only 50 come.
func TestLargeBindsThatDoNotComeGiveWay(t *testing.T) {
	s, address, _ := serve(t, func(o *Options) { o.MaxMemory = 1 << 20 })
	bind := header(pdu.KindBind, pdu.Whole, 1, make([]byte, 60000))
	var peers []*peer
	for range 40 {
		p := connect(t, address)
		p.send(bind[:50000])
		peers = append(peers, p)
	}
	bound(t, address).wantEcho(2, "served")
	deadline := time.Now().Add(5 * time.Second)
	for {
		s.mu.Lock()
		large, conns := s.large, len(s.conns)
		s.mu.Unlock()
		if large <= 1<<19 && conns <= 10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d octets of binds are received on %d connections", large, conns)
		}
		time.Sleep(10 * time.Millisecond)
	}
	peers[0].wantClosed()
	for _, p := range peers {
		p.Close()
	}
	for large := int64(1); large != 0; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		large = s.large
		s.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("%d octets are left", large)
		}
	}
}

func TestAnAccountsSecurityContextsAreCounted(t *testing.T) {
	s := New(Options{MaxPerCaller: 2})
	_, server := net.Pipe()
	k := newConn(s, server)
	s.conns[k] = struct{}{}
	n := 0
	for s.proven(k, "S-1-1") {
		n++
	}
	if n != 2*contextsEach || !s.proven(k, "S-1-2") {
		t.Errorf("%d contexts", n)
	}
	for range n {
		s.ended("S-1-1")
	}
	s.ended("S-1-2")
	if s.forget(k); len(s.callers) != 0 {
		t.Errorf("%+v", s.callers["S-1-1"])
	}
}

// TestFragmentsOfTwoCallersMakeNoCall has two accounts multiplexed on one connection, one of which goes on where the other has begun.
func TestFragmentsOfTwoCallersMakeNoCall(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() { _, _ = io.Copy(io.Discard, client) }()
	called := make(chan security.SID, 4)
	s := New(Options{})
	s.Register(Interface{Name: "echo", Syntax: echoSyntax, Least: pdu.LevelConnect, Handle: func(_ context.Context, call *Call, _ []byte) ([]byte, error) {
		called <- call.sid()
		return nil, nil
	}})
	k := newConn(s, server)
	k.contexts, k.calls, k.assemblies = map[uint16]*Interface{0: s.interfaces[0]}, map[uint32]*running{}, map[uint32]*assembly{}
	k.contextIDs = map[uint32]*protection{}
	for id, sid := range []security.SID{"S-1-1", "S-1-2"} {
		k.contextIDs[uint32(id)] = &protection{id: uint32(id), provider: pdu.AuthKerberos, level: pdu.LevelConnect,
			session: &kerberos.Session{Caller: templates.Caller{SID: sid}, Expires: time.Now().Add(time.Hour)}}
	}
	send := func(flags pdu.Flags, call, context uint32) error {
		p, err := pdu.Parse(requestPDU(flags, call, 0, 0, []byte("x")))
		if err != nil {
			t.Fatal(err)
		}
		p.Trailer = &pdu.Trailer{Type: pdu.AuthKerberos, Level: pdu.LevelConnect, Context: context}
		return k.request(p)
	}
	if err := errors.Join(send(pdu.FirstFragment, 2, 0), send(pdu.FirstFragment, 3, 1), send(pdu.LastFragment, 3, 1)); err != nil {
		t.Fatal(err)
	}
	if sid := <-called; sid != "S-1-2" {
		t.Errorf("the call is %s's", sid)
	}
	if err := send(pdu.LastFragment, 2, 1); err == nil || len(called) != 0 {
		t.Error("the second account has ended the call of the first")
	}
	if err := send(pdu.Whole, 4, 9); err == nil || len(called) != 0 {
		t.Error("a context that nobody has opened has a call")
	}
	k.close(nil)
}

// TestANewCallerTakesThePlaceOfWhoHasMost has accounts that take all connections that there are.
func TestANewCallerTakesThePlaceOfWhoHasMost(t *testing.T) {
	s := New(Options{MaxConnections: 16, MaxPerCaller: 8})
	open := func() *conn {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close() })
		k := newConn(s, server)
		s.mu.Lock()
		s.conns[k] = struct{}{}
		k.place = s.unproven.PushBack(k)
		s.mu.Unlock()
		return k
	}
	for range 7 {
		s.proven(open(), "S-1-1")
	}
	for range 5 {
		s.proven(open(), "S-1-2")
	}
	if s.proven(open(), "S-1-1") {
		t.Error("who has most gets more")
	}
	for i := range 3 {
		if !s.proven(open(), "S-1-3") {
			t.Errorf("the third account's connection %d has no place", i+1)
		}
	}
	if a, b, c := s.callers["S-1-1"].connections, s.callers["S-1-2"].connections, s.callers["S-1-3"].connections; a+b != 9 || max(a, b) != 5 || c != 3 {
		t.Errorf("%d, %d and %d connections", a, b, c)
	}
}
