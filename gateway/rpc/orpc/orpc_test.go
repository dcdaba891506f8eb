package orpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"
	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	dcomwcce "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

func this(extents ...*dcom.ORPCExtent) *dcom.ORPCThis {
	t := &dcom.ORPCThis{Version: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &dcom.CID{Data1: 7}}
	if extents != nil {
		t.Extensions = &dcom.ORPCExtentArray{Size: uint32(len(extents)), Extent: extents}
	}
	return t
}

func marshal(t testing.TB, in ndr.Marshaler) []byte {
	t.Helper()
	b, err := ndr.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var requestLayout = Layout{String(1536), Long, String(64), Long, String(1000), Blob(1000)}

func request(t testing.TB, this *dcom.ORPCThis) []byte {
	return marshal(t, &icertrequestd2.Request2Request{This: this, Authority: "Corp CA", Flags: 9, SerialNumber: "012", RequestID: 5, Attributes: "a:b\n",
		Request: &dcomwcce.CertTransportBlob{Length: 3, Buffer: []byte{1, 2, 3}}})
}

func TestStubsOfGoMSRPCAreAsTheirLayout(t *testing.T) {
	got := ""
	h := Handler(requestLayout, func(_ context.Context, _ *server.Call, in *icertrequestd2.Request2Request) (*icertrequestd2.Ping2Response, error) {
		got = in.Authority + in.SerialNumber + in.Attributes + string(in.Request.Buffer)
		return &icertrequestd2.Ping2Response{}, nil
	})
	extent := &dcom.ORPCExtent{ID: &dtyp.GUID{Data1: 3}, Size: 5, Data: []byte{1, 2, 3, 4, 5, 0, 0, 0}}
	for name, in := range map[string]*dcom.ORPCThis{"plain": this(), "with an extension": this(extent), "with two": this(extent, extent)} {
		got = ""
		if _, err := h(t.Context(), &server.Call{}, request(t, in)); err != nil || got != "Corp CA012a:b\n\x01\x02\x03" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	plain, err := Check(request(t, this(extent, extent)), requestLayout)
	if err != nil || len(plain) != len(request(t, this())) { // pointers have other numbers
		t.Error("extensions change what comes after them", err)
	}
}

var viewLayout = Layout{String(100), Restrictions(4, 64), Longs(8), Long, Long}

func view(t testing.TB, restrictions, columns int) []byte {
	in := &icertadmind.OpenViewRequest{This: this(), Authority: "Corp CA", CertViewRestrictionCount: uint32(restrictions), ColumnsCountOut: uint32(columns), ID: 1, Count: 10}
	for range restrictions {
		in.CertViewRestrictions = append(in.CertViewRestrictions, &csra.CertViewRestriction{ColumnIndex: 1, SeekOperator: 1, Value: []byte{1, 2, 3, 4, 5}, ValueLength: 5})
	}
	for range columns {
		in.ColumnsOut = append(in.ColumnsOut, 0x1000)
	}
	return marshal(t, in)
}

func TestArraysHaveLimits(t *testing.T) {
	for _, c := range []struct {
		restrictions, columns int
		ok                    bool
	}{{0, 0, true}, {1, 1, true}, {4, 8, true}, {5, 1, false}, {1, 9, false}} {
		if _, err := Check(view(t, c.restrictions, c.columns), viewLayout); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestLengthsOf4GiBTakeNoMemory(t *testing.T) {
	requests := Handler(requestLayout, func(context.Context, *server.Call, *icertrequestd2.Request2Request) (*icertrequestd2.Ping2Response, error) {
		return &icertrequestd2.Ping2Response{}, nil
	})
	views := Handler(viewLayout, func(context.Context, *server.Call, *icertadmind.OpenViewRequest) (*icertrequestd2.Ping2Response, error) {
		return &icertrequestd2.Ping2Response{}, nil
	})
	extent := &dcom.ORPCExtent{ID: &dtyp.GUID{}, Size: 8, Data: make([]byte, 8)}
	for name, c := range map[string]struct {
		handle server.Handler
		good   []byte
	}{"Request2": {requests, request(t, this(extent))}, "OpenView": {views, view(t, 2, 2)}} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for at := 0; at+4 <= len(c.good); at += 4 {
			for _, value := range []uint32{0xffffffff, 0x7fffffff, 0x80000000} {
				stub := bytes.Clone(c.good)
				binary.LittleEndian.PutUint32(stub[at:], value)
				_, err := c.handle(t.Context(), &server.Call{}, stub)
				if f, ok := errors.AsType[*server.Fault](err); err != nil && (!ok || f.Status != pdu.BadStub) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
			t.Errorf("%s: %d octets", name, used)
		}
	}
	for n := range request(t, this(extent)) {
		if _, err := Check(request(t, this(extent))[:n], requestLayout); err == nil {
			t.Errorf("%d octets are a request", n)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(request(f, this()))
	f.Add(request(f, this(&dcom.ORPCExtent{ID: &dtyp.GUID{}, Size: 8, Data: make([]byte, 8)})))
	f.Add(view(f, 2, 2))
	f.Fuzz(func(t *testing.T, stub []byte) {
		for _, layout := range []Layout{requestLayout, viewLayout, {RefString(10), Filetime}} {
			if out, err := Check(stub, layout); err == nil && len(out) > len(stub) {
				t.Error("it grew")
			}
		}
	})
}
