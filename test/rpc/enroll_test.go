package rpc

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
	"github.com/enrollgate/enrollgate/test/world"
)

const (
	pkcs10 = 0x100
	cmc    = 0x400
	full   = 0x40000
)

func csr(t testing.TB) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, testpki.RSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEveryProtectionEnrolls(t *testing.T) {
	start(t)
	for name, h := range map[string]how{
		"SPNEGO by the endpoint mapper": {},
		"bare Kerberos":                 {bare: true, port: true},
		"RPCSS":                         {target: "RPCSS/enroll.lab.test", port: true},
		"the short name":                {target: "RPCSS/enroll", port: true},
		"HTTP":                          {target: "HTTP/enroll.lab.test", port: true},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial(t, "alice", h)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				out := ask(t, c, &icertpassage.CertServerRequestRequest{Flags: pkcs10, Attributes: template("LabUserAuth"), Request: blob(csr(t))})
				if out.Disposition != 3 || out.RequestID == 0 || text(out.DispositionMessage.Buffer) != "Issued\x00" {
					t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
				}
				cert := testpki.Cert(t, out.EncodedCert.Buffer)
				r, err := wcce.ParseResponse(out.Cert.Buffer)
				if err != nil || !r.Certificate.Equal(cert) || len(r.Chain) == 0 {
					t.Errorf("the chain: %v", err)
				}
			}
		})
	}
}

// exchange is what clients encrypt keys to; over RPC it is fetched by DCOM.
func exchange(t testing.TB, w *world.World) *x509.Certificate {
	t.Helper()
	der, err := w.ExchangeCertificate(background, world.CAName)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

func TestAnArchivedKeyComesByRPC(t *testing.T) {
	w := start(t)
	der, key := world.Request(t, "LabUserSMIME", exchange(t, w))
	c := mustDial(t, "alice", how{})
	out := ask(t, c, &icertpassage.CertServerRequestRequest{Flags: cmc | full, Request: blob(der)})
	if out.Disposition != 3 {
		t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	parsed, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseResponse(out.Cert.Buffer)
	if err != nil || !bytes.Equal(r.KeyHash, parsed.Archived.Hash) || !bytes.Equal(r.Certificate.Raw, out.EncodedCert.Buffer) {
		t.Errorf("the full response: %+v, %v", r, err)
	}
	recovered(t, w, key.Public())
	row, err := w.Ledger.Get(background, int64(out.RequestID))
	if err != nil || row.Transport != "rpc" || !row.Archived || row.Caller != "alice@LAB.TEST" {
		t.Errorf("%+v, %v", row, err)
	}
}

// recovered wants alice's one archived key.
func recovered(t testing.TB, w *world.World, public any) {
	t.Helper()
	recoveredFrom(t, w, "alice", public)
}

// recoveredFrom wants the one archived key of an owner.
func recoveredFrom(t testing.TB, w *world.World, owner string, public any) {
	t.Helper()
	entries, err := w.Escrow.List(background, owner, 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d archived keys, %v", len(entries), err)
	}
	got, err := w.Escrow.Recover(background, &entries[0], w.AgentKey, w.Agent, "test", "drill")
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := got.Key.(*rsa.PrivateKey); !ok || !k.PublicKey.Equal(public) {
		t.Error("the recovered key is not that of the request")
	}
}

// recordedTemplate makes the template that a recorded request is for.
func recordedTemplate(t testing.TB, w *world.World, der []byte, name string) *wcce.Request {
	t.Helper()
	parsed, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	w.CopyTemplate(t, "LabUserSMIME", name, map[string]string{"mspki-cert-template-oid": parsed.Template.OID,
		"revision": strconv.Itoa(parsed.Template.Major), "mspki-template-minor-revision": strconv.Itoa(parsed.Template.Minor)})
	return parsed
}

func TestTheRecordedWindowsRequestComesByRPC(t *testing.T) {
	recorded := vectors.Read(t, "ejbca/user-enroll-1.cmc.der")
	w := start(t)
	parsed := recordedTemplate(t, w, recorded, "RecordedByRPC")
	c := mustDial(t, "alice", how{bare: true, port: true})
	in := &icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(recorded)}
	if out := ask(t, c, in); hresult.Code(out.Disposition) != hresult.BadRequestKeyArchival || out.Return != 0 || out.RequestID == 0 {
		t.Errorf("a key for another CA: 0x%x, request %d", out.Disposition, out.RequestID)
	}
	cert, key := vectors.ExchangeCertificate(t, parsed.Archived.Raw)
	if err := w.Escrow.ImportExchange(background, world.CAName, cert, key, time.Now().Add(time.Hour), "test"); err != nil {
		t.Fatal(err)
	}
	if out := ask(t, c, in); out.Disposition != 3 {
		t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	recovered(t, w, parsed.CSR.PublicKey)
}

func TestPendingAndWhatBecameOfIt(t *testing.T) {
	w := start(t)
	helpdesk := mustDial(t, "helpdesk", how{port: true})
	submit := func() uint32 {
		t.Helper()
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "www.lab.test"}, DNSNames: []string{"www.lab.test"}}, testpki.RSA(t, 2048))
		if err != nil {
			t.Fatal(err)
		}
		out := ask(t, helpdesk, &icertpassage.CertServerRequestRequest{Flags: pkcs10, Attributes: template("LabWebServer"), Request: blob(der)})
		if out.Disposition != 5 || out.RequestID == 0 || len(out.EncodedCert.Buffer) != 0 || text(out.DispositionMessage.Buffer) != "Taken Under Submission\x00" {
			t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
		}
		return out.RequestID
	}
	id := submit()
	poll := &icertpassage.CertServerRequestRequest{RequestID: id}
	if out := ask(t, helpdesk, poll); out.Disposition != 5 || out.RequestID != id {
		t.Errorf("disposition 0x%x", out.Disposition)
	}
	if err := w.Ledger.Decide(background, int64(id), "manager", true, ""); err != nil {
		t.Fatal(err)
	}
	if out := ask(t, helpdesk, poll); out.Disposition != 3 || testpki.Cert(t, out.EncodedCert.Buffer).Subject.CommonName != "www.lab.test" {
		t.Errorf("disposition 0x%x", out.Disposition)
	}
	alice := mustDial(t, "alice", how{port: true})
	for name, out := range map[string]*icertpassage.CertServerRequestResponse{
		"another's": ask(t, alice, poll), "none": ask(t, alice, &icertpassage.CertServerRequestRequest{RequestID: 999999}),
	} {
		if hresult.Code(out.Return) != hresult.PropertyEmpty || len(out.EncodedCert.Buffer) != 0 {
			t.Errorf("%s: 0x%x", name, out.Return)
		}
	}
	id = submit()
	if err := w.Ledger.Decide(background, int64(id), "manager", false, "not this name"); err != nil {
		t.Fatal(err)
	}
	if out := ask(t, helpdesk, &icertpassage.CertServerRequestRequest{RequestID: id}); out.Disposition != 2 || !strings.Contains(text(out.DispositionMessage.Buffer), "not this name") {
		t.Errorf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
}

func TestRefusalsHaveTheirHRESULT(t *testing.T) {
	start(t)
	der, _ := world.Request(t, "LabUserSMIME", nil)
	bob, alice := mustDial(t, "bob", how{port: true}), mustDial(t, "alice", how{port: true})
	for name, c := range map[string]struct {
		client      icertpassage.CertPassageClient
		in          icertpassage.CertServerRequestRequest
		disposition hresult.Code
		result      hresult.Code
	}{
		"not his template":   {bob, icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(der)}, hresult.TemplateDenied, 0},
		"no key":             {alice, icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(der)}, hresult.ArchivedKeyRequired, 0},
		"no template":        {alice, icertpassage.CertServerRequestRequest{Flags: pkcs10, Request: blob(csr(t))}, hresult.UnsupportedCertType, 0},
		"unknown template":   {alice, icertpassage.CertServerRequestRequest{Request: blob(csr(t)), Attributes: template("None")}, hresult.UnsupportedCertType, 0},
		"garbage":            {alice, icertpassage.CertServerRequestRequest{Request: blob([]byte("garbage"))}, hresult.InvalidData, 0},
		"not what flags say": {alice, icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(csr(t))}, hresult.InvalidData, 0},
		"keygen":             {alice, icertpassage.CertServerRequestRequest{Flags: 0x200, Request: blob(csr(t))}, hresult.NotSupported, hresult.NotSupported},
		"another CA":         {alice, icertpassage.CertServerRequestRequest{Authority: "Other CA", Request: blob(csr(t))}, hresult.InvalidArg, hresult.InvalidArg},
		"nothing":            {alice, icertpassage.CertServerRequestRequest{}, hresult.InvalidArg, hresult.InvalidArg},
		"odd attributes":     {alice, icertpassage.CertServerRequestRequest{Request: blob(csr(t)), Attributes: blob([]byte("abc"))}, hresult.InvalidArg, hresult.InvalidArg},
		"on behalf of": {alice, icertpassage.CertServerRequestRequest{Request: blob(csr(t)), Attributes: blob(utf16Text("CertificateTemplate:LabUserAuth\nRequesterName:LAB\\bob\n\x00"))},
			hresult.InvalidArg, hresult.InvalidArg},
	} {
		out := ask(t, c.client, &c.in)
		if hresult.Code(out.Disposition) != c.disposition || hresult.Code(out.Return) != c.result || len(out.EncodedCert.Buffer) != 0 || len(out.DispositionMessage.Buffer) < 10 {
			t.Errorf("%s: disposition %v, result %v, %q", name, hresult.Code(out.Disposition), hresult.Code(out.Return), text(out.DispositionMessage.Buffer))
		}
	}
}

func TestLongRequestsAndAnswersAreFragmented(t *testing.T) {
	w := start(t)
	var names []string
	for i := range 400 {
		names = append(names, fmt.Sprintf("host%03d.lab.test", i))
	}
	for name, h := range map[string]how{"SPNEGO": {}, "Kerberos": {bare: true, port: true}} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "many"}, DNSNames: names}, testpki.RSA(t, 2048))
		if err != nil || len(der) < 6000 {
			t.Fatal(err, len(der))
		}
		c := mustDial(t, "helpdesk", h)
		out := ask(t, c, &icertpassage.CertServerRequestRequest{Flags: pkcs10, Attributes: template("LabWebServer"), Request: blob(der)})
		if out.Disposition != 5 {
			t.Fatalf("%s: disposition 0x%x, %q", name, out.Disposition, text(out.DispositionMessage.Buffer))
		}
		if err := w.Ledger.Decide(background, int64(out.RequestID), "manager", true, ""); err != nil {
			t.Fatal(err)
		}
		out = ask(t, c, &icertpassage.CertServerRequestRequest{Flags: full, RequestID: out.RequestID})
		if out.Disposition != 3 || len(testpki.Cert(t, out.EncodedCert.Buffer).DNSNames) != 400 || len(out.Cert.Buffer) < 6000 {
			t.Errorf("%s: disposition 0x%x, %d octets", name, out.Disposition, len(out.Cert.Buffer))
		}
	}
}
