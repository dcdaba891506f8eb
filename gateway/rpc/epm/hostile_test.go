package epm

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/oiweiwei/go-msrpc/msrpc/dcetypes"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	epmv3 "github.com/oiweiwei/go-msrpc/msrpc/epm/epm/v3"
	"github.com/oiweiwei/go-msrpc/ndr"
)

// TestLengthsOf4GiBTakeNoMemory: anybody may ask, without proving who he is.
func TestLengthsOf4GiBTakeNoMemory(t *testing.T) {
	handle := Interface(func() []Entry { return []Entry{icpr} }).Handle
	for operation, in := range map[uint16]ndr.Marshaler{
		2: &epmv3.LookupRequest{InquiryType: 1, Object: &dtyp.GUID{}, InterfaceID: &dcetypes.InterfaceID{UUID: &dtyp.GUID{}}, VersOption: 1, EntryHandle: noHandle(), MaxEntries: 10},
		3: &epmv3.MapRequest{Object: &dtyp.GUID{}, MapTower: &dcetypes.Tower{TowerLength: 75, TowerOctetString: tower(icpr, call()).TowerOctetString}, EntryHandle: noHandle(), MaxTowers: 4},
	} {
		good, err := ndr.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		c := call()
		c.Operation = operation
		for at := 0; at+4 <= len(good); at++ {
			for _, value := range []uint32{0xffffffff, 0x7fffffff, 0x80000000, 0x10000} {
				stub := bytes.Clone(good)
				binary.LittleEndian.PutUint32(stub[at:], value)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, _ = handle(t.Context(), c, stub)
				runtime.ReadMemStats(&after)
				if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
					t.Fatalf("operation %d: 0x%x at %d allocates %d octets", operation, value, at, used)
				}
			}
		}
	}
}
