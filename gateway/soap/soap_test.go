package soap

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

var update = flag.Bool("update", false, "write the golden files anew")

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, b []byte) *envelope {
	t.Helper()
	env, err := parseEnvelope(b, requestLimits)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run go test -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got), run go test -update if that is intended:\n%s", name, diff)
	}
}

func number(n uint32) *uint32 { return &n }

var ignoreEncoded = cmpopts.IgnoreUnexported(Policies{})

// fullPolicies has a value in every element.
func fullPolicies() *Policies {
	eku := OIDRef{"1.3.6.1.4.1.311.20.2.1", GroupEKU, "Certificate Request Agent"}
	return &Policies{
		ID: "{6C1AB0A5-3E4B-4D6F-9C25-7A5F0B1D2E83}", FriendlyName: `Politique <"d'essai"> & ß`, NextUpdateHours: number(8),
		Policies: []Policy{{
			OID: OIDRef{"1.3.6.1.4.1.311.21.8.1.2.3", GroupTemplate, "Lab S/MIME"}, CAs: []int{1, 0}, CommonName: "LabUserSMIME", Schema: 2,
			ValidityPeriodSeconds: 31536000, RenewalPeriodSeconds: 3628800, Enroll: true, AutoEnroll: true,
			PrivateKey: PrivateKeyAttributes{MinimalKeyLength: 2048, KeySpec: number(1), KeyUsage: number(0xffffff), Permissions: "D:(A;;GA;;;SY)",
				Algorithm: &OIDRef{"1.2.840.113549.1.1.1", GroupPublicKey, "RSA"}, Providers: []string{"Provider A", "Provider B"}},
			MajorRevision: 100, MinorRevision: number(4), Superseded: []string{"User", "Old"},
			PrivateKeyFlags: number(0x01010011), SubjectNameFlags: number(0xA6000000), EnrollmentFlags: number(0x29), GeneralFlags: number(0x2023A),
			HashAlgorithm: &OIDRef{"2.16.840.1.101.3.4.2.1", GroupHash, "SHA256"},
			RA:            &RARequirements{Signatures: 1, EKUs: []OIDRef{eku}, Policies: []OIDRef{{"1.2.3.4", GroupPolicy, "High"}}},
			Archival:      &KeyArchival{Algorithm: OIDRef{"2.16.840.1.101.3.4.1.42", GroupEncryption, "AES256"}, KeyLength: 256},
			Extensions:    []Extension{{OID: OIDRef{"2.5.29.15", GroupExtension, "Key Usage"}, Critical: true, Value: []byte{3, 2, 5, 0xa0}}, {OID: OIDRef{"2.5.29.37", GroupExtension, ""}}},
		}, {
			OID: OIDRef{"1.2.3.9", GroupTemplate, ""}, CommonName: "Bare", Schema: 1, RA: &RARequirements{Signatures: 1, EKUs: []OIDRef{eku}},
		}},
		CAs: []CA{
			{URIs: []CAURI{{ClientAuthentication: AuthKerberos, URI: "https://enroll.lab.test/A%20CA_CES_Kerberos/service.svc/CES?a=1&b=2", Priority: number(1)},
				{ClientAuthentication: AuthCertificate, URI: "https://enroll.lab.test/x", RenewalOnly: true}}, Certificate: []byte{0x30, 3, 2, 1, 1}, EnrollPermission: true},
			{URIs: []CAURI{{ClientAuthentication: AuthKerberos, URI: "https://enroll.lab.test/b"}}, Certificate: []byte{0x30, 0}},
		},
	}
}

// lines is a document as one path and text per line, for comparison that sees the order but not prefixes or layout.
func lines(e *element, path string) []string {
	path += "/" + e.name.Local
	out := []string{path + " nil=" + e.attr(nsInstance, "nil") + " " + strings.TrimSpace(e.text)}
	for _, c := range e.children {
		out = append(out, lines(c, path)...)
	}
	return out
}

func TestRequestsOfForeignClientsParse(t *testing.T) {
	req, err := parseGetPolicies(mustParse(t, read(t, "cepces-getpolicies.request.xml")))
	if diff := cmp.Diff(GetPoliciesRequest{MessageID: "urn:uuid:4fe1c3e5-7f29-4602-a569-1de6ffeb1861", Action: actionGetPolicies}, req); err != nil || diff != "" {
		t.Errorf("GetPolicies: %v\n%s", err, diff)
	}
	for _, name := range []string{"cepces-issue.request.xml", "gpupdate-issue.request.xml"} {
		req, err := parseTokenRequest(mustParse(t, read(t, name)))
		if err != nil || req.Kind != Issue || req.RequestID != "" {
			t.Fatalf("%s: %+v %v", name, req, err)
		}
		csr, err := x509.ParseCertificateRequest(req.Token)
		if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != "ws1.lab.test" {
			t.Errorf("%s: the token is not the client's PKCS#10: %v", name, err)
		}
	}
	poll, err := parseTokenRequest(mustParse(t, read(t, "cepces-poll.request.xml")))
	if err != nil || poll.Kind != QueryTokenStatus || poll.RequestID != "113" || poll.Token != nil {
		t.Errorf("poll: %+v %v", poll, err)
	}
}

// TestAllRecordedRequestsParse reads every exchange that was recorded with cepces, certmonger and samba-gpupdate.
func TestAllRecordedRequestsParse(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "captures")
	names, err := filepath.Glob(filepath.Join(dir, "*.request.txt"))
	if err != nil || len(names) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("the recorded exchanges are absent")
		}
		t.Skip("the recorded exchanges are absent; those in testdata are read by the other tests")
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		head, body, _ := bytes.Cut(b, []byte("\r\n\r\n"))
		env := mustParse(t, body)
		if bytes.Contains(head, []byte("/CEP HTTP/1.1")) {
			_, err = parseGetPolicies(env)
		} else {
			_, err = parseTokenRequest(env)
		}
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
	}
}

// TestSpecificationExamplesParse reads the examples of [MS-WSTEP] and [MS-XCEP], as printed but for line breaks inside
// of URIs.
func TestSpecificationExamplesParse(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "vectors")
	if _, err := os.Stat(dir); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("the protocol vectors are absent: ", err)
		}
		t.Skip("the protocol vectors are absent: ", err)
	}
	load := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.ReplaceAll(b, []byte("/\n"), []byte("/"))
	}
	for _, tc := range []struct {
		file, token string
		kind        Kind
		id          string
	}{
		{"4.1.1.1.xml", "4.1.1.1-tok0.der", Issue, ""},
		{"4.1.2.1.xml", "", KeyExchange, ""},
		{"4.1.3.1.xml", "", QueryTokenStatus, "65"},
		{"4.1.5.1.xml", "4.1.5.1-tok0.der", Issue, ""},
	} {
		t.Run(tc.file, func(t *testing.T) {
			req, err := parseTokenRequest(mustParse(t, load("ms-wstep/"+tc.file)))
			if err != nil {
				t.Fatal(err)
			}
			var want []byte
			if tc.token != "" {
				want = load("ms-wstep/" + tc.token)
			}
			if req.Kind != tc.kind || req.RequestID != tc.id || !bytes.Equal(req.Token, want) {
				t.Errorf("kind %v, id %q, token of %d octets, want %d", req.Kind, req.RequestID, len(req.Token), len(want))
			}
		})
	}
	t.Run("replies", func(t *testing.T) {
		reply, err := decodeTokenReply(mustParse(t, load("ms-wstep/4.1.1.2.xml")).body)
		if err != nil || reply.RequestID != "61" || reply.Message != "Issued" || !bytes.Equal(reply.PKCS7, load("ms-wstep/4.1.1.2-tok0.der")) ||
			!bytes.Equal(reply.Certificate, load("ms-wstep/4.1.1.2-tok1.der")) {
			t.Errorf("issued: %v", err)
		}
		exchange, err := decodeKeyExchange(mustParse(t, load("ms-wstep/4.1.2.2.xml")).body)
		if err != nil || !bytes.Equal(exchange, load("ms-wstep/4.1.2.2-tok0.der")) {
			t.Errorf("exchange certificate: %v", err)
		}
	})
	t.Run("credentials in the message", func(t *testing.T) {
		body := load("ms-xcep/4.1.1.1.xml")
		env, err := parseEnvelope(body, requestLimits)
		if err != nil || env.credentials == nil || env.credentials.User != "" { // the specification leaves them out
			t.Fatalf("credentials %+v, %v", env.credentials, err)
		}
		refused := post(t, NewHandler(&fakeBackend{}, Options{}), "POST", Kerberos.CEPPath, contentType, string(body), true)
		if text := refused.Body.String(); !strings.Contains(text, "MustUnderstand") || !strings.Contains(text, env.messageID) {
			t.Errorf("on an endpoint for Kerberos: %s", text)
		}
	})
}

func TestPoliciesSurviveTheWire(t *testing.T) {
	for name, want := range map[string]*Policies{
		"full":        fullPolicies(),
		"empty":       {ID: "{x}"},
		"not changed": {ID: "{x}", FriendlyName: "y", NextUpdateHours: number(8), NotChanged: true},
	} {
		t.Run(name, func(t *testing.T) {
			msg := reply{}.message(actionGetPoliciesReply, func(w *writer) { w.Write(want.Encode()) })
			got, err := decodePolicies(mustParse(t, msg).body)
			if diff := cmp.Diff(want, got, ignoreEncoded, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			golden(t, "policies-"+strings.ReplaceAll(name, " ", "-")+".xml", msg)
		})
	}
}

// TestPoliciesHaveTheOrderOfAReplyThatClientsAccepted decodes a recorded reply and encodes it again.
func TestPoliciesHaveTheOrderOfAReplyThatClientsAccepted(t *testing.T) {
	accepted := mustParse(t, read(t, "accepted-getpolicies.reply.xml"))
	p, err := decodePolicies(accepted.body)
	if err != nil {
		t.Fatal(err)
	}
	ours := mustParse(t, reply{}.message(actionGetPoliciesReply, func(w *writer) { w.Write(p.Encode()) }))
	if diff := cmp.Diff(lines(accepted.body, ""), lines(ours.body, "")); diff != "" {
		t.Errorf("(-accepted +ours)\n%s", diff)
	}
}

func TestOIDTableHasEachOIDOncePerGroup(t *testing.T) {
	p := fullPolicies()
	root := mustParse(t, reply{}.message("x", func(w *writer) { w.Write(p.Encode()) })).body
	table, err := root.need(nsPolicy, "oIDs")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, o := range (&reader{e: table, space: nsPolicy}).all("oID") {
		key := o.text("value") + " " + o.text("group")
		if seen[key] {
			t.Errorf("%s is there twice", key)
		}
		seen[key] = true
	}
	if len(seen) != 9 {
		t.Errorf("%d OIDs, want 9: %v", len(seen), seen)
	}
}

func TestTokenRepliesHaveTheOrderOfRepliesThatClientsAccepted(t *testing.T) {
	for _, name := range []string{"accepted-issued.reply.xml", "accepted-pending.reply.xml"} {
		t.Run(name, func(t *testing.T) {
			accepted := mustParse(t, read(t, name))
			tr, err := decodeTokenReply(accepted.body)
			if err != nil {
				t.Fatal(err)
			}
			ours := mustParse(t, reply{relatesTo: accepted.relatesTo}.message(actionTokenReply, tr.encode))
			if diff := cmp.Diff(lines(accepted.body, ""), lines(ours.body, "")); diff != "" {
				t.Errorf("(-accepted +ours)\n%s", diff)
			}
			if ours.action != accepted.action || ours.relatesTo != accepted.relatesTo {
				t.Errorf("headers %q %q", ours.action, ours.relatesTo)
			}
		})
	}
}

func TestFaultHasTheOrderOfAFaultThatClientsAccepted(t *testing.T) {
	accepted := mustParse(t, read(t, "accepted-denied.reply.xml"))
	err := decodeFault(accepted.body)
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code != hresult.TemplateDenied || !strings.Contains(e.Text, "Denied by Policy Module") {
		t.Fatalf("decoded as %v", err)
	}
	status, msg := encodeFault(e, reply{relatesTo: accepted.relatesTo})
	ours := mustParse(t, msg)
	if diff := cmp.Diff(lines(accepted.body, ""), lines(ours.body, "")); diff != "" || status != 500 {
		t.Errorf("status %d (-accepted +ours)\n%s", status, diff)
	}
	golden(t, "fault.xml", msg)
}

// fakeBackend answers with what the test gave it.
type fakeBackend struct {
	caller templates.Caller
	get    GetPoliciesRequest
	token  TokenRequest
	ca     string

	policies *Policies
	reply    *TokenReply
	der      []byte
	err      error
	panics   bool
}

func (f *fakeBackend) Policies(_ context.Context, c templates.Caller, r GetPoliciesRequest) (*Policies, error) {
	f.caller, f.get = c, r
	return f.policies, f.err
}

func (f *fakeBackend) Enroll(_ context.Context, c templates.Caller, r TokenRequest) (*TokenReply, error) {
	if f.panics {
		panic("a bug")
	}
	f.caller, f.token = c, r
	return f.reply, f.err
}

func (f *fakeBackend) Poll(ctx context.Context, c templates.Caller, r TokenRequest) (*TokenReply, error) {
	return f.Enroll(ctx, c, r)
}

func (f *fakeBackend) ExchangeCertificate(_ context.Context, c templates.Caller, ca string) ([]byte, error) {
	f.caller, f.ca = c, ca
	return f.der, f.err
}

// serve runs the handler with alice as the caller of each request.
func serve(t *testing.T, b Backend, opts Options) (*Client, string) {
	t.Helper()
	h := NewHandler(b, opts)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(kerberos.WithCaller(r.Context(), templates.Caller{Principal: "alice@LAB.TEST"})))
	}))
	t.Cleanup(s.Close)
	return &Client{HTTP: s.Client()}, s.URL
}

const cesPath = "/LAB%20Issuing%20CA_CES_Kerberos/service.svc/CES"

func TestClientAndHandlerUnderstandEachOther(t *testing.T) {
	b := &fakeBackend{policies: fullPolicies()}
	c, url := serve(t, b, Options{ActivityID: func() string { return "95427c83-902c-48db-9529-f61cc1d8c035" }})
	get := GetPoliciesRequest{LastUpdate: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), PreferredLanguage: "de-DE", PolicyOIDs: []string{"1.2.3", "1.2.4"}, ClientVersion: 6, ServerVersion: 4}
	p, err := c.GetPolicies(t.Context(), url+Kerberos.CEPPath, get)
	if diff := cmp.Diff(b.policies, p, ignoreEncoded, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("policies: %v\n%s", err, diff)
	}
	if diff := cmp.Diff(get, b.get, cmpopts.IgnoreFields(GetPoliciesRequest{}, "MessageID", "Action")); diff != "" || b.caller.Principal != "alice@LAB.TEST" {
		t.Errorf("request of %q:\n%s", b.caller.Principal, diff)
	}

	for name, tc := range map[string]struct {
		req   TokenRequest
		reply TokenReply
	}{
		"issued": {TokenRequest{Kind: Issue, Token: []byte{0x30, 3, 2, 1, 1}, Context: []ContextItem{{"ccm", "ws1 <&>"}}},
			TokenReply{RequestID: "61", Message: "Issued", Language: "en-US", PKCS7: []byte{0x30, 1, 0}, Certificate: []byte{0x30, 0}}},
		"pending": {TokenRequest{Kind: QueryTokenStatus, RequestID: "113"},
			TokenReply{Pending: true, RequestID: "113", Message: "En attente", Language: "fr-FR", Reference: "https://other.test/x?a&b"}},
	} {
		t.Run(name, func(t *testing.T) {
			b.reply = &tc.reply
			got, err := c.RequestToken(t.Context(), url+cesPath, tc.req)
			if diff := cmp.Diff(&tc.reply, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("reply: %v\n%s", err, diff)
			}
			tc.req.CA = "LAB Issuing CA"
			if diff := cmp.Diff(tc.req, b.token, cmpopts.IgnoreFields(TokenRequest{}, "MessageID", "Action")); diff != "" {
				t.Errorf("request:\n%s", diff)
			}
		})
	}

	b.der = []byte{0x30, 3, 2, 1, 7}
	if der, err := c.KeyExchange(t.Context(), url+cesPath); err != nil || !bytes.Equal(der, b.der) || b.ca != "LAB Issuing CA" {
		t.Errorf("exchange certificate %x for %q: %v", der, b.ca, err)
	}
}

func TestPendingReplyPointsToItsOwnEndpoint(t *testing.T) {
	c, url := serve(t, &fakeBackend{reply: &TokenReply{Pending: true, RequestID: "7"}}, Options{})
	got, err := c.RequestToken(t.Context(), url+cesPath, TokenRequest{Kind: QueryTokenStatus, RequestID: "7"})
	if want := strings.Replace(url, "http:", "https:", 1) + cesPath; err != nil || got.Reference != want || got.Message != "Taken Under Submission" {
		t.Errorf("%+v %v, want %s", got, err, want)
	}
}

func TestFaultsReachTheClient(t *testing.T) {
	b := &fakeBackend{}
	c, url := serve(t, b, Options{})
	for name, tc := range map[string]struct {
		err  error
		code hresult.Code
		text string
		id   string
	}{
		"a refusal":         {hresult.New(hresult.TemplateDenied, "alice may not enroll").WithFix("grant it"), hresult.TemplateDenied, "alice may not enroll — grant it", ""},
		"a wrapped refusal": {fmt.Errorf("deciding: %w", hresult.New(hresult.NoCertType, "no template")), hresult.NoCertType, "no template", ""},
		"with a number":     {&RequestError{Err: hresult.New(hresult.AdminDeniedRequest, "denied"), RequestID: "42", Response: []byte{0x30, 0}}, hresult.AdminDeniedRequest, "denied", "42"},
		"a bug":             {errors.New("secret detail"), hresult.Unexpected, "internal error; the gateway's log has the details", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b.err = tc.err
			_, err := c.RequestToken(t.Context(), url+cesPath, TokenRequest{Kind: Issue, Token: []byte{0x30, 0}})
			e, ok := errors.AsType[*hresult.Error](err)
			if !ok || e.Code != tc.code || e.Text != tc.text {
				t.Fatalf("%v, want %v %q", err, tc.code, tc.text)
			}
			q, ok := errors.AsType[*RequestError](err)
			if ok != (tc.id != "") || ok && (q.RequestID != tc.id || !bytes.Equal(q.Response, []byte{0x30, 0})) {
				t.Errorf("request error %+v", q)
			}
		})
	}
}

// BenchmarkGetPoliciesOf500Templates is the whole way from the request's octets to the reply's, with cached policies.
func BenchmarkGetPoliciesOf500Templates(b *testing.B) {
	p := fullPolicies()
	for i := range 498 {
		one := p.Policies[0]
		one.CommonName, one.OID.Value = fmt.Sprintf("Template%d", i), fmt.Sprintf("1.2.3.%d", i)
		p.Policies = append(p.Policies, one)
	}
	h := NewHandler(&fakeBackend{policies: p}, Options{})
	body := read(b, "cepces-getpolicies.request.xml")
	b.SetBytes(int64(len(p.Encode())))
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, Kerberos.CEPPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(kerberos.WithCaller(r.Context(), templates.Caller{})))
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}
