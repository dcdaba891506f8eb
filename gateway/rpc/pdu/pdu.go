// Package pdu reads and writes the protocol data units of connection-oriented DCE/RPC (C706 chapter 12, [MS-RPCE] 2.2.2).
//
// A server reads HeaderSize octets, gives them to ParseHeader, which bounds what may follow, reads the rest and gives all to
// Parse; Bind, Request and the like then read a body. What a server sends is built by the Append functions. The package does
// no input or output, and knows no security: a token is octets here.
package pdu

import (
	"encoding/binary"
	"fmt"
)

// Sizes in octets.
const (
	HeaderSize  = 16 // the common header (C706 12.6.3.1)
	TrailerSize = 8  // sec_trailer, before a token ([MS-RPCE] 2.2.2.11)
	CallSize    = 24 // header of a request or response, without an object UUID
	ObjectSize  = 16

	// MaxFragment is what a server takes and sends in one fragment, as Windows does. Binds may be larger: they bring tickets.
	MaxFragment = 5840
	// MinFragment is what every peer must take (C706 12.6.3.1, MustRecvFragSize).
	MinFragment = 1432
	// MaxBind is the largest PDU with a token: frag_length has 16 bits.
	MaxBind = 1<<16 - 1
)

// Kind is the type of a PDU (C706 12.6.4, [MS-RPCE] 2.2.2.1).
type Kind uint8

// The types of connection-oriented RPC.
const (
	KindRequest       Kind = 0
	KindResponse      Kind = 2
	KindFault         Kind = 3
	KindBind          Kind = 11
	KindBindAck       Kind = 12
	KindBindNak       Kind = 13
	KindAlterContext  Kind = 14
	KindAlterResponse Kind = 15
	KindAuth3         Kind = 16
	KindShutdown      Kind = 17
	KindCancel        Kind = 18
	KindOrphaned      Kind = 19
)

var kindNames = map[Kind]string{
	KindRequest: "request", KindResponse: "response", KindFault: "fault", KindBind: "bind", KindBindAck: "bind_ack", KindBindNak: "bind_nak",
	KindAlterContext: "alter_context", KindAlterResponse: "alter_context_resp", KindAuth3: "rpc_auth_3", KindShutdown: "shutdown",
	KindCancel: "co_cancel", KindOrphaned: "orphaned",
}

func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("PDU type %d", uint8(k))
}

// Flags are pfc_flags (C706 12.6.3.1, [MS-RPCE] 2.2.2.3).
type Flags uint8

// The flags. 0x04 means header signing on bind and alter_context and their answers, a pending cancel elsewhere.
const (
	FirstFragment Flags = 0x01
	LastFragment  Flags = 0x02
	HeaderSigning Flags = 0x04
	Multiplexing  Flags = 0x10 // PFC_CONC_MPX
	NotExecuted   Flags = 0x20
	Maybe         Flags = 0x40
	HasObject     Flags = 0x80
	Whole               = FirstFragment | LastFragment
)

// Header is what every PDU begins with.
type Header struct {
	Kind       Kind
	Flags      Flags
	Length     int // of the whole fragment
	AuthLength int // of the token at its end, without the trailer
	Call       uint32
}

// VersionError is a PDU of another protocol version. A bind is answered with bind_nak reason 4.
type VersionError struct{ Major, Minor uint8 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("RPC version %d.%d is not spoken, only 5.0 and 5.1", e.Major, e.Minor)
}

// ParseHeader reads the first HeaderSize octets. Length is within what a PDU of its kind may have, so that it can be allocated.
// Only little-endian integers, ASCII and IEEE floats are spoken, as by every known implementation.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("header: %d octets, need %d", len(b), HeaderSize)
	}
	h := Header{Kind: Kind(b[2]), Flags: Flags(b[3]), Length: int(binary.LittleEndian.Uint16(b[8:])),
		AuthLength: int(binary.LittleEndian.Uint16(b[10:])), Call: binary.LittleEndian.Uint32(b[12:])}
	if b[0] != 5 || b[1] > 1 {
		return h, &VersionError{b[0], b[1]}
	}
	if b[4] != 0x10 || b[5] != 0 {
		return h, fmt.Errorf("%v: data representation %x is not spoken, only little-endian ASCII with IEEE floats", h.Kind, b[4:8])
	}
	if _, ok := kindNames[h.Kind]; !ok {
		return h, fmt.Errorf("%v is unknown", h.Kind)
	}
	limit := MaxFragment
	if h.Kind == KindBind || h.Kind == KindAlterContext || h.Kind == KindAuth3 {
		limit = MaxBind
	}
	least := HeaderSize
	if h.AuthLength > 0 {
		least += TrailerSize + h.AuthLength
	}
	if h.Length < least || h.Length > limit {
		return h, fmt.Errorf("%v: length %d with a token of %d; %d to %d are allowed", h.Kind, h.Length, h.AuthLength, least, limit)
	}
	return h, nil
}

// Trailer is sec_trailer ([MS-RPCE] 2.2.2.11).
type Trailer struct {
	Type    AuthType
	Level   Level
	Pad     int    // octets of padding at the end of the body
	Context uint32 // auth_context_id
}

// PDU is one fragment, cut into its parts. Body, Security and Token are parts of Raw.
type PDU struct {
	Header
	Raw      []byte
	Body     []byte // after the common header, with its padding, to the trailer
	Trailer  *Trailer
	Security []byte // the trailer's octets
	Token    []byte
}

// Parse cuts a whole fragment, as long as its header says.
func Parse(raw []byte) (*PDU, error) {
	h, err := ParseHeader(raw)
	if err != nil {
		return nil, err
	}
	if len(raw) != h.Length {
		return nil, fmt.Errorf("%v: %d octets, its header says %d", h.Kind, len(raw), h.Length)
	}
	p := &PDU{Header: h, Raw: raw, Body: raw[HeaderSize:]}
	if h.AuthLength == 0 {
		return p, nil
	}
	end := len(raw) - h.AuthLength - TrailerSize
	p.Body, p.Security, p.Token = raw[HeaderSize:end], raw[end:end+TrailerSize], raw[end+TrailerSize:]
	t := p.Security
	p.Trailer = &Trailer{Type: AuthType(t[0]), Level: Level(t[1]), Pad: int(t[2]), Context: binary.LittleEndian.Uint32(t[4:])}
	if p.Trailer.Pad > len(p.Body) {
		return nil, fmt.Errorf("%v: %d octets of padding in a body of %d", h.Kind, p.Trailer.Pad, len(p.Body))
	}
	return p, nil
}

// AuthType names a security provider ([MS-RPCE] 2.2.1.1.7).
type AuthType uint8

// The security providers.
const (
	AuthNone      AuthType = 0
	AuthNegotiate AuthType = 9
	AuthNTLM      AuthType = 10
	AuthTLS       AuthType = 14
	AuthKerberos  AuthType = 16
	AuthNetlogon  AuthType = 68
)

func (t AuthType) String() string {
	switch t {
	case AuthNone:
		return "none"
	case AuthNegotiate:
		return "SPNEGO"
	case AuthNTLM:
		return "NTLM"
	case AuthTLS:
		return "Schannel"
	case AuthKerberos:
		return "Kerberos"
	case AuthNetlogon:
		return "Netlogon"
	}
	return fmt.Sprintf("security provider %d", uint8(t))
}

// Level is an authentication level ([MS-RPCE] 2.2.1.1.8); a higher one protects more.
type Level uint8

// The authentication levels.
const (
	LevelNone      Level = 1
	LevelConnect   Level = 2
	LevelCall      Level = 3
	LevelPacket    Level = 4
	LevelIntegrity Level = 5
	LevelPrivacy   Level = 6
)

func (l Level) String() string {
	switch l {
	case LevelNone:
		return "none"
	case LevelConnect:
		return "connect"
	case LevelCall:
		return "call"
	case LevelPacket:
		return "packet"
	case LevelIntegrity:
		return "integrity"
	case LevelPrivacy:
		return "privacy"
	}
	return fmt.Sprintf("authentication level %d", uint8(l))
}
