package pdu

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

// bind is a PDU that a Windows client has sent: two contexts with NDR and NDR64, and the features.
func bind(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, HeaderSize)
	b = binary.LittleEndian.AppendUint16(b, 5840)
	b = binary.LittleEndian.AppendUint16(b, 5840)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = append(b, 3, 0, 0, 0)
	icpr := Syntax{UUID: MustUUID("91ae6020-9e3c-11cf-8d7c-00aa00c091be")}
	for i, transfer := range []Syntax{NDR, NDR64, FeatureSyntax(3)} {
		b = binary.LittleEndian.AppendUint16(b, uint16(i))
		b = append(b, 1, 0)
		b = transfer.append(icpr.append(b))
	}
	return finish(b, KindBind, Whole|HeaderSigning, 1, &Auth{Trailer{Type: AuthNegotiate, Level: LevelPrivacy, Context: 9}, []byte("token")})
}

func TestABindIsReadWhole(t *testing.T) {
	p, err := Parse(bind(t))
	if err != nil {
		t.Fatal(err)
	}
	if p.Trailer == nil || p.Trailer.Type != AuthNegotiate || p.Trailer.Level != LevelPrivacy || p.Trailer.Context != 9 || string(p.Token) != "token" {
		t.Errorf("%+v", p.Trailer)
	}
	b, err := ParseBind(p)
	if err != nil || len(b.Elements) != 3 || b.MaxRecv != 5840 || b.Elements[1].Transfer[0] != NDR64 || b.Elements[1].ID != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	if f, ok := b.Elements[2].Transfer[0].Features(); !ok || f != 3 {
		t.Errorf("features %v %v", f, ok)
	}
	if _, ok := NDR.Features(); ok {
		t.Error("NDR is no feature")
	}
}

func TestMalformedPDUsAreRefused(t *testing.T) {
	change := func(at int, value ...byte) []byte {
		b := bind(t)
		copy(b[at:], value)
		return b
	}
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":             {nil, "need 16"},
		"version 4":           {change(0, 4), "version 4.0"},
		"big-endian":          {change(4, 0), "data representation"},
		"EBCDIC":              {change(4, 0x11), "data representation"},
		"an unknown type":     {change(2, 99), "unknown"},
		"connectionless type": {change(2, 1), "unknown"},
		"a long request":      {change(2, 0, 3, 16, 0, 0, 0, 0xff, 0xff), "5840"},
		"a short one":         {change(8, 3, 0), "length 3"},
		"a token that is all": {change(10, 0xff, 0xff), "length"},
		"cut off":             {bind(t)[:50], "50 octets"},
		"padding beyond all":  {change(len(bind(t))-5-6, 255), "padding"},
	} {
		if _, err := Parse(c.raw); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, raw := range map[string][]byte{
		"no contexts": change(24, 0), "too many contexts": change(24, 200), "too many syntaxes": change(30, 255), "no syntax": change(30, 0), "tiny fragments": change(18, 100, 0),
	} {
		p, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := ParseBind(p); err == nil {
			t.Errorf("%s: %+v", name, b)
		}
	}
}

func TestUUIDsTravelLittleEndian(t *testing.T) {
	want, _ := hex.DecodeString("045d888aeb1cc9119fe808002b104860")
	if !bytes.Equal(NDR.UUID[:], want) || NDR.UUID.String() != "8a885d04-1ceb-11c9-9fe8-08002b104860" {
		t.Errorf("%x %v", NDR.UUID, NDR.UUID)
	}
	if a, b := NewUUID(), NewUUID(); a == b || a.IsZero() {
		t.Error("not random")
	}
}

func TestAFragmentHasItsParts(t *testing.T) {
	for n := range 40 {
		f := NewFragment(Whole, 7, 2, uint32(n), bytes.Repeat([]byte{1}, n), &Trailer{Type: AuthKerberos, Level: LevelPrivacy, Context: 3}, 76)
		if len(f.Stub)%16 != 0 || len(f.Header)+len(f.Stub)+len(f.Security)+len(f.Token) != len(f.Raw) {
			t.Fatalf("%d: %d octets", n, len(f.Raw))
		}
		p, err := Parse(f.Raw)
		if err != nil || p.Kind != KindResponse || p.Call != 7 || p.Trailer.Pad != len(f.Stub)-n || len(p.Token) != 76 || !bytes.Equal(p.Body[8:], f.Stub) {
			t.Fatalf("%d: %+v, %v", n, p, err)
		}
	}
	f := NewFragment(Whole, 7, 2, 3, []byte("abc"), nil, 76)
	if len(f.Raw) != 27 || f.Token != nil {
		t.Errorf("%x", f.Raw)
	}
}

func verification(commands ...[]byte) []byte {
	b := append([]byte("stub data 12"), verificationSignature...)
	for i, c := range commands {
		command := binary.LittleEndian.Uint16(c)
		if i == len(commands)-1 {
			command |= commandEnd
		}
		b = binary.LittleEndian.AppendUint16(b, command)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(c)-2))
		b = append(b, c[2:]...)
	}
	return b
}

func TestVerificationTrailers(t *testing.T) {
	iface := Syntax{UUID: MustUUID("91ae6020-9e3c-11cf-8d7c-00aa00c091be")}
	want := Expected{HeaderSigning: true, Interface: iface, Request: &Request{Context: 1, Operation: 2}, Call: 5}
	context := NDR.append(iface.append([]byte{2, 0}))
	header := []byte{3, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 5, 0, 0, 0, 1, 0, 2, 0}
	bitmask := []byte{1, 0, 1, 0, 0, 0}
	stub, err := CheckVerification(verification(bitmask, context, header), want)
	if err != nil || string(stub) != "stub data 12" {
		t.Errorf("%q, %v", stub, err)
	}
	if stub, err := CheckVerification([]byte("stub data 12"), want); err != nil || len(stub) != 12 {
		t.Errorf("%q, %v", stub, err)
	}
	unsigned := want
	unsigned.HeaderSigning = false
	if _, err := CheckVerification(verification(bitmask), unsigned); err == nil {
		t.Error("header signing was taken away, and nobody has seen it")
	}
	context[5] ^= 1
	header[10] ^= 1
	for name, b := range map[string][]byte{
		"another interface": verification(context), "another call": verification(header), "an unknown command": verification([]byte{9, 0x80}),
		"cut off": verification(bitmask)[:22], "no end": append(verification(), 1, 0, 0, 0),
	} {
		if _, err := CheckVerification(b, want); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := CheckVerification(verification([]byte{9, 0}), want); err != nil {
		t.Errorf("an unknown command that need not be understood: %v", err)
	}
}

// TestPaddingCutsNoVerificationTrailerOff: who changes what is signed only with header signing must not get rid of what tells of it.
func TestPaddingCutsNoVerificationTrailerOff(t *testing.T) {
	stub := verification(append([]byte{2, 0}, NDR.append(NDR.append(nil))...))
	for pad := range 256 {
		b := append(make([]byte, HeaderSize+8), stub...)
		b = Trailer{Type: AuthKerberos, Level: LevelPrivacy, Pad: pad}.append(b)
		b = append(b, "token"...)
		putHeader(b, Header{Kind: KindRequest, Flags: Whole, Length: len(b), AuthLength: 5})
		p, err := Parse(b)
		if err != nil {
			continue
		}
		r, err := ParseRequest(p)
		if err != nil {
			continue
		}
		if rest, err := CheckVerification(r.Stub[:len(r.Stub)-pad], Expected{Interface: NDR, Request: r}); err == nil && pad > 0 {
			t.Errorf("%d octets of padding leave %d of %d, and no trailer", pad, len(rest), len(stub))
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(bind(f))
	f.Add(NewFragment(Whole, 7, 2, 3, []byte("abc"), nil, 0).Raw)
	f.Add(EncodeFault(0, 1, 2, AccessDenied))
	f.Add(EncodeNak(1, NakAuthType))
	request := NewFragment(Whole|HasObject, 7, 2, 3, make([]byte, 64), &Trailer{Type: 16, Level: 6}, 76).Raw
	request[2] = byte(KindRequest)
	f.Add(request)
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Parse(raw)
		if err != nil {
			return
		}
		if len(p.Body)+len(p.Token)+len(p.Security)+HeaderSize != len(raw) {
			t.Error("parts are missing")
		}
		if b, err := ParseBind(p); err == nil && (len(b.Elements) == 0 || len(b.Elements) > 255) {
			t.Error("contexts")
		}
		if r, err := ParseRequest(p); err == nil {
			if p.HeaderLength()-HeaderSize+len(r.Stub) != len(p.Body) {
				t.Error("a part of the stub is missing")
			}
		}
	})
}

func FuzzVerification(f *testing.F) {
	f.Add(verification([]byte{1, 0, 1, 0, 0, 0}, []byte{2, 0}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, stub []byte) {
		out, err := CheckVerification(stub, Expected{Request: &Request{}})
		if err == nil && !bytes.HasPrefix(stub, out) {
			t.Error("another stub")
		}
	})
}
