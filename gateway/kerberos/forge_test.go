package kerberos

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/test/testdata"
	"github.com/jcmturner/gokrb5/v8/types"
	"github.com/jcmturner/rpc/v2/mstypes"
)

// forged is a ticket that the test writes in the place of a domain controller, with the service's own key. The zero
// value of each field is what a domain controller would do.
type forged struct {
	spn        string // HTTP/gw.ntdev.test
	kvno       int
	etype      int32 // of the ticket
	session    int32 // encryption type of the session key
	start, end time.Time
	sent       time.Time         // authenticator
	cname      string            // in the ticket
	authName   string            // in the authenticator
	noPAC      bool              // no authorization data at all
	buffers    map[uint32][]byte // replace buffers of the PAC; nil removes one
	breakPAC   bool              // after it was signed
	binding    [16]byte
	mutual     bool
	bare       bool   // no SPNEGO
	flags      uint32 // of the GSS checksum
	number     int64  // sequence number
	raw        bool   // no GSS frame, as in DCE style
	mechs      []asn1.ObjectIdentifier
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// token writes the ticket and a token with it.
func (f forged) token(t testing.TB) (token []byte, session types.EncryptionKey) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	spn, etype := or(f.spn, "HTTP/gw.ntdev.test"), or(f.etype, etypeID.AES256_CTS_HMAC_SHA1_96)
	key := keysOf(testKeytab(t, "HTTP/gw.ntdev.test", 3, etype))[0].key
	se, err := crypto.GetEtype(or(f.session, etypeID.AES256_CTS_HMAC_SHA1_96))
	check(err)
	session, err = types.GenerateEncryptionKey(se)
	check(err)
	cname := types.NewPrincipalName(1, or(f.cname, "lzhu"))
	part := messages.EncTicketPart{
		Flags: types.NewKrbFlags(), Key: session, CRealm: "NTDEV.TEST", CName: cname,
		AuthTime: testNow.Add(-time.Minute), StartTime: or(f.start, testNow.Add(-time.Minute)), EndTime: or(f.end, testNow.Add(time.Hour)),
		RenewTill: testNow.Add(time.Hour),
	}
	if !f.noPAC {
		inner, err := asn1.Marshal(types.AuthorizationData{{ADType: adtype.ADWin2KPAC, ADData: f.pac(t, key, part)}})
		check(err)
		part.AuthorizationData = types.AuthorizationData{{ADType: adtype.ADIfRelevant, ADData: inner}}
	}
	b, err := asn1.Marshal(part)
	check(err)
	sealed, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(b, asnAppTag.EncTicketPart), key, keyusage.KDC_REP_TICKET, or(f.kvno, 3))
	check(err)
	tkt := messages.Ticket{TktVNO: iana.PVNO, Realm: "NTDEV.TEST", SName: types.NewPrincipalName(2, spn), EncPart: sealed}
	auth, err := types.NewAuthenticator("NTDEV.TEST", types.NewPrincipalName(1, or(f.authName, or(f.cname, "lzhu"))))
	check(err)
	auth.CTime, auth.Cusec = or(f.sent, testNow), 4711
	sum := binary.LittleEndian.AppendUint32(nil, 16)
	sum = binary.LittleEndian.AppendUint32(append(sum, f.binding[:]...), f.flags)
	auth.SeqNumber = or(f.number, auth.SeqNumber)
	auth.Cksum = types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: sum}
	req, err := messages.NewAPReq(tkt, session, auth)
	check(err)
	if f.mutual {
		types.SetFlag(&req.APOptions, flags.APOptionMutualRequired)
	}
	b, err = req.Marshal()
	check(err)
	return f.frame(t, b), session
}

// frame wraps the AP-REQ.
func (f forged) frame(t testing.TB, apReq []byte) []byte {
	t.Helper()
	token, err := gssFrame(tokIDAPReq, apReq)
	if f.raw {
		token = apReq
	}
	if err != nil || f.bare {
		return token
	}
	mechs := f.mechs
	if mechs == nil {
		mechs = []asn1.ObjectIdentifier{asn1.ObjectIdentifier(oidMSKerberos), asn1.ObjectIdentifier(oidKerberos), asn1.ObjectIdentifier(oidNTLM)}
	}
	b, err := asn1.Marshal(struct {
		Mechs []asn1.ObjectIdentifier `asn1:"explicit,tag:0"`
		Token []byte                  `asn1:"explicit,tag:2"`
	}{mechs, token})
	if err != nil {
		t.Fatal(err)
	}
	b = append([]byte{0x06, 6, 0x2b, 6, 1, 5, 5, 2}, der(0xa0, b)...)
	return der(0x60, b)
}

func der(tag byte, content []byte) []byte {
	return append(append([]byte{tag}, asn1tools.MarshalLengthBytes(len(content))...), content...)
}

// pac builds a signed PAC around the logon information that [MS-PAC] 3 prints.
func (f forged) pac(t testing.TB, key types.EncryptionKey, part messages.EncTicketPart) []byte {
	t.Helper()
	logon, err := hex.DecodeString(testdata.MarshaledPAC_Kerb_Validation_Info_MS)
	if err != nil {
		t.Fatal(err)
	}
	ft := mstypes.GetFileTime(part.AuthTime)
	client := binary.LittleEndian.AppendUint32(nil, ft.LowDateTime)
	client = binary.LittleEndian.AppendUint32(client, ft.HighDateTime)
	name := utf16.Encode([]rune(part.CName.PrincipalNameString()))
	client = binary.LittleEndian.AppendUint16(client, uint16(2*len(name)))
	for _, u := range name {
		client = binary.LittleEndian.AppendUint16(client, u)
	}
	etype, err := crypto.GetEtype(key.KeyType)
	if err != nil {
		t.Fatal(err)
	}
	signature := binary.LittleEndian.AppendUint32(nil, uint32(etype.GetHashID()))
	signature = append(signature, make([]byte, etype.GetHMACBitLength()/8)...)
	buffers := map[uint32][]byte{pacLogonInfo: logon, pacClientInfo: client, pacServerSignature: signature, pacKDCSignature: signature}
	for kind, b := range f.buffers {
		if buffers[kind] = b; b == nil {
			delete(buffers, kind)
		}
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(buffers)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	offset, server := 8+16*len(buffers), -1
	var data []byte
	for _, kind := range []uint32{pacLogonInfo, pacClientInfo, pacServerSignature, pacKDCSignature, 12} {
		buf, ok := buffers[kind]
		if !ok {
			continue
		}
		if kind == pacServerSignature {
			server = offset + len(data)
		}
		b = binary.LittleEndian.AppendUint32(b, kind)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(buf)))
		b = binary.LittleEndian.AppendUint64(b, uint64(offset+len(data)))
		data = append(data, buf...)
		data = append(data, make([]byte, (8-len(data)%8)%8)...)
	}
	b = append(b, data...)
	if server >= 0 && len(buffers[pacServerSignature]) == len(signature) {
		sum, err := etype.GetChecksumHash(key.KeyValue, b, keyusage.KERB_NON_KERB_CKSUM_SALT)
		if err != nil {
			t.Fatal(err)
		}
		copy(b[server+4:], sum)
	}
	if f.breakPAC {
		b[len(b)/2] ^= 1
	}
	return b
}
