// Package orpc looks at the stubs of calls of COM methods before a decoder does that allocates what counts in them say.
//
// Handler is what a COM interface makes of its methods: it takes the extensions out of ORPCTHIS, walks over the parameters by their Layout,
// and calls the method only where every count is within its limits and within the stub.
package orpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// Walk moves over one parameter (C706 14).
type Walk func(w *Walker) error

// Layout is the parameters of a method that come in, in their order, without ORPCTHIS.
type Layout []Walk

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
	stub, err := withoutExtensions(stub)
	if err != nil {
		return nil, err
	}
	w := &Walker{b: stub, at: thisSize}
	for i, walk := range layout {
		if err := walk(w); err != nil {
			return nil, fmt.Errorf("parameter %d: %w", i+1, err)
		}
	}
	return stub, nil
}

const (
	thisSize   = 32 // ORPCTHIS ([MS-DCOM] 2.2.13.3): version, flags, reserved, causality, pointer to extensions
	maxExtents = 16
)

// withoutExtensions takes ORPC_EXTENT_ARRAY ([MS-DCOM] 2.2.21.3) out.
func withoutExtensions(stub []byte) ([]byte, error) {
	w := &Walker{b: stub, at: thisSize - 4}
	pointer, err := w.Long()
	if err != nil || pointer == 0 {
		return stub, err
	}
	if err := w.Skip(8); err != nil { // size, reserved
		return nil, err
	}
	array, err := w.Long()
	if err != nil {
		return nil, err
	}
	if array != 0 {
		if err := w.extents(); err != nil {
			return nil, fmt.Errorf("ORPCTHIS: extensions: %w", err)
		}
	}
	if err := w.align(4); err != nil {
		return nil, err
	}
	out := make([]byte, thisSize, len(stub))
	copy(out, stub[:thisSize-4])
	return append(out, stub[w.at:]...), nil
}

func (w *Walker) extents() error {
	n, err := w.Long()
	if err != nil {
		return err
	}
	if n > maxExtents {
		return fmt.Errorf("there are %d; at most %d are taken", n, maxExtents)
	}
	present := 0
	for range n {
		pointer, err := w.Long()
		if err != nil {
			return err
		}
		if pointer != 0 {
			present++
		}
	}
	for range present { // ORPC_EXTENT ([MS-DCOM] 2.2.21.2): count of data, GUID, size, data
		count, err := w.Long()
		if err != nil {
			return err
		}
		if err := w.Skip(20); err != nil {
			return err
		}
		if err := w.Skip(int64(count)); err != nil {
			return err
		}
	}
	return nil
}

// Walker is a place in a stub.
type Walker struct {
	b  []byte
	at int
}

var errShort = errors.New("the stub ends too early")

func (w *Walker) align(n int) error {
	at := (w.at + n - 1) / n * n
	if at > len(w.b) {
		return errShort
	}
	w.at = at
	return nil
}

// Long reads 32 bits.
func (w *Walker) Long() (uint32, error) {
	if err := w.align(4); err != nil {
		return 0, err
	}
	if len(w.b)-w.at < 4 {
		return 0, errShort
	}
	v := binary.LittleEndian.Uint32(w.b[w.at:])
	w.at += 4
	return v, nil
}

// Skip moves over octets.
func (w *Walker) Skip(n int64) error {
	if n < 0 || n > int64(len(w.b)-w.at) {
		return errShort
	}
	w.at += int(n)
	return nil
}

// Long is a parameter of 32 bits.
func Long(w *Walker) error { _, err := w.Long(); return err }

// Filetime is a FILETIME ([MS-DTYP] 2.3.3).
func Filetime(w *Walker) error { return errors.Join(Long(w), Long(w)) }

// RefString is a string of UTF-16 with its final zero, at most limit units, that is always there.
func RefString(limit uint32) Walk {
	return func(w *Walker) error {
		var counts [3]uint32 // largest, offset, actual (C706 14.3.4.2)
		for i := range counts {
			var err error
			if counts[i], err = w.Long(); err != nil {
				return err
			}
		}
		if size, offset, length := counts[0], counts[1], counts[2]; length == 0 || length > limit || size < length || offset != 0 {
			return fmt.Errorf("the string has %d of %d characters at %d; 1 to %d are allowed", length, size, offset, limit)
		}
		return w.Skip(2 * int64(counts[2]))
	}
}

// String is a string that may be missing.
func String(limit uint32) Walk {
	there := RefString(limit)
	return func(w *Walker) error {
		pointer, err := w.Long()
		if err != nil || pointer == 0 {
			return err
		}
		return there(w)
	}
}

// Blob is a CERTTRANSBLOB ([MS-WCCE] 2.2.2.2) of at most limit octets.
func Blob(limit uint32) Walk {
	return func(w *Walker) error {
		length, err := w.Long()
		if err != nil {
			return err
		}
		pointer, err := w.Long()
		if err != nil {
			return err
		}
		if pointer == 0 {
			if length != 0 {
				return fmt.Errorf("the octets say that they are %d, and there are none", length)
			}
			return nil
		}
		return w.array(length, limit)
	}
}

// array is a conformant array of octets, whose length was said before.
func (w *Walker) array(length, limit uint32) error {
	count, err := w.Long()
	if err != nil {
		return err
	}
	if count != length || count > limit {
		return fmt.Errorf("there are %d octets, which say that they are %d; at most %d are allowed", count, length, limit)
	}
	return w.Skip(int64(count))
}

// Restrictions is the array of CERTVIEWRESTRICTION ([MS-CSRA] 2.2.1.3) with its count before it, of at most limit elements with values of at
// most octets.
func Restrictions(limit, octets uint32) Walk {
	return func(w *Walker) error {
		said, err := w.Long()
		if err != nil {
			return err
		}
		count, err := w.Long()
		if err != nil {
			return err
		}
		if said != count || count > limit {
			return fmt.Errorf("there are %d restrictions, which say that they are %d; at most %d are allowed", count, said, limit)
		}
		var lengths []uint32
		for range count {
			var element [5]uint32 // column, operator, order, pointer to the value, its length
			for i := range element {
				if element[i], err = w.Long(); err != nil {
					return err
				}
			}
			if element[3] != 0 {
				lengths = append(lengths, element[4])
			}
		}
		for _, length := range lengths {
			if err := w.array(length, octets); err != nil {
				return err
			}
		}
		return nil
	}
}

// Longs is the array of 32 bits with its count before it, of at most limit elements.
func Longs(limit uint32) Walk {
	return func(w *Walker) error {
		said, err := w.Long()
		if err != nil {
			return err
		}
		count, err := w.Long()
		if err != nil {
			return err
		}
		if said != count || count > limit {
			return fmt.Errorf("there are %d numbers, which say that they are %d; at most %d are allowed", count, said, limit)
		}
		return w.Skip(4 * int64(count))
	}
}
