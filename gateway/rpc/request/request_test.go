package request

import (
	"context"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

func TestAttributesAreLines(t *testing.T) {
	got := ParseAttributes("CertificateTemplate:User\r\nno colon\n:no name\n  Re-quester Name : LAB\\bob \nurl:http://x/y\n\x00")
	want := []wcce.NameValue{{Name: "CertificateTemplate", Value: "User"}, {Name: "RequesterName", Value: "LAB\\bob"}, {Name: "url", Value: "http://x/y"}}
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%q, want %q", got[i], want[i])
		}
	}
	if n := len(ParseAttributes(strings.Repeat("a:b\n", 100000))); n != maxPairs {
		t.Errorf("%d pairs", n)
	}
}

func TestTextIsUTF16(t *testing.T) {
	for _, text := range []string{"", "Grüße 🦊"} {
		got, err := DecodeText(EncodeText(text))
		if err != nil || got != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	for name, b := range map[string][]byte{"odd": []byte("abc"), "no zero": {65, 0}, "too long": make([]byte, MaxAttributes+2)} {
		if _, err := DecodeText(b); hresult.From(err).Code != hresult.InvalidArg {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFlagsAndWhatTheySay(t *testing.T) {
	pkcs10 := []byte{0x30, 4, 0x30, 2, 0x30, 0}
	cms := []byte{0x30, 3, 6, 1, 42}
	for flags, want := range map[uint32][2]hresult.Code{
		0: {0, 0}, 0x100: {0, hresult.InvalidData}, 0x300: {hresult.InvalidData, 0}, 0x400: {hresult.InvalidData, 0}, 0x200: {hresult.NotSupported, hresult.NotSupported},
		0x500: {hresult.NotSupported, hresult.NotSupported}, 0x600: {hresult.NotSupported, hresult.NotSupported}, 0x700: {hresult.InvalidArg, hresult.InvalidArg},
		0x04000100: {hresult.NotSupported, hresult.NotSupported}, 0x00320100: {0, hresult.InvalidData}, // bits that certcli keeps for itself
	} {
		for i, der := range [][]byte{pkcs10, cms} {
			err := checkFlags(flags, der)
			if (err == nil) != (want[i] == 0) || err != nil && hresult.From(err).Code != want[i] {
				t.Errorf("0x%x, %d: %v, want %v", flags, i, err, want[i])
			}
		}
	}
	if wireID(1<<32) != 0 || wireID(-1) != 0 || wireID(5) != 5 {
		t.Error("numbers")
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add(EncodeText("CertificateTemplate:User\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := DecodeText(b)
		if err != nil {
			return
		}
		for _, a := range ParseAttributes(text) {
			if a.Name == "" || strings.ContainsAny(a.Name, " -\n") {
				t.Errorf("%q", a)
			}
		}
	})
}

// twoCAs have one request, which is of the CA A.
type twoCAs struct{ refused bool }

func (twoCAs) CA(authority string) string { return authority }

func (twoCAs) Enroll(context.Context, templates.Caller, string, []wcce.NameValue, []byte) (*Reply, error) {
	panic("not asked for")
}

func (b twoCAs) Poll(context.Context, templates.Caller, string) (*Reply, error) {
	if b.refused {
		return nil, &Refusal{RequestID: 7, CA: "A", Err: hresult.New(hresult.AdminDeniedRequest, "no")}
	}
	return &Reply{RequestID: 7, CA: "A", Certificate: []byte("certificate")}, nil
}

func (b twoCAs) PollSerial(ctx context.Context, caller templates.Caller, _, _ string) (*Reply, error) {
	return b.Poll(ctx, caller, "")
}

func TestARequestIsOfOneCA(t *testing.T) {
	for _, refused := range []bool{false, true} {
		b := twoCAs{refused}
		if out, _ := Do(t.Context(), b, templates.Caller{}, Args{Authority: "A", RequestID: 7}); out.RequestID != 7 || out.Result != 0 {
			t.Errorf("%+v", out)
		}
		out, err := Do(t.Context(), b, templates.Caller{}, Args{Authority: "B", RequestID: 7})
		if hresult.From(err).Code != hresult.PropertyEmpty || out.Certificate != nil || out.Result != hresult.PropertyEmpty || out.Disposition == Denied {
			t.Errorf("asked about at another CA: %+v, %v", out, err)
		}
	}
}
