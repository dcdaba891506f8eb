package rpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/test/world"
)

// between is a dialer whose connections pass each PDU of the client to change; what that returns is sent in its place.
type between struct {
	change func(p *pdu.PDU) [][]byte
	mu     sync.Mutex
	conns  []net.Conn
}

func (b *between) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.conns = append(b.conns, c)
	b.mu.Unlock()
	return &betweenConn{Conn: c, b: b}, nil
}

type betweenConn struct {
	net.Conn
	b      *between
	buffer []byte
}

func (c *betweenConn) Write(b []byte) (int, error) {
	c.buffer = append(c.buffer, b...)
	for len(c.buffer) >= pdu.HeaderSize {
		n := int(binary.LittleEndian.Uint16(c.buffer[8:]))
		if len(c.buffer) < n {
			break
		}
		raw := bytes.Clone(c.buffer[:n])
		c.buffer = c.buffer[n:]
		p, err := pdu.Parse(raw)
		if err != nil {
			return 0, err
		}
		for _, out := range c.b.change(p) {
			if _, err := c.Conn.Write(out); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// call enrolls alice; the error is what became of it.
func call(t *testing.T, h how, in *icertpassage.CertServerRequestRequest) (*icertpassage.CertServerRequestResponse, error) {
	t.Helper()
	h.port = true
	c, err := dial(t, "alice", h)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(gssapi.NewSecurityContext(background), 10*time.Second)
	defer cancel()
	in.Authority = world.CAName
	return c.CertServerRequest(ctx, in)
}

func good(t *testing.T) *icertpassage.CertServerRequestRequest {
	return &icertpassage.CertServerRequestRequest{Flags: pkcs10, Attributes: template("LabUserAuth"), Request: blob(csr(t))}
}

func rows(t *testing.T, w *world.World) (n int) {
	t.Helper()
	if err := w.DB.SQL.QueryRow("SELECT count(*) FROM requests").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNothingBelowPrivacyEnrolls(t *testing.T) {
	w := start(t)
	for name, level := range map[string]dcerpc.Option{"none": dcerpc.WithInsecure(), "connect": dcerpc.WithConnect(), "integrity": dcerpc.WithSign(), "packet": dcerpc.WithSecurityLevel(4)} {
		for _, bare := range []bool{true, false} {
			out, err := call(t, how{level: level, bare: bare && name != "none"}, good(t))
			if err == nil || out != nil || !strings.Contains(err.Error(), "0x00000005") {
				t.Errorf("%s, bare %v: %+v, %v", name, bare, out, err)
			}
		}
	}
	if n := rows(t, w); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestATokenThatWasOverheardIsOfNoUse(t *testing.T) {
	w := start(t)
	bind := overheard(t)
	p, err := pdu.Parse(bind)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodPost, "https://"+world.Env("LAB_GATEWAY")+"/LAB%20Issuing%20CA_CES_Kerberos/service.svc/CES", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Negotiate "+base64.StdEncoding.EncodeToString(p.Token))
	reply, err := w.HTTP().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	said, _ := io.ReadAll(reply.Body)
	if reply.StatusCode != http.StatusUnauthorized || !strings.Contains(string(said), "made for RPC") {
		t.Errorf("%s: %s", reply.Status, said)
	}
	// It is good for one bind, and a bind alone is nothing.
	for i, want := range []pdu.Kind{pdu.KindBindAck, pdu.KindBindNak} {
		c, err := net.Dial("tcp", rpcAddress())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(bind); err != nil {
			t.Fatal(err)
		}
		answer := receive(t, c)
		if answer == nil || answer.Kind != want {
			t.Errorf("time %d: %+v", i, answer)
		}
		if want == pdu.KindBindAck {
			request := []byte{5, 0, 0, 3, 0x10, 0, 0, 0, 28, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			if f := receive(t, c); f == nil || f.Kind != pdu.KindFault {
				t.Errorf("a call without proof: %+v", f)
			}
		}
	}
}

// overheard is a bind of alice's that somebody has kept back: it is fresh, and she gets no answer.
func overheard(t *testing.T) (bind []byte) {
	t.Helper()
	record := &between{change: func(p *pdu.PDU) [][]byte {
		if p.Kind == pdu.KindBind {
			bind = p.Raw
			return nil // it never arrives
		}
		return [][]byte{p.Raw}
	}}
	ctx, cancel := context.WithTimeout(background, 3*time.Second)
	defer cancel()
	go func() {
		<-ctx.Done()
		record.mu.Lock()
		defer record.mu.Unlock()
		for _, c := range record.conns {
			c.Close()
		}
	}()
	if _, err := call(t, how{dialer: record, target: "HTTP/enroll.lab.test"}, good(t)); err == nil || bind == nil {
		t.Fatal("the bind was not kept back", err)
	}
	return bind
}

// receive reads a PDU; nil at the end.
func receive(t *testing.T, c net.Conn) *pdu.PDU {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	raw := make([]byte, pdu.HeaderSize)
	if _, err := io.ReadFull(c, raw); err != nil {
		return nil
	}
	raw = append(raw, make([]byte, int(binary.LittleEndian.Uint16(raw[8:]))-len(raw))...)
	if _, err := io.ReadFull(c, raw[pdu.HeaderSize:]); err != nil {
		return nil
	}
	p, err := pdu.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestChangedMessagesAreSeen(t *testing.T) {
	w := start(t)
	random := rand.New(rand.NewPCG(1, 2))
	const tries = 40
	for i := range tries {
		flip := func(p *pdu.PDU) [][]byte {
			if p.Kind == pdu.KindRequest {
				bit := 8*pdu.CallSize + random.IntN(8*(len(p.Raw)-pdu.CallSize)) // what is in front, header signing guards: below
				if i%4 == 0 {
					bit = 8*16 + random.IntN(8*8)
				}
				p.Raw[bit/8] ^= 1 << (bit % 8)
			}
			return [][]byte{p.Raw}
		}
		if out, err := call(t, how{dialer: &between{change: flip}, bare: i%2 == 0}, good(t)); err == nil {
			t.Errorf("try %d: %+v", i, out)
		}
	}
	if n := rows(t, w); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestRepeatedAndReorderedFragments(t *testing.T) {
	w := start(t)
	long := good(t)
	long.Request = blob(append(long.Request.Buffer, make([]byte, 14000)...)) // three fragments
	for name, change := range map[string]func(list [][]byte) [][]byte{
		"repeated":  func(l [][]byte) [][]byte { return append(l, l[len(l)-1]) },
		"twice":     func(l [][]byte) [][]byte { return append([][]byte{l[0]}, l...) },
		"reordered": func(l [][]byte) [][]byte { l[0], l[1] = l[1], l[0]; return l },
		"one less":  func(l [][]byte) [][]byte { return slices.Delete(l, 1, 2) },
	} {
		var held [][]byte
		ended := make(chan struct{}, 8)
		b := &between{}
		b.change = func(p *pdu.PDU) [][]byte {
			if p.Kind != pdu.KindRequest {
				return [][]byte{p.Raw}
			}
			held = append(held, p.Raw)
			if p.Flags&pdu.LastFragment == 0 {
				return nil
			}
			defer func() { ended <- struct{}{} }()
			return change(held)
		}
		out, err := call(t, how{dialer: b}, &icertpassage.CertServerRequestRequest{Flags: pkcs10, Attributes: template("LabUserAuth"), Request: long.Request})
		<-ended
		if len(held) < 3 {
			t.Fatalf("%s: %d fragments", name, len(held))
		}
		if name != "repeated" && err == nil {
			t.Errorf("%s: %+v", name, out)
		}
		// The server has closed the connection.
		_ = b.conns[0].SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, b.conns[0]); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the connection is still open", name)
		}
	}
	if n := rows(t, w); n > 0 {
		t.Errorf("%d requests, of which none could be read", n)
	}
}

func TestHalfOpenBindsAreBounded(t *testing.T) {
	w := start(t)
	c, err := net.Dial("tcp", rpcAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// One connection, and security contexts that are never finished: each takes a fresh ticket.
	refused := false
	for i := range uint32(12) {
		raw := firstLeg(t, i)
		if i > 0 {
			raw[2] = byte(pdu.KindAlterContext)
		}
		if _, err := c.Write(raw); err != nil {
			break
		}
		p := receive(t, c)
		if p == nil || p.Kind == pdu.KindFault {
			refused = true
			if i < 8 {
				t.Errorf("the context %d is refused already", i)
			}
			break
		}
	}
	if !refused {
		t.Error("twelve unfinished authentications on one connection")
	}
	if out, err := call(t, how{}, good(t)); err != nil || out.Disposition != 3 {
		t.Errorf("others are served: %+v, %v", out, err)
	}
	_ = w
}

// firstLeg is a fresh bind of alice's, which was never sent, under this auth_context_id.
func firstLeg(t *testing.T, id uint32) (raw []byte) {
	t.Helper()
	var once sync.Once
	b := &between{}
	b.change = func(p *pdu.PDU) [][]byte {
		if p.Kind == pdu.KindBind {
			once.Do(func() { raw = p.Raw })
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.conns {
			c.Close()
		}
		return nil
	}
	if _, err := call(t, how{dialer: b}, good(t)); err == nil || raw == nil {
		t.Fatal("no bind", err)
	}
	at := len(raw) - int(binary.LittleEndian.Uint16(raw[10:])) - 4
	binary.LittleEndian.PutUint32(raw[at:], id)
	return raw
}
