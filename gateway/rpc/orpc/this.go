package orpc

import "errors"

// thisSize is ORPCTHIS without extensions.
const thisSize = 32

// maxExtensions bounds what comes in an ORPC_EXTENT_ARRAY, in number and in octets.
const (
	maxExtensions     = 16
	maxExtensionOctet = 16 << 10
)

// This is ORPCTHIS ([MS-DCOM] 2.2.13.3).
type This struct {
	Major, Minor uint16 // of DCOM
	Flags        uint32
}

// ErrExtension is an ORPC_EXTENT_ARRAY that is not accepted.
var ErrExtension = errors.New("extensions of the call")

// ReadThis reads ORPCTHIS and passes over its extensions, which mean nothing here ([MS-DCOM] 2.2.13.2).
func ReadThis(r *Reader) This {
	t := This{Major: r.U16(), Minor: r.U16(), Flags: r.U32()}
	r.U32()
	r.UUID() // causality
	if !r.Pointer() {
		return t
	}
	size := r.U32()
	r.U32()
	if !r.Pointer() {
		return t
	}
	if size > maxExtensions {
		r.Failf("%w: %d are too many, %d are allowed", ErrExtension, size, maxExtensions)
		return t
	}
	present := 0
	for range r.Count("extents", (size+1)&^1, maxExtensions, 4) {
		if r.Pointer() {
			present++
		}
	}
	total := 0
	for range present {
		n := r.U32()
		r.UUID()
		length := r.U32()
		if n > maxExtensionOctet || length > n || (length+7)&^7 != n {
			r.Failf("%w: %d octets in %d", ErrExtension, length, n)
		}
		if total += int(n); total > maxExtensionOctet {
			r.Failf("%w: more than %d octets", ErrExtension, maxExtensionOctet)
		}
		r.Take(int(n))
	}
	return t
}
