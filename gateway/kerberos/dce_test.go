package kerberos

import (
	"bytes"
	"crypto/aes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// dceClient is the other side of a handshake.
type dceClient struct {
	forged
	session types.EncryptionKey
	subkey  types.EncryptionKey
	number  int64 // of the server
	mechs   []byte
}

const dceFlags = flagDCEStyle | 0x3e

func newDCEClient(t testing.TB, f forged) (*dceClient, []byte) {
	t.Helper()
	f.flags, f.number = or(f.flags, dceFlags), or(f.number, 1<<31+77) // above what a signed number holds
	token, session := f.token(t)
	c := &dceClient{forged: f, session: session}
	if !f.bare {
		neg, err := parseToken(token)
		if err == nil {
			c.mechs = neg.mechs
		}
	}
	return c, token
}

// third opens the AP-REP and answers it.
func (c *dceClient) third(t testing.TB, reply []byte, change func(*messages.EncAPRepPart)) []byte {
	t.Helper()
	if !c.bare {
		var err error
		if reply, _, err = readNegTokenResp(reply); err != nil {
			t.Fatal(err)
		}
	}
	var rep messages.APRep
	if err := rep.Unmarshal(reply); err != nil {
		t.Fatal(err)
	}
	plain, err := crypto.DecryptEncPart(rep.EncPart, c.session, keyusage.AP_REP_ENCPART)
	if err != nil {
		t.Fatal(err)
	}
	var part messages.EncAPRepPart
	if err := part.Unmarshal(plain); err != nil {
		t.Fatal(err)
	}
	c.subkey, c.number = part.Subkey, part.SequenceNumber
	answer := messages.EncAPRepPart{CTime: testNow, SequenceNumber: part.SequenceNumber}
	if change != nil {
		change(&answer)
	}
	b, err := asn1.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	token, err := sealAPRep(b, c.session)
	if err != nil {
		t.Fatal(err)
	}
	if c.bare {
		return token
	}
	mic, err := c.protection(t, 0).Sign(c.mechs)
	if err != nil {
		t.Fatal(err)
	}
	mic[2] = withSubkey
	mic = append(mic[:tokenHeader:tokenHeader], hmacOf(c.protection(t, 0).ours.sign, c.mechs, mic[:tokenHeader])...)
	token, err = negTokenRespMIC(acceptIncomplete, nil, token, mic)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// protection is a session with the roles changed: what it seals, the server opens, when the flag of the acceptor is taken away.
func (c *dceClient) protection(t testing.TB, number uint64) *Session {
	t.Helper()
	s, err := newSession(c.subkey, uint32(c.number), 0)
	if err != nil {
		t.Fatal(err)
	}
	s.theirs, s.ours, s.send = s.ours, s.theirs, number
	return s
}

// seal is a client's wrap token over data, which it encrypts in place.
func (c *dceClient) seal(t testing.TB, number uint64, before, data, after []byte) []byte {
	t.Helper()
	s := c.protection(t, number)
	token := make([]byte, SealLength)
	if err := s.sealAs(isSealed|withSubkey, token, before, data, after); err != nil {
		t.Fatal(err)
	}
	return token
}

func shake(t testing.TB, r *RPCAcceptor, f forged) (*dceClient, *Session) {
	t.Helper()
	c, token := newDCEClient(t, f)
	h := r.Handshake(!f.bare)
	reply, err := h.Step(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if h.Session() != nil {
		t.Fatal("a session after one leg")
	}
	if _, err = h.Step(t.Context(), c.third(t, reply, nil)); err != nil {
		t.Fatal(err)
	}
	if h.Session() == nil || h.Session().Caller.Principal != "lzhu@NTDEV.TEST" {
		t.Fatalf("%+v", h.Session())
	}
	return c, h.Session()
}

func TestThreeLegsMakeASession(t *testing.T) {
	r := testAcceptor(t, nil).ForRPC()
	for name, f := range map[string]forged{
		"SPNEGO": {raw: true}, "SPNEGO with a GSS frame": {}, "bare": {bare: true, raw: true}, "bare with a GSS frame": {bare: true},
		"host": {bare: true, spn: "HOST/gw.ntdev.test"}, "RPCSS by the short name": {bare: true, spn: "RPCSS/gw"},
		"AES-128": {session: etypeID.AES128_CTS_HMAC_SHA1_96},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := shake(t, r, f)
			before, after, clear := []byte("header"), []byte("trailer!"), []byte("the quick brown fox jumps over the lazy dog.....")
			first := uint64(uint32(c.forged.number))
			for i := range uint64(3) {
				data := bytes.Clone(clear)
				token := c.seal(t, first+i, before, data, after)
				if bytes.Contains(data, []byte("fox")) {
					t.Fatal("not encrypted")
				}
				if err := s.Unseal(token, before, data, after); err != nil || !bytes.Equal(data, clear) {
					t.Fatalf("%q, %v", data, err)
				}
			}
			if !s.Expired(testNow.Add(2*time.Hour)) || s.Expired(testNow) {
				t.Error("the session ends with its ticket")
			}
			s.Close()
			if err := s.Unseal(make([]byte, SealLength), nil, nil, nil); !errors.Is(err, errClosed) {
				t.Error(err)
			}
			if err := s.Seal(make([]byte, SealLength), nil, nil, nil); !errors.Is(err, errClosed) {
				t.Error(err)
			}
			if token, err := s.Sign([]byte("x")); !errors.Is(err, errClosed) || token != nil {
				t.Errorf("signed with keys that are gone: %x, %v", token, err)
			}
		})
	}
}

func TestHandshakesThatAreRefused(t *testing.T) {
	r := testAcceptor(t, func(o *Options) { o.AllowRC4 = true }).ForRPC()
	ntlm := []byte("NTLMSSP\x00\x01\x00\x00\x00")
	for name, c := range map[string]struct {
		f    forged
		want string
	}{
		"a token for HTTP":     {forged{flags: 0x3e}, "DCE style"},
		"another host":         {forged{spn: "host/other.ntdev.test"}, "host/other.ntdev.test"},
		"another service":      {forged{spn: "ldap/gw.ntdev.test"}, "RPC is served as"},
		"no PAC":               {forged{noPAC: true}, "PAC"},
		"an old ticket":        {forged{end: testNow.Add(-time.Hour)}, "expired"},
		"RC4":                  {forged{session: etypeID.RC4_HMAC}, "AES"},
		"an AES with SHA-2":    {forged{session: etypeID.AES128_CTS_HMAC_SHA256_128}, "session key"},
		"NTLM first":           {forged{mechs: []asn1.ObjectIdentifier{asn1.ObjectIdentifier(oidNTLM)}}, "NTLM"},
		"the clock of another": {forged{sent: testNow.Add(-time.Hour)}, "clock"},
	} {
		_, token := newDCEClient(t, c.f)
		h := r.Handshake(true)
		if _, err := h.Step(t.Context(), token); err == nil || !strings.Contains(err.Error(), c.want) || hresult.From(err).Code != hresult.AccessDenied {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if _, err := h.Step(t.Context(), token); err == nil {
			t.Errorf("%s: a second try", name)
		}
	}
	tgtReq := der(0x60, append([]byte{6, 10, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 1, 2, 2, 3}, 4, 0))
	if _, err := r.Handshake(false).Step(t.Context(), tgtReq); err == nil || !strings.Contains(err.Error(), "user-to-user") {
		t.Error(err)
	}
	for name, token := range map[string][]byte{"NTLM": ntlm, "nothing": nil, "garbage": []byte("garbage")} {
		for _, spnego := range []bool{true, false} {
			_, err := r.Handshake(spnego).Step(t.Context(), token)
			if err == nil || errors.Is(err, ErrNTLM) != (name == "NTLM") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestATokenIsGoodOnceAndForOneProtocol(t *testing.T) {
	a := testAcceptor(t, nil)
	r := a.ForRPC()
	_, token := newDCEClient(t, forged{})
	if _, _, err := a.Accept(t.Context(), token); err == nil || !strings.Contains(err.Error(), "made for RPC") {
		t.Errorf("over HTTP: %v", err)
	}
	if _, err := r.Handshake(true).Step(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Handshake(true).Step(t.Context(), token); err == nil || !strings.Contains(err.Error(), "replay") {
		t.Errorf("twice: %v", err)
	}
}

// TestAHalfFinishedHandshakeKeepsNoTicket: there may be many, of clients who do not go on.
func TestAHalfFinishedHandshakeKeepsNoTicket(t *testing.T) {
	_, token := newDCEClient(t, forged{})
	h := testAcceptor(t, nil).ForRPC().Handshake(true)
	if _, err := h.Step(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	req := &h.ex.req
	if kept := len(h.ex.apReq) + len(req.EncryptedAuthenticator.Cipher) + len(req.Ticket.EncPart.Cipher) + len(req.Ticket.DecryptedEncPart.AuthorizationData); kept != 0 {
		t.Errorf("%d octets are kept", kept)
	}
	if client, service := h.Claims(); client != "lzhu@NTDEV.TEST" || service == "" {
		t.Errorf("%q, %q", client, service)
	}
}

func TestTheThirdLegMustAnswerTheSecond(t *testing.T) {
	r := testAcceptor(t, nil).ForRPC()
	for name, change := range map[string]func(*messages.EncAPRepPart){
		"another number": func(p *messages.EncAPRepPart) { p.SequenceNumber++ },
		"no number":      func(p *messages.EncAPRepPart) { p.SequenceNumber = 0 },
	} {
		c, token := newDCEClient(t, forged{})
		h := r.Handshake(true)
		reply, err := h.Step(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Step(t.Context(), c.third(t, reply, change)); err == nil || h.Session() != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The second leg itself, which an eavesdropper can send who has taken the client's token away.
	for _, bare := range []bool{true, false} {
		_, token := newDCEClient(t, forged{bare: bare})
		h := r.Handshake(!bare)
		reply, err := h.Step(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Step(t.Context(), reply); err == nil || !strings.Contains(err.Error(), "reflection") || h.Session() != nil {
			t.Errorf("the second leg comes back (bare: %t): %v", bare, err)
		}
	}
	// A changed list of mechanisms.
	c, token := newDCEClient(t, forged{})
	h := r.Handshake(true)
	reply, err := h.Step(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	c.mechs = append(bytes.Clone(c.mechs), 0)
	if _, err := h.Step(t.Context(), c.third(t, reply, nil)); err == nil || !strings.Contains(err.Error(), "mechListMIC") {
		t.Error(err)
	}
}

func TestEveryChangedBitIsSeen(t *testing.T) {
	r := testAcceptor(t, nil).ForRPC()
	for _, signing := range []bool{true, false} {
		c, s := shake(t, r, forged{bare: true})
		var before, after []byte
		if signing {
			before, after = []byte("a header of 24 octets..."), []byte("trailer!")
		}
		data := []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
		token := c.seal(t, uint64(uint32(c.forged.number)), before, data, after)
		message := append(append(append(append([]byte{}, token...), before...), data...), after...)
		cut := func(m []byte) (token, before, data, after []byte) {
			n := SealLength
			return m[:n], m[n : n+len(before0(signing))], m[n+len(before0(signing)) : len(m)-len(after0(signing))], m[len(m)-len(after0(signing)):]
		}
		for bit := range 8 * len(message) {
			m := bytes.Clone(message)
			m[bit/8] ^= 1 << (bit % 8)
			tk, b, d, a := cut(m)
			if err := s.Unseal(tk, b, d, a); err == nil {
				t.Fatalf("bit %d of %d changed, and nobody has seen it", bit, 8*len(message))
			}
		}
		m := bytes.Clone(message)
		tk, b, d, a := cut(m)
		if err := s.Unseal(tk, b, d, a); err != nil {
			t.Fatal(err)
		}
		m = bytes.Clone(message)
		tk, b, d, a = cut(m)
		if err := s.Unseal(tk, b, d, a); !errors.Is(err, errOrder) {
			t.Errorf("repeated: %v", err)
		}
		data = []byte("skipped one")
		token = c.seal(t, uint64(uint32(c.forged.number))+2, nil, data, nil)
		if err := s.Unseal(token, nil, data, nil); !errors.Is(err, errOrder) {
			t.Errorf("one is missing: %v", err)
		}
	}
}

func before0(signing bool) string {
	if signing {
		return "a header of 24 octets..."
	}
	return ""
}

func after0(signing bool) string {
	if signing {
		return "trailer!"
	}
	return ""
}

func TestWhereNumbersBegin(t *testing.T) {
	r := testAcceptor(t, nil).ForRPC()
	for _, offset := range []uint64{0, 1, 2, 5} {
		c, s := shake(t, r, forged{bare: true})
		data := []byte("data")
		token := c.seal(t, uint64(uint32(c.forged.number))+offset, nil, data, nil)
		if err := s.Unseal(token, nil, data, nil); (err == nil) != (offset < 2) {
			t.Errorf("number + %d: %v", offset, err)
		}
	}
	for number := range uint64(3) {
		c, s := shake(t, r, forged{bare: true})
		data := []byte("data")
		if err := s.Unseal(c.seal(t, number, nil, data, nil), nil, data, nil); (err == nil) != (number < 2) {
			t.Errorf("number %d: %v", number, err)
		}
	}
}

func TestOurCiphertextStealingIsTheLibrarys(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	etype, err := crypto.GetEtype(etypeID.AES256_CTS_HMAC_SHA1_96)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	for n := 17; n < 100; n++ {
		plain := make([]byte, n)
		for i := range plain {
			plain[i] = byte(i * 3)
		}
		_, want, err := etype.EncryptData(key, plain)
		if err != nil {
			t.Fatal(err)
		}
		got := bytes.Clone(plain)
		encryptCTS(block, got)
		if !bytes.Equal(got, want) {
			t.Fatalf("%d octets: %x, want %x", n, got, want)
		}
		if decryptCTS(block, got); !bytes.Equal(got, plain) {
			t.Fatalf("%d octets: decrypted %x", n, got)
		}
	}
}

// FuzzHandshake gives both legs of a client to the acceptor.
func FuzzHandshake(f *testing.F) {
	for _, seed := range []forged{{}, {bare: true}, {raw: true}, {bare: true, raw: true}} {
		c, token := newDCEClient(f, seed)
		h := testAcceptor(f, nil).ForRPC().Handshake(!seed.bare)
		reply, err := h.Step(f.Context(), token)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(token, c.third(f, reply, nil), !seed.bare)
	}
	a := testAcceptor(f, nil)
	f.Fuzz(func(t *testing.T, first, third []byte, spnego bool) {
		a.replay = newReplayCache(time.Minute)
		h := a.ForRPC().Handshake(spnego)
		if _, err := h.Step(t.Context(), first); err != nil {
			return
		}
		if _, err := h.Step(t.Context(), third); err == nil {
			t.Error("an answer to a number that it cannot know")
		}
	})
}

// FuzzUnseal looks for panics, and for tokens that nobody made.
func FuzzUnseal(f *testing.F) {
	key := types.EncryptionKey{KeyType: etypeID.AES256_CTS_HMAC_SHA1_96, KeyValue: bytes.Repeat([]byte{9}, 32)}
	f.Add(make([]byte, SealLength), []byte("data"))
	f.Add(make([]byte, SignLength), []byte{})
	f.Fuzz(func(t *testing.T, token, data []byte) {
		s, err := newSession(key, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if s.Unseal(token, nil, data, nil) == nil || s.Verify(token, data) == nil {
			t.Error("accepted")
		}
	})
}
