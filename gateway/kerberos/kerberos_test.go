package kerberos

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// dialer connects to addr, whatever the URL says.
func dialer(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
}

var testNow = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

func clockAt(now time.Time) func() time.Time { return func() time.Time { return now } }

func testKeytab(t testing.TB, spn string, kvno uint8, etype int32) *keytab.Keytab {
	t.Helper()
	kt := keytab.New()
	if err := kt.AddEntry(spn, "NTDEV.TEST", "Secret", testNow, kvno, etype); err != nil {
		t.Fatal(err)
	}
	return kt
}

func testAcceptor(t testing.TB, change func(*Options)) *Acceptor {
	t.Helper()
	opts := Options{Keytab: testKeytab(t, "HTTP/gw.ntdev.test", 3, etypeID.AES256_CTS_HMAC_SHA1_96), Clock: clockAt(testNow)}
	if change != nil {
		change(&opts)
	}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestCallerOfTheSpecificationsPAC checks against the values that [MS-PAC] 3 prints for its example.
func TestCallerOfTheSpecificationsPAC(t *testing.T) {
	token, _ := forged{}.token(t)
	caller, _, err := testAcceptor(t, nil).Accept(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if caller.Principal != "lzhu@NTDEV.TEST" || caller.SID != "S-1-5-21-397955417-626881126-188441444-2914711" || caller.Machine {
		t.Errorf("%+v", caller)
	}
	for _, want := range []security.SID{
		"S-1-5-21-397955417-626881126-188441444-513", "S-1-5-21-397955417-626881126-188441444-3392609",
		"S-1-5-21-773533881-1816936887-355810188-513", // an extra SID, of another domain
		security.Everyone, security.AuthenticatedUsers, security.BuiltinUsers,
	} {
		if !slices.Contains(caller.Groups, want) {
			t.Errorf("group %s is missing", want)
		}
	}
	if len(caller.Groups) != 26+13+5 {
		t.Errorf("%d groups, want 26 of the domain, 13 extra and 5 well-known", len(caller.Groups))
	}
}

// wantRefusal checks that err is a refusal whose text for the client holds all the words.
func wantRefusal(t *testing.T, err error, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code != hresult.AccessDenied {
		t.Fatalf("error is %v, want E_ACCESSDENIED", err)
	}
	for _, w := range words {
		if !strings.Contains(e.ClientText(), w) {
			t.Errorf("the refusal %q does not say %q", e.ClientText(), w)
		}
	}
}

func TestRefusals(t *testing.T) {
	none := map[uint32][]byte{}
	without := func(kind uint32) map[uint32][]byte { return map[uint32][]byte{kind: nil} }
	for name, tc := range map[string]struct {
		forged forged
		change func(*Options)
		words  []string
	}{
		"no PAC":                         {forged{noPAC: true}, nil, []string{"no usable PAC", "lzhu@NTDEV.TEST", "NO_AUTH_DATA_REQUIRED"}},
		"a PAC of MIT Kerberos":          {forged{buffers: without(pacLogonInfo)}, nil, []string{"no usable PAC", "logon information"}},
		"a PAC without server signature": {forged{buffers: without(pacServerSignature)}, nil, []string{"no usable PAC", "server signature"}},
		"a PAC without KDC signature":    {forged{buffers: without(pacKDCSignature)}, nil, []string{"no usable PAC", "KDC signature"}},
		"a PAC without client":           {forged{buffers: without(pacClientInfo)}, nil, []string{"no usable PAC", "client information"}},
		"a PAC of another client":        {forged{buffers: map[uint32][]byte{pacClientInfo: make([]byte, 10)}}, nil, []string{"no usable PAC", "another logon"}},
		"an unknown signature":           {forged{buffers: map[uint32][]byte{pacServerSignature: make([]byte, 20)}}, nil, []string{"no usable PAC", "checksum type 0"}},
		"a changed PAC":                  {forged{breakPAC: true}, nil, []string{"no usable PAC", "signature is wrong"}},
		"logon information of nothing":   {forged{buffers: map[uint32][]byte{pacLogonInfo: {}}}, nil, []string{"no usable PAC"}},
		"logon information that panics":  {forged{buffers: map[uint32][]byte{pacLogonInfo: bytes.Repeat([]byte{0xff}, 300)}}, nil, []string{"no usable PAC"}},
		"another service":                {forged{spn: "cifs/gw.ntdev.test"}, nil, []string{"cifs/gw.ntdev.test", "HTTP/gw.ntdev.test"}},
		"expired":                        {forged{end: testNow.Add(-6 * time.Minute)}, nil, []string{"expired at 2026-05-06T07:02:09Z"}},
		"not yet valid":                  {forged{start: testNow.Add(6 * time.Minute)}, nil, []string{"not valid before"}},
		"a clock behind":                 {forged{sent: testNow.Add(-6 * time.Minute)}, nil, []string{"6m0s behind"}},
		"a clock ahead":                  {forged{sent: testNow.Add(6 * time.Minute)}, nil, []string{"6m0s ahead of"}},
		"another client's authenticator": {forged{authName: "administrator"}, nil, []string{"another client"}},
		"another key version":            {forged{kvno: 9}, nil, []string{"key version 9", "3 (aes256"}},
		"RC4":                            {forged{etype: etypeID.RC4_HMAC}, nil, []string{"rc4-hmac", "only AES"}},
		"an RC4 session":                 {forged{session: etypeID.RC4_HMAC}, nil, []string{"session key", "only AES"}},
		"a realm that is not welcome":    {forged{}, func(o *Options) { o.Realms = []string{"CORP.TEST"} }, []string{"NTDEV.TEST", "CORP.TEST"}},
		"NTLM preferred":                 {forged{mechs: []asn1.ObjectIdentifier{asn1.ObjectIdentifier(oidNTLM), asn1.ObjectIdentifier(oidKerberos)}}, nil, []string{"NTLM", "setspn"}},
		"no mechanisms":                  {forged{mechs: []asn1.ObjectIdentifier{}}, nil, []string{"Kerberos first"}},
		"a token too long":               {forged{buffers: none}, func(o *Options) { o.MaxToken = 100 }, []string{"at most 100"}},
	} {
		t.Run(name, func(t *testing.T) {
			token, _ := tc.forged.token(t)
			_, _, err := testAcceptor(t, tc.change).Accept(t.Context(), token)
			wantRefusal(t, err, tc.words...)
		})
	}
}

func TestAcceptedVariants(t *testing.T) {
	rc4 := func(o *Options) {
		o.AllowRC4 = true
		o.Keytab = testKeytab(t, "HTTP/gw.ntdev.test", 3, etypeID.RC4_HMAC)
	}
	for name, tc := range map[string]struct {
		forged forged
		change func(*Options)
	}{
		"bare Kerberos without SPNEGO":  {forged{bare: true}, nil},
		"the SPN in another case":       {forged{spn: "http/GW.ntdev.test"}, nil},
		"an SPN that the keytab lacks":  {forged{spn: "HTTP/alias.ntdev.test"}, func(o *Options) { o.SPNs = []string{"HTTP/alias.ntdev.test@NTDEV.TEST"} }},
		"a keytab of the account alone": {forged{}, func(o *Options) { o.Keytab.Entries[0].Principal.Components = []string{"svc-enroll"} }},
		"a clock within the limit":      {forged{sent: testNow.Add(4 * time.Minute)}, nil},
		"RC4 where allowed":             {forged{etype: etypeID.RC4_HMAC, session: etypeID.RC4_HMAC}, rc4},
		"AES with SHA-2": {forged{etype: etypeID.AES256_CTS_HMAC_SHA384_192, session: etypeID.AES128_CTS_HMAC_SHA256_128}, func(o *Options) {
			o.Keytab = testKeytab(t, "HTTP/gw.ntdev.test", 3, etypeID.AES256_CTS_HMAC_SHA384_192)
		}},
		"a buffer that cannot be decoded": {forged{buffers: map[uint32][]byte{12: {0xff, 0xff, 0xff, 0xff}}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			token, _ := tc.forged.token(t)
			caller, _, err := testAcceptor(t, tc.change).Accept(t.Context(), token)
			if err != nil || caller.Principal != "lzhu@NTDEV.TEST" {
				t.Errorf("%+v %v", caller, err)
			}
		})
	}
}

func TestReplayIsRefusedAsLongAsItIsFresh(t *testing.T) {
	now := testNow
	a := testAcceptor(t, func(o *Options) { o.Clock = func() time.Time { return now } })
	// The client's clock is ahead, so that the authenticator is fresh for more than the skew from now on.
	token, _ := forged{sent: testNow.Add(4 * time.Minute)}.token(t)
	if _, _, err := a.Accept(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	for ; now.Before(testNow.Add(9 * time.Minute)); now = now.Add(time.Minute) {
		other, _ := forged{sent: now}.token(t)
		if _, _, err := a.Accept(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		_, _, err := a.Accept(t.Context(), token)
		wantRefusal(t, err, "replay")
	}
}

func TestReplayCacheForgets(t *testing.T) {
	c := newReplayCache(time.Minute)
	now := testNow
	for i := range 1000 {
		if c.seen(binary.BigEndian.AppendUint32(nil, uint32(i)), now) {
			t.Fatal("seen at first sight")
		}
		now = now.Add(time.Second)
	}
	if n := len(c.young) + len(c.old); n > 130 {
		t.Errorf("%d entries of the last minute are kept", n)
	}
}

func TestMutualAuthenticationEchoesTheTime(t *testing.T) {
	token, session := forged{mutual: true, bare: true}.token(t)
	_, reply, err := testAcceptor(t, nil).Accept(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	_, inner, ok := readGSSFrame(reply)
	if !ok || !bytes.HasPrefix(inner, tokIDAPRep) {
		t.Fatalf("reply %x is not an AP-REP", reply)
	}
	var rep messages.APRep
	if err := rep.Unmarshal(inner[2:]); err != nil {
		t.Fatal(err)
	}
	b, err := crypto.DecryptEncPart(rep.EncPart, session, keyusage.AP_REP_ENCPART)
	if err != nil {
		t.Fatal(err)
	}
	var part messages.EncAPRepPart
	if err := part.Unmarshal(b); err != nil || !part.CTime.Equal(testNow) || part.Cusec != 4711 {
		t.Errorf("%+v %v", part, err)
	}
}

func TestGarbageIsRefused(t *testing.T) {
	a := testAcceptor(t, nil)
	for name, token := range map[string][]byte{
		"nothing":               {},
		"text":                  []byte("hello"),
		"NTLM":                  []byte("NTLMSSP\x00\x01\x00\x00\x00"),
		"a continuation":        {0xa1, 3, 0x30, 1, 0},
		"an empty frame":        {0x60, 0},
		"SPNEGO with nothing":   {0x60, 8, 6, 6, 0x2b, 6, 1, 5, 5, 2},
		"Kerberos with nothing": der(0x60, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 1, 2, 2}),
		"an AP-REQ of nothing":  der(0x60, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 1, 2, 2, 1, 0, 0x6e, 0}),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := a.Accept(t.Context(), token)
			wantRefusal(t, err)
		})
	}
}

func TestChannelBindingStopsRelayedTokens(t *testing.T) {
	ours, theirs := &x509.Certificate{Raw: []byte("ours")}, &x509.Certificate{Raw: []byte("theirs"), SignatureAlgorithm: x509.SHA384WithRSA}
	check := func(o *Options) {
		o.ServerCertificates = func() []*x509.Certificate { return []*x509.Certificate{ours} }
	}
	require := func(o *Options) { check(o); o.RequireChannelBinding = true }
	for name, tc := range map[string]struct {
		binding [16]byte
		change  func(*Options)
		ok      bool
	}{
		"ours":                   {bindingHash(ours), require, true},
		"another's":              {bindingHash(theirs), check, false},
		"none":                   {[16]byte{}, check, true},
		"none, required":         {[16]byte{}, require, false},
		"another's, not checked": {bindingHash(theirs), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			token, _ := forged{binding: tc.binding}.token(t)
			if _, _, err := testAcceptor(t, tc.change).Accept(t.Context(), token); (err == nil) != tc.ok {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestKeytabFileIsReadAgainAfterAPasswordChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "svc.keytab")
	write := func(kvno uint8, modified time.Time) {
		b, err := testKeytab(t, "HTTP/gw.ntdev.test", kvno, etypeID.AES256_CTS_HMAC_SHA1_96).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	write(2, testNow)
	a := testAcceptor(t, func(o *Options) { o.Keytab, o.KeytabFile = nil, path })
	token, _ := forged{}.token(t)
	_, _, err := a.Accept(t.Context(), token)
	wantRefusal(t, err, "key version 3", "2 (aes256")
	write(3, testNow.Add(time.Second))
	if _, _, err := a.Accept(t.Context(), token); err != nil {
		t.Error(err)
	}
}

func TestUnusableKeytabs(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.keytab")
	if err := os.WriteFile(bad, []byte("\x05\x02\x00\x00\x00\x10secret key octets"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opts Options
		want string
	}{
		"none":                                {Options{}, "no keytab"},
		"absent":                              {Options{KeytabFile: "/nowhere"}, "no such file"},
		"damaged":                             {Options{KeytabFile: bad}, "keytab"},
		"only RC4":                            {Options{Keytab: testKeytab(t, "HTTP/x", 1, etypeID.RC4_HMAC)}, "no AES key"},
		"no certificates for channel binding": {Options{RequireChannelBinding: true}, "certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error is %v, want %q and no key", err, tc.want)
			}
		})
	}
}

func TestMiddleware(t *testing.T) {
	log, hook := test.NewNullLogger()
	a := testAcceptor(t, func(o *Options) { o.Log = log })
	h := a.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := CallerFrom(r.Context())
		_, _ = w.Write([]byte("hello " + caller.Principal))
	}))
	token := func(f forged) string {
		b, _ := f.token(t)
		return "Negotiate " + base64.StdEncoding.EncodeToString(b)
	}
	big := forged{buffers: map[uint32][]byte{12: make([]byte, 60<<10)}}
	for _, tc := range []struct {
		name, method, header string
		status               int
		body, challenge      string
	}{
		{"a good token", "POST", token(forged{}), 200, "hello lzhu@NTDEV.TEST", "Negotiate oR"},
		{"a token of 61 KiB", "POST", token(big), 200, "hello lzhu@NTDEV.TEST", "Negotiate oR"},
		{"a scheme in lower case", "POST", strings.Replace(token(forged{}), "Negotiate", "negotiate", 1), 200, "hello lzhu", "Negotiate oR"},
		{"nothing", "POST", "", 401, "Kerberos authentication", "Negotiate"},
		{"a probe", "GET", "", 200, "hello ", ""},
		{"a probe with a bad token", "GET", "Negotiate AAAA", 401, "neither SPNEGO nor Kerberos", "Negotiate"},
		{"Basic", "POST", "Basic Zm9vOmJhcg==", 401, "must be Negotiate", "Negotiate"},
		{"NTLM", "POST", "NTLM TlRMTVNTUAAB", 401, "NTLM", "Negotiate"},
		{"not base64", "POST", "Negotiate %%%", 401, "not base64", "Negotiate"},
		{"too long", "POST", "Negotiate " + strings.Repeat("A", 100<<10), 401, "more than 65536", "Negotiate"},
		{"no PAC", "POST", token(forged{noPAC: true}), 401, "no usable PAC", "Negotiate oQcwBaADCgEC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hook.Reset()
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "/x", nil)
			if tc.header != "" {
				r.Header.Set("Authorization", tc.header)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			challenge := w.Header().Get("WWW-Authenticate")
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.body) || !strings.HasPrefix(challenge, tc.challenge) {
				t.Errorf("%d %q %q", w.Code, challenge, w.Body)
			}
			if refused := tc.status == 401 && tc.header != ""; refused != (len(hook.AllEntries()) == 1) {
				t.Errorf("%d log entries", len(hook.AllEntries()))
			}
		})
	}
}

func TestTransportKeepsTokensOffPlainHTTP(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), "POST", "http://gw.ntdev.test/", nil)
	if _, err := (&Client{}).Transport(nil).RoundTrip(r); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("error is %v", err)
	}
}

// FuzzAccept looks for panics and for tokens that make another caller of what was sealed in the ticket.
func FuzzAccept(f *testing.F) {
	for _, seed := range []forged{{}, {bare: true}, {mutual: true}, {noPAC: true}} {
		token, _ := seed.token(f)
		f.Add(token)
	}
	a := testAcceptor(f, nil)
	f.Fuzz(func(t *testing.T, token []byte) {
		a.replay = newReplayCache(time.Minute) // the same input must take the same way each time
		caller, _, err := a.Accept(t.Context(), token)
		if err == nil && caller.Principal != "lzhu@NTDEV.TEST" {
			t.Errorf("accepted as %+v", caller)
		}
		if err != nil && hresult.From(err).Code == hresult.Unexpected {
			t.Errorf("unexpected: %v", err)
		}
	})
}

// FuzzPAC looks for panics in the PAC and its logon information, as if a domain controller had signed nonsense.
func FuzzPAC(f *testing.F) {
	key := testKeytab(f, "HTTP/enroll.lab.test", 1, etypeID.AES256_CTS_HMAC_SHA1_96).Entries[0].Key
	raw := forged{}.pac(f, key, messages.EncTicketPart{})
	f.Add(raw)
	buffers, err := pacBuffers(raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(buffers[pacLogonInfo].of(raw))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if buffers, err := pacBuffers(b); err == nil {
			_ = verifyPAC(b, buffers, key)
			_ = checkClientInfo(b, buffers, messages.EncTicketPart{})
		}
		if info, err := parseLogonInfo(b); err == nil {
			_, _, _ = sidsOf(info)
		}
	})
}
