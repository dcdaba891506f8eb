package rpc

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

func request2(t testing.TB, c icertrequestd2.CertRequestD2Client, in *icertrequestd2.Request2Request) *icertrequestd2.Request2Response {
	t.Helper()
	in.This = msrpc.This()
	if in.Authority == "" {
		in.Authority = world.CAName
	}
	if in.Request == nil {
		in.Request = blob(nil)
	}
	out, err := c.Request2(comContext(t), in)
	if out == nil {
		t.Fatal(err)
	}
	return out
}

func TestAnArchivedKeyComesByRequest2(t *testing.T) {
	w := start(t)
	c := dialD2(t, "alice", dcerpc.WithSeal())
	if _, err := c.Ping2(comContext(t), &icertrequestd2.Ping2Request{This: msrpc.This()}); err != nil {
		t.Fatal(err)
	}
	fetched, err := c.CertRequestD().GetCACert(comContext(t), &icertrequestd.GetCACertRequest{This: msrpc.This(), Chain: 1, Authority: world.CAName})
	if err != nil {
		t.Fatal(err)
	}
	cert := testpki.Cert(t, fetched.Out.Buffer)
	if !cert.Equal(exchange(t, w)) {
		t.Error("it is not the current exchange certificate")
	}
	der, key := world.Request(t, "LabUserSMIME", cert)
	out := request2(t, c, &icertrequestd2.Request2Request{Flags: cmc | full, Request: blob(der)})
	if out.Disposition != 3 || text(out.DispositionMessage.Buffer) != "Issued\x00" {
		t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	parsed, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseResponse(out.FullResponse.Buffer)
	if err != nil || !bytes.Equal(r.KeyHash, parsed.Archived.Hash) || !bytes.Equal(r.Certificate.Raw, out.EncodedCert.Buffer) {
		t.Errorf("the full response: %+v, %v", r, err)
	}
	recovered(t, w, key.Public())
}

func TestBothInterfacesEnroll(t *testing.T) {
	w := start(t)
	attributes := "CertificateTemplate:LabUserAuth\n"
	one := dialD(t, "alice", dcerpc.WithSeal())
	out, err := one.Request(comContext(t), &icertrequestd.RequestRequest{This: msrpc.This(), Flags: pkcs10, Authority: world.CAName, Attributes: attributes, Request: blob(csr(t))})
	if err != nil || out.Disposition != 3 {
		t.Fatal(err, out)
	}
	if r, err := wcce.ParseResponse(out.CertChain.Buffer); err != nil || !bytes.Equal(r.Certificate.Raw, out.EncodedCert.Buffer) {
		t.Error(err)
	}
	two := dialD2(t, "alice", dcerpc.WithSeal())
	enrolled := request2(t, two, &icertrequestd2.Request2Request{Flags: pkcs10, Attributes: attributes, Request: blob(csr(t))})
	if enrolled.Disposition != 3 {
		t.Fatalf("0x%x", enrolled.Disposition)
	}
	serial := testpki.Cert(t, enrolled.EncodedCert.Buffer).SerialNumber.Text(16)
	if len(serial)%2 != 0 {
		serial = "0" + serial
	}
	bob := dialD2(t, "bob", dcerpc.WithSeal())
	for name, c := range map[string]struct {
		client icertrequestd2.CertRequestD2Client
		in     icertrequestd2.Request2Request
		result hresult.Code
	}{
		"by serial number":         {two, icertrequestd2.Request2Request{SerialNumber: serial}, 0},
		"by number":                {two, icertrequestd2.Request2Request{RequestID: enrolled.RequestID}, 0},
		"by both":                  {two, icertrequestd2.Request2Request{RequestID: enrolled.RequestID, SerialNumber: serial}, hresult.InvalidArg},
		"by neither":               {two, icertrequestd2.Request2Request{}, hresult.InvalidArg},
		"another's":                {bob, icertrequestd2.Request2Request{SerialNumber: serial}, hresult.PropertyEmpty},
		"an unknown serial number": {two, icertrequestd2.Request2Request{SerialNumber: "0123"}, hresult.PropertyEmpty},
		"no serial number":         {two, icertrequestd2.Request2Request{SerialNumber: "xyz"}, hresult.InvalidArg},
	} {
		out := request2(t, c.client, &c.in)
		if hresult.Code(out.Return) != c.result || (c.result == 0) != (out.Disposition == 3 && bytes.Equal(out.EncodedCert.Buffer, enrolled.EncodedCert.Buffer)) {
			t.Errorf("%s: disposition 0x%x, %v", name, out.Disposition, hresult.Code(out.Return))
		}
	}
	row, err := w.Ledger.Get(background, int64(enrolled.RequestID))
	if err != nil || w.Revoke(background, row, "test", 1) != nil {
		t.Fatal(err)
	}
	if out := request2(t, two, &icertrequestd2.Request2Request{SerialNumber: serial}); out.Disposition != 6 || len(out.EncodedCert.Buffer) != 0 {
		t.Errorf("revoked: disposition 0x%x", out.Disposition)
	}
}

// TestRevocationListsComeWhereTheyAreWanted sets the flag for them ([MS-WCCE] 3.2.1.4.2.1); ICertPassage has it too.
func TestRevocationListsComeWhereTheyAreWanted(t *testing.T) {
	const withCRLs = 0x80000
	w := start(t)
	d2 := dialD2(t, "alice", dcerpc.WithSeal())
	revoked := enrollOne(t, w, d2)
	if err := w.Revoke(background, revoked, "test", 1); err != nil {
		t.Fatal(err)
	}
	attributes := "CertificateTemplate:LabUserAuth\n"
	passed := ask(t, mustDial(t, "alice", how{port: true}), &icertpassage.CertServerRequestRequest{Flags: pkcs10 | withCRLs, Attributes: template("LabUserAuth"), Request: blob(csr(t))})
	replies := map[string][]byte{"ICertPassage": passed.Cert.Buffer}
	for name, flags := range map[string]uint32{"certs-only": withCRLs, "full": withCRLs | full, "without": full} {
		out := request2(t, d2, &icertrequestd2.Request2Request{Flags: pkcs10 | flags, Attributes: attributes, Request: blob(csr(t))})
		replies[name] = out.FullResponse.Buffer
	}
	for name, der := range replies {
		shown, err := testpki.OpenSSL(t, der, "pkcs7", "-inform", "DER", "-print_certs", "-text")
		if err != nil || strings.Contains(string(shown), "BEGIN X509 CRL") != (name != "without") || strings.Contains(strings.ToLower(string(shown)), "serial number: "+revoked.Serial) != (name != "without") {
			t.Errorf("%s: %v: %s", name, err, shown)
		}
		if r, err := wcce.ParseResponse(der); err != nil || r.Certificate == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBelowPrivacyEveryMethodIsDenied(t *testing.T) {
	w := start(t)
	c := dialD2(t, "alice", dcerpc.WithSign())
	ctx := comContext(t)
	out := request2(t, c, &icertrequestd2.Request2Request{Flags: pkcs10, Attributes: "CertificateTemplate:LabUserAuth\n", Request: blob(csr(t))})
	property, _ := c.GetCAProperty(ctx, &icertrequestd2.GetCAPropertyRequest{This: msrpc.This(), Authority: world.CAName, PropertyID: 6, PropertyType: 4})
	info, _ := c.GetCAPropertyInfo(ctx, &icertrequestd2.GetCAPropertyInfoRequest{This: msrpc.This(), Authority: world.CAName})
	ping, _ := c.Ping2(ctx, &icertrequestd2.Ping2Request{This: msrpc.This()})
	cert, _ := c.CertRequestD().GetCACert(ctx, &icertrequestd.GetCACertRequest{This: msrpc.This(), Authority: world.CAName})
	if property == nil || info == nil || ping == nil || cert == nil {
		t.Fatal("a fault")
	}
	for name, result := range map[string]int32{"Request2": out.Return, "the disposition": int32(out.Disposition), "GetCAProperty": property.Return, "GetCAPropertyInfo": info.Return, "Ping2": ping.Return, "GetCACert": cert.Return} {
		if hresult.Code(uint32(result)) != hresult.AccessDenied {
			t.Errorf("%s: %v", name, hresult.Code(uint32(result)))
		}
	}
	if rows, err := w.Ledger.List(background, "", 10); err != nil || len(rows) != 0 {
		t.Errorf("%d requests, %v", len(rows), err)
	}
}

// caProperty asks for one property; the result is the method's.
func caProperty(t testing.TB, c icertrequestd2.CertRequestD2Client, id, index, kind int32) ([]byte, hresult.Code) {
	t.Helper()
	ctx, cancel := context.WithTimeout(comContext(t), 20*time.Second)
	defer cancel()
	out, err := c.GetCAProperty(ctx, &icertrequestd2.GetCAPropertyRequest{This: msrpc.This(), Authority: world.CAName, PropertyID: id, PropertyIndex: index, PropertyType: kind})
	if out == nil {
		t.Fatal(id, err)
	}
	if out.PropertyValue == nil {
		return nil, hresult.Code(uint32(out.Return))
	}
	return out.PropertyValue.Buffer, hresult.Code(uint32(out.Return))
}

func TestEveryPropertyHasItsValue(t *testing.T) {
	w := start(t)
	c := dialD2(t, "alice", dcerpc.WithSeal())
	ca := w.CAs[0]
	row := enrollOne(t, w, c)
	if err := w.Revoke(background, row, "test", 1); err != nil {
		t.Fatal(err)
	}
	snapshot := w.Directory.Snapshot()
	var templates strings.Builder
	for _, name := range snapshot.Service(world.CAName).Templates {
		if s := snapshot.TemplateByName(name); s != nil {
			templates.WriteString(s.Name + "\n" + s.OID + "\n")
		}
	}
	published, name := ca.Identity.Certificate(), "http://"+world.Env("LAB_GATEWAY")
	for id, want := range map[int32]string{
		3: "0", 5: "enrollgate\n", 6: world.CAName + "\n", 7: wcce.SanitizedName(world.CAName) + "\n", 11: "1", 14: "1", 0x13: "\x03", 0x14: "\x03", 0x15: "50",
		0x16: world.Env("LAB_GATEWAY") + "\n", 0x17: "0", 0x18: "1", 0x19: "1", 0x1b: "\x03", 0x1c: "1", 0x1d: templates.String() + "\n", 0x1e: "5", 0x22: "0",
		0x27: "0", 0x28: wcce.SanitizedShortName(world.CAName) + "\n", 0x29: name + "/crl/" + strings.ReplaceAll(world.CAName, " ", "%20") + ".crl\n\n",
		0x2a: name + "/aia/" + strings.ReplaceAll(world.CAName, " ", "%20") + ".crt\n\n", 0x2b: "\n", 0x2c: "en-US\n", 0x2d: "\n", 0x2e: "0",
	} {
		kind := int32(1)
		if strings.HasSuffix(want, "\n") {
			kind, want = 4, strings.TrimSuffix(want, "\n")+"\x00"
		}
		got, code := caProperty(t, c, id, 0, kind)
		shown := text(got)
		if kind == 1 {
			if shown = string(got); len(got) == 4 {
				shown = big.NewInt(int64(binary.LittleEndian.Uint32(got))).String()
			}
		}
		if code != 0 || shown != want {
			t.Errorf("property 0x%x: %q, %v, want %q", id, shown, code, want)
		}
	}
	for id, want := range map[int32][]byte{0x0c: published.Raw, 0x0f: exchange(t, w).Raw, 0x1a: w.Agent.Raw, 0x12: nil} {
		if got, code := caProperty(t, c, id, 0, 3); code != 0 || !bytes.Equal(got, want) {
			t.Errorf("property 0x%x: %d octets, %v", id, len(got), code)
		}
	}
	checkChains(t, w, c, row.Serial)
	checkRefused(t, c)
}

// checkChains lets OpenSSL read chains and the revocation list.
func checkChains(t *testing.T, w *world.World, c icertrequestd2.CertRequestD2Client, revoked string) {
	t.Helper()
	crl, code := caProperty(t, c, 0x11, -1, 3)
	shown, err := testpki.OpenSSL(t, crl, "crl", "-inform", "DER", "-noout", "-text", "-issuer")
	if code != 0 || err != nil || !strings.Contains(strings.ToLower(string(shown)), "serial number: "+revoked) {
		t.Errorf("the CRL: %v, %v: %s", code, err, shown)
	}
	var current icertrequestd.GetCACertRequest
	current.This, current.Authority, current.Chain = msrpc.This(), world.CAName, 0x6363726c
	if out, err := c.CertRequestD().GetCACert(comContext(t), &current); err != nil || !bytes.Equal(out.Out.Buffer, crl) {
		t.Error("GetCACert has another CRL", err)
	}
	chain := w.CAs[0].Identity.Chain()
	for id, want := range map[int32]struct {
		certs []*x509.Certificate
		crl   bool
	}{0x0d: {chain, false}, 0x20: {chain, true}, 0x10: {append([]*x509.Certificate{exchange(t, w)}, chain...), false}, 0x21: {append([]*x509.Certificate{exchange(t, w)}, chain...), true}} {
		der, code := caProperty(t, c, id, 0, 3)
		shown, err := testpki.OpenSSL(t, der, "pkcs7", "-inform", "DER", "-print_certs", "-text")
		if code != 0 || err != nil || strings.Count(string(shown), "BEGIN CERTIFICATE") != len(want.certs) || strings.Contains(string(shown), "BEGIN X509 CRL") != want.crl {
			t.Errorf("property 0x%x: %v, %v: %s", id, code, err, shown)
		}
		for _, cert := range want.certs {
			if !bytes.Contains(der, cert.Raw) {
				t.Errorf("property 0x%x lacks %s", id, cert.Subject)
			}
		}
	}
}

func checkRefused(t *testing.T, c icertrequestd2.CertRequestD2Client) {
	t.Helper()
	for _, p := range []struct {
		id, index, kind int32
		want            hresult.Code
	}{
		{0, 0, 1, hresult.InvalidArg}, {51, 0, 1, hresult.InvalidArg}, {-1, 0, 1, hresult.InvalidArg}, {6, 0, 1, hresult.InvalidArg}, {6, 1, 4, hresult.InvalidArg},
		{4, 0, 4, hresult.FileNotFound}, {8, 0, 4, hresult.FileNotFound}, {0x0c, 7, 3, hresult.InvalidArg}, {0x0c, -2, 3, hresult.InvalidArg}, {0x0f, 1, 3, hresult.InvalidArg},
		{0x13, -1, 1, hresult.InvalidArg}, {0x1a, 1, 3, hresult.FileNotFound}, {0x1f, 0, 1, hresult.FileNotFound}, {0x23, 0, 3, hresult.InvalidArg}, {0x24, 1, 3, hresult.InvalidArg},
		{0x2f, 0, 1, hresult.InvalidArg}, {0x32, 0, 1, hresult.InvalidArg},
	} {
		if got, code := caProperty(t, c, p.id, p.index, p.kind); code != p.want || len(got) != 0 {
			t.Errorf("property %d, index %d, type %d: %v, want %v", p.id, p.index, p.kind, code, p.want)
		}
	}
	out, _ := c.GetCAProperty(comContext(t), &icertrequestd2.GetCAPropertyRequest{This: msrpc.This(), Authority: "Other CA", PropertyID: 6, PropertyType: 4})
	if out == nil || hresult.Code(uint32(out.Return)) != hresult.InvalidArg {
		t.Error("another CA", out)
	}
}

func TestThePropertyTableNamesEveryProperty(t *testing.T) {
	start(t)
	c := dialD2(t, "alice", dcerpc.WithSeal())
	out, err := c.GetCAPropertyInfo(comContext(t), &icertrequestd2.GetCAPropertyInfoRequest{This: msrpc.This(), Authority: world.CAName})
	if err != nil || out.PropertyCount != 50 {
		t.Fatal(err, out)
	}
	b := out.PropertyInfo.Buffer
	for i := range int(out.PropertyCount) {
		id, kind, at := int32(binary.LittleEndian.Uint32(b[12*i:])), int32(b[12*i+4]), binary.LittleEndian.Uint32(b[12*i+8:])
		name, _, _ := strings.Cut(text(b[at:]), "\x00")
		if id != int32(i+1) || at%4 != 0 || len(name) < 6 {
			t.Errorf("property %d of type %d at %d: %q", id, kind, at, name)
		}
		if _, code := caProperty(t, c, id, 0, kind); code != 0 && code != hresult.FileNotFound && code != hresult.InvalidArg {
			t.Errorf("%s: %v", name, code)
		}
	}
	for what, want := range map[uint32]hresult.Code{0: 0, 1: 0, 0x66696c65: 0, 0x696e666f: 0, 0x6e616d65: 0, 0x706f6c69: 0, 0x70726f64: 0, 0x73616e69: 0, 0x74797065: 0,
		0x636c0000: 0, 0x63740000: 0, 0x736c0000: 0, 0x73740000: 0, 0x65780000: hresult.FileNotFound, 0x73686172: hresult.FileNotFound, 0x63740009: hresult.InvalidArg, 2: hresult.InvalidArg, 0xffffffff: hresult.InvalidArg} {
		out, _ := c.CertRequestD().GetCACert(comContext(t), &icertrequestd.GetCACertRequest{This: msrpc.This(), Authority: world.CAName, Chain: what})
		if out == nil || hresult.Code(uint32(out.Return)) != want || want == 0 && len(out.Out.Buffer) == 0 {
			t.Errorf("GetCACert 0x%x: %+v", what, out)
		}
	}
}

// enrollOne is a request of alice's that was issued.
func enrollOne(t testing.TB, w *world.World, c icertrequestd2.CertRequestD2Client) *ledger.Row {
	t.Helper()
	out := request2(t, c, &icertrequestd2.Request2Request{Flags: pkcs10, Attributes: "CertificateTemplate:LabUserAuth\n", Request: blob(csr(t))})
	row, err := w.Ledger.Get(background, int64(out.RequestID))
	if err != nil || out.Disposition != 3 {
		t.Fatal(err, out.Disposition)
	}
	return row
}
