// Package server serves DCE/RPC over TCP (C706, [MS-RPCE]) with Kerberos.
//
// # For who builds an interface
//
// An Interface is an abstract syntax, the least authentication level, and a Handler: octets in, octets out. Stub makes a Handler of a
// method on the request and response types of a go-msrpc stub, and Operations one Handler of those of all operations. Register the
// interface at a Server before Serve:
//
//	s := server.New(server.Options{Name: "RPC", Acceptor: acceptor, Log: log})
//	s.Register(server.Interface{Name: "ICertRequestD2", Syntax: syntax, Least: pdu.LevelIntegrity, Handle: server.Operations(map[uint16]server.Handler{
//		6: server.Stub(d.request2), // func(context.Context, *server.Call, *icertrequestd2.Request2Request) (*icertrequestd2.Request2Response, error)
//	})})
//	go s.Serve(listener)
//
// A Server is one TCP port. The gateway has two: one for the endpoint mapper (port 135), where DCOM's resolver and activator belong
// too, and one for all else. An interface may be registered at both. A Handler gets a Call: who calls (Caller, proven by Kerberos, nil for the interfaces that anybody may call), at which level, the object UUID, which
// in DCOM is the IPID and names the object, the presentation context, and the addresses of both ends. Which
// objects there are is the handler's business: all calls of an interface reach its one Handler, whatever object they name. Object UUIDs,
// and context handles, are bearer tokens unless the handler keeps the caller's SID beside them, which it must.
//
// Where an interface wants more protection for some operations than for others, Levels says so; where it wants to refuse in its own
// words, as DCOM does with an HRESULT, Least is lower and the handler looks at Call.Level. To refuse with a fault it returns a *Fault.
// Call.Result puts a result into the log line and the metrics of the call.
//
// # What is bounded
//
// A connection has at most one call's fragments times Options.MaxAssemblies in memory, never more than Interface.MaxStub each, and of those
// of nobody MaxAnonymous together; MaxCalls calls at a time, and as many answers that are not sent yet: a client that does not read them
// is not read either. All connections together have Options.MaxMemory for requests and answers, of which an account never takes more than
// an eighth of what it leaves to others, but for one answer. Every read and write has a deadline. A caller, by SID, has MaxPerCaller
// connections, as many calls at a time, and four times as many security contexts. Where MaxConnections is reached, a new connection takes
// the place of the oldest one that has proven no caller; those that have are three quarters at most, where a new caller takes the place
// of who has most.
package server

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Options of New. Zero values are the defaults.
type Options struct {
	Name     string // of the listener, for logs and metrics
	Acceptor *kerberos.RPCAcceptor
	Log      logrus.FieldLogger
	Observer Observer // may be nil

	MaxConnections int   // 16384
	MaxPerCaller   int   // connections, and calls at a time, of one account; 256
	MaxCalls       int   // at a time on one connection; 8
	MaxAssemblies  int   // requests on one connection of which some fragments have come; 8
	MaxAnonymous   int   // octets of requests on one connection that are nobody's; 4 KiB
	MaxMemory      int64 // octets of requests that are being received or served, and of answers that are being sent; 128 MiB

	FirstTime time.Duration // for a connection's bind; 15 s
	ProofTime time.Duration // for all legs of an authentication; 30 s
	ReadTime  time.Duration // for the rest of a PDU, and between the fragments of a request; 20 s
	WriteTime time.Duration // for one response; 30 s, and a second more for each 32 KiB
	IdleTime  time.Duration // without a call; 15 min, and a minute for those who have proven no caller
	CallTime  time.Duration // for a handler; 2 min
}

// Observer counts.
type Observer interface {
	Connections(listener string, change int)
	Called(iface, operation, outcome string, took time.Duration)
	Refused(listener, reason string)
}

// Server is one TCP port. All methods are safe for concurrent use, but for Register.
type Server struct {
	opts       Options
	interfaces []*Interface

	mu        sync.Mutex // guards what follows
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	unproven  *list.List // of *conn, the oldest first
	callers   map[security.SID]*usage
	memory    int64
	large     int64          // octets of large PDUs of connections without a proven caller
	running   sync.WaitGroup // connections
}

// usage is what one account has at a time.
type usage struct {
	connections, calls, contexts int
	memory                       int64
}

// New returns a server without interfaces.
func New(opts Options) *Server {
	for _, d := range []struct {
		value *int
		other int
	}{{&opts.MaxConnections, 16384}, {&opts.MaxPerCaller, 256}, {&opts.MaxCalls, 8}, {&opts.MaxAssemblies, 8}, {&opts.MaxAnonymous, 4 << 10}} {
		if *d.value == 0 {
			*d.value = d.other
		}
	}
	if opts.MaxMemory == 0 {
		opts.MaxMemory = 128 << 20
	}
	for _, d := range []struct {
		value *time.Duration
		other time.Duration
	}{{&opts.FirstTime, 15 * time.Second}, {&opts.ProofTime, 30 * time.Second}, {&opts.ReadTime, 20 * time.Second}, {&opts.WriteTime, 30 * time.Second},
		{&opts.IdleTime, 15 * time.Minute}, {&opts.CallTime, 2 * time.Minute}} {
		if *d.value == 0 {
			*d.value = d.other
		}
	}
	if opts.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		opts.Log = l
	}
	if opts.Observer == nil {
		opts.Observer = nobody{}
	}
	return &Server{opts: opts, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, unproven: list.New(),
		callers: map[security.SID]*usage{}}
}

type nobody struct{}

func (nobody) Connections(string, int)                      {}
func (nobody) Called(string, string, string, time.Duration) {}
func (nobody) Refused(string, string)                       {}

// Register adds an interface. Call it before Serve.
func (s *Server) Register(i Interface) {
	if i.MaxStub == 0 {
		i.MaxStub = defaultMaxStub
	}
	s.interfaces = append(s.interfaces, &i)
}

// ErrClosed is what Serve returns after Shutdown.
var ErrClosed = errors.New("the RPC server is closed")

// Serve accepts connections until Shutdown, and then returns ErrClosed.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		_ = l.Close()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for pause := time.Duration(0); ; {
		c, err := l.Accept()
		if err == nil {
			pause = 0
			s.admit(c)
			continue
		}
		s.mu.Lock()
		closing := s.closing
		s.mu.Unlock()
		if closing {
			return ErrClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("%s: %w", s.opts.Name, err)
		}
		// Out of file descriptors, or a connection that is gone already: it passes.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.opts.Log.WithError(err).Warn(s.opts.Name + ": a connection could not be accepted")
		time.Sleep(pause)
	}
}

// admit begins to serve a connection, if there is room for it.
func (s *Server) admit(c net.Conn) {
	k := newConn(s, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.opts.MaxConnections {
		oldest := s.unproven.Front()
		if oldest == nil {
			s.opts.Observer.Refused(s.opts.Name, "congestion")
			_ = c.Close()
			return
		}
		s.displace(oldest.Value.(*conn))
	}
	if s.closing {
		_ = c.Close()
		return
	}
	s.conns[k] = struct{}{}
	k.place = s.unproven.PushBack(k)
	s.running.Add(1)
	s.opts.Observer.Connections(s.opts.Name, 1)
	go func() {
		defer s.running.Done()
		k.serve()
	}()
}

// forget takes a connection off the books; mu is held.
func (s *Server) forget(k *conn) {
	if _, ok := s.conns[k]; !ok {
		return
	}
	delete(s.conns, k)
	s.large, k.large = s.large-int64(k.large), 0
	s.opts.Observer.Connections(s.opts.Name, -1)
	if k.place != nil {
		s.unproven.Remove(k.place)
		k.place = nil
	}
	for sid := range k.callers {
		s.use(sid, usage{connections: -1})
	}
}

// displace ends a connection in favour of another one; mu is held.
func (s *Server) displace(k *conn) {
	s.forget(k)
	_ = k.c.Close()
	s.opts.Observer.Refused(s.opts.Name, "displaced")
}

// use changes what an account has; mu is held.
func (s *Server) use(sid security.SID, change usage) {
	u := s.callers[sid]
	if u == nil {
		u = &usage{}
		s.callers[sid] = u
	}
	u.connections += change.connections
	u.calls += change.calls
	u.contexts += change.contexts
	u.memory += change.memory
	if *u == (usage{}) {
		delete(s.callers, sid)
	}
}

// receive notes that a connection without a proven caller receives a large PDU; 0 octets: no more. Tickets may be large. Where too many come
// at a time, the oldest connections give way, in which they should have come long ago; false if this is one.
func (s *Server) receive(k *conn, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.place == nil { // proven, or displaced
		return true
	}
	s.large, k.large = s.large+int64(n-k.large), n
	for k.place != nil && s.large > s.opts.MaxMemory/2 {
		s.displace(s.unproven.Front().Value.(*conn))
	}
	return k.place != nil
}

// contextsEach is how many security contexts an account may have for each of its connections, if it has all that it may: each has the
// account's groups, of which there may be many.
const contextsEach = 4

// proven notes that a connection has one more session of an account. It tells whether that account may.
func (s *Server) proven(k *conn, sid security.SID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[k]; !ok {
		return false // displaced this moment
	}
	if u := s.callers[sid]; u != nil && u.contexts >= contextsEach*s.opts.MaxPerCaller {
		return false
	}
	if _, ok := k.callers[sid]; !ok {
		if u := s.callers[sid]; u != nil && u.connections >= s.opts.MaxPerCaller {
			return false
		}
		if k.place != nil && !s.roomFor(sid) {
			return false
		}
		k.callers[sid] = struct{}{}
		s.use(sid, usage{connections: 1})
	}
	s.use(sid, usage{contexts: 1})
	if k.place != nil {
		s.unproven.Remove(k.place)
		k.place = nil
	}
	return true
}

// roomFor lets an account have one more of the connections with a proven caller. Where they are as many as may be, that costs a
// connection of the account that has most; false where this is that account. mu is held.
func (s *Server) roomFor(sid security.SID) bool {
	if len(s.conns)-s.unproven.Len() < s.opts.MaxConnections-s.opts.MaxConnections/4 {
		return true
	}
	var most security.SID
	own, found := 0, 0
	for other, u := range s.callers {
		if other == sid {
			own = u.connections
		} else if u.connections > found {
			most, found = other, u.connections
		}
	}
	var oldest *conn
	for k := range s.conns {
		if _, ok := k.callers[most]; ok && (oldest == nil || k.opened.Before(oldest.opened)) {
			oldest = k
		}
	}
	if found <= own+1 || oldest == nil {
		return false
	}
	s.displace(oldest)
	return true
}

// begin takes a place for a call of an account; without one the answer is false.
func (s *Server) begin(sid security.SID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.callers[sid]; sid != "" && u != nil && u.calls >= s.opts.MaxPerCaller {
		return false
	}
	if sid != "" {
		s.use(sid, usage{calls: 1})
	}
	return true
}

// ended takes a session off the books.
func (s *Server) ended(sid security.SID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use(sid, usage{contexts: -1})
}

func (s *Server) end(sid security.SID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sid != "" {
		s.use(sid, usage{calls: -1})
	}
}

// reserve takes n octets of the memory for an account; a negative n gives them back. Who has an eighth of what is free gets no more, so
// that some is left for the next one after many who take all that they can. One answer may have half of it.
func (s *Server) reserve(sid security.SID, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, own := s.opts.MaxMemory-s.memory-int64(n), int64(0) // free when it is taken
	if u := s.callers[sid]; u != nil {
		own = u.memory + int64(n)
	}
	share := free / 8
	if own == int64(n) { // it has nothing else: an answer may be large
		share = free
	}
	if n > 0 && (free < 0 || share < own) {
		return false
	}
	s.memory += int64(n)
	if sid != "" && n != 0 {
		s.use(sid, usage{memory: int64(n)})
	}
	return true
}

// Shutdown takes no more connections and calls, waits for the calls under way, until ctx ends, and closes all connections.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		_ = l.Close()
	}
	for k := range s.conns {
		_ = k.c.SetReadDeadline(time.Now()) // the reader ends, and waits for its calls
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.mu.Lock()
		for k := range s.conns {
			_ = k.c.Close()
			k.cancel()
		}
		s.mu.Unlock()
		return fmt.Errorf("%s: calls were cut off: %w", s.opts.Name, ctx.Err())
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// find returns the interface of a syntax: the same major version, and no newer minor one (C706 12.6.3.1).
func (s *Server) find(syntax pdu.Syntax) *Interface {
	for _, i := range s.interfaces {
		if i.Syntax.UUID == syntax.UUID && i.Syntax.Major == syntax.Major && i.Syntax.Minor >= syntax.Minor {
			return i
		}
	}
	return nil
}
