package pdu

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// verificationSignature begins a verification trailer ([MS-RPCE] 2.2.2.13.1).
var verificationSignature = []byte{0x8a, 0xe3, 0x13, 0x71, 0x02, 0xf4, 0x36, 0x71}

// Commands of a verification trailer ([MS-RPCE] 2.2.2.13.2 to 2.2.2.13.4).
const (
	commandBitmask  = 1
	commandContext  = 2
	commandHeader2  = 3
	commandEnd      = 0x4000
	commandRequired = 0x8000
	commandMask     = 0x3fff

	clientSupportsHeaderSigning = 1
)

// maxVerification is how far from the end of a stub the trailer may begin: its commands of known sizes and some padding.
const maxVerification = 256

// Expected is what a verification trailer has to agree with.
type Expected struct {
	HeaderSigning bool   // negotiated at the bind
	Interface     Syntax // of the presentation context
	Request       *Request
	Call          uint32
}

// CheckVerification looks for a verification trailer at the end of a stub and checks it; the result is the stub without it. A
// stub without a trailer is whole.
func CheckVerification(stub []byte, want Expected) ([]byte, error) {
	from := max(0, len(stub)-maxVerification)
	at := bytes.LastIndex(stub[from:], verificationSignature)
	if at < 0 || (from+at)%4 != 0 {
		return stub, nil
	}
	at += from
	c := &cursor{rest: stub[at+len(verificationSignature):]}
	for {
		command, length := c.u16(), int(c.u16())
		if c.bad || length > len(c.rest) {
			return nil, fmt.Errorf("verification trailer: it ends within a command")
		}
		value := c.rest[:length]
		c.rest = c.rest[length:]
		if err := want.check(command, value); err != nil {
			return nil, fmt.Errorf("verification trailer: %w", err)
		}
		if command&commandEnd != 0 {
			return stub[:at], nil
		}
	}
}

func (want Expected) check(command uint16, value []byte) error {
	c := &cursor{rest: value}
	switch command & commandMask {
	case commandBitmask:
		if bits := c.u32(); c.bad || bits&clientSupportsHeaderSigning != 0 && !want.HeaderSigning {
			return fmt.Errorf("the client supports header signing, but its bind did not say so: somebody may have changed it")
		}
	case commandContext:
		iface, transfer := c.syntax(), c.syntax()
		if c.bad || iface != want.Interface || transfer != NDR {
			return fmt.Errorf("the call is for %v by %v, its presentation context is for %v", iface, transfer, want.Interface)
		}
	case commandHeader2:
		kind := Kind(c.u8())
		c.take(3)
		drep, call, context, operation := binary.LittleEndian.Uint32(c.take(4)), c.u32(), c.u16(), c.u16()
		if c.bad || kind != KindRequest || drep != 0x10 || call != want.Call || context != want.Request.Context || operation != want.Request.Operation {
			return fmt.Errorf("the header differs from what the client has sent")
		}
	default:
		if command&commandRequired != 0 {
			return fmt.Errorf("the command 0x%04x must be understood, and is not", command)
		}
	}
	return nil
}
