package ldapsync

import (
	"crypto"
	"crypto/md5"      // RFC 4121 4.1.1.2 fixes MD5 for the channel binding field; it is not a choice here
	_ "crypto/sha256" // registers SHA-256
	_ "crypto/sha512" // registers SHA-384 and SHA-512
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/client"
	krbcrypto "github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Security layers of the SASL mechanism GSSAPI (RFC 4752 3.1), as bits.
const (
	layerNone = 1
	layerSeal = 4
)

// gssClient is the client side of one SASL GSSAPI bind; it implements ldap.GSSAPIClient. The library calls
// InitSecContextWithOptions until it returns false, then NegotiateSaslAuth once. After the bind, agreed must be true.
type gssClient struct {
	krb     *client.Client
	conn    *saslConn // where the layer comes into force; nil inside TLS, where no layer is allowed
	binding []byte    // hash that ties the context to the TLS channel; nil without TLS

	auth   types.Authenticator // as sent
	key    types.EncryptionKey // of the ticket
	sent   bool
	wrap   *wrapper // set once the controller has proven itself
	agreed bool     // the layer is agreed: the bind is complete
}

// InitSecContext implements ldap.GSSAPIClient.
func (g *gssClient) InitSecContext(target string, token []byte) ([]byte, bool, error) {
	return g.InitSecContextWithOptions(target, token, nil)
}

// InitSecContextWithOptions makes the AP-REQ, then verifies the controller's AP-REP.
func (g *gssClient) InitSecContextWithOptions(target string, token []byte, _ []int) ([]byte, bool, error) {
	if !g.sent {
		g.sent = true
		b, err := g.request(target)
		return b, true, err
	}
	// Success without an AP-REP would be a controller that did not prove itself.
	if len(token) == 0 {
		return nil, false, errors.New("kerberos: the server did not prove its identity")
	}
	err := g.verifyReply(token)
	return nil, false, err
}

// DeleteSecContext implements ldap.GSSAPIClient. The library calls it when the bind is over; the keys live on in the
// security layer.
func (g *gssClient) DeleteSecContext() error {
	g.key, g.auth = types.EncryptionKey{}, types.Authenticator{}
	return nil
}

// apReqPrefix is the object identifier of the Kerberos mechanism, 1.2.840.113554.1.2.2, and the token ID of an AP-REQ.
const apReqPrefix = "\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" + "\x01\x00"

// request makes the initial context token (RFC 4121 4.1).
func (g *gssClient) request(spn string) ([]byte, error) {
	ticket, key, err := g.krb.GetServiceTicket(spn)
	if err != nil {
		return nil, fmt.Errorf("kerberos: getting a ticket for %s: %w", spn, err)
	}
	if _, err := aesType(key); err != nil {
		return nil, fmt.Errorf("kerberos: ticket for %s: %w", spn, err)
	}
	auth, err := types.NewAuthenticator(g.krb.Credentials.Domain(), g.krb.Credentials.CName())
	if err != nil {
		return nil, fmt.Errorf("kerberos: %w", err)
	}
	if err := auth.GenerateSeqNumberAndSubKey(key.KeyType, len(key.KeyValue)); err != nil {
		return nil, fmt.Errorf("kerberos: %w", err)
	}
	auth.Cksum = types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: g.checksum()}
	g.auth, g.key = auth, key
	req, err := messages.NewAPReq(ticket, key, auth)
	if err != nil {
		return nil, fmt.Errorf("kerberos: %w", err)
	}
	types.SetFlag(&req.APOptions, flags.APOptionMutualRequired)
	b, err := req.Marshal()
	if err != nil {
		return nil, fmt.Errorf("kerberos: %w", err)
	}
	return asn1tools.AddASNAppTag(append([]byte(apReqPrefix), b...), 0), nil
}

// checksum is the field in which the GSS flags and the channel binding travel (RFC 4121 4.1.1). Inside TLS neither
// confidentiality nor integrity is asked for: Active Directory refuses a second layer ([MS-ADTS] 5.1.1.1.2).
func (g *gssClient) checksum() []byte {
	want := uint32(gssapi.ContextFlagMutual)
	if g.conn != nil {
		want |= gssapi.ContextFlagReplay | gssapi.ContextFlagSequence | gssapi.ContextFlagConf | gssapi.ContextFlagInteg
	}
	b := binary.LittleEndian.AppendUint32(nil, md5.Size)
	b = append(b, make([]byte, md5.Size)...)
	copy(b[4:], g.binding)
	return binary.LittleEndian.AppendUint32(b, want)
}

// verifyReply checks that whoever answered could read the ticket (RFC 4120 3.2.5), and sets the context's key: the
// subkey that the acceptor chose, else ours (RFC 4121 2).
func (g *gssClient) verifyReply(token []byte) (err error) {
	defer func() { // the library indexes some damaged structures without checks
		if r := recover(); r != nil {
			err = errors.New("kerberos: the server's reply is damaged")
		}
	}()
	var t spnego.KRB5Token
	if err := t.Unmarshal(token); err != nil {
		return fmt.Errorf("kerberos: the server's reply: %w", err)
	}
	if t.IsKRBError() {
		return fmt.Errorf("kerberos: the server refuses the ticket: %w", t.KRBError)
	}
	if !t.IsAPRep() {
		return errors.New("kerberos: the server's reply is no AP-REP")
	}
	plain, err := krbcrypto.DecryptEncPart(t.APRep.EncPart, g.key, keyusage.AP_REP_ENCPART)
	if err != nil {
		return fmt.Errorf("kerberos: the server did not prove its identity: %w", err)
	}
	var part messages.EncAPRepPart
	if err := part.Unmarshal(plain); err != nil {
		return fmt.Errorf("kerberos: the server's reply: %w", err)
	}
	if part.CTime.Unix() != g.auth.CTime.Unix() || part.Cusec != g.auth.Cusec {
		return errors.New("kerberos: the server did not prove its identity: its reply is to another request")
	}
	key, chosen := g.auth.SubKey, false
	if len(part.Subkey.KeyValue) > 0 {
		key, chosen = part.Subkey, true
	}
	g.wrap, err = newWrapper(key, chosen, uint64(g.auth.SeqNumber), uint64(uint32(part.SequenceNumber)))
	if err != nil {
		return fmt.Errorf("kerberos: %w", err)
	}
	return nil
}

// NegotiateSaslAuth answers the controller's offer of security layers (RFC 4752 3.1): four octets, a set of layers and
// the longest message that it takes.
func (g *gssClient) NegotiateSaslAuth(token []byte, _ string) ([]byte, error) {
	if g.wrap == nil {
		return nil, errors.New("kerberos: the server did not prove its identity")
	}
	offer, err := g.wrap.open(token, false)
	if err != nil {
		return nil, fmt.Errorf("kerberos: offer of security layers: %w", err)
	}
	if len(offer) != 4 {
		return nil, fmt.Errorf("kerberos: offer of security layers of %d octets, want 4", len(offer))
	}
	layer, ours := byte(layerSeal), uint32(maxSealedFrame)
	if g.conn == nil {
		layer, ours = layerNone, 0
	}
	if offer[0]&layer == 0 {
		return nil, fmt.Errorf("kerberos: the server offers the security layers 0x%02x, without 0x%02x (%s)", offer[0], layer,
			map[byte]string{layerNone: "none, as inside TLS", layerSeal: "encryption"}[layer])
	}
	reply, err := g.wrap.sign(binary.BigEndian.AppendUint32(nil, uint32(layer)<<24|ours))
	if err != nil {
		return nil, fmt.Errorf("kerberos: %w", err)
	}
	if g.conn != nil {
		theirs := int(binary.BigEndian.Uint32(offer) & 0xffffff)
		if theirs <= g.wrap.overhead() {
			return nil, fmt.Errorf("kerberos: the server takes messages of %d octets, too few to be of use", theirs)
		}
		g.conn.sealAfterNextWrite(g.wrap, min(theirs, maxSealedFrame))
	}
	g.agreed = true
	return reply, nil
}

// channelBinding is the Bnd field for a TLS server certificate: MD5 over the GSS channel bindings structure without
// addresses (RFC 4121 4.1.1.2) and with the data "tls-server-end-point:" + hash of the certificate (RFC 5929 4.1).
// Hardened controllers demand it inside TLS (LdapEnforceChannelBinding).
func channelBinding(cert *x509.Certificate) []byte {
	h := crypto.SHA256 // also in the place of MD5 and SHA-1, and where the signature has no single hash
	switch cert.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		h = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		h = crypto.SHA512
	}
	w := h.New()
	w.Write(cert.Raw)
	data := append([]byte("tls-server-end-point:"), w.Sum(nil)...)
	b := make([]byte, 16, 20+len(data)) // initiator and acceptor: address type 0, length 0, each
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	sum := md5.Sum(append(b, data...))
	return sum[:]
}
