// Package servertest is what tests of RPC interfaces have in common.
package servertest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// Lengths puts numbers of gigabytes into each place of good stubs, by operation, where a length may stand, and requires that the handler
// then answers, or refuses with a fault, and that all of it together allocates no more than most octets.
func Lengths(t *testing.T, i server.Interface, stubs map[uint16][]byte, call func() *server.Call, most uint64) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for operation, good := range stubs {
		for at := 0; at+4 <= len(good); at += 4 {
			for _, value := range []uint32{0xffffffff, 0x7fffffff, 0x80000000} {
				stub := bytes.Clone(good)
				binary.LittleEndian.PutUint32(stub[at:], value)
				c := call()
				c.Operation = operation
				if _, err := i.Handle(t.Context(), c, stub); err != nil {
					if _, ok := errors.AsType[*server.Fault](err); !ok {
						t.Errorf("operation %d: %v", operation, err)
					}
				}
			}
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > most {
		t.Errorf("%d octets", used)
	}
}
