package kerberos

import (
	"bytes"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Mechanism OIDs (RFC 4178, RFC 4121, [MS-SPNG] 1.9).
var (
	oidSPNEGO   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 2}
	oidKerberos = asn1.ObjectIdentifier{1, 2, 840, 113554, 1, 2, 2}
	// oidMSKerberos is a mistake of Windows 2000 that Windows still puts first.
	oidMSKerberos = asn1.ObjectIdentifier{1, 2, 840, 48018, 1, 2, 2}
	oidUserToUser = asn1.ObjectIdentifier{1, 2, 840, 113554, 1, 2, 2, 3}
	oidNTLM       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 2, 10}
)

// tagApplication0 frames GSS initial tokens (RFC 2743 3.1); tagAPReq and tagAPRep begin Kerberos messages (RFC 4120 5.5).
const (
	tagApplication0 = cbasn1.Tag(0x60)
	tagAPReq        = cbasn1.Tag(0x6e)
	tagAPRep        = cbasn1.Tag(0x6f)
)

// Token identifiers inside the GSS frame (RFC 4121 4.1).
var (
	tokIDAPReq = []byte{1, 0}
	tokIDAPRep = []byte{2, 0}
)

// negotiation is what a client's first token says.
type negotiation struct {
	spnego bool                  // whether the AP-REQ came inside SPNEGO
	mech   asn1.ObjectIdentifier // the mechanism as the client named it, to be echoed
	mechs  []byte                // the client's list of mechanisms in DER, which a mechListMIC is over
	apReq  []byte
}

const fixKerberos = "let the client use Kerberos: reach the gateway by the DNS name in its SPN, logged on to the domain, with a domain controller in reach"

// parseToken finds the AP-REQ in a SPNEGO or bare Kerberos token.
func parseToken(token []byte) (*negotiation, error) {
	if bytes.HasPrefix(token, []byte("NTLMSSP\x00")) {
		return nil, refuseNTLM()
	}
	mech, inner, ok := readGSSFrame(token)
	switch {
	case !ok && len(token) > 0 && token[0] == 0xa1:
		return nil, hresult.New(hresult.AccessDenied, "the token continues a negotiation (NegTokenResp), but each request must carry a whole Kerberos token")
	case !ok:
		return nil, hresult.New(hresult.AccessDenied, "the token is neither SPNEGO nor Kerberos").WithFix(fixKerberos)
	case isKerberos(mech):
		apReq, err := readAPReqToken(inner)
		return &negotiation{mech: mech, apReq: apReq}, err
	case !mech.Equal(oidSPNEGO):
		return nil, hresult.New(hresult.AccessDenied, "the token is for the mechanism %s, not for SPNEGO or Kerberos", mech).WithFix(fixKerberos)
	}
	return parseNegTokenInit(inner)
}

// parseNegTokenInit reads the NegTokenInit choice (RFC 4178 4.2.1). The mechToken belongs to the first mechanism of
// the list, so Kerberos has to be the first: there is no second round trip.
func parseNegTokenInit(b cryptobyte.String) (*negotiation, error) {
	malformed := hresult.New(hresult.AccessDenied, "the SPNEGO token is malformed")
	var choice, seq, list, wrapped cryptobyte.String
	if !b.ReadASN1(&choice, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!choice.ReadASN1(&seq, cbasn1.SEQUENCE) ||
		!seq.ReadASN1(&wrapped, cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, malformed
	}
	raw := []byte(wrapped)
	if !wrapped.ReadASN1(&list, cbasn1.SEQUENCE) {
		return nil, malformed
	}
	var mechs []asn1.ObjectIdentifier
	for !list.Empty() {
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1ObjectIdentifier(&oid) {
			return nil, malformed
		}
		mechs = append(mechs, oid)
	}
	var token cryptobyte.String
	var present bool
	if !seq.SkipOptionalASN1(cbasn1.Tag(1).ContextSpecific().Constructed()) ||
		!seq.ReadOptionalASN1(&wrapped, &present, cbasn1.Tag(2).ContextSpecific().Constructed()) ||
		present && !wrapped.ReadASN1(&token, cbasn1.OCTET_STRING) {
		return nil, malformed
	}
	if len(mechs) == 0 || !isKerberos(mechs[0]) {
		for _, m := range mechs {
			if m.Equal(oidNTLM) {
				return nil, refuseNTLM()
			}
		}
		return nil, hresult.New(hresult.AccessDenied, "the client does not offer Kerberos first (it offers %v)", mechs).WithFix(fixKerberos)
	}
	if bytes.HasPrefix(token, []byte("NTLMSSP\x00")) {
		return nil, refuseNTLM()
	}
	apReq, err := readMechToken(token)
	return &negotiation{spnego: true, mech: mechs[0], mechs: raw, apReq: apReq}, err
}

// readMechToken takes the AP-REQ out of its GSS frame. In DCE style it has none, other than impacket's ([MS-KILE] 3.4.5.1).
func readMechToken(token cryptobyte.String) ([]byte, error) {
	if token.PeekASN1Tag(tagAPReq) {
		return token, nil
	}
	mech, inner, ok := readGSSFrame(token)
	switch {
	case ok && mech.Equal(oidUserToUser): // Windows does so where its application named an account in place of a service
		return nil, hresult.New(hresult.AccessDenied, "the client asks for user-to-user authentication, which is not supported: it knows no service principal of the gateway").WithFix(fixKerberos)
	case !ok || !isKerberos(mech):
		return nil, hresult.New(hresult.AccessDenied, "the SPNEGO token holds no Kerberos token").WithFix(fixKerberos)
	}
	return readAPReqToken(inner)
}

// ErrNTLM is the cause of every refusal of NTLM.
var ErrNTLM = errors.New("NTLM")

// refuseNTLM is the refusal of a client that fell back to NTLM, which it does when it found no ticket.
func refuseNTLM() error {
	return hresult.Wrap(hresult.AccessDenied, ErrNTLM, "the client sent NTLM, which is not accepted: it had no Kerberos ticket for this name").
		WithFix("check that the SPN HTTP/<host in the URL> is registered on exactly one account (setspn -Q), and that the URL holds that DNS name, not an address")
}

func isKerberos(oid asn1.ObjectIdentifier) bool {
	return oid.Equal(oidKerberos) || oid.Equal(oidMSKerberos)
}

// readGSSFrame opens the frame of an initial context token (RFC 2743 3.1).
func readGSSFrame(b []byte) (mech asn1.ObjectIdentifier, inner cryptobyte.String, ok bool) {
	s := cryptobyte.String(b)
	ok = s.ReadASN1(&inner, tagApplication0) && s.Empty() && inner.ReadASN1ObjectIdentifier(&mech)
	return mech, inner, ok
}

// readAPReqToken checks the token identifier in front of the AP-REQ.
func readAPReqToken(inner cryptobyte.String) ([]byte, error) {
	if !bytes.HasPrefix(inner, tokIDAPReq) {
		return nil, hresult.New(hresult.AccessDenied, "the Kerberos token is not an AP-REQ")
	}
	return inner[len(tokIDAPReq):], nil
}

// gssFrame wraps a Kerberos message for GSS.
func gssFrame(tokID, message []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(tagApplication0, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidKerberos)
		b.AddBytes(tokID)
		b.AddBytes(message)
	})
	return b.Bytes()
}

// Values of negState (RFC 4178 4.2.2).
const (
	acceptCompleted  = 0
	acceptIncomplete = 1
	reject           = 2
)

// negTokenResp builds the answer of SPNEGO (RFC 4178 4.2.2). No mechListMIC is due when the first mechanism is taken.
func negTokenResp(state int64, mech asn1.ObjectIdentifier, token []byte) ([]byte, error) {
	return negTokenRespMIC(state, mech, token, nil)
}

// negTokenRespMIC is negTokenResp with a mechListMIC, for clients that have sent one.
func negTokenRespMIC(state int64, mech asn1.ObjectIdentifier, token, mic []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1Enum(state)
			})
			if mech != nil {
				b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(mech)
				})
			}
			if len(token) > 0 {
				b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(token)
				})
			}
			if len(mic) > 0 {
				b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(mic)
				})
			}
		})
	})
	return b.Bytes()
}

// readNegTokenResp reads the client's later token (RFC 4178 4.2.2): what the mechanism says, and the mechListMIC. Clients leave
// negState out.
func readNegTokenResp(token []byte) (inner, mic []byte, err error) {
	malformed := hresult.New(hresult.AccessDenied, "the SPNEGO token is malformed")
	s := cryptobyte.String(token)
	var choice, seq cryptobyte.String
	if !s.ReadASN1(&choice, cbasn1.Tag(1).ContextSpecific().Constructed()) || !s.Empty() || !choice.ReadASN1(&seq, cbasn1.SEQUENCE) || !choice.Empty() ||
		!seq.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) || !seq.SkipOptionalASN1(cbasn1.Tag(1).ContextSpecific().Constructed()) {
		return nil, nil, malformed
	}
	for tag, out := range []*[]byte{2: &inner, 3: &mic} {
		var wrapped, value cryptobyte.String
		var present bool
		if out == nil {
			continue
		}
		if !seq.ReadOptionalASN1(&wrapped, &present, cbasn1.Tag(tag).ContextSpecific().Constructed()) { //nolint:gosec // 2 or 3
			return nil, nil, malformed
		}
		if present && (!wrapped.ReadASN1(&value, cbasn1.OCTET_STRING) || !wrapped.Empty()) {
			return nil, nil, malformed
		}
		*out = value
	}
	if !seq.Empty() {
		return nil, nil, malformed
	}
	return inner, mic, nil
}
