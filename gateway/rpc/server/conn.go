package server

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// anonymousIdle is how long a connection without a proven caller may do nothing.
const anonymousIdle = time.Minute

// conn is one connection. One goroutine reads; each call has one more, which writes its response.
type conn struct {
	s       *Server
	c       net.Conn
	opened  time.Time
	context context.Context // ends with the connection
	cancel  context.CancelFunc

	// Owned by Server.mu.
	place   *list.Element // among those without a proven caller
	callers map[security.SID]struct{}
	large   int // octets of a large PDU that is being received

	// Owned by the reader.
	bound      bool
	signing    bool // header signing
	group      uint32
	maxSend    int
	contexts   map[uint16]*Interface
	contextIDs map[uint32]*protection // by auth_context_id
	connect    *protection            // what calls without a token belong to
	assemblies map[uint32]*assembly
	refusals   int

	slots   chan struct{} // one for each call whose answer is not sent yet
	writing sync.Mutex    // held while one response is written, and for the sending side of sessions

	mu    sync.Mutex // guards what follows
	calls map[uint32]*running
	done  sync.WaitGroup
}

// running is a call under way.
type running struct {
	cancel   context.CancelFunc
	orphaned bool // the client does not wait for the answer
}

func newConn(s *Server, c net.Conn) *conn {
	k := &conn{s: s, c: c, opened: time.Now(), callers: map[security.SID]struct{}{}, maxSend: pdu.MinFragment, slots: make(chan struct{}, 2*s.opts.MaxCalls)}
	k.context, k.cancel = context.WithCancel(context.Background())
	return k
}

func (k *conn) remote() string { return k.c.RemoteAddr().String() }

// port is the secondary address of a bind_ack.
func (k *conn) port() string {
	if a, ok := k.c.LocalAddr().(*net.TCPAddr); ok {
		return strconv.Itoa(a.Port)
	}
	return ""
}

// endError ends a connection: reason is for the metrics, and one of few.
type endError struct {
	reason string
	err    error
}

func (e *endError) Error() string { return e.err.Error() }
func (e *endError) Unwrap() error { return e.err }

func protocolError(format string, args ...any) error {
	return &endError{"protocol", fmt.Errorf(format, args...)}
}

// serve reads PDUs until the connection ends.
func (k *conn) serve() {
	var err error
	defer func() { k.close(err) }()
	for {
		var p *pdu.PDU
		p, err = k.read()
		if err == nil {
			err = k.take(p)
		}
		if err == nil {
			continue
		}
		if e, ok := errors.AsType[*endError](err); ok {
			k.s.opts.Observer.Refused(k.s.opts.Name, e.reason)
			log := k.s.opts.Log.WithField("remote", k.remote())
			if h, ok := errors.AsType[*hresult.Error](e.err); ok {
				log = log.WithFields(logrus.Fields{"code": h.Code.String(), "fix": h.Fix})
				if h.Cause != nil {
					log = log.WithError(h.Cause)
				}
				log.Warnf("%s: connection refused: %s", k.s.opts.Name, h.Text)
			} else {
				log.WithError(e.err).Warnf("%s: connection closed", k.s.opts.Name)
			}
		}
		return
	}
}

// close ends what is under way, but where the connection ends because the server is closing it waits for it.
func (k *conn) close(why error) {
	if errors.Is(why, ErrClosed) || errors.Is(why, os.ErrDeadlineExceeded) && k.s.isClosing() {
		k.done.Wait()
		_ = k.write(pdu.EncodeShutdown())
	}
	k.cancel()
	_ = k.c.Close()
	k.s.mu.Lock()
	k.s.forget(k)
	k.s.mu.Unlock()
	k.done.Wait()
	for _, a := range k.assemblies {
		k.free(a)
	}
	for _, p := range k.contextIDs {
		k.closeContext(p)
	}
}

// read waits for a PDU. Nothing is allocated for it before its length is known to be allowed.
func (k *conn) read() (*pdu.PDU, error) {
	var header [pdu.HeaderSize]byte
	n := 0
	for n == 0 {
		if err := k.c.SetReadDeadline(time.Now().Add(k.patience())); err != nil {
			return nil, err
		}
		if k.s.isClosing() { // after the deadline is set, which Shutdown sets again
			return nil, ErrClosed
		}
		var err error
		if n, err = k.c.Read(header[:]); n == 0 && err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && k.busy() && !k.s.isClosing() {
				continue
			}
			return nil, k.readError(err)
		}
	}
	if err := k.c.SetReadDeadline(time.Now().Add(k.s.opts.ReadTime)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(k.c, header[n:]); err != nil {
		return nil, k.readError(err)
	}
	h, err := pdu.ParseHeader(header[:])
	if err != nil {
		if _, ok := errors.AsType[*pdu.VersionError](err); ok && h.Kind == pdu.KindBind {
			_ = k.write(pdu.EncodeNak(h.Call, pdu.NakVersion))
		}
		return nil, &endError{"protocol", err}
	}
	if h.Length > pdu.MaxFragment {
		if !k.s.receive(k, h.Length) {
			return nil, net.ErrClosed
		}
		defer k.s.receive(k, 0)
	}
	// A large bind gets its memory when most of it has come.
	raw := make([]byte, min(h.Length, pdu.MaxFragment))
	n = copy(raw, header[:])
	for {
		if _, err := io.ReadFull(k.c, raw[n:]); err != nil {
			return nil, k.readError(err)
		}
		if n = len(raw); n == h.Length {
			break
		}
		raw = append(raw, make([]byte, min(h.Length-n, n))...)
	}
	p, err := pdu.Parse(raw)
	if err != nil {
		return nil, &endError{"protocol", err}
	}
	return p, nil
}

// patience is how long the next PDU may take to begin.
func (k *conn) patience() time.Duration {
	o := &k.s.opts
	switch {
	case !k.bound:
		return o.FirstTime
	case len(k.assemblies) > 0:
		return o.ReadTime
	case k.unfinished() > 0:
		return min(o.ProofTime, o.IdleTime)
	case len(k.contextIDs) == 0:
		return min(anonymousIdle, o.IdleTime)
	}
	return o.IdleTime
}

// readError tells a client that has gone, or has nothing more to say, from one that stopped in the middle.
func (k *conn) readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && !k.s.isClosing() && (!k.bound || len(k.assemblies) > 0 || k.unfinished() > 0) {
		return &endError{"slow", fmt.Errorf("the client was too slow: %w", err)}
	}
	return err
}

func (k *conn) busy() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.calls) > 0
}

// take acts on one PDU. An error ends the connection.
func (k *conn) take(p *pdu.PDU) error {
	if p.Kind != pdu.KindBind && !k.bound {
		return protocolError("%v before a bind", p.Kind)
	}
	if whole := p.Flags&pdu.Whole == pdu.Whole; !whole && p.Kind != pdu.KindRequest {
		return protocolError("%v in fragments", p.Kind)
	}
	switch p.Kind {
	case pdu.KindBind, pdu.KindAlterContext:
		return k.bind(p)
	case pdu.KindAuth3:
		return k.auth3(p)
	case pdu.KindRequest:
		return k.request(p)
	case pdu.KindCancel, pdu.KindOrphaned:
		k.cancelCall(p)
		return nil
	}
	return protocolError("%v is nothing that a client sends", p.Kind)
}

// cancelCall drops a call: what has come of it, and what runs. Whether the client may say so is not proven by a token, which Windows
// does not send: it can harm its own calls only.
func (k *conn) cancelCall(p *pdu.PDU) {
	k.drop(p.Call)
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := k.calls[p.Call]; r != nil {
		r.orphaned = r.orphaned || p.Kind == pdu.KindOrphaned
		r.cancel()
	}
}

// drop forgets what has come of a request.
func (k *conn) drop(call uint32) {
	if a := k.assemblies[call]; a != nil {
		k.free(a)
		delete(k.assemblies, call)
	}
}

// free gives back the memory of an assembly.
func (k *conn) free(a *assembly) {
	k.s.reserve(a.sc.sid(), -len(a.stub))
	a.stub = nil
}

// write sends one PDU.
func (k *conn) write(b []byte) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	if err := k.patient(len(b)); err != nil {
		return err
	}
	_, err := k.c.Write(b)
	return err
}

// slowest is how many octets a second a client has to read.
const slowest = 32 << 10

// patient lets the client have time for an answer of n octets; writing is held.
func (k *conn) patient(n int) error {
	return k.c.SetWriteDeadline(time.Now().Add(k.s.opts.WriteTime + time.Duration(n/slowest)*time.Second))
}

// fault answers a call that is not run.
func (k *conn) fault(call uint32, context uint16, status pdu.Status) error {
	return k.write(pdu.EncodeFault(pdu.NotExecuted, call, context, status))
}
