package dcom

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

// reader reads NDR ([MS-RPCE] 2.2.4, C706 chapter 14) from a stub, or from a structure that begins at a multiple of 8 octets. After the first
// error all values are zero. Nothing is allocated for what the stub does not have.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// take returns n octets; nil where there are fewer.
func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > len(r.b)-r.at {
		r.fail("%d octets are wanted at %d of %d", n, r.at, len(r.b))
		return nil
	}
	b := r.b[r.at : r.at+n]
	r.at += n
	return b
}

func (r *reader) align(n int) { r.take(-r.at & (n - 1)) }

func (r *reader) u16() uint16 {
	r.align(2)
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	r.align(4)
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	r.align(8)
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uuid() pdu.UUID {
	r.align(4)
	if b := r.take(16); b != nil {
		return pdu.UUID(b)
	}
	return pdu.UUID{}
}

// pointer tells whether a unique pointer has a referent.
func (r *reader) pointer() bool { return r.u32() != 0 }

// count reads how many elements of a size an array has, which must be want, and be there.
func (r *reader) count(what string, want uint32, size int) int {
	n := r.u32()
	if r.err == nil && (n != want || uint64(n)*uint64(size) > uint64(len(r.b)-r.at)) { //nolint:gosec // both are lengths
		r.fail("%s: %d elements in %d octets, %d were announced", what, n, len(r.b)-r.at, want)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// uuids reads an array of UUIDs, whose number was announced.
func (r *reader) uuids(what string, announced uint32, most int) []pdu.UUID {
	if r.err == nil && int64(announced) > int64(most) {
		r.fail("%s: %d are too many, %d are allowed", what, announced, most)
	}
	n := r.count(what, announced, 16)
	out := make([]pdu.UUID, n)
	for i := range out {
		out[i] = r.uuid()
	}
	return out
}

// maxExtensions bounds what comes in an ORPC_EXTENT_ARRAY, in number and in octets.
const (
	maxExtensions     = 16
	maxExtensionOctet = 16 << 10
)

// this is ORPCTHIS ([MS-DCOM] 2.2.13.3).
type this struct {
	major, minor uint16
	flags        uint32
}

var errExtension = errors.New("extensions of the call")

// readThis reads ORPCTHIS and passes over its extensions, which mean nothing here ([MS-DCOM] 2.2.13.2).
func readThis(r *reader) this {
	t := this{major: r.u16(), minor: r.u16(), flags: r.u32()}
	r.u32()
	r.uuid() // causality
	if !r.pointer() || r.err != nil {
		return t
	}
	size := r.u32()
	r.u32()
	if !r.pointer() || r.err != nil {
		return t
	}
	if size > maxExtensions {
		r.fail("%w: %d are too many, %d are allowed", errExtension, size, maxExtensions)
		return t
	}
	present := 0
	for range r.count("extents", (size+1)&^1, 4) {
		if r.pointer() {
			present++
		}
	}
	total := 0
	for range present {
		n := r.u32()
		r.uuid()
		length := r.u32()
		if r.err == nil && (n > maxExtensionOctet || length > n || (length+7)&^7 != n) {
			r.fail("%w: %d octets in %d", errExtension, length, n)
		}
		if total += int(n); r.err == nil && total > maxExtensionOctet {
			r.fail("%w: more than %d octets", errExtension, maxExtensionOctet)
		}
		r.take(int(n))
	}
	return t
}
