package kerberos

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// exchange is one token on its way from octets to a caller.
type exchange struct {
	*negotiation
	now    time.Time
	dce    bool // over RPC, in DCE style
	req    messages.APReq
	caller templates.Caller
	reply  []byte
}

// verify checks an AP-REQ as RFC 4120 3.2.3 says, and sets the caller. It uses the library's messages and
// cryptography but not its VerifyAPREQ, which reads the system's clock, keys its replay cache by the client's name
// without the realm and forgets authenticators while they are still fresh, and decodes parts of the PAC that are not
// needed here and that it may fail on.
func (a *Acceptor) verify(ex *exchange) error {
	if err := ex.req.Unmarshal(ex.apReq); err != nil {
		return hresult.Wrap(hresult.AccessDenied, err, "the Kerberos AP-REQ is malformed")
	}
	tkt := &ex.req.Ticket
	// The library indexes the first component of the name without looking.
	if len(tkt.SName.NameString) == 0 || ex.req.PVNO != iana.PVNO || tkt.TktVNO != iana.PVNO {
		return hresult.New(hresult.AccessDenied, "the Kerberos AP-REQ is malformed")
	}
	spn := tkt.SName.PrincipalNameString()
	if !a.spnAllowed(spn) {
		return a.refuseSPN(spn)
	}
	if types.IsFlagSet(&ex.req.APOptions, flags.APOptionUseSessionKey) {
		return hresult.New(hresult.AccessDenied, "the ticket for %s is user-to-user, which is not supported", spn)
	}
	key, err := a.openTicket(tkt, spn)
	if err != nil {
		return err
	}
	if err := a.checkTimes(ex, spn); err != nil {
		return err
	}
	if err := a.checkAuthenticator(ex, spn); err != nil {
		return err
	}
	part := tkt.DecryptedEncPart
	if !a.realmAllowed(part.CRealm) {
		return hresult.New(hresult.AccessDenied, "accounts of the realm %s are not accepted here (accepted: %s)",
			part.CRealm, strings.Join(a.opts.Realms, ", ")).WithFix("add the realm to the gateway's configuration")
	}
	if a.replay.seen(ex.req.EncryptedAuthenticator.Cipher, ex.now) {
		return hresult.New(hresult.AccessDenied, "this Kerberos token of %s@%s was used before (replay)", part.CName.PrincipalNameString(), part.CRealm).
			WithFix("make a new token for each request")
	}
	ex.caller, err = callerOf(part, key)
	return err
}

func (a *Acceptor) refuseSPN(spn string) error {
	if a.rpc {
		return a.refuseRPC(spn)
	}
	expected := strings.Join(a.expectedSPNs(), ", ")
	if expected == "" {
		expected = "HTTP/<host>"
	}
	return hresult.New(hresult.AccessDenied, "the ticket is for %s, but this service is %s", spn, expected).
		WithFix("call the gateway by the host name in its SPN, or register the SPN of the name in the URL on the gateway's account and allow it in the configuration")
}

// openTicket decrypts the ticket with a key of the keytab, and returns the key.
func (a *Acceptor) openTicket(tkt *messages.Ticket, spn string) (types.EncryptionKey, error) {
	etype, kvno := tkt.EncPart.EType, tkt.EncPart.KVNO
	if !etypeAllowed(etype, a.opts.AllowRC4) {
		return types.EncryptionKey{}, hresult.New(hresult.AccessDenied, "the ticket for %s is encrypted with %s; only AES is accepted", spn, etypeName(etype)).
			WithFix("set msDS-SupportedEncryptionTypes of the gateway's account to 24 (AES) and set its password anew")
	}
	keys := a.keys.candidates(spn, etype, kvno)
	if len(keys) == 0 {
		// The keytab may have been renewed since: the answer is in the file, or nowhere.
		if changed, err := a.keys.reload(); err != nil {
			a.opts.Log.WithError(err).Error("the keytab cannot be read again")
		} else if changed {
			keys = a.keys.candidates(spn, etype, kvno)
		}
	}
	if len(keys) == 0 {
		return types.EncryptionKey{}, hresult.New(hresult.AccessDenied,
			"the ticket for %s needs key version %d (%s), but the gateway's keytab has %s", spn, kvno, etypeName(etype), a.keys.versions()).
			WithFix("export the keytab of the gateway's account again; a client may also hold a ticket from before a password change: klist purge")
	}
	var err error
	for _, k := range keys {
		if err = tkt.Decrypt(k.key); err == nil {
			return k.key, a.checkSessionKey(tkt, spn)
		}
	}
	return types.EncryptionKey{}, hresult.Wrap(hresult.AccessDenied, err,
		"the ticket for %s (key version %d) does not open with the gateway's keytab", spn, kvno).
		WithFix("the SPN may be on another account (setspn -Q), or the keytab may be older than the account's password: export it again")
}

// checkSessionKey refuses weak session keys as it refuses weak tickets.
func (a *Acceptor) checkSessionKey(tkt *messages.Ticket, spn string) error {
	if et := tkt.DecryptedEncPart.Key.KeyType; !etypeAllowed(et, a.opts.AllowRC4) {
		return hresult.New(hresult.AccessDenied, "the session key of the ticket for %s is %s; only AES is accepted", spn, etypeName(et)).
			WithFix("enable AES on the client and on the gateway's account")
	}
	return nil
}

// checkTimes applies RFC 4120 3.2.3 to the ticket's times.
func (a *Acceptor) checkTimes(ex *exchange, spn string) error {
	part, skew := ex.req.Ticket.DecryptedEncPart, a.opts.MaxClockSkew
	start := part.StartTime
	if start.IsZero() {
		start = part.AuthTime
	}
	if start.Sub(ex.now) > skew || types.IsFlagSet(&part.Flags, flags.Invalid) {
		return hresult.New(hresult.AccessDenied, "the ticket for %s is not valid before %s; it is %s here", spn, stamp(start), stamp(ex.now)).
			WithFix("set the clocks of the gateway and the domain controller")
	}
	if ex.now.Sub(part.EndTime) > skew {
		return hresult.New(hresult.AccessDenied, "the ticket for %s expired at %s; it is %s here", spn, stamp(part.EndTime), stamp(ex.now)).
			WithFix("get a new ticket (kinit, or log on again); if that does not help, check the gateway's clock")
	}
	return nil
}

// checkAuthenticator opens the authenticator, which proves that the client holds the session key, now.
func (a *Acceptor) checkAuthenticator(ex *exchange, spn string) error {
	part := ex.req.Ticket.DecryptedEncPart
	if err := ex.req.DecryptAuthenticator(part.Key); err != nil {
		return hresult.Wrap(hresult.AccessDenied, err, "the authenticator for %s does not open with the ticket's session key", spn)
	}
	auth := ex.req.Authenticator
	if auth.CRealm != part.CRealm || auth.CName.PrincipalNameString() != part.CName.PrincipalNameString() || len(part.CName.NameString) == 0 {
		return hresult.New(hresult.AccessDenied, "the authenticator names another client than the ticket for %s", spn)
	}
	sent := auth.CTime.Add(time.Duration(auth.Cusec) * time.Microsecond)
	if d := ex.now.Sub(sent); d > a.opts.MaxClockSkew || d < -a.opts.MaxClockSkew {
		direction := "behind"
		if d < 0 {
			d, direction = -d, "ahead of"
		}
		return hresult.New(hresult.AccessDenied, "the client's clock is %s %s the gateway's (%s there, %s here); at most %s is accepted",
			d.Round(time.Second), direction, stamp(sent), stamp(ex.now), a.opts.MaxClockSkew).
			WithFix("synchronize both clocks with the domain controllers")
	}
	if dce := gssFlags(auth.Cksum)&flagDCEStyle != 0; dce != ex.dce {
		// A token for RPC travels in the clear, and proves nothing but with what follows it there: it must be of no use elsewhere.
		if ex.dce {
			return hresult.New(hresult.AccessDenied, "the token for %s is not in DCE style, which RPC needs", spn)
		}
		return hresult.New(hresult.AccessDenied, "the token for %s is in DCE style: it was made for RPC, not for HTTP", spn)
	}
	return a.checkChannelBinding(auth.Cksum)
}

// flagDCEStyle is GSS_C_DCE_STYLE (RFC 4757 7.1, [MS-KILE] 3.4.5.1).
const flagDCEStyle = 0x1000

// gssFlags are the context flags in the GSS checksum (RFC 4121 4.1.1); 0 where it is another checksum.
func gssFlags(sum types.Checksum) uint32 {
	if sum.CksumType != chksumtype.GSSAPI || len(sum.Checksum) < 24 || binary.LittleEndian.Uint32(sum.Checksum) != 16 {
		return 0
	}
	return binary.LittleEndian.Uint32(sum.Checksum[20:])
}

// checkChannelBinding compares the hash of the channel binding in the GSS checksum (RFC 4121 4.1.1) with those of the
// listener's certificates. All zero means that the client sent none.
func (a *Acceptor) checkChannelBinding(sum types.Checksum) error {
	if a.opts.ServerCertificates == nil {
		return nil
	}
	var sent, none [16]byte
	if sum.CksumType == chksumtype.GSSAPI && len(sum.Checksum) >= 20 && binary.LittleEndian.Uint32(sum.Checksum) == 16 {
		copy(sent[:], sum.Checksum[4:20])
	}
	if sent == none {
		if a.opts.RequireChannelBinding {
			return hresult.New(hresult.AccessDenied, "the client sent no channel binding, which this gateway requires").
				WithFix("turn on extended protection at the client, or do not require channel binding")
		}
		return nil
	}
	for _, cert := range a.opts.ServerCertificates() {
		if want := bindingHash(cert); hmac.Equal(want[:], sent[:]) {
			return nil
		}
	}
	return hresult.New(hresult.AccessDenied, "the token was made for another TLS connection than this one").
		WithFix("if a proxy between the client and the gateway ends TLS, turn off the check of channel bindings")
}

// buildReply makes the answer: an AP-REP where the client asked for mutual authentication (RFC 4120 3.2.4), inside
// SPNEGO where the client spoke it.
func (ex *exchange) buildReply() error {
	var token []byte
	if types.IsFlagSet(&ex.req.APOptions, flags.APOptionMutualRequired) {
		apRep, err := ex.apRep()
		if err != nil {
			return err
		}
		if token, err = gssFrame(tokIDAPRep, apRep); err != nil {
			return fmt.Errorf("framing the AP-REP: %w", err)
		}
	}
	if !ex.spnego {
		ex.reply = token
		return nil
	}
	reply, err := negTokenResp(acceptCompleted, ex.mech, token)
	if err != nil {
		return fmt.Errorf("building the NegTokenResp: %w", err)
	}
	ex.reply = reply
	return nil
}

// apRep echoes the authenticator's time, encrypted with the ticket's session key (RFC 4120 5.5.2). There is no
// subkey: nothing is wrapped after the authentication.
func (ex *exchange) apRep() ([]byte, error) {
	b, err := asn1.Marshal(messages.EncAPRepPart{CTime: ex.req.Authenticator.CTime, Cusec: ex.req.Authenticator.Cusec})
	if err != nil {
		return nil, fmt.Errorf("encoding the AP-REP: %w", err)
	}
	return sealAPRep(b, ex.req.Ticket.DecryptedEncPart.Key)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
