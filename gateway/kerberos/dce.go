package kerberos

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"golang.org/x/crypto/cryptobyte"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// rpcClasses are the service classes that clients of RPC and DCOM ask for: [MS-DCOM] 3.2.4.1.1.2 names RPCSS; ICertPassage
// clients use host, and some HTTP. In Active Directory all are aliases of HOST.
var rpcClasses = []string{"host", "RPCSS", "HTTP"}

// RPCAcceptor opens security contexts for RPC connections. It is safe for concurrent use.
type RPCAcceptor struct{ a *Acceptor }

// ForRPC returns what accepts tickets over RPC with the same keys. It takes tickets for host/, RPCSS/ and HTTP/ of the hosts in
// Options.SPNs, also by the first part of their names; AES only, whatever AllowRC4 says. A token that either of the two has seen is
// a replay for the other.
func (a *Acceptor) ForRPC() *RPCAcceptor {
	c := *a
	c.rpc = true
	c.opts.ServerCertificates, c.opts.RequireChannelBinding, c.opts.AllowRC4 = nil, false, false
	return &RPCAcceptor{&c}
}

// rpcAllowed is spnAllowed for RPC.
func (a *Acceptor) rpcAllowed(spn string) bool {
	class, host, ok := strings.Cut(spn, "/")
	if !ok || host == "" || !containsFold(rpcClasses, class) {
		return false
	}
	hosts := a.rpcHosts()
	for _, h := range hosts {
		short, _, _ := strings.Cut(h, ".")
		if strings.EqualFold(host, h) || strings.EqualFold(host, short) {
			return true
		}
	}
	return len(hosts) == 0
}

// rpcHosts are the hosts of the configured principals, or of those in the keytab; empty where it names only the account.
func (a *Acceptor) rpcHosts() []string {
	principals := a.opts.SPNs
	if len(principals) == 0 {
		for _, k := range a.keys.all() {
			principals = append(principals, k.principal)
		}
	}
	var out []string
	for _, p := range principals {
		p, _, _ = strings.Cut(p, "@")
		if class, host, ok := strings.Cut(p, "/"); ok && containsFold(rpcClasses, class) && !containsFold(out, host) {
			out = append(out, host)
		}
	}
	return out
}

func containsFold(list []string, s string) bool {
	for _, l := range list {
		if strings.EqualFold(l, s) {
			return true
		}
	}
	return false
}

func (a *Acceptor) refuseRPC(spn string) error {
	return hresult.New(hresult.AccessDenied, "the ticket is for %s, but RPC is served as %s of %s", spn, strings.Join(rpcClasses, ", "), strings.Join(a.rpcHosts(), ", ")).
		WithFix("let the client name the gateway by its full name, or add the SPN to kerberos.service_principals")
}

// Handshake is the authentication of one security context, in the three legs of DCE style ([MS-KILE] 3.4.5.1): AP-REQ, AP-REP, AP-REP.
// It is for one goroutine.
type Handshake struct {
	a        *Acceptor
	spnego   bool
	ex       *exchange
	subkey   types.EncryptionKey
	sequence uint32 // ours, which the client has to repeat
	ours     []byte // our AP-REP
	session  *Session
	over     bool
}

// Handshake begins an authentication; spnego tells whether tokens are SPNEGO ([MS-SPNG]) or bare Kerberos.
func (r *RPCAcceptor) Handshake(spnego bool) *Handshake { return &Handshake{a: r.a, spnego: spnego} }

// Session is what the handshake came to; nil until it is complete.
func (h *Handshake) Session() *Session { return h.session }

// Claims tells who the client says it is, and for which service, for the log of a refusal.
func (h *Handshake) Claims() (client, service string) {
	if h.ex == nil {
		return "", ""
	}
	if c := h.ex.req.Ticket.DecryptedEncPart; len(c.CName.NameString) > 0 {
		client = c.CName.PrincipalNameString() + "@" + c.CRealm
	}
	return client, h.ex.req.Ticket.SName.PrincipalNameString()
}

// Step takes the client's next token and returns the answer, which may be empty. After an error, and once Session is set, there is
// no further step. Errors are *hresult.Error.
func (h *Handshake) Step(ctx context.Context, token []byte) (reply []byte, err error) {
	defer func() {
		if p := recover(); p != nil { // the library's decoders index without checks in places
			reply, err = nil, hresult.Wrap(hresult.AccessDenied, fmt.Errorf("panic: %v", p), "the Kerberos token is malformed")
		}
		if err != nil {
			h.over, h.session = true, nil
			h.wipe()
		}
	}()
	switch {
	case h.over:
		return nil, hresult.New(hresult.AccessDenied, "the authentication is over")
	case ctx.Err() != nil:
		return nil, hresult.Wrap(hresult.ServerTooBusy, ctx.Err(), "the connection ended before its ticket was verified")
	case len(token) > h.a.opts.MaxToken:
		return nil, hresult.New(hresult.AccessDenied, "the Kerberos token has %d octets, at most %d are accepted", len(token), h.a.opts.MaxToken)
	case h.ex == nil:
		return h.first(token)
	}
	h.over = true
	return h.second(token)
}

// first takes the AP-REQ.
func (h *Handshake) first(token []byte) ([]byte, error) {
	neg, err := parseRPCToken(token, h.spnego)
	if err != nil {
		return nil, err
	}
	h.ex = &exchange{negotiation: neg, now: h.a.opts.Clock().UTC(), dce: true}
	if err := h.a.verify(h.ex); err != nil {
		return nil, err
	}
	key := h.ex.req.Ticket.DecryptedEncPart.Key
	if key.KeyType != etypeID.AES128_CTS_HMAC_SHA1_96 && key.KeyType != etypeID.AES256_CTS_HMAC_SHA1_96 {
		return nil, hresult.New(hresult.AccessDenied, "the session key is %s; RPC is protected with %s or %s only", etypeName(key.KeyType),
			etypeName(etypeID.AES256_CTS_HMAC_SHA1_96), etypeName(etypeID.AES128_CTS_HMAC_SHA1_96)).
			WithFix("set msDS-SupportedEncryptionTypes of the gateway's account to 24")
	}
	h.ex.shrink()
	if h.ours, err = h.apRep(key); err != nil {
		return nil, hresult.Wrap(hresult.Unexpected, err, "the answer to the Kerberos token could not be made")
	}
	if !h.spnego {
		return h.ours, nil
	}
	return negTokenResp(acceptIncomplete, h.ex.mech, h.ours)
}

// shrink forgets what the further legs do not need, as there may be many clients who do not come to them.
func (ex *exchange) shrink() {
	ex.apReq, ex.reply = nil, nil
	ex.req.EncryptedAuthenticator.Cipher, ex.req.Ticket.EncPart.Cipher, ex.req.Ticket.DecryptedEncPart.AuthorizationData = nil, nil, nil
}

// apRep is the second leg: with a fresh subkey, from which all keys of the session come, and our first sequence number.
func (h *Handshake) apRep(key types.EncryptionKey) ([]byte, error) {
	var number [4]byte
	rand.Read(number[:])
	h.sequence = binary.BigEndian.Uint32(number[:])>>2 | 1 // 30 bits, as all take it; 0 would not be encoded
	h.subkey = types.EncryptionKey{KeyType: key.KeyType, KeyValue: make([]byte, len(key.KeyValue))}
	rand.Read(h.subkey.KeyValue)
	b, err := asn1.Marshal(messages.EncAPRepPart{CTime: h.ex.req.Authenticator.CTime, Cusec: h.ex.req.Authenticator.Cusec, Subkey: h.subkey, SequenceNumber: int64(h.sequence)})
	if err != nil {
		return nil, fmt.Errorf("encoding the AP-REP: %w", err)
	}
	defer clear(b)
	return sealAPRep(b, key)
}

// sealAPRep makes an AP-REP of its encoded part (RFC 4120 5.5.2).
func sealAPRep(part []byte, key types.EncryptionKey) ([]byte, error) {
	sealed, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(part, asnAppTag.EncAPRepPart), key, keyusage.AP_REP_ENCPART, 0)
	if err != nil {
		return nil, fmt.Errorf("encrypting the AP-REP: %w", err)
	}
	b, err := asn1.Marshal(messages.APRep{PVNO: iana.PVNO, MsgType: msgtype.KRB_AP_REP, EncPart: sealed})
	if err != nil {
		return nil, fmt.Errorf("encoding the AP-REP: %w", err)
	}
	return asn1tools.AddASNAppTag(b, asnAppTag.APREP), nil
}

// second takes the client's AP-REP, which proves that it holds the session key, and the mechListMIC where there is one.
func (h *Handshake) second(token []byte) (reply []byte, err error) {
	apRep, mic := token, []byte(nil)
	if h.spnego {
		if apRep, mic, err = readNegTokenResp(token); err != nil {
			return nil, err
		}
	}
	if err := h.checkAPRep(apRep); err != nil {
		return nil, err
	}
	end := h.ex.req.Ticket.DecryptedEncPart.EndTime.Add(h.a.opts.MaxClockSkew)
	theirs := uint32(h.ex.req.Authenticator.SeqNumber) //nolint:gosec // 32 bits on the wire, signed or not
	session, err := newSession(h.subkey, theirs, h.sequence)
	if err != nil {
		return nil, hresult.Wrap(hresult.Unexpected, err, "the session's keys could not be derived")
	}
	session.Caller, session.Expires = h.ex.caller, end
	h.wipe()
	if h.spnego {
		var ours []byte
		if len(mic) > 0 {
			if err := session.checkMIC(mic, h.ex.mechs); err != nil {
				return nil, hresult.Wrap(hresult.AccessDenied, err, "the client's mechListMIC is wrong: somebody may have changed its list of mechanisms")
			}
			if ours, err = session.Sign(h.ex.mechs); err != nil {
				return nil, hresult.Wrap(hresult.Unexpected, err, "the answer to the client's mechListMIC could not be made")
			}
		}
		if reply, err = negTokenRespMIC(acceptCompleted, nil, nil, ours); err != nil {
			return nil, hresult.Wrap(hresult.Unexpected, err, "the answer to the Kerberos token could not be made")
		}
	}
	h.session = session
	return reply, nil
}

// checkAPRep opens the third leg. Its time is not compared: Heimdal repeats ours, others do not. As both are sealed with the same key
// for the same usage, ours would answer itself: who sends it back has not proven that it knows the key.
func (h *Handshake) checkAPRep(b []byte) error {
	var rep, ours messages.APRep
	if err := errors.Join(rep.Unmarshal(b), ours.Unmarshal(h.ours)); err != nil {
		return hresult.Wrap(hresult.AccessDenied, err, "the client's AP-REP is malformed")
	}
	if bytes.Equal(rep.EncPart.Cipher, ours.EncPart.Cipher) {
		return hresult.New(hresult.AccessDenied, "the client's AP-REP is the one that it was sent (reflection)")
	}
	plain, err := crypto.DecryptEncPart(rep.EncPart, h.ex.req.Ticket.DecryptedEncPart.Key, keyusage.AP_REP_ENCPART)
	if err != nil {
		return hresult.Wrap(hresult.AccessDenied, err, "the client's AP-REP does not open with the ticket's session key")
	}
	var part messages.EncAPRepPart
	if err := part.Unmarshal(plain); err != nil {
		return hresult.Wrap(hresult.AccessDenied, err, "the client's AP-REP is malformed")
	}
	var sent, want [4]byte
	binary.BigEndian.PutUint32(sent[:], uint32(part.SequenceNumber)) //nolint:gosec // 32 bits on the wire
	binary.BigEndian.PutUint32(want[:], h.sequence)
	if subtle.ConstantTimeCompare(sent[:], want[:]) != 1 {
		return hresult.New(hresult.AccessDenied, "the client's AP-REP does not answer ours (replay)")
	}
	return nil
}

// wipe forgets keys that nothing needs any more.
func (h *Handshake) wipe() {
	clear(h.subkey.KeyValue)
	if h.ex != nil {
		clear(h.ex.req.Ticket.DecryptedEncPart.Key.KeyValue)
		clear(h.ex.req.Authenticator.SubKey.KeyValue)
	}
}

// Close forgets the keys of a handshake that is given up.
func (h *Handshake) Close() { h.over = true; h.wipe() }

// parseRPCToken finds the AP-REQ in the first token.
func parseRPCToken(token []byte, spnego bool) (*negotiation, error) {
	if bytes.HasPrefix(token, []byte("NTLMSSP\x00")) {
		return nil, RefuseNTLM()
	}
	if !spnego {
		apReq, err := readMechToken(cryptobyte.String(token))
		return &negotiation{mech: oidKerberos, apReq: apReq}, err
	}
	mech, inner, ok := readGSSFrame(token)
	if !ok || !mech.Equal(oidSPNEGO) {
		return nil, hresult.New(hresult.AccessDenied, "the token is not SPNEGO").WithFix(fixKerberos)
	}
	neg, err := parseNegTokenInit(inner)
	if errors.Is(err, ErrNTLM) {
		err = RefuseNTLM()
	}
	return neg, err
}

// RefuseNTLM is the refusal of an RPC client that uses NTLM, which it does when it found no ticket.
func RefuseNTLM() *hresult.Error {
	return hresult.Wrap(hresult.AccessDenied, ErrNTLM, "the client sent NTLM, which is not accepted: it had no Kerberos ticket for this name").
		WithFix("reach the gateway by its full DNS name, not by an address, and check that HOST/<that name> is registered on exactly one account (setspn -Q)")
}
