package dcom

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"runtime"
	"slices"
	"testing"

	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iobjectexporter "github.com/oiweiwei/go-msrpc/msrpc/dcom/iobjectexporter/v0"
	iremotescmactivator "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremotescmactivator/v0"
	iremunknown "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown/v0"
	iremunknown2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown2/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
)

func encode(t testing.TB, m ndr.Marshaler) []byte {
	t.Helper()
	b, err := ndr.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func orpcThis() *msdcom.ORPCThis {
	return &msdcom.ORPCThis{Version: &msdcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &msdcom.CID{}}
}

// complexPing is a stub by the IDL: with pointers.
func complexPing(p pings) []byte {
	le := binary.LittleEndian
	b := le.AppendUint16(le.AppendUint64(nil, p.set), p.sequence)
	b = le.AppendUint16(le.AppendUint16(b, uint16(len(p.add))), uint16(len(p.remove))) //nolint:gosec // a few
	b = append(b, 0, 0)
	for _, list := range [][]uint64{p.add, p.remove} {
		if list == nil {
			b = le.AppendUint32(b, 0)
			continue
		}
		b = le.AppendUint32(le.AppendUint32(b, 0x20000), uint32(len(list))) //nolint:gosec // a few
		b = append(b, make([]byte, -len(b)&7)...)
		for _, oid := range list {
			b = le.AppendUint64(b, oid)
		}
	}
	return b
}

// valid are stubs of every operation: by interface and number.
func valid(t testing.TB, l *lab) map[string][][]byte {
	ref := l.d2(alice)
	iids := []*msdcom.IID{(*msdcom.IID)(guid(iidD)), (*msdcom.IID)(guid(iidUnknown)), (*msdcom.IID)(guid(iidClassFactory))}
	refs := []*msdcom.RemoteInterfaceReference{{IPID: (*msdcom.IPID)(guid(ref.ipid)), PublicReferencesCount: 1, PrivateReferencesCount: 1}}
	query := &iremunknown.RemoteQueryInterfaceRequest{This: orpcThis(), IPID: guid(ref.ipid), ReferencesCount: 3, IIDs: iids}
	factory := encode(t, &iremotescmactivator.RemoteGetClassObjectRequest{ORPCThis: orpcThis(), ActPropertiesIn: &msdcom.InterfacePointer{Data: []byte("MEOW")}})
	return map[string][][]byte{
		"IRemoteSCMActivator": {3: factory, 4: activationStub(t, instantiation(classD, iidD2, iidD), &msdcom.LocationInfoData{})},
		"IObjectExporter": {0: encode(t, &iobjectexporter.ResolveOXIDRequest{OXID: l.oxid, RequestedProtocolSequences: []uint16{7}}), 1: make([]byte, 8),
			2: complexPing(pings{0, 1, []uint64{ref.oid, 1}, []uint64{2}}), 3: {}, 4: encode(t, &iobjectexporter.ResolveOxid2Request{OXID: 1, RequestedProtocolSequences: []uint16{7, 15}}), 5: {}},
		"IRemUnknown2": {3: encode(t, query), 4: encode(t, &iremunknown.RemoteAddReferenceRequest{This: orpcThis(), InterfaceReferences: refs}),
			5: encode(t, &iremunknown.RemoteReleaseRequest{This: orpcThis(), InterfaceReferences: refs}),
			6: encode(t, &iremunknown2.RemoteQueryInterface2Request{This: orpcThis(), IPID: guid(ref.ipid), IIDs: iids})},
	}
}

// TestLargeCountsAllocateNothing puts large numbers wherever there may be a count.
func TestLargeCountsAllocateNothing(t *testing.T) {
	l := newLab(t, nil)
	for face, stubs := range valid(t, l) {
		for operation, stub := range stubs {
			if len(stub) == 0 {
				continue
			}
			object := pdu.UUID{}
			if face == "IRemUnknown2" {
				object = l.unknown
			}
			if _, err := l.call(alice, face, uint16(operation), object, stub); err != nil { //nolint:gosec // a number
				t.Fatalf("%s %d: %v", face, operation, err)
			}
			for at := 0; at+4 <= len(stub); at += 2 {
				for _, n := range []uint32{0xffffffff, 0x7fffffff, 0xfffffff8, 0x10000, 0xffff} {
					broken := bytes.Clone(stub)
					binary.LittleEndian.PutUint32(broken[at:], n)
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					_, _ = l.call(alice, face, uint16(operation), object, broken) //nolint:gosec // a number
					runtime.ReadMemStats(&after)
					if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
						t.Errorf("%s %d: %08x at %d allocates %d octets", face, operation, n, at, used)
					}
				}
			}
			for end := range stub { // and an end anywhere
				_, _ = l.call(alice, face, uint16(operation), object, stub[:end]) //nolint:gosec // a number
			}
		}
	}
}

func TestComplexPingIsReadByTheIDL(t *testing.T) {
	for name, p := range map[string]pings{"new": {0, 1, []uint64{1, 2, 3}, nil}, "both": {7, 2, []uint64{1}, []uint64{2, 3}}, "empty": {7, 3, []uint64{}, []uint64{}}, "nothing": {7, 3, nil, nil}} {
		got, err := parseComplexPing(complexPing(p))
		if err != nil || got.set != p.set || got.sequence != p.sequence || !slices.Equal(got.add, p.add) || !slices.Equal(got.remove, p.remove) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// Of impacket, for a new set with one object that it has released already.
	stub, _ := hex.DecodeString("0000000000000000000001000100bfbf" + "67450000" + "01000000" + "8877665544332211" + "cdab0000" + "01000000" + "8877665544332211")
	if got, err := parseComplexPing(stub); err != nil || got.add[0] != 0x1122334455667788 || got.remove[0] != got.add[0] {
		t.Errorf("%+v, %v", got, err)
	}
	for name, stub := range map[string][]byte{
		"more than there are": append(complexPing(pings{0, 1, []uint64{1}, nil})[:20], 9, 0, 0, 0),
		"a null array of 1":   {0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"without pointers":    encode(t, &iobjectexporter.ComplexPingRequest{SequenceNum: 1, AddToSet: []uint64{0x0102030405060708}, DeleteFromSet: []uint64{}}),
	} {
		if p, err := parseComplexPing(stub); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// FuzzCalls gives any stub to any operation; whatever comes back, go-msrpc must be able to read it.
func FuzzCalls(f *testing.F) {
	l := newLab(f, nil)
	for face, stubs := range valid(f, l) {
		for operation, stub := range stubs {
			f.Add(face, uint16(operation), stub) //nolint:gosec // a number
		}
	}
	f.Add("IClassFactory", uint16(3), append(head(7, 0), iidD2[:]...))
	f.Add("D2", uint16(3), head(7, 0))
	f.Fuzz(func(t *testing.T, face string, operation uint16, stub []byte) {
		i := l.faces[face]
		if i == nil || len(stub) > max(i.MaxStub, 4096) {
			return
		}
		object := l.unknown
		switch face {
		case "IClassFactory":
			out, _ := l.table.activate(alice, l.classes[classD], true, []pdu.UUID{iidClassFactory})
			object = out[0].ref.ipid
		case "D2":
			out, _ := l.table.activate(alice, l.classes[classD], false, []pdu.UUID{iidD2})
			object = out[0].ref.ipid
		}
		out, err := l.call(alice, face, operation, object, stub)
		if err != nil {
			return
		}
		var answer ndr.Unmarshaler
		switch face + string(rune('0'+operation)) {
		case "IRemoteSCMActivator4":
			answer = &iremotescmactivator.RemoteCreateInstanceResponse{}
		case "IRemoteSCMActivator3":
			answer = &iremotescmactivator.RemoteGetClassObjectResponse{}
		case "IRemUnknown23":
			answer = &iremunknown.RemoteQueryInterfaceResponse{}
		case "IRemUnknown24":
			answer = &iremunknown.RemoteAddReferenceResponse{}
		case "IRemUnknown26":
			answer = &iremunknown2.RemoteQueryInterface2Response{}
		case "IObjectExporter0":
			answer = &iobjectexporter.ResolveOXIDResponse{}
		case "IObjectExporter2":
			answer = &iobjectexporter.ComplexPingResponse{}
		default:
			return
		}
		if err := ndr.Unmarshal(out, answer); err != nil {
			t.Errorf("the answer %x: %v", out, err)
		}
	})
}

// FuzzParseActivation reads OBJREFs of activations. What both understand, go-msrpc reads the same from.
func FuzzParseActivation(f *testing.F) {
	for _, p := range [][]msdcom.ActivationProperty{{instantiation(classD, iidD2)}, {&msdcom.SpecialPropertiesData{}, instantiation(classD, iidD2, iidD), &msdcom.LocationInfoData{}}} {
		pointer, err := (&msdcom.ActivationProperties{Properties: p}).ActivationPropertiesIn()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pointer.Data)
	}
	f.Fuzz(func(t *testing.T, objref []byte) {
		if len(objref) > maxActivation {
			return
		}
		a, err := parseActivation(objref)
		if err != nil {
			return
		}
		if len(a.interfaces) == 0 || len(a.interfaces) > maxInterfaces {
			t.Fatalf("%d interfaces", len(a.interfaces))
		}
		other := readByMSRPC(objref)
		if other == nil {
			return
		}
		if got := uuidOf(other.ClassID.GUID()); got != a.class || len(other.IID) != len(a.interfaces) || uuidOf(other.IID[0].GUID()) != a.interfaces[0] {
			t.Errorf("class %s, %d interfaces; go-msrpc reads %s, %d", a.class, len(a.interfaces), got, len(other.IID))
		}
	})
}

// readByMSRPC is nil where go-msrpc does not understand it, or panics.
func readByMSRPC(objref []byte) (out *msdcom.InstantiationInfoData) {
	defer func() {
		if recover() != nil {
			out = nil
		}
	}()
	var p msdcom.ActivationProperties
	if p.Parse(&msdcom.InterfacePointer{Data: objref}) != nil {
		return nil
	}
	for _, property := range p.Properties {
		if i, ok := property.(*msdcom.InstantiationInfoData); ok && len(i.IID) > 0 {
			return i
		}
	}
	return nil
}

// FuzzReadThis reads ORPCTHIS; go-msrpc, which the handlers behind it use, ends at the same place.
func FuzzReadThis(f *testing.F) {
	f.Add(head(7, 0))
	f.Add(activationStub(f, instantiation(classD, iidD2)))
	extended := orpcThis()
	extended.Extensions = &msdcom.ORPCExtentArray{Size: 1, Extent: []*msdcom.ORPCExtent{{ID: guid(iidD), Size: 5, Data: []byte("12345678")}}}
	f.Add(encode(f, &iremunknown.RemoteReleaseRequest{This: extended}))
	f.Fuzz(func(t *testing.T, stub []byte) {
		r := orpc.NewReader(stub)
		th := orpc.ReadThis(r)
		if r.Err() != nil {
			return
		}
		var other msdcom.ORPCThis
		left := -1
		func() {
			defer func() { _ = recover() }()
			n := ndr.NDR20(stub)
			if other.UnmarshalNDR(context.Background(), n) == nil && n.ReadDeferred() == nil {
				left = n.Len()
			}
		}()
		if left < 0 {
			return
		}
		if other.Version.MajorVersion != th.Major || other.Version.MinorVersion != th.Minor || other.Flags != th.Flags || left != r.Left() {
			t.Errorf("%+v to octet %d, go-msrpc reads %+v to %d", th, len(stub)-r.Left(), other, len(stub)-left)
		}
	})
}

// FuzzPings reads ComplexPing, and ResolveOxid.
func FuzzPings(f *testing.F) {
	f.Add(complexPing(pings{0, 1, []uint64{1, 2, 3}, nil}))
	f.Add(complexPing(pings{7, 2, []uint64{1}, []uint64{2, 3}}))
	f.Fuzz(func(t *testing.T, stub []byte) {
		if p, err := parseComplexPing(stub); err == nil {
			again, err := parseComplexPing(complexPing(p))
			if err != nil || again.set != p.set || !slices.Equal(again.add, p.add) || !slices.Equal(again.remove, p.remove) {
				t.Errorf("%+v, then %+v, %v", p, again, err)
			}
			if 8*(len(p.add)+len(p.remove)) > len(stub) {
				t.Errorf("%d and %d objects in %d octets", len(p.add), len(p.remove), len(stub))
			}
		}
		_, _ = parseResolve(stub)
	})
}

// FuzzReferences reads the parameters of RemQueryInterface, and RemAddRef.
func FuzzReferences(f *testing.F) {
	iids := []*msdcom.IID{(*msdcom.IID)(guid(iidD)), (*msdcom.IID)(guid(iidD2))}
	f.Add(encode(f, &iremunknown.RemoteQueryInterfaceRequest{This: orpcThis(), IPID: guid(iidD), ReferencesCount: 3, IIDs: iids}))
	f.Add(encode(f, &iremunknown.RemoteAddReferenceRequest{This: orpcThis(), InterfaceReferences: []*msdcom.RemoteInterfaceReference{{IPID: (*msdcom.IPID)(guid(iidD)), PublicReferencesCount: 1}}}))
	f.Fuzz(func(t *testing.T, stub []byte) {
		r := orpc.NewReader(stub)
		orpc.ReadThis(r)
		behind := *r
		for _, counted := range []bool{true, false} {
			q := behind
			if _, _, iids, err := parseQuery(&q, counted); err == nil && (len(iids) > maxInterfaces || 16*len(iids) > len(stub)) {
				t.Errorf("%d interfaces in %d octets", len(iids), len(stub))
			}
		}
		if changes, err := parseChanges(&behind); err == nil && (len(changes) > maxChanges || 24*len(changes) > len(stub)) {
			t.Errorf("%d references in %d octets", len(changes), len(stub))
		}
	})
}
