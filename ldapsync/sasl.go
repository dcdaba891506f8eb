package ldapsync

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	maxSealedFrame = 1 << 20 // longest frame that the controller may send us; told to it when the layer is agreed
	maxBindMessage = 1 << 18 // longest LDAP message before the layer is in force
)

// saslConn is a connection on which a SASL security layer comes into force in the middle (RFC 4422 3.7, RFC 4752 3.1):
// first LDAP messages in the clear, then frames of a 4-octet length and a sealed wrap token.
//
// The LDAP library's reader is already blocked in Read when that happens, so what a received octet means is decided by
// its position in the stream and not by when it is read. In the clear exactly one message is let through for each
// request, and the reply to the request that was announced with sealAfterNextWrite is the last. Whatever else somebody
// slips in between never reaches the LDAP parser.
type saslConn struct {
	net.Conn
	timeout time.Duration // of each write

	// Owned by the reader.
	buf []byte // what the last read from the network went into
	raw []byte // received, not yet understood
	out []byte // to be handed to the caller
	err error  // what ended the stream

	mu         sync.Mutex
	unanswered int      // requests in the clear that were not answered yet
	last       bool     // the next write is the last in the clear
	wrapper    *wrapper // set as soon as the layer is agreed
	maxFrame   int      // longest token that the controller takes
	sealWrites bool
	sealReads  bool
}

// sealAfterNextWrite puts the layer in force after the next request and its reply.
func (c *saslConn) sealAfterNextWrite(w *wrapper, maxFrame int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrapper, c.maxFrame, c.last = w, maxFrame, true
}

// sealed tells whether everything sent and received from now on is encrypted.
func (c *saslConn) sealed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sealWrites && c.sealReads
}

// Write sends p. In the clear, p must be one whole LDAP message, as the library writes them.
func (c *saslConn) Write(p []byte) (int, error) {
	frames, err := c.frames(p)
	if err != nil {
		return 0, err
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	if _, err := c.Conn.Write(frames); err != nil {
		return 0, err
	}
	return len(p), nil
}

// frames is what travels for p.
func (c *saslConn) frames(p []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealWrites {
		c.unanswered++
		c.sealWrites = c.last
		return p, nil
	}
	var out []byte
	for most := c.maxFrame - c.wrapper.overhead(); len(p) > 0; {
		n := min(most, len(p))
		token, err := c.wrapper.seal(p[:n])
		if err != nil {
			return nil, err
		}
		out = binary.BigEndian.AppendUint32(out, uint32(len(token)))
		out = append(out, token...)
		p = p[n:]
	}
	return out, nil
}

// Read returns the next octets of LDAP messages. Anything wrong with a frame ends the connection: nothing after it can
// be trusted.
func (c *saslConn) Read(p []byte) (int, error) {
	if c.buf == nil {
		c.buf = make([]byte, 16<<10)
	}
	for len(c.out) == 0 {
		if c.err == nil {
			c.err = c.next()
		}
		if c.err != nil {
			_ = c.Close() // the first error counts
			return 0, c.err
		}
		if len(c.out) > 0 {
			break
		}
		n, err := c.Conn.Read(c.buf)
		c.raw = append(c.raw, c.buf[:n]...)
		if err != nil && n == 0 {
			return 0, err
		}
	}
	n := copy(p, c.out)
	c.out = c.out[n:]
	return n, nil
}

// next moves one message or frame from raw to out, if a whole one is there.
func (c *saslConn) next() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.raw) > 0 && len(c.out) == 0 {
		size, err := 0, error(nil)
		if c.sealReads {
			size, err = frameSize(c.raw)
		} else if c.unanswered == 0 {
			err = errors.New("data that nobody asked for before the security layer")
		} else {
			size, err = berSize(c.raw)
		}
		if err != nil || size == 0 || size > len(c.raw) {
			return err
		}
		if c.sealReads {
			if c.out, err = c.wrapper.open(c.raw[4:size], true); err != nil {
				return fmt.Errorf("encrypted connection: %w", err)
			}
		} else {
			c.out = bytes.Clone(c.raw[:size])
			c.unanswered--
			c.sealReads = c.sealWrites && c.unanswered == 0
		}
		c.raw = c.raw[size:]
	}
	return nil
}

// frameSize is the size of the frame at the front of b with its length, or 0 while that is not known.
func frameSize(b []byte) (int, error) {
	if len(b) < 4 {
		return 0, nil
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxSealedFrame {
		return 0, fmt.Errorf("encrypted connection: frame of %d octets, at most %d agreed", n, maxSealedFrame)
	}
	return 4 + int(n), nil
}

// berSize is the size of the LDAP message at the front of b, or 0 while that is not known (RFC 4511 5.1: a BER sequence
// of definite length).
func berSize(b []byte) (int, error) {
	if b[0] != 0x30 {
		return 0, fmt.Errorf("LDAP message with tag 0x%02x", b[0])
	}
	if len(b) < 2 {
		return 0, nil
	}
	if b[1] < 0x80 {
		return 2 + int(b[1]), nil
	}
	octets := int(b[1] & 0x7f)
	if octets == 0 || octets > 4 {
		return 0, fmt.Errorf("LDAP message with a length of %d octets", octets)
	}
	if len(b) < 2+octets {
		return 0, nil
	}
	n := 0
	for _, o := range b[2 : 2+octets] {
		n = n<<8 | int(o)
	}
	if n > maxBindMessage {
		return 0, fmt.Errorf("LDAP message of %d octets during authentication", n)
	}
	return 2 + octets + n, nil
}
