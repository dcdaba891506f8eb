package epm

import (
	"encoding/binary"
	"net"
	"testing"

	"github.com/oiweiwei/go-msrpc/msrpc/dcetypes"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	epmv3 "github.com/oiweiwei/go-msrpc/msrpc/epm/epm/v3"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

var icpr = Entry{Syntax: pdu.Syntax{UUID: pdu.MustUUID("91ae6020-9e3c-11cf-8d7c-00aa00c091be")}, Port: 49200, Annotation: "certificates"}

func call() *server.Call {
	return &server.Call{Level: pdu.LevelNone, Local: &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 135}}
}

// ask marshals a question, has the interface answer it and unmarshals the answer.
func ask(t testing.TB, entries []Entry, operation uint16, in ndr.Marshaler, out ndr.Unmarshaler) {
	t.Helper()
	stub, err := ndr.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	i := Interface(func() []Entry { return entries })
	c := call()
	c.Operation = operation
	b, err := i.Handle(t.Context(), c, stub)
	if err != nil {
		t.Fatal(err)
	}
	if err := ndr.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
}

func TestAnInterfaceIsMapped(t *testing.T) {
	for name, c := range map[string]struct {
		change func(e *Entry, tower *dcetypes.Tower)
		found  bool
	}{
		"as it is":      {func(*Entry, *dcetypes.Tower) {}, true},
		"another":       {func(_ *Entry, tw *dcetypes.Tower) { tw.TowerOctetString[5]++ }, false},
		"a newer one":   {func(_ *Entry, tw *dcetypes.Tower) { tw.TowerOctetString[25] = 1 }, false},
		"over UDP":      {func(_ *Entry, tw *dcetypes.Tower) { tw.TowerOctetString[2+2*25+7+2] = 8 }, false},
		"a broken one":  {func(_ *Entry, tw *dcetypes.Tower) { tw.TowerOctetString = tw.TowerOctetString[:40] }, false},
		"not a tower":   {func(_ *Entry, tw *dcetypes.Tower) { tw.TowerOctetString = []byte{255, 255} }, false},
		"with NDR64":    {func(_ *Entry, tw *dcetypes.Tower) { copy(tw.TowerOctetString[2+25+3:], pdu.NDR64.UUID[:]) }, false},
		"without floor": {func(_ *Entry, tw *dcetypes.Tower) { tw.TowerOctetString = []byte{0, 0} }, false},
	} {
		e := icpr
		tw := tower(e, nil)
		c.change(&e, tw)
		tw.TowerLength = uint32(len(tw.TowerOctetString))
		var out epmv3.MapResponse
		ask(t, []Entry{e}, 3, &epmv3.MapRequest{MapTower: tw, EntryHandle: noHandle(), MaxTowers: 4}, &out)
		if (len(out.Towers) == 1 && out.Status == 0) != c.found || !c.found && out.Status != statusNotRegistered {
			t.Errorf("%s: %d towers, status 0x%x", name, len(out.Towers), out.Status)
		}
		if c.found {
			b := out.Towers[0].TowerOctetString
			if len(b) != 75 || binary.BigEndian.Uint16(b[64:]) != 49200 || !net.IP(b[71:75]).Equal(net.IPv4(10, 1, 2, 3)) {
				t.Errorf("%x", b)
			}
		}
	}
}

func TestLookupGoesOnWhereItStopped(t *testing.T) {
	entries := []Entry{icpr, {Syntax: Syntax, Port: 1}, {Syntax: pdu.Syntax{UUID: icpr.Syntax.UUID, Major: 2, Minor: 3}, Port: 2}}
	handle, seen := noHandle(), 0
	for range 10 {
		var out epmv3.LookupResponse
		ask(t, entries, 2, &epmv3.LookupRequest{EntryHandle: handle, MaxEntries: 2, VersOption: 1}, &out)
		if out.Status == statusNotRegistered {
			break
		}
		seen += len(out.Entries)
		if handle = out.EntryHandle; handle.ContextHandle().IsZero() {
			break
		}
	}
	if seen != 3 {
		t.Errorf("%d entries", seen)
	}
	uuid := &dtyp.GUID{Data1: 0x91ae6020, Data2: 0x9e3c, Data3: 0x11cf, Data4: []byte{0x8d, 0x7c, 0, 0xaa, 0, 0xc0, 0x91, 0xbe}}
	for option, want := range map[uint32]int{versionAll: 2, versionCompatible: 1, versionExact: 0, versionMajor: 1, versionUpTo: 1, 77: 0} {
		var out epmv3.LookupResponse
		ask(t, entries, 2, &epmv3.LookupRequest{InquiryType: inquireInterface, InterfaceID: &dcetypes.InterfaceID{UUID: uuid, VersMajor: 2, VersMinor: 1}, VersOption: option, EntryHandle: noHandle(), MaxEntries: 10}, &out)
		if len(out.Entries) != want {
			t.Errorf("option %d: %d entries, want %d", option, len(out.Entries), want)
		}
	}
	var out epmv3.LookupResponse
	ask(t, entries, 2, &epmv3.LookupRequest{EntryHandle: &epmv3.LookupHandle{UUID: &dtyp.GUID{Data1: 5, Data4: make([]byte, 8)}}, MaxEntries: 10}, &out)
	if out.Status != statusCantPerform {
		t.Errorf("a handle of nobody: 0x%x", out.Status)
	}
	var freed epmv3.LookupHandleFreeResponse
	ask(t, entries, 4, &epmv3.LookupHandleFreeRequest{EntryHandle: handleAt(2)}, &freed)
	if !freed.EntryHandle.ContextHandle().IsZero() || freed.Status != 0 {
		t.Errorf("%+v", freed)
	}
}

func FuzzMapper(f *testing.F) {
	for operation, in := range map[uint16]ndr.Marshaler{
		2: &epmv3.LookupRequest{EntryHandle: noHandle(), MaxEntries: 2}, 3: &epmv3.MapRequest{MapTower: tower(icpr, nil), EntryHandle: noHandle(), MaxTowers: 4},
	} {
		stub, err := ndr.Marshal(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(operation, stub)
	}
	i := Interface(func() []Entry { return []Entry{icpr} })
	f.Fuzz(func(t *testing.T, operation uint16, stub []byte) {
		c := call()
		c.Operation = operation
		out, err := i.Handle(t.Context(), c, stub)
		if err == nil && len(out) > 1000 {
			t.Errorf("%d octets", len(out))
		}
	})
}
