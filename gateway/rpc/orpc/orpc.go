// Package orpc looks at the stubs of calls before a decoder does that allocates what counts in them say: those of COM methods, which begin
// with ORPCTHIS, and others.
//
// Handler is what a COM interface makes of its methods: it takes the extensions out of ORPCTHIS, walks over the parameters by their Layout,
// and calls the method only where every count is within its limits and within the stub. A Reader is for stubs that are read by hand.
package orpc

import (
	"context"
	"fmt"
	"slices"

	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// Walk moves over one parameter (C706 14).
type Walk func(r *Reader)

// Layout is the parameters of a method that come in, in their order, without ORPCTHIS.
type Layout []Walk

// Walk moves over all of them.
func (l Layout) Walk(r *Reader) error {
	for i, walk := range l {
		if walk(r); r.err != nil {
			return fmt.Errorf("parameter %d: %w", i+1, r.err)
		}
	}
	return r.err
}

// Handler makes a server.Handler of a method on go-msrpc's types. Stubs that are not as the layout says are the fault RPC_X_BAD_STUB_DATA.
func Handler[In any, P interface {
	*In
	ndr.Unmarshaler
}, Out ndr.Marshaler](layout Layout, method func(ctx context.Context, call *server.Call, in *In) (Out, error)) server.Handler {
	next := server.Stub[In, P](method)
	return func(ctx context.Context, call *server.Call, stub []byte) ([]byte, error) {
		stub, err := Check(stub, layout)
		if err != nil {
			return nil, &server.Fault{Status: pdu.BadStub, Cause: err}
		}
		return next(ctx, call, stub)
	}
}

// Check walks over a stub and returns it without the extensions of ORPCTHIS, which mean nothing here ([MS-DCOM] 2.2.21.1).
func Check(stub []byte, layout Layout) ([]byte, error) {
	r := NewReader(stub)
	if ReadThis(r); r.err != nil {
		return nil, fmt.Errorf("ORPCTHIS: %w", r.err)
	}
	if r.at > thisSize {
		stub = slices.Concat(stub[:thisSize-4], make([]byte, 4), stub[r.at:])
		r = &Reader{b: stub, at: thisSize}
	}
	return stub, layout.Walk(r)
}

// Long is a parameter of 32 bits.
func Long(r *Reader) { r.U32() }

// Filetime is a FILETIME ([MS-DTYP] 2.3.3).
func Filetime(r *Reader) { r.U32(); r.U32() }

// RefString is a string of UTF-16 with its final zero, at most limit units, that is always there.
func RefString(limit uint32) Walk {
	return func(r *Reader) {
		size, offset, length := r.U32(), r.U32(), r.U32() // C706 14.3.4.2
		if length == 0 || length > limit || size < length || offset != 0 {
			r.Failf("the string has %d of %d characters at %d; 1 to %d are allowed", length, size, offset, limit)
		}
		r.Take(2 * int(length))
	}
}

// String is a string that may be missing.
func String(limit uint32) Walk {
	there := RefString(limit)
	return func(r *Reader) {
		if r.Pointer() {
			there(r)
		}
	}
}

// Blob is a CERTTRANSBLOB ([MS-WCCE] 2.2.2.2) of at most limit octets.
func Blob(limit uint32) Walk {
	return func(r *Reader) {
		length := r.U32()
		if r.Pointer() {
			r.array("octets", length, limit, 1)
		} else if length != 0 {
			r.Failf("the octets say that they are %d, and there are none", length)
		}
	}
}

// array moves over an array, whose number was announced.
func (r *Reader) array(what string, announced, most uint32, size int) {
	r.Take(size * r.Count(what, announced, most, size))
}

// Restrictions is the array of CERTVIEWRESTRICTION ([MS-CSRA] 2.2.1.3) with its count before it, of at most limit elements with values of at
// most octets.
func Restrictions(limit, octets uint32) Walk {
	return func(r *Reader) {
		var lengths []uint32
		for range r.Count("restrictions", r.U32(), limit, 20) {
			r.Take(12) // column, operator, order
			there, length := r.Pointer(), r.U32()
			if there {
				lengths = append(lengths, length)
			}
		}
		for _, length := range lengths {
			r.array("a restriction's value", length, octets, 1)
		}
	}
}

// Longs is the array of 32 bits with its count before it, of at most limit elements.
func Longs(limit uint32) Walk {
	return func(r *Reader) { r.array("numbers", r.U32(), limit, 4) }
}
