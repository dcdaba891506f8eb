package certrequest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/msrpc/dcom"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/rpc/server/servertest"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// backend has one CA.
type backend struct {
	ca       *CA
	exchange *x509.Certificate
	calls    int
	err      error
}

func (b *backend) CA(name string) string { return name }

func (b *backend) Enroll(context.Context, templates.Caller, string, []wcce.NameValue, []byte) (*request.Reply, error) {
	b.calls++
	return &request.Reply{RequestID: 7, Message: "Issued", Certificate: []byte("certificate"), CertsOnly: []byte("chain"), Full: []byte("full")}, nil
}

func (b *backend) Poll(context.Context, templates.Caller, string) (*request.Reply, error) {
	b.calls++
	return &request.Reply{RequestID: 7, Revoked: true, Certificate: []byte("certificate")}, nil
}

func (b *backend) PollSerial(_ context.Context, _ templates.Caller, _, serial string) (*request.Reply, error) {
	b.calls++
	return nil, hresult.New(hresult.PropertyEmpty, "no %s", serial)
}

func (b *backend) Facts(_ context.Context, authority string) *CA {
	if authority == "" || authority == b.ca.Name {
		return b.ca
	}
	return nil
}

func (b *backend) Exchange(context.Context, string) (*x509.Certificate, error) {
	return b.exchange, b.err
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var now = time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)

// certificate is for a key, by another one; parent nil is itself.
func certificate(t testing.TB, name string, key *ecdsa.PrivateKey, parent *x509.Certificate, by *ecdsa.PrivateKey, end time.Time) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(end.Unix()), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(-3, 0, 0), NotAfter: end, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// renewed is a subordinate CA with four certificates: the first key, a second key twice, of which the second certificate is revoked, and a
// third key, which is the published one.
func renewed(t testing.TB) *backend {
	t.Helper()
	rootKey, keys := newKey(t), []*ecdsa.PrivateKey{newKey(t), newKey(t), newKey(t)}
	root := certificate(t, "Root", rootKey, nil, rootKey, now.AddDate(9, 0, 0))
	ca := &CA{Name: "Corp CA", Short: "Corp CA", DNSName: "enroll.corp.example", Version: "1.2.3.0", Locale: "en-US", Parent: `root.corp.example\Root`, Now: now, Required: 2,
		Templates: []Template{{"User", ""}, {"Mail", "1.2.3"}}}
	for i, key := range []*ecdsa.PrivateKey{keys[0], keys[1], keys[1], keys[2]} {
		end := now.AddDate(i-0, 0, 0)
		if i == 0 {
			end = now.AddDate(-1, 0, 0)
		}
		ca.Signing = append(ca.Signing, Signing{Certificate: certificate(t, "Corp CA", key, root, rootKey, end), Above: []*x509.Certificate{root}, Revoked: i == 2})
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.AddDate(0, 0, 7)}, ca.Signing[3].Certificate, keys[2])
	if err != nil {
		t.Fatal(err)
	}
	ca.Signing[3].CRL = func() ([]byte, error) { return crl, nil }
	return &backend{ca: ca, exchange: certificate(t, "Corp CA-Xchg", newKey(t), ca.Signing[1].Certificate, keys[1], now.AddDate(0, 0, 7))}
}

func TestIndexesArePlacesAmongTheCAsCertificates(t *testing.T) {
	b := renewed(t)
	m := &methods{b}
	get := func(id, index, kind int32) []byte {
		t.Helper()
		v, err := m.property(t.Context(), b.ca, id, index, kind)
		if err != nil {
			t.Errorf("property 0x%x, index %d: %v", id, index, err)
		}
		return v
	}
	for id, want := range map[int32][]byte{0x13: {4, 3, 2, 3}, 0x14: {4, 3, 2, 3}, 0x25: {1, 1, 1, 1}} {
		if got := get(id, 0, 1); !bytes.Equal(got, want) {
			t.Errorf("property 0x%x: %v, want %v", id, got, want)
		}
	}
	var versions []uint32
	for v := range slices.Chunk(get(0x27, 3, 1), 4) {
		versions = append(versions, binary.LittleEndian.Uint32(v))
	}
	if want := []uint32{0, 0x00010001, 0x00010002, 0x00030003}; !slices.Equal(versions, want) {
		t.Errorf("%x, want %x", versions, want)
	}
	for index, want := range map[int32]int{0: 0, 2: 2, 3: 3, -1: 3} {
		if !bytes.Equal(get(0x0c, index, 3), b.ca.Signing[want].Certificate.Raw) {
			t.Errorf("certificate %d", index)
		}
	}
	for index, want := range map[int32]uint32{0: 0x800B0101, 1: 0, 2: 0x800B010C, 3: 0, -1: 0} {
		if got := binary.LittleEndian.Uint32(get(0x22, index, 1)); got != want {
			t.Errorf("certificate %d: 0x%x", index, got)
		}
	}
	if len(get(0x11, 0, 3)) != 0 || len(get(0x11, -1, 3)) == 0 || binary.LittleEndian.Uint32(get(0x1e, 0, 1)) != 0 || binary.LittleEndian.Uint32(get(0x1e, 3, 1)) != 5 {
		t.Error("CRLs")
	}
	if got := get(0x10, -1, 3); !bytes.Contains(got, b.ca.Signing[1].Certificate.Raw) || bytes.Contains(got, b.ca.Signing[3].Certificate.Raw) {
		t.Error("the exchange certificate has another chain")
	}
	for id, want := range map[int32]string{9: `root.corp.example\Root`, 0x1d: "User\n\nMail\n1.2.3\n"} {
		if got := get(id, 0, 4); !bytes.Equal(got, request.EncodeText(want)) {
			t.Errorf("property 0x%x: %q", id, got)
		}
	}
	for _, p := range [][3]int32{{0x1a, 0, 3}, {0x1b, 0, 1}, {0x23, 3, 3}, {0x23, 0, 3}, {0x24, 0, 3}, {0x24, 1, 3}, {0x25, 3, 1}, {0x27, 4, 1}, {0x0c, 4, 3}} {
		if _, err := m.property(t.Context(), b.ca, p[0], p[1], p[2]); err == nil {
			t.Errorf("property 0x%x has index %d", p[0], p[1])
		}
	}
}

func TestSinglePropertiesAreOfTheirType(t *testing.T) {
	b := renewed(t)
	m := &methods{b}
	for i := range properties {
		p := &properties[i]
		if p.id != int32(i+1) {
			t.Fatalf("property %d is at %d", p.id, i)
		}
		for kind := range int32(6) {
			if _, err := m.property(t.Context(), b.ca, p.id, 0, kind); kind != int32(p.kind) && hresult.From(err).Code != hresult.InvalidArg {
				t.Errorf("%s is of type %d too: %v", p.name, kind, err)
			}
		}
		for _, index := range []int32{-2, 1 << 30, -1 << 31} {
			if _, err := m.property(t.Context(), b.ca, p.id, index, int32(p.kind)); err == nil {
				t.Errorf("%s has the index %d", p.name, index)
			}
		}
	}
	info := caInfo(b.ca)
	if want := []uint32{40, 1, 4, 1, 0, 50, 0, 2, 0, 1}; len(info) != 40 {
		t.Errorf("%d octets", len(info))
	} else {
		for i, v := range want {
			if got := binary.LittleEndian.Uint32(info[4*i:]); got != v {
				t.Errorf("field %d of CAINFO: %d, want %d", i, got, v)
			}
		}
	}
}

func call() *server.Call {
	return &server.Call{Caller: &templates.Caller{Principal: "alice@CORP.EXAMPLE"}, Level: pdu.LevelPrivacy}
}

// stubs are good requests of every operation of ICertRequestD2.
func stubs(t testing.TB) map[uint16][]byte {
	this := &dcom.ORPCThis{Version: &dcom.COMVersion{MajorVersion: 5, MinorVersion: 7}, CID: &dcom.CID{}}
	out := map[uint16][]byte{}
	for operation, in := range map[uint16]ndr.Marshaler{
		3: &icertrequestd.RequestRequest{This: this, Authority: "Corp CA", Attributes: "a:b", Request: request.Blob([]byte("request."))},
		4: &icertrequestd.GetCACertRequest{This: this, Authority: "Corp CA"},
		5: &icertrequestd.PingRequest{This: this},
		6: &icertrequestd2.Request2Request{This: this, Authority: "Corp CA", SerialNumber: "12", Attributes: "a:b", Request: request.Blob([]byte("request."))},
		7: &icertrequestd2.GetCAPropertyRequest{This: this, Authority: "Corp CA", PropertyID: 6, PropertyType: 4},
		8: &icertrequestd2.GetCAPropertyInfoRequest{This: this, Authority: "Corp CA"},
		9: &icertrequestd2.Ping2Request{This: this},
	} {
		b, err := ndr.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out[operation] = b
	}
	return out
}

func TestLowerLevelsDoNotReachTheBackend(t *testing.T) {
	b := renewed(t)
	for _, i := range Interfaces(b) {
		for operation := range i.Operations {
			for _, c := range []*server.Call{{Level: pdu.LevelPrivacy}, {Caller: call().Caller, Level: pdu.LevelIntegrity}} {
				c.Operation = operation
				out, err := i.Handle(t.Context(), c, stubs(t)[operation])
				if err != nil || hresult.Code(binary.LittleEndian.Uint32(out[len(out)-4:])) != hresult.AccessDenied {
					t.Errorf("%s of %s: %x, %v", i.Operations[operation], i.Name, out, err)
				}
			}
		}
	}
	if b.calls != 0 {
		t.Error("the backend was called")
	}
}

func TestLengthsOf4GiBTakeNoMemory(t *testing.T) {
	i := Interfaces(renewed(t))[1]
	servertest.Lengths(t, i, stubs(t), call, 16<<20)
}

func FuzzStubs(f *testing.F) {
	for operation, stub := range stubs(f) {
		f.Add(operation, stub)
	}
	i := Interfaces(renewed(f))[1]
	f.Fuzz(func(t *testing.T, operation uint16, stub []byte) {
		c := call()
		c.Operation = operation
		_, _ = i.Handle(t.Context(), c, stub)
	})
}
