// Package epm is the endpoint mapper (C706 appendix O, [MS-RPCE] 2.2.1.2): it tells at which port an interface is served. Clients ask it
// by ept_map, or by ept_lookup, which also lists all there is. Nothing can be registered over the network.
package epm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"github.com/oiweiwei/go-msrpc/msrpc/dcetypes"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	epmv3 "github.com/oiweiwei/go-msrpc/msrpc/epm/epm/v3"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// Syntax is the endpoint mapper's own interface.
var Syntax = pdu.Syntax{UUID: pdu.MustUUID("e1af8308-5d1f-11c9-91a4-08002b14a0fa"), Major: 3}

// Entry is one interface that is served over TCP, with NDR.
type Entry struct {
	Syntax     pdu.Syntax
	Port       uint16
	Annotation string
}

// Interface is the endpoint mapper as a server has it. Anybody may ask. entries is called for each question.
func Interface(entries func() []Entry) server.Interface {
	m := &mapper{entries: entries}
	return server.Interface{
		Name: "epmapper", Syntax: Syntax, Least: pdu.LevelNone, MaxStub: maxStub, Quiet: true,
		Operations: map[uint16]string{0: "ept_insert", 1: "ept_delete", 2: "ept_lookup", 3: "ept_map", 4: "ept_lookup_handle_free", 5: "ept_inq_object", 6: "ept_mgmt_delete"},
		Handle:     server.Operations(map[uint16]server.Handler{2: server.Stub(m.lookup), 3: server.Stub(m.mapTower), 4: server.Stub(m.free)}),
	}
}

const (
	maxStub = 4 << 10
	maxList = 500 // entries in one answer

	statusNotRegistered = 0x16c9a0d6 // ept_s_not_registered
	statusCantPerform   = 0x16c9a0cd // ept_s_cant_perform_op
)

type mapper struct {
	entries func() []Entry
}

// mapTower is ept_map: towers of an interface, over TCP only.
func (m *mapper) mapTower(_ context.Context, call *server.Call, in *epmv3.MapRequest) (*epmv3.MapResponse, error) {
	out := &epmv3.MapResponse{MaxTowers: min(in.MaxTowers, maxList), EntryHandle: noHandle(), Status: statusNotRegistered}
	want, ok := parseTower(in.MapTower)
	if !ok {
		return out, nil
	}
	for _, e := range m.entries() {
		if len(out.Towers) < int(out.MaxTowers) && e.Syntax.UUID == want.UUID && e.Syntax.Major == want.Major && e.Syntax.Minor >= want.Minor {
			out.Towers = append(out.Towers, tower(e, call))
			out.Status = 0
		}
	}
	out.TowersLength = uint32(len(out.Towers)) //nolint:gosec // at most maxList
	return out, nil
}

// lookup is ept_lookup. An answer that is full gives a handle to go on with, which says where, even if nothing is left: Samba's client
// asks for one at a time until there are no more, and impacket's for all, until there is no handle.
func (m *mapper) lookup(_ context.Context, call *server.Call, in *epmv3.LookupRequest) (*epmv3.LookupResponse, error) {
	out := &epmv3.LookupResponse{MaxEntries: min(in.MaxEntries, maxList), EntryHandle: noHandle(), Status: statusNotRegistered}
	var found []Entry
	for _, e := range m.entries() {
		if matches(e, in) {
			found = append(found, e)
		}
	}
	from, ok := position(in.EntryHandle)
	if !ok || in.MaxEntries == 0 {
		out.Status = statusCantPerform
		return out, nil
	}
	for i := from; i < len(found) && len(out.Entries) < int(out.MaxEntries); i++ {
		out.Entries = append(out.Entries, &epmv3.Entry{Object: &dtyp.GUID{}, Tower: tower(found[i], call), Annotation: found[i].Annotation})
		out.Status = 0
	}
	if len(out.Entries) == int(out.MaxEntries) {
		out.EntryHandle = handleAt(from + len(out.Entries))
	}
	out.EntriesLength = uint32(len(out.Entries)) //nolint:gosec // at most maxList
	return out, nil
}

// free is ept_lookup_handle_free. Nothing is kept for a handle.
func (m *mapper) free(context.Context, *server.Call, *epmv3.LookupHandleFreeRequest) (*epmv3.LookupHandleFreeResponse, error) {
	return &epmv3.LookupHandleFreeResponse{EntryHandle: noHandle()}, nil
}

// Inquiry types and version options of ept_lookup (C706 appendix O, rpc_mgmt_ep_elt_inq_begin).
const (
	inquireAll       = 0
	inquireInterface = 1
	inquireObject    = 2
	inquireBoth      = 3

	versionAll        = 1
	versionCompatible = 2
	versionExact      = 3
	versionMajor      = 4
	versionUpTo       = 5
)

// matches tells whether ept_lookup asks for an entry. No entry has an object.
func matches(e Entry, in *epmv3.LookupRequest) bool {
	switch in.InquiryType {
	case inquireAll:
		return true
	case inquireInterface:
	case inquireObject, inquireBoth:
		return false
	default:
		return false
	}
	if in.InterfaceID == nil || in.InterfaceID.UUID == nil || uuidOf(in.InterfaceID.UUID) != e.Syntax.UUID {
		return false
	}
	major, minor := in.InterfaceID.VersMajor, in.InterfaceID.VersMinor
	switch in.VersOption {
	case versionAll, 0:
		return true
	case versionCompatible:
		return e.Syntax.Major == major && e.Syntax.Minor >= minor
	case versionExact:
		return e.Syntax.Major == major && e.Syntax.Minor == minor
	case versionMajor:
		return e.Syntax.Major == major
	case versionUpTo:
		return e.Syntax.Major < major || e.Syntax.Major == major && e.Syntax.Minor <= minor
	}
	return false
}

func uuidOf(g *dtyp.GUID) (u pdu.UUID) {
	binary.LittleEndian.PutUint32(u[0:], g.Data1)
	binary.LittleEndian.PutUint16(u[4:], g.Data2)
	binary.LittleEndian.PutUint16(u[6:], g.Data3)
	copy(u[8:], g.Data4)
	return u
}

func noHandle() *epmv3.LookupHandle {
	return &epmv3.LookupHandle{UUID: &dtyp.GUID{Data4: make([]byte, 8)}}
}

// handleMark is in the handles that are given out here.
var handleMark = []byte("entries\x00")

// handleAt is a handle that says where to go on: it gives nobody anything, and needs no memory here.
func handleAt(n int) *epmv3.LookupHandle {
	return &epmv3.LookupHandle{UUID: &dtyp.GUID{Data1: uint32(n), Data4: handleMark}} //nolint:gosec // the number of an entry
}

func position(h *epmv3.LookupHandle) (int, bool) {
	if h == nil || h.UUID == nil || uuidOf(h.UUID).IsZero() {
		return 0, true
	}
	return int(h.UUID.Data1), bytes.Equal(h.UUID.Data4, handleMark) && h.UUID.Data1 <= maxList
}

// Protocol identifiers of tower floors (C706 appendix I).
const (
	floorUUID = 0x0d
	floorRPC  = 0x0b // connection-oriented
	floorTCP  = 0x07
	floorIP   = 0x09
)

// tower is where an entry is served: at the address that the question came to, which is one that the client reaches.
func tower(e Entry, call *server.Call) *dcetypes.Tower {
	var b []byte
	floor := func(left, right []byte) {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(left))) //nolint:gosec // at most 19
		b = append(b, left...)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(right))) //nolint:gosec // at most 4
		b = append(b, right...)
	}
	b = binary.LittleEndian.AppendUint16(b, 5)
	for _, s := range []pdu.Syntax{e.Syntax, pdu.NDR} {
		left := binary.LittleEndian.AppendUint16(append([]byte{floorUUID}, s.UUID[:]...), s.Major)
		floor(left, binary.LittleEndian.AppendUint16(nil, s.Minor))
	}
	floor([]byte{floorRPC}, []byte{0, 0})
	floor([]byte{floorTCP}, binary.BigEndian.AppendUint16(nil, e.Port))
	ip := net.IPv4zero.To4()
	if call != nil {
		if a, ok := call.Local.(*net.TCPAddr); ok && a.IP.To4() != nil {
			ip = a.IP.To4()
		}
	}
	floor([]byte{floorIP}, ip)
	return &dcetypes.Tower{TowerLength: uint32(len(b)), TowerOctetString: b} //nolint:gosec // 75
}

// maxFloors is more than any protocol sequence has.
const maxFloors = 16

// parseTower returns the interface that a tower is for, if it is one of RPC over TCP with NDR (C706 appendix L).
func parseTower(t *dcetypes.Tower) (pdu.Syntax, bool) {
	if t == nil || len(t.TowerOctetString) < 2 {
		return pdu.Syntax{}, false
	}
	floors, err := splitTower(t.TowerOctetString)
	if err != nil || len(floors) < 4 {
		return pdu.Syntax{}, false
	}
	iface, ok := floors[0].syntax()
	transfer, isSyntax := floors[1].syntax()
	return iface, ok && isSyntax && transfer == pdu.NDR && floors[2].protocol() == floorRPC && floors[3].protocol() == floorTCP
}

type floor struct{ left, right []byte }

func (f floor) protocol() byte {
	if len(f.left) == 0 {
		return 0
	}
	return f.left[0]
}

func (f floor) syntax() (s pdu.Syntax, ok bool) {
	if f.protocol() != floorUUID || len(f.left) != 19 || len(f.right) != 2 {
		return s, false
	}
	s.UUID = pdu.UUID(f.left[1:17])
	s.Major, s.Minor = binary.LittleEndian.Uint16(f.left[17:]), binary.LittleEndian.Uint16(f.right)
	return s, true
}

func splitTower(b []byte) (out []floor, err error) {
	n := int(binary.LittleEndian.Uint16(b))
	b = b[2:]
	part := func() []byte {
		if len(b) < 2 || len(b)-2 < int(binary.LittleEndian.Uint16(b)) {
			err = fmt.Errorf("tower: it ends within floor %d", len(out)+1)
			return nil
		}
		end := 2 + int(binary.LittleEndian.Uint16(b))
		p := b[2:end]
		b = b[end:]
		return p
	}
	if n > maxFloors {
		return nil, fmt.Errorf("tower: %d floors", n)
	}
	for range n {
		f := floor{left: part()}
		if f.right = part(); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}
