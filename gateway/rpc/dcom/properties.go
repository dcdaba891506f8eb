package dcom

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

// Limits of an activation.
const (
	maxProperties = 10  // MAX_ACTPROP_LIMIT ([MS-DCOM] 2.2.28.1)
	maxInterfaces = 128 // of one object that a client asks for at a time; [MS-DCOM] would allow 0x8000
)

// activation is what a client wants: InstantiationInfoData ([MS-DCOM] 2.2.22.2.1).
type activation struct {
	class      pdu.UUID
	interfaces []pdu.UUID
}

var errObjref = errors.New("OBJREF")

// objrefSignature is "MEOW" ([MS-DCOM] 2.2.18).
const (
	objrefSignature = 0x574f454d
	objrefStandard  = 1
	objrefCustom    = 4
)

// parseActivation reads the OBJREF_CUSTOM of an activation ([MS-DCOM] 2.2.18.6) and its properties ([MS-DCOM] 2.2.22). All but one say
// nothing that matters here, and may be missing, as in impacket's requests.
func parseActivation(objref []byte) (*activation, error) {
	r := orpc.NewReader(objref)
	signature, flags, iid, clsid := r.U32(), r.U32(), r.UUID(), r.UUID()
	r.U32() // cbExtension
	r.U32() // reserved
	if r.Err() != nil {
		return nil, fmt.Errorf("%w: %w", errObjref, r.Err())
	}
	if signature != objrefSignature || flags != objrefCustom || iid != iidPropertiesIn || clsid != clsidPropertiesIn {
		return nil, fmt.Errorf("%w: signature %08x, flags %d, interface %s, class %s: these are no activation properties", errObjref, signature, flags, iid, clsid)
	}
	size := r.U32()
	r.U32()
	if uint64(size) > uint64(r.Left()) {
		return nil, fmt.Errorf("%w: %d octets of properties in %d", errObjref, size, r.Left())
	}
	return parseProperties(r.Take(int(size)))
}

// parseProperties reads the blob's CustomHeader ([MS-DCOM] 2.2.22.1) and finds the property that is wanted.
func parseProperties(blob []byte) (*activation, error) {
	body, err := serialized("CustomHeader", blob)
	if err != nil {
		return nil, err
	}
	r := orpc.NewReader(body)
	total, header := r.U32(), r.U32()
	r.U32()
	r.U32() // destination context
	n := r.U32()
	r.UUID()
	hasClasses, hasSizes := r.Pointer(), r.Pointer()
	r.Pointer()
	if r.Err() == nil && (n == 0 || n > maxProperties || !hasClasses || !hasSizes || total != uint32(len(blob)) || header > total) { //nolint:gosec // below 4 GiB
		r.Failf("%d properties, %d octets of which %d are the header, in %d", n, total, header, len(blob))
	}
	classes := r.UUIDs("classes", n, maxProperties)
	sizes := make([]uint32, r.Count("sizes", n, maxProperties, 4))
	for i := range sizes {
		sizes[i] = r.U32()
	}
	if r.Err() != nil {
		return nil, fmt.Errorf("CustomHeader: %w", r.Err())
	}
	var out *activation
	rest := blob[header:]
	for i, size := range sizes {
		if uint64(size) > uint64(len(rest)) {
			return nil, fmt.Errorf("property %d of class %s: %d octets in %d", i, classes[i], size, len(rest))
		}
		if classes[i] == clsidInstantiation {
			if out != nil {
				return nil, errors.New("two InstantiationInfoData")
			}
			if out, err = parseInstantiation(rest[:size]); err != nil {
				return nil, fmt.Errorf("InstantiationInfoData: %w", err)
			}
		}
		rest = rest[size:]
	}
	if out == nil {
		return nil, errors.New("no InstantiationInfoData, which says what is to be activated")
	}
	return out, nil
}

// parseInstantiation reads InstantiationInfoData ([MS-DCOM] 2.2.22.2.1).
func parseInstantiation(b []byte) (*activation, error) {
	body, err := serialized("the property", b)
	if err != nil {
		return nil, err
	}
	r := orpc.NewReader(body)
	a := &activation{class: r.UUID()}
	r.U32() // class context
	r.U32() // flags
	r.U32() // surrogate
	n := r.U32()
	r.U32() // instance flag
	has := r.Pointer()
	r.U32() // its own size
	r.U32() // version of the client
	if r.Err() == nil && (n == 0 || !has) {
		r.Failf("no interface is asked for")
	}
	a.interfaces = r.UUIDs("interfaces", n, maxInterfaces)
	return a, r.Err()
}

// serialized opens type serialization version 1 ([MS-RPCE] 2.2.6).
func serialized(what string, b []byte) ([]byte, error) {
	if len(b) < 16 {
		return nil, fmt.Errorf("%s: %d octets", what, len(b))
	}
	if b[0] != 1 || b[1] != 0x10 || b[2] != 8 || b[3] != 0 {
		return nil, fmt.Errorf("%s: a serialization header %x; version 1, little-endian, is understood", what, b[:4])
	}
	n, b := binary.LittleEndian.Uint32(b[8:]), b[16:]
	if uint64(n) > uint64(len(b)) {
		return nil, fmt.Errorf("%s: %d octets in %d", what, n, len(b))
	}
	return b[:n], nil
}
