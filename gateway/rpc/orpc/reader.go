package orpc

import (
	"encoding/binary"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

// Reader reads NDR ([MS-RPCE] 2.2.4, C706 chapter 14) from a stub, or from a structure that begins at a multiple of 8 octets. After the first
// error all values are zero. Nothing is allocated for what the stub does not have.
type Reader struct {
	b   []byte
	at  int
	err error
}

// NewReader is at the beginning of a stub.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Err is the first error.
func (r *Reader) Err() error { return r.err }

// Failf sets the error, unless there is one.
func (r *Reader) Failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// Left is how many octets there are yet.
func (r *Reader) Left() int { return len(r.b) - r.at }

// Take returns n octets; nil where there are fewer.
func (r *Reader) Take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > r.Left() {
		r.Failf("%d octets are wanted at %d of %d", n, r.at, len(r.b))
		return nil
	}
	b := r.b[r.at : r.at+n]
	r.at += n
	return b
}

// Align moves to a multiple of n octets, which is a power of 2.
func (r *Reader) Align(n int) { r.Take(-r.at & (n - 1)) }

// U16 reads 16 bits.
func (r *Reader) U16() uint16 {
	r.Align(2)
	if b := r.Take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

// U32 reads 32 bits.
func (r *Reader) U32() uint32 {
	r.Align(4)
	if b := r.Take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// U64 reads 64 bits.
func (r *Reader) U64() uint64 {
	r.Align(8)
	if b := r.Take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// UUID reads a UUID.
func (r *Reader) UUID() pdu.UUID {
	r.Align(4)
	if b := r.Take(16); b != nil {
		return pdu.UUID(b)
	}
	return pdu.UUID{}
}

// Pointer tells whether a unique pointer has a referent.
func (r *Reader) Pointer() bool { return r.U32() != 0 }

// Count reads how many elements of a size an array has, which must be what was announced, at most most, and be there.
func (r *Reader) Count(what string, announced, most uint32, size int) int {
	if announced > most {
		r.Failf("%s: %d are too many, %d are allowed", what, announced, most)
	}
	n := r.U32()
	if n != announced || uint64(n)*uint64(size) > uint64(r.Left()) { //nolint:gosec // both are lengths
		r.Failf("%s: %d elements in %d octets, %d were announced", what, n, r.Left(), announced)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// UUIDs reads an array of UUIDs, whose number was announced.
func (r *Reader) UUIDs(what string, announced, most uint32) []pdu.UUID {
	out := make([]pdu.UUID, r.Count(what, announced, most, 16))
	for i := range out {
		out[i] = r.UUID()
	}
	return out
}
