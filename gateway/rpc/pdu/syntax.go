package pdu

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
)

// UUID is as it travels: the first three fields are little-endian (C706 appendix A).
type UUID [16]byte

// MustUUID reads the text form of a constant.
func MustUUID(text string) UUID { return swapped(uuid.MustParse(text)) }

// NewUUID is a random one (RFC 9562 version 4).
func NewUUID() UUID { return swapped(uuid.New()) }

func swapped(u [16]byte) UUID {
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5], u[6], u[7] = u[5], u[4], u[7], u[6]
	return u
}

// String is the text form, in small letters.
func (u UUID) String() string { return uuid.UUID(swapped(u)).String() }

// IsZero tells the nil UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// Syntax is an interface, or a transfer syntax, with its version (C706 12.6.3.1, p_syntax_id_t).
type Syntax struct {
	UUID         UUID
	Major, Minor uint16
}

func (s Syntax) String() string { return fmt.Sprintf("%s v%d.%d", s.UUID, s.Major, s.Minor) }

// NDR is the transfer syntax that is spoken here, and NDR64 the one that is refused ([MS-RPCE] 2.2.4.12, 2.2.5).
var (
	NDR   = Syntax{MustUUID("8a885d04-1ceb-11c9-9fe8-08002b104860"), 2, 0}
	NDR64 = Syntax{MustUUID("71710533-beba-4937-8319-b5dbef9ccc36"), 1, 0}
)

// featurePrefix are the first octets of the syntax of bind time feature negotiation ([MS-RPCE] 3.3.1.5.3); the bits follow.
var featurePrefix = []byte{0x2c, 0x1c, 0xb7, 0x6c, 0x12, 0x98, 0x40, 0x45}

// Features are the bits of bind time feature negotiation ([MS-RPCE] 2.2.2.14).
type Features uint8

// The features.
const (
	SecurityMultiplexing Features = 1
	KeepOnOrphan         Features = 2
)

// Features tells whether the syntax is a bind time feature negotiation, and for which features.
func (s Syntax) Features() (Features, bool) {
	return Features(s.UUID[8]), bytes.HasPrefix(s.UUID[:], featurePrefix) && s.Major == 1 && s.Minor == 0
}

// FeatureSyntax is the transfer syntax that asks for features.
func FeatureSyntax(f Features) Syntax {
	s := Syntax{Major: 1}
	copy(s.UUID[:], featurePrefix)
	s.UUID[8] = byte(f)
	return s
}

func (s Syntax) append(b []byte) []byte {
	b = append(b, s.UUID[:]...)
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, s.Major), s.Minor)
}

// cursor reads little-endian values; bad is set where there were too few octets.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || len(c.rest) < n {
		c.bad = true
		return make([]byte, n) // n is a constant of at most 20
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) u8() uint8   { return c.take(1)[0] }
func (c *cursor) u16() uint16 { return binary.LittleEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32 { return binary.LittleEndian.Uint32(c.take(4)) }

func (c *cursor) syntax() Syntax {
	s := Syntax{UUID: UUID(c.take(16))}
	s.Major, s.Minor = c.u16(), c.u16()
	return s
}
