package icpr

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/rpc/server/servertest"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// backend remembers what it was asked.
type backend struct {
	calls      int
	attributes []wcce.NameValue
}

func (*backend) CA(name string) string {
	if strings.EqualFold(name, "Corp CA") {
		return "Corp CA"
	}
	return ""
}

func (b *backend) Enroll(_ context.Context, caller templates.Caller, _ string, attributes []wcce.NameValue, der []byte) (*request.Reply, error) {
	b.calls++
	b.attributes = attributes
	if string(der) == "refuse" {
		return nil, &request.Refusal{RequestID: 8, Err: hresult.New(hresult.TemplateDenied, "%s may not", caller.Principal)}
	}
	return &request.Reply{RequestID: 7, Message: "Issued", Certificate: []byte("certificate"), CertsOnly: []byte("chain"), Full: []byte("full")}, nil
}

func (b *backend) Poll(_ context.Context, _ templates.Caller, id string) (*request.Reply, error) {
	b.calls++
	return &request.Reply{RequestID: 9, Pending: true, Message: "pending " + id, Full: []byte("full")}, nil
}

func (b *backend) PollSerial(_ context.Context, _ templates.Caller, _, serial string) (*request.Reply, error) {
	b.calls++
	return nil, hresult.New(hresult.PropertyEmpty, "no %s", serial)
}

func call() *server.Call {
	return &server.Call{Caller: &templates.Caller{Principal: "alice@CORP.EXAMPLE"}, Level: pdu.LevelPrivacy}
}

func stubOf(t testing.TB, in *icertpassage.CertServerRequestRequest) []byte {
	t.Helper()
	stub, err := ndr.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return stub
}

func TestACallReachesThePipeline(t *testing.T) {
	b := &backend{}
	i := Interface(b)
	text := request.EncodeText("CertificateTemplate: User\nbad line\nrmd:pc.corp.example\n")
	for name, c := range map[string]struct {
		in   icertpassage.CertServerRequestRequest
		want icertpassage.CertServerRequestResponse
	}{
		"issued": {icertpassage.CertServerRequestRequest{Authority: "corp ca", Attributes: request.Blob(text), Request: request.Blob([]byte("request"))},
			icertpassage.CertServerRequestResponse{RequestID: 7, Disposition: 3, Cert: request.Blob([]byte("chain")), EncodedCert: request.Blob([]byte("certificate"))}},
		"with a full response": {icertpassage.CertServerRequestRequest{Flags: 0x40000, Authority: "Corp CA", Attributes: request.Blob(nil), Request: request.Blob([]byte("request"))},
			icertpassage.CertServerRequestResponse{RequestID: 7, Disposition: 3, Cert: request.Blob([]byte("full")), EncodedCert: request.Blob([]byte("certificate"))}},
		"refused": {icertpassage.CertServerRequestRequest{Authority: "Corp CA", Attributes: request.Blob(nil), Request: request.Blob([]byte("refuse"))},
			icertpassage.CertServerRequestResponse{RequestID: 8, Disposition: uint32(hresult.TemplateDenied)}},
		"pending": {icertpassage.CertServerRequestRequest{Authority: "Corp CA", RequestID: 9, Attributes: request.Blob(nil), Request: request.Blob(nil)},
			icertpassage.CertServerRequestResponse{RequestID: 9, Disposition: 5}},
		"no CA": {icertpassage.CertServerRequestRequest{Attributes: request.Blob(nil), Request: request.Blob([]byte("x"))},
			icertpassage.CertServerRequestResponse{Disposition: uint32(hresult.InvalidArg), Return: uint32(hresult.InvalidArg)}},
	} {
		out, err := i.Handle(t.Context(), call(), stubOf(t, &c.in))
		if err != nil {
			t.Fatal(name, err)
		}
		var got icertpassage.CertServerRequestResponse
		if err := ndr.Unmarshal(out, &got); err != nil {
			t.Fatal(name, err)
		}
		if got.RequestID != c.want.RequestID || got.Disposition != c.want.Disposition || got.Return != c.want.Return ||
			c.want.Cert != nil && (string(got.Cert.Buffer) != string(c.want.Cert.Buffer) || string(got.EncodedCert.Buffer) != "certificate") || len(got.DispositionMessage.Buffer) == 0 {
			t.Errorf("%s: %+v", name, got)
		}
		if name == "issued" && (len(b.attributes) != 2 || b.attributes[0] != wcce.NameValue{Name: "CertificateTemplate", Value: "User"}) {
			t.Errorf("%+v", b.attributes)
		}
	}
}

func TestLowerLevelsDoNotReachThePipeline(t *testing.T) {
	b := &backend{}
	i := Interface(b)
	stub := stubOf(t, &icertpassage.CertServerRequestRequest{Authority: "Corp CA", Attributes: request.Blob(nil), Request: request.Blob([]byte("request"))})
	for _, c := range []*server.Call{{Level: pdu.LevelPrivacy}, {Caller: call().Caller, Level: pdu.LevelIntegrity}} {
		if _, err := i.Handle(t.Context(), c, stub); err == nil {
			t.Errorf("%+v", c)
		}
	}
	if b.calls != 0 || i.Least != pdu.LevelPrivacy {
		t.Error("it was called")
	}
}

func TestLengthsOf4GiBTakeNoMemory(t *testing.T) {
	i := Interface(&backend{})
	good := stubOf(t, &icertpassage.CertServerRequestRequest{Authority: "Corp CA", Attributes: request.Blob([]byte("at")), Request: request.Blob([]byte("request."))})
	servertest.Lengths(t, i, map[uint16][]byte{0: good}, call, 4<<20)
	binary.LittleEndian.PutUint32(good[16:], 0xffffffff)
	_, err := i.Handle(t.Context(), call(), good)
	if f, ok := errors.AsType[*server.Fault](err); !ok || f.Status != pdu.BadStub {
		t.Error(err)
	}
}

func FuzzStub(f *testing.F) {
	f.Add(stubOf(f, &icertpassage.CertServerRequestRequest{Authority: "Corp CA", Attributes: request.Blob(request.EncodeText("a:b")), Request: request.Blob([]byte("request"))}))
	i := Interface(&backend{})
	f.Fuzz(func(t *testing.T, stub []byte) {
		_, _ = i.Handle(t.Context(), call(), stub)
	})
}
