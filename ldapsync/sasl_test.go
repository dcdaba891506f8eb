package ldapsync

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
)

// message is an LDAP message with some content, as far as its outer frame goes.
func message(content string) []byte {
	b := []byte{0x30, 0x82}
	b = binary.BigEndian.AppendUint16(b, uint16(len(content)))
	return append(b, content...)
}

func frame(token []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(token))), token...)
}

// server is the controller's end of a saslConn.
type server struct {
	net.Conn
	t       *testing.T
	wrapper *wrapper
}

// connectedPair is a saslConn after its bind request was written and answered by the function.
func connectedPair(t *testing.T, maxFrame int) (*saslConn, *server, *wrapper) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	initiator, acceptor := pair(t, randomKey(t, etypeID.AES256_CTS_HMAC_SHA1_96))
	c := &saslConn{Conn: near, timeout: 5 * time.Second, maxFrame: maxFrame}
	_ = far.SetDeadline(time.Now().Add(5 * time.Second))
	return c, &server{far, t, acceptor}, initiator
}

func (s *server) expect(want []byte) {
	s.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("the server got %q, %v, want %q", got, err, want)
	}
}

// send writes in pieces of n octets.
func (s *server) send(b []byte, n int) {
	for len(b) > 0 {
		n = min(n, len(b))
		if _, err := s.Write(b[:n]); err != nil {
			return // the client has hung up, as some tests want
		}
		b = b[n:]
	}
}

func (s *server) sealed(plain string) []byte {
	s.t.Helper()
	token, err := s.wrapper.seal([]byte(plain))
	if err != nil {
		s.t.Fatal(err)
	}
	return frame(token)
}

func write(t *testing.T, c io.Writer, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, c io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheLayerBeginsAfterTheLastReplyInTheClear(t *testing.T) {
	for _, piece := range []int{1, 7, 10_000} {
		c, s, w := connectedPair(t, 200)
		go func() {
			s.expect([]byte("bind 1"))
			s.send(message("reply 1"), piece)
			s.expect([]byte("bind 2"))
			// The reply, and what is already encrypted, in one go.
			s.send(append(append(message("reply 2"), s.sealed("hidden")...), s.sealed("")...), piece)
			s.send(s.sealed(" words"), piece)
		}()
		write(t, c, []byte("bind 1"))
		if got := read(t, c, 11); got != string(message("reply 1")) || c.sealed() {
			t.Errorf("got %q", got)
		}
		c.sealAfterNextWrite(w, 200)
		write(t, c, []byte("bind 2"))
		if got := read(t, c, 11); got != string(message("reply 2")) || !c.sealed() {
			t.Errorf("got %q", got)
		}
		if got := read(t, c, 12); got != "hidden words" {
			t.Errorf("got %q", got)
		}
	}
}

func TestLongRequestsAreSplitIntoFramesThatTheServerTakes(t *testing.T) {
	c, s, w := connectedPair(t, 0)
	c.sealAfterNextWrite(w, 200)
	go write(t, c, []byte("last"))
	s.expect([]byte("last"))
	request := strings.Repeat("0123456789", 100)
	go write(t, c, []byte(request))
	got := ""
	for len(got) < len(request) {
		var size [4]byte
		if _, err := io.ReadFull(s, size[:]); err != nil {
			t.Fatal(err)
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > 200 {
			t.Fatalf("frame of %d octets, the server takes 200", n)
		}
		plain, err := s.wrapper.open([]byte(read(t, s, int(n))), true)
		if err != nil {
			t.Fatal(err)
		}
		got += string(plain)
	}
	if got != request {
		t.Error("the request was changed")
	}
}

func TestWhatDoesNotBelongThereEndsTheConnection(t *testing.T) {
	tests := []struct {
		name  string
		after int // requests in the clear before it comes: 0, 1, or 2 for "the layer is in force"
		data  func(s *server) []byte
		want  string
	}{
		{"a message before any request", 0, func(*server) []byte { return message("x") }, "nobody asked for"},
		{"a second reply in the clear", 1, func(*server) []byte { return append(message("reply"), message("injected")...) }, "nobody asked for"},
		{"no LDAP message", 1, func(*server) []byte { return []byte("HTTP/1.1 400") }, "tag 0x48"},
		{"an endless message", 1, func(*server) []byte { return []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff} }, "4294967295 octets during authentication"},
		{"a message of indefinite length", 1, func(*server) []byte { return []byte{0x30, 0x80, 0, 0} }, "length of 0 octets"},
		{"a clear message after the layer", 2, func(*server) []byte { return message("injected, and long enough") }, "frame of"},
		{"an empty frame", 2, func(*server) []byte { return frame(nil) }, "wrap token of 0 octets"},
		{"a frame longer than agreed", 2, func(*server) []byte { return []byte{0, 0x10, 0, 1} }, "frame of 1048577 octets"},
		{"a frame of somebody else", 2, func(s *server) []byte {
			_, other := pair(s.t, randomKey(s.t, etypeID.AES256_CTS_HMAC_SHA1_96))
			token, _ := other.seal([]byte("x"))
			return frame(token)
		}, "integrity"},
		{"a frame that is only signed", 2, func(s *server) []byte { token, _ := s.wrapper.sign([]byte("x")); return frame(token) }, "flags"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, s, w := connectedPair(t, 200)
			if tt.after == 2 {
				c.sealAfterNextWrite(w, 200)
			}
			go func() {
				if tt.after > 0 {
					s.expect([]byte("request"))
				}
				if tt.after == 2 {
					s.send(message("last"), 100)
				}
				s.send(tt.data(s), 1000)
			}()
			if tt.after > 0 {
				write(t, c, []byte("request"))
			}
			_, err := io.ReadAll(c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if _, err := c.Write([]byte("more")); err == nil {
				t.Error("the connection is still open")
			}
		})
	}
}

// bound is a client whose controller has proven itself, and the controller's context.
func bound(t *testing.T, conn *saslConn) (*gssClient, *wrapper) {
	initiator, acceptor := pair(t, randomKey(t, etypeID.AES256_CTS_HMAC_SHA1_96))
	return &gssClient{conn: conn, sent: true, wrap: initiator}, acceptor
}

func TestTheSecurityLayerIsNegotiated(t *testing.T) {
	offer := func(t *testing.T, w *wrapper, b ...byte) []byte {
		t.Helper()
		token, err := w.sign(b)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	t.Run("encryption, where the server offers all", func(t *testing.T) {
		g, server := bound(t, &saslConn{})
		reply, err := g.NegotiateSaslAuth(offer(t, server, 7, 0, 0x20, 0), "")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := server.open(reply, false); err != nil || !bytes.Equal(got, []byte{4, 0x10, 0, 0}) {
			t.Errorf("reply %x, %v", got, err)
		}
		if !g.agreed || g.conn.maxFrame != 0x2000 || !g.conn.last {
			t.Errorf("agreed %v, frames of %d", g.agreed, g.conn.maxFrame)
		}
	})
	t.Run("none inside TLS", func(t *testing.T) {
		g, server := bound(t, nil)
		reply, err := g.NegotiateSaslAuth(offer(t, server, 7, 0, 0x20, 0), "")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := server.open(reply, false); err != nil || !bytes.Equal(got, []byte{1, 0, 0, 0}) {
			t.Errorf("reply %x, %v", got, err)
		}
	})
	for name, tt := range map[string]struct {
		offer []byte
		want  string
	}{
		"signatures only":       {[]byte{3, 0, 0x20, 0}, "without 0x04 (encryption)"},
		"frames of no size":     {[]byte{7, 0, 0, 0}, "too few"},
		"an offer of 3 octets":  {[]byte{7, 0, 0}, "3 octets, want 4"},
		"an offer of 68 octets": {make([]byte, 68), "68 octets, want 4"},
	} {
		t.Run(name, func(t *testing.T) {
			g, server := bound(t, &saslConn{})
			if _, err := g.NegotiateSaslAuth(offer(t, server, tt.offer...), ""); err == nil || !strings.Contains(err.Error(), tt.want) || g.agreed {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("an offer that was changed", func(t *testing.T) {
		g, server := bound(t, &saslConn{})
		token := offer(t, server, 7, 0, 0x20, 0)
		token[wrapHeaderSize] = 1 // a downgrade
		if _, err := g.NegotiateSaslAuth(token, ""); err == nil || g.agreed {
			t.Error("accepted")
		}
	})
}

func TestAServerThatDoesNotProveItselfIsRefused(t *testing.T) {
	for name, token := range map[string][]byte{
		"no reply": nil, "rubbish": []byte("rubbish"), "the mechanism's prefix alone": []byte("\x60\x0d" + apReqPrefix),
		"an AP-REP without an encrypted part": []byte("\x60\x11" + apReqPrefix[:11] + "\x02\x00\x6f\x02\x30\x00"),
		"an error":                            []byte("\x60\x11" + apReqPrefix[:11] + "\x03\x00\x7e\x02\x30\x00"),
	} {
		g := unproven(t)
		if _, _, err := g.InitSecContextWithOptions("ldap/dc1", token, nil); err == nil || g.wrap != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := unproven(t).NegotiateSaslAuth([]byte{1, 2, 3}, ""); err == nil {
		t.Error("a layer without mutual authentication")
	}
}

func TestStartTLSAnswersThatAreNotSuccess(t *testing.T) {
	for name, tt := range map[string]struct{ answer, want string }{
		"refused":      {"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x34\x04\x00\x04\x00", "Unavailable"},
		"not LDAP":     {"HTTP/1.1 200 OK", "tag 0x48"},
		"too long":     {"\x30\x82\xff\xff", "65539 octets"},
		"end of file":  {"\x30", "EOF"},
		"broken inner": {"\x30\x02\x02\x7f", "starttls"},
	} {
		near, far := net.Pipe()
		go func() {
			_, _ = io.ReadFull(far, make([]byte, 31))
			_, _ = far.Write([]byte(tt.answer))
			_ = far.Close()
		}()
		if err := startTLS(near); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}
