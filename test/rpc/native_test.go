package rpc

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	iobjectexporter "github.com/oiweiwei/go-msrpc/msrpc/dcom/iobjectexporter/v0"
	iremunknown "github.com/oiweiwei/go-msrpc/msrpc/dcom/iremunknown/v0"
	icertrequestd "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd/v0"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/client"
	gatewayconfig "github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
	"github.com/enrollgate/enrollgate/test/world"
)

// startWatched is start with metrics.
func startWatched(t testing.TB) *world.World {
	return world.StartChanged(t, "", func(c *gatewayconfig.Config) {
		listen(c)
		c.Listen.Metrics = world.Env("LAB_GW_IP") + ":9464"
	})
}

// metric is the line of a metric without labels.
func metric(t testing.TB, name string) string {
	t.Helper()
	reply, err := http.Get("http://" + world.Env("LAB_GW_IP") + ":9464/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return ""
}

// TestAClientEnrollsInTheOrderOfWindows goes through all that Windows does for its own enrollment policy ([MS-DCOM] 3.2.4.1.1, [MS-WCCE] 3.1.1.4):
// is anybody there, activation by the old interface, the new one of the same object, the exchange certificate, a request with the private key, the
// CA's chain and templates, pings, and the release.
func TestAClientEnrollsInTheOrderOfWindows(t *testing.T) {
	w := startWatched(t)
	w.CopyTemplate(t, "LabMachine", "MachineArchived", map[string]string{"mspki-cert-template-oid": "1.3.6.1.4.1.311.21.8.4711.90",
		"mspki-private-key-flag": strconv.Itoa(0x01010000 | 1)})
	for account, template := range map[string]string{"alice": "LabUserSMIME", "WS1$": "MachineArchived"} {
		t.Run(account, func(t *testing.T) {
			c := dialDCOM(t, account, dcerpc.WithSeal())
			key, cert := windowsOrder(t, w, c, template)
			recoveredFrom(t, w, account, key.Public())
			if account == "WS1$" && !strings.Contains(strings.Join(cert.DNSNames, " "), "ws1.lab.test") {
				t.Error(cert.DNSNames)
			}
			if got := metric(t, "enrollgate_dcom_objects"); got != "0" {
				t.Errorf("%s objects are left", got)
			}
		})
	}
}

// windowsOrder enrolls for an archival template and returns what was archived and issued.
func windowsOrder(t testing.TB, w *world.World, c *dcomClient, template string) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	anonymous, err := iobjectexporter.NewObjectExporterClient(c.Ctx, c.Open("ncacn_ip_tcp:[135]"), dcerpc.WithInsecure())
	if err == nil {
		_, err = anonymous.ServerAlive2(c.Ctx, &iobjectexporter.ServerAlive2Request{})
	}
	if err != nil {
		t.Fatal(err)
	}
	a := c.MustActivate(msrpc.ClassRequest, icertrequestd.CertRequestDIID)
	found, err := c.unknown(a.Unknown).RemoteUnknown().RemoteQueryInterface(c.Ctx, &iremunknown.RemoteQueryInterfaceRequest{This: msrpc.This(), IPID: a.IPIDs[0].GUID(),
		ReferencesCount: 5, IIDs: []*msdcom.IID{icertrequestd2.CertRequestD2IID}})
	if err != nil {
		t.Fatal(err)
	}
	second := found.QueryInterfaceResults[0].Std.IPID
	d2, err := icertrequestd2.NewCertRequestD2Client(c.Ctx, c.Calls, append(c.Options, msdcom.WithIPID(second))...)
	if err != nil {
		t.Fatal(err)
	}
	fetched, code := caProperty(t, d2, 0x0f, 0, 3)
	if code != 0 || !testpki.Cert(t, fetched).Equal(exchange(t, w)) {
		t.Fatal("the exchange certificate", code)
	}
	der, key := world.Request(t, template, testpki.Cert(t, fetched))
	cert := issuedInFull(t, d2, der)
	chain, code := caProperty(t, d2, 0x0d, 0, 3)
	if code != 0 || !bytes.Contains(chain, w.CAs[0].Identity.Certificate().Raw) || cert.CheckSignatureFrom(w.CAs[0].Identity.Certificate()) != nil {
		t.Error("the chain of the CA", code)
	}
	if list, code := caProperty(t, d2, 0x1d, 0, 4); code != 0 || !strings.Contains(text(list), template+"\n") {
		t.Errorf("the templates: %q, %v", text(list), code)
	}
	pingAs(t, c, a.OIDs[0])
	refs := []*msdcom.RemoteInterfaceReference{{IPID: a.IPIDs[0], PublicReferencesCount: 5}, {IPID: second, PublicReferencesCount: 5}}
	if _, err := c.unknown(a.Unknown).RemoteUnknown().RemoteRelease(c.Ctx, &iremunknown.RemoteReleaseRequest{This: msrpc.This(), InterfaceReferences: refs}); err != nil {
		t.Error(err)
	}
	wantCode(t, c.ping2(second), disconnected)
	return key, cert
}

// issuedInFull sends a CMC request and checks the full response, the hash of the archived key among it.
func issuedInFull(t testing.TB, d2 icertrequestd2.CertRequestD2Client, der []byte) *x509.Certificate {
	t.Helper()
	out := request2(t, d2, &icertrequestd2.Request2Request{Flags: cmc | full, Request: blob(der)})
	if out.Disposition != 3 || text(out.DispositionMessage.Buffer) != "Issued\x00" {
		t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	sent, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseResponse(out.FullResponse.Buffer)
	if err != nil || sent.Archived != nil && !bytes.Equal(r.KeyHash, sent.Archived.Hash) || !bytes.Equal(r.Certificate.Raw, out.EncodedCert.Buffer) {
		t.Fatalf("the full response: %+v, %v", r, err)
	}
	return r.Certificate
}

// pingAs makes a ping set with an object, pings it, and takes the object out again.
func pingAs(t testing.TB, c *dcomClient, oid uint64) {
	t.Helper()
	resolver, err := iobjectexporter.NewObjectExporterClient(c.Ctx, c.Resolver, c.Options...)
	if err != nil {
		t.Fatal(err)
	}
	p := &complexPing{sequence: 1, add: []uint64{oid}}
	if err := resolver.Conn().Invoke(c.Ctx, p); err != nil || p.status != 0 || p.set == 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := resolver.SimplePing(c.Ctx, &iobjectexporter.SimplePingRequest{SetID: p.set}); err != nil {
		t.Error(err)
	}
	p = &complexPing{set: p.set, sequence: 2, remove: []uint64{oid}}
	if err := resolver.Conn().Invoke(c.Ctx, p); err != nil || p.status != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// complexPing is IObjectExporter::ComplexPing ([MS-DCOM] 3.1.2.5.1.3); go-msrpc's own leaves the pointers out.
type complexPing struct {
	set         uint64
	sequence    uint16
	add, remove []uint64
	backoff     uint16
	status      uint32
}

func (*complexPing) OpNum() int     { return 2 }
func (*complexPing) OpName() string { return "/IObjectExporter/v0/ComplexPing" }

func (p *complexPing) MarshalNDRRequest(_ context.Context, w ndr.Writer) error {
	values := []any{p.set, p.sequence, uint16(len(p.add)), uint16(len(p.remove))}
	for i, list := range [][]uint64{p.add, p.remove} {
		if list == nil {
			values = append(values, uint32(0))
			continue
		}
		values = append(values, uint32(0x20000+4*i), uint32(len(list)))
		for _, oid := range list {
			values = append(values, oid)
		}
	}
	for _, v := range values {
		if err := w.WriteData(v); err != nil {
			return err
		}
	}
	return nil
}

func (p *complexPing) UnmarshalNDRResponse(_ context.Context, r ndr.Reader) error {
	for _, v := range []any{&p.set, &p.backoff, &p.status} {
		if err := r.ReadData(v); err != nil {
			return err
		}
	}
	return nil
}

func (*complexPing) UnmarshalNDRRequest(context.Context, ndr.Reader) error { panic("no server") }
func (*complexPing) MarshalNDRResponse(context.Context, ndr.Writer) error  { panic("no server") }

// TestTheRecordedWindowsRequestComesByDCOM is what a Windows client sent once, with its private key, by Request2.
func TestTheRecordedWindowsRequestComesByDCOM(t *testing.T) {
	recorded := vectors.Read(t, "ejbca/user-enroll-1.cmc.der")
	w := start(t)
	parsed := recordedTemplate(t, w, recorded, "RecordedByDCOM")
	d2 := dialD2(t, "alice", dcerpc.WithSeal())
	if out := request2(t, d2, &icertrequestd2.Request2Request{Flags: cmc | full, Request: blob(recorded)}); hresult.Code(out.Disposition) != hresult.BadRequestKeyArchival || out.RequestID == 0 {
		t.Errorf("a key for another CA: 0x%x, request %d", out.Disposition, out.RequestID)
	}
	cert, key := vectors.ExchangeCertificate(t, parsed.Archived.Raw)
	if err := w.Escrow.ImportExchange(background, world.CAName, cert, key, time.Now().Add(time.Hour), "test"); err != nil {
		t.Fatal(err)
	}
	issuedInFull(t, d2, recorded)
	recovered(t, w, parsed.CSR.PublicKey)
}

// sentOn takes what the enroll command sends, and sends it on by DCOM, or by ICertPassage.
type sentOn struct {
	soap.Backend
	t        *testing.T
	policies *soap.Policies
	d2       icertrequestd2.CertRequestD2Client
	passage  icertpassage.CertPassageClient // nil: by DCOM
}

func (o *sentOn) Policies(context.Context, templates.Caller, soap.GetPoliciesRequest) (*soap.Policies, error) {
	return o.policies, nil
}

func (o *sentOn) ExchangeCertificate(context.Context, templates.Caller, string) ([]byte, error) {
	der, code := caProperty(o.t, o.d2, 0x0f, 0, 3)
	if code != 0 {
		return nil, hresult.New(code, "GetCAProperty")
	}
	return der, nil
}

func (o *sentOn) Enroll(_ context.Context, _ templates.Caller, in soap.TokenRequest) (*soap.TokenReply, error) {
	var answer struct {
		id, disposition uint32
		full, cert      []byte
	}
	if o.passage != nil {
		out := ask(o.t, o.passage, &icertpassage.CertServerRequestRequest{Flags: cmc | full, Request: blob(in.Token)})
		answer.id, answer.disposition, answer.full, answer.cert = out.RequestID, out.Disposition, out.Cert.Buffer, out.EncodedCert.Buffer
	} else {
		out := request2(o.t, o.d2, &icertrequestd2.Request2Request{Flags: cmc | full, Request: blob(in.Token)})
		answer.id, answer.disposition, answer.full, answer.cert = out.RequestID, out.Disposition, out.FullResponse.Buffer, out.EncodedCert.Buffer
	}
	if answer.disposition != 3 {
		return nil, hresult.New(hresult.Code(answer.disposition), "refused")
	}
	return &soap.TokenReply{RequestID: strconv.Itoa(int(answer.id)), PKCS7: answer.full, Certificate: answer.cert}, nil
}

// TestARequestOfTheEnrollCommandComesByRPC has its own code make the request, and check the full response and the archived key's hash in it.
func TestARequestOfTheEnrollCommandComesByRPC(t *testing.T) {
	w := start(t)
	d2 := dialD2(t, "alice", dcerpc.WithSeal())
	for name, passage := range map[string]icertpassage.CertPassageClient{"DCOM": nil, "ICertPassage": mustDial(t, "alice", how{})} {
		alice := w.Client(t, "alice")
		policies, err := alice.GetPolicies(background, alice.CEP, soap.GetPoliciesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		handler := soap.NewHandler(&sentOn{t: t, policies: policies, d2: d2, passage: passage}, soap.Options{})
		ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handler.ServeHTTP(w, r.WithContext(kerberos.WithCaller(r.Context(), templates.Caller{Principal: "alice@LAB.TEST"})))
		}))
		t.Cleanup(ts.Close)
		for i := range policies.CAs {
			for j := range policies.CAs[i].URIs {
				u := &policies.CAs[i].URIs[j].URI
				*u = strings.Replace(*u, "https://"+world.Env("LAB_GATEWAY"), ts.URL, 1)
			}
		}
		r, err := client.Enroll(background, client.Options{PolicyURL: ts.URL + soap.Kerberos.CEPPath, HTTP: ts.Client(), Template: "LabUserSMIME"})
		if err != nil || r.Pending || !r.ArchivedConfirmed {
			t.Fatalf("%s: %+v, %v", name, r, err)
		}
		row, err := w.Ledger.BySerial(background, world.CAName, r.Certificate.SerialNumber.Text(16))
		if err != nil || row.Transport != "rpc" || !row.Archived {
			t.Fatalf("%s: %+v, %v", name, row, err)
		}
		entries, err := w.Escrow.List(background, "alice", 10)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(entries, func(e escrow.Entry) bool { return e.RequestID == row.ID })
		if i < 0 {
			t.Fatalf("%s: the key is not among %d", name, len(entries))
		}
		got, err := w.Escrow.Recover(background, &entries[i], w.AgentKey, w.Agent, "test", "drill")
		if err != nil || !r.Key.(*rsa.PrivateKey).Equal(got.Key) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecordedRequestsFareAlikeByEveryWay sends every request that was recorded of a Windows client, as it is, by HTTPS, ICertPassage and DCOM: what
// becomes of it is the same, and none is a fault.
func TestRecordedRequestsFareAlikeByEveryWay(t *testing.T) {
	recorded := vectors.Requests(t)
	w := start(t)
	d2, passage, https := dialD2(t, "alice", dcerpc.WithSeal()), mustDial(t, "alice", how{}), w.Client(t, "alice")
	for name, der := range recorded {
		byDCOM := request2(t, d2, &icertrequestd2.Request2Request{Request: blob(der)})
		byICPR := ask(t, passage, &icertpassage.CertServerRequestRequest{Request: blob(der)})
		want := uint32(3)
		if _, err := https.Submit(t, der); err != nil {
			e, ok := errors.AsType[*hresult.Error](err)
			if !ok {
				t.Errorf("%s: %v", name, err)
				continue
			}
			want = uint32(e.Code)
		}
		if byDCOM.Disposition != want || byICPR.Disposition != want || byDCOM.Return != int32(byICPR.Return) {
			t.Errorf("%s: by HTTPS 0x%x, by ICertPassage 0x%x, by DCOM 0x%x", name, want, byICPR.Disposition, byDCOM.Disposition)
		}
	}
	t.Logf("%d requests", len(recorded))
}
