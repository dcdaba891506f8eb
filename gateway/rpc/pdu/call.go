package pdu

import (
	"encoding/binary"
	"fmt"
)

// Request is one fragment of a request (C706 12.6.4.9). Stub is part of the PDU, with its padding: it may be encrypted yet.
type Request struct {
	AllocHint uint32 // what the client says of the whole stub's size; not to be relied on
	Context   uint16 // presentation context
	Operation uint16
	Object    UUID // zero where there is none
	Stub      []byte
}

// maxPad is what it takes to come to a multiple of 16 ([MS-RPCE] 2.2.2.11).
const maxPad = 15

// HeaderLength is how many octets of a request fragment are before the stub.
func (h Header) HeaderLength() int {
	if h.Flags&HasObject != 0 {
		return CallSize + ObjectSize
	}
	return CallSize
}

// ParseRequest reads one fragment of a request.
func ParseRequest(p *PDU) (*Request, error) {
	least := p.HeaderLength() - HeaderSize
	if len(p.Body) < least {
		return nil, fmt.Errorf("request: a body of %d octets, the least is %d", len(p.Body), least)
	}
	c := &cursor{rest: p.Body}
	r := &Request{AllocHint: c.u32(), Context: c.u16(), Operation: c.u16()}
	if p.Flags&HasObject != 0 {
		r.Object = UUID(c.take(ObjectSize))
	}
	r.Stub = c.rest
	// Without header signing nothing protects the number of octets of padding: it must not cut a verification trailer off.
	if p.Trailer != nil && p.Trailer.Pad > min(len(r.Stub), maxPad) {
		return nil, fmt.Errorf("request: %d octets of padding in a stub of %d; at most %d are allowed", p.Trailer.Pad, len(r.Stub), maxPad)
	}
	return r, nil
}

// Fragment is one fragment of a response, ready to be protected: Raw is all of it, and the rest are parts of Raw. The token is
// still empty.
type Fragment struct {
	Raw                           []byte
	Header, Stub, Security, Token []byte
}

// NewFragment builds one fragment of a response (C706 12.6.4.10). With a trailer the stub is padded to a multiple of 16, as
// [MS-RPCE] 2.2.2.12 demands of sealed ones, and there is room for a token of the given length.
func NewFragment(flags Flags, call uint32, context uint16, hint uint32, stub []byte, trailer *Trailer, token int) *Fragment {
	pad := 0
	size := CallSize + len(stub)
	if trailer != nil {
		pad = -len(stub) & 15
		size += pad + TrailerSize + token
	} else {
		token = 0
	}
	b := make([]byte, CallSize, size)
	binary.LittleEndian.PutUint32(b[16:], hint)
	binary.LittleEndian.PutUint16(b[20:], context)
	b = append(b, stub...)
	b = append(b, make([]byte, pad)...)
	f := &Fragment{Header: b[:CallSize], Stub: b[CallSize:]}
	if trailer != nil {
		t := *trailer
		t.Pad = pad
		at := len(b)
		b = t.append(b)
		f.Security = b[at:]
		b = b[:size]
		f.Token = b[at+TrailerSize:]
	}
	putHeader(b, Header{Kind: KindResponse, Flags: flags, Length: size, AuthLength: token, Call: call})
	f.Raw = b
	return f
}

// EncodeFault returns a fault (C706 12.6.4.7). Faults carry no token, as Windows and Samba send them.
func EncodeFault(flags Flags, call uint32, context uint16, status Status) []byte {
	b := make([]byte, CallSize+8)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(b)-CallSize)) //nolint:gosec // 8
	binary.LittleEndian.PutUint16(b[20:], context)
	binary.LittleEndian.PutUint32(b[24:], uint32(status))
	return finish(b, KindFault, flags|Whole, call, nil)
}

// Status is the status of a fault: one of C706 appendix E, or a Win32 error ([MS-RPCE] 2.2.2.9).
type Status uint32

// The statuses of faults.
const (
	AccessDenied     Status = 5          // ERROR_ACCESS_DENIED
	ServerTooBusy    Status = 0x6bb      // RPC_S_SERVER_TOO_BUSY
	ProtocolError    Status = 0x6c0      // RPC_S_PROTOCOL_ERROR
	BadStub          Status = 0x6f7      // RPC_X_BAD_STUB_DATA
	SecurityError    Status = 0x721      // RPC_S_SEC_PKG_ERROR
	CallFailed       Status = 0x6be      // RPC_S_CALL_FAILED
	CallTimeout      Status = 0x71a      // RPC_S_CALL_CANCELLED
	UnknownOperation Status = 0x1c010002 // nca_op_rng_error
	UnknownContext   Status = 0x1c010003 // nca_unk_if
	FragmentOrder    Status = 0x1c01000b // nca_proto_error

	// Of DCOM, where a fault's status is an HRESULT ([MS-DCOM] 3.1.1.5.4).
	Disconnected     Status = 0x80010108 // RPC_E_DISCONNECTED
	VersionMismatch  Status = 0x80010110 // RPC_E_VERSION_MISMATCH
	InvalidHeader    Status = 0x80010111 // RPC_E_INVALID_HEADER
	InvalidExtension Status = 0x80010112 // RPC_E_INVALID_EXTENSION
)

var statusNames = map[Status]string{
	AccessDenied: "ERROR_ACCESS_DENIED", ServerTooBusy: "RPC_S_SERVER_TOO_BUSY", ProtocolError: "RPC_S_PROTOCOL_ERROR", BadStub: "RPC_X_BAD_STUB_DATA",
	SecurityError: "RPC_S_SEC_PKG_ERROR", CallFailed: "RPC_S_CALL_FAILED", CallTimeout: "RPC_S_CALL_CANCELLED", UnknownOperation: "nca_op_rng_error",
	UnknownContext: "nca_unk_if", FragmentOrder: "nca_proto_error",
	Disconnected: "RPC_E_DISCONNECTED", VersionMismatch: "RPC_E_VERSION_MISMATCH", InvalidHeader: "RPC_E_INVALID_HEADER", InvalidExtension: "RPC_E_INVALID_EXTENSION",
}

func (s Status) String() string {
	if name, ok := statusNames[s]; ok {
		return fmt.Sprintf("0x%08x %s", uint32(s), name)
	}
	return fmt.Sprintf("0x%08x", uint32(s))
}

// Name is the symbolic name, or the number where none is known.
func (s Status) Name() string {
	if name, ok := statusNames[s]; ok {
		return name
	}
	return s.String()
}
