package ldapsync

import (
	"encoding/asn1"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
	krbcrypto "github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// unproven is a client that has sent its AP-REQ.
func unproven(t *testing.T) *gssClient {
	t.Helper()
	auth, err := types.NewAuthenticator("LAB.TEST", types.PrincipalName{})
	if err != nil {
		t.Fatal(err)
	}
	key := randomKey(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	if err := auth.GenerateSeqNumberAndSubKey(key.KeyType, len(key.KeyValue)); err != nil {
		t.Fatal(err)
	}
	return &gssClient{sent: true, auth: auth, key: key}
}

// reply is the AP-REP of a server that has the key, with an encrypted part in the shape of messages.EncAPRepPart
// (RFC 4120 5.5.2, RFC 4121 4.1).
func reply(t *testing.T, key types.EncryptionKey, part any) []byte {
	t.Helper()
	plain, err := asn1.Marshal(part)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := krbcrypto.GetEncryptedData(asn1tools.AddASNAppTag(plain, asnAppTag.EncAPRepPart), key, keyusage.AP_REP_ENCPART, 0)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := asn1.Marshal(messages.APRep{PVNO: 5, MsgType: msgtype.KRB_AP_REP, EncPart: sealed})
	if err != nil {
		t.Fatal(err)
	}
	return asn1tools.AddASNAppTag(append([]byte(apReqPrefix[:11]+"\x02\x00"), asn1tools.AddASNAppTag(rep, asnAppTag.APREP)...), 0)
}

func TestTheServerProvesItselfWithTheTicketsKey(t *testing.T) {
	subkey := randomKey(t, etypeID.AES128_CTS_HMAC_SHA1_96)
	rc4 := types.EncryptionKey{KeyType: etypeID.RC4_HMAC, KeyValue: make([]byte, 16)}
	for name, tt := range map[string]struct {
		change func(g *gssClient, p *messages.EncAPRepPart)
		want   string // "" where it is accepted
	}{
		"accepted":                {func(*gssClient, *messages.EncAPRepPart) {}, ""},
		"another second":          {func(_ *gssClient, p *messages.EncAPRepPart) { p.CTime = p.CTime.Add(time.Second) }, "reply is to another request"},
		"another microsecond":     {func(_ *gssClient, p *messages.EncAPRepPart) { p.Cusec ^= 1 }, "reply is to another request"},
		"another key":             {func(g *gssClient, _ *messages.EncAPRepPart) { g.key = randomKey(t, g.key.KeyType) }, "did not prove its identity"},
		"a subkey that is no AES": {func(_ *gssClient, p *messages.EncAPRepPart) { p.Subkey = rc4 }, "not AES"},
	} {
		g := unproven(t)
		part := messages.EncAPRepPart{CTime: g.auth.CTime.Truncate(time.Second), Cusec: g.auth.Cusec, Subkey: subkey, SequenceNumber: 77}
		key := g.key
		tt.change(g, &part)
		_, more, err := g.InitSecContextWithOptions("ldap/dc1", reply(t, key, part), nil)
		if tt.want == "" {
			if err != nil || more || g.wrap.recvSeq != 77 || !g.wrap.subkey || g.wrap.key.KeyType != subkey.KeyType || g.wrap.sendSeq != uint64(g.auth.SeqNumber) {
				t.Errorf("%s: %v, %+v", name, err, g.wrap)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || g.wrap != nil {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

func TestWithoutASubkeyOfTheServerOursIsUsed(t *testing.T) {
	g := unproven(t)
	part := struct { // as the library's type, which cannot leave the subkey out
		CTime          time.Time `asn1:"generalized,explicit,tag:0"`
		Cusec          int       `asn1:"explicit,tag:1"`
		SequenceNumber int64     `asn1:"optional,explicit,tag:3"`
	}{g.auth.CTime.Truncate(time.Second), g.auth.Cusec, 5}
	if err := g.verifyReply(reply(t, g.key, part)); err != nil {
		t.Fatal(err)
	}
	if g.wrap.subkey || string(g.wrap.key.KeyValue) != string(g.auth.SubKey.KeyValue) || g.wrap.sendFlags != 0 {
		t.Errorf("%+v", g.wrap)
	}
}
