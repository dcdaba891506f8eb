package dcom

import (
	"encoding/binary"
	"errors"
	"fmt"

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
	r := &reader{b: objref}
	signature, flags, iid, clsid := r.u32(), r.u32(), r.uuid(), r.uuid()
	r.u32() // cbExtension
	r.u32() // reserved
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", errObjref, r.err)
	}
	if signature != objrefSignature || flags != objrefCustom || iid != iidPropertiesIn || clsid != clsidPropertiesIn {
		return nil, fmt.Errorf("%w: signature %08x, flags %d, interface %s, class %s: these are no activation properties", errObjref, signature, flags, iid, clsid)
	}
	size := r.u32()
	r.u32()
	if uint64(size) > uint64(len(r.b)-r.at) {
		return nil, fmt.Errorf("%w: %d octets of properties in %d", errObjref, size, len(r.b)-r.at)
	}
	return parseProperties(r.take(int(size)))
}

// parseProperties reads the blob's CustomHeader ([MS-DCOM] 2.2.22.1) and finds the property that is wanted.
func parseProperties(blob []byte) (*activation, error) {
	body, err := serialized("CustomHeader", blob)
	if err != nil {
		return nil, err
	}
	r := &reader{b: body}
	total, header := r.u32(), r.u32()
	r.u32()
	r.u32() // destination context
	n := r.u32()
	r.uuid()
	hasClasses, hasSizes := r.pointer(), r.pointer()
	r.pointer()
	if r.err == nil && (n == 0 || n > maxProperties || !hasClasses || !hasSizes || total != uint32(len(blob)) || header > total) { //nolint:gosec // below 4 GiB
		r.fail("%d properties, %d octets of which %d are the header, in %d", n, total, header, len(blob))
	}
	classes := r.uuids("classes", n, maxProperties)
	sizes := make([]uint32, r.count("sizes", n, 4))
	for i := range sizes {
		sizes[i] = r.u32()
	}
	if r.err != nil {
		return nil, fmt.Errorf("CustomHeader: %w", r.err)
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
	r := &reader{b: body}
	a := &activation{class: r.uuid()}
	r.u32() // class context
	r.u32() // flags
	r.u32() // surrogate
	n := r.u32()
	r.u32() // instance flag
	has := r.pointer()
	r.u32() // its own size
	r.u32() // version of the client
	if r.err == nil && (n == 0 || !has) {
		r.fail("no interface is asked for")
	}
	a.interfaces = r.uuids("interfaces", n, maxInterfaces)
	return a, r.err
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
