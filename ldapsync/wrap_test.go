package ldapsync

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/types"
	"pgregory.net/rapid"
)

func randomKey(t testing.TB, kind int32) types.EncryptionKey {
	t.Helper()
	size := 32
	if kind == etypeID.AES128_CTS_HMAC_SHA1_96 || kind == etypeID.AES128_CTS_HMAC_SHA256_128 {
		size = 16
	}
	key := make([]byte, size)
	_, _ = rand.Read(key) // never fails
	return types.EncryptionKey{KeyType: kind, KeyValue: key}
}

// pair is the two ends of a context.
func pair(t testing.TB, key types.EncryptionKey) (initiator, acceptor *wrapper) {
	t.Helper()
	initiator, err := newWrapper(key, true, 100, 200)
	if err != nil {
		t.Fatal(err)
	}
	a := *initiator
	a.sendSeq, a.recvSeq = a.recvSeq, a.sendSeq
	a.sendUsage, a.recvUsage = a.recvUsage, a.sendUsage
	a.sendFlags, a.recvFlags = a.recvFlags, a.sendFlags
	return initiator, &a
}

var aesTypes = []int32{etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96,
	etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES256_CTS_HMAC_SHA384_192}

func TestWhatOneSideWrapsTheOtherOpens(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		kind := rapid.SampledFrom(aesTypes).Draw(r, "type")
		initiator, acceptor := pair(t, randomKey(t, kind))
		for _, message := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 300), 1, 5).Draw(r, "messages") {
			sealed, err := acceptor.seal(message)
			if err != nil {
				r.Fatal(err)
			}
			if len(sealed) != len(message)+acceptor.overhead() {
				r.Fatalf("sealed %d octets into %d, overhead %d", len(message), len(sealed), acceptor.overhead())
			}
			rotate(sealed, rapid.IntRange(0, 70).Draw(r, "rotation"))
			if got, err := initiator.open(sealed, true); err != nil || !bytes.Equal(got, message) {
				r.Fatalf("sealed: %x, %v", got, err)
			}
			signed, err := acceptor.sign(message)
			if err != nil {
				r.Fatal(err)
			}
			rotate(signed, rapid.IntRange(0, 70).Draw(r, "rotation"))
			if got, err := initiator.open(signed, false); err != nil || !bytes.Equal(got, message) {
				r.Fatalf("signed: %x, %v", got, err)
			}
		}
	})
}

// rotate does what Windows does to its tokens (RFC 4121 4.2.5).
func rotate(token []byte, n int) {
	binary.BigEndian.PutUint16(token[6:], uint16(n))
	body := token[wrapHeaderSize:]
	n %= len(body)
	copy(body, append(bytes.Clone(body[len(body)-n:]), body[:len(body)-n]...))
}

// Tokens with filler (EC not 0) come from other implementations only.
func TestFillerInASealedTokenIsRemoved(t *testing.T) {
	initiator, acceptor := pair(t, randomKey(t, etypeID.AES256_CTS_HMAC_SHA1_96))
	h := header(acceptor.sendFlags|flagSealed, 3, 0, acceptor.sendSeq)
	_, sealed, err := acceptor.etype.EncryptMessage(acceptor.key.KeyValue, append([]byte("hello\x00\x00\x00"), h...), acceptor.sendUsage)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := initiator.open(append(h, sealed...), true); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNoOctetOfATokenCanBeChanged(t *testing.T) {
	for _, kind := range aesTypes {
		initiator, acceptor := pair(t, randomKey(t, kind))
		token, err := acceptor.seal([]byte("the certificate templates"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range token {
			changed := bytes.Clone(token)
			changed[i] ^= 0x40
			if _, err := initiator.open(changed, true); err == nil {
				t.Errorf("type %d: octet %d changed: accepted", kind, i)
			}
			if _, err := initiator.open(token[:i], true); err == nil {
				t.Errorf("type %d: cut to %d octets: accepted", kind, i)
			}
		}
		if _, err := initiator.open(token, true); err != nil {
			t.Errorf("type %d: unchanged: %v", kind, err)
		}
	}
}

func TestTokensOutOfPlaceAreRefused(t *testing.T) {
	initiator, acceptor := pair(t, randomKey(t, etypeID.AES256_CTS_HMAC_SHA1_96))
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, second := must(acceptor.seal([]byte("one"))), must(acceptor.seal([]byte("two")))
	signed := must(acceptor.sign([]byte("three")))
	own := must(initiator.seal([]byte("mine")))
	refused := func(what string, token []byte, want string) {
		t.Helper()
		if _, err := initiator.open(token, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	refused("out of order", second, "number 201, want 200")
	refused("reflected", own, "flags")
	must(initiator.open(first, true))
	refused("repeated", first, "number 200, want 201")
	must(initiator.open(second, true))
	refused("signed in place of sealed", signed, "flags 0x05, want 0x07")
	must(initiator.open(signed, false))

	if _, err := newWrapper(types.EncryptionKey{KeyType: etypeID.RC4_HMAC, KeyValue: make([]byte, 16)}, true, 0, 0); err == nil {
		t.Error("an RC4 key is accepted")
	}
	if _, err := newWrapper(types.EncryptionKey{KeyType: etypeID.AES256_CTS_HMAC_SHA1_96, KeyValue: make([]byte, 16)}, true, 0, 0); err == nil {
		t.Error("half a key is accepted")
	}
}

// The token of gokrb5's wrapToken_test.go: signed, by the acceptor, without a subkey.
func TestASignedTokenFromElsewhereIsOpened(t *testing.T) {
	const (
		key   = "14f9bde6b50ec508201a97f74c4e5bd3"
		token = "050401ff000c000000000000575e85d601010000853b728d5268525a1386c19f"
	)
	k, _ := hex.DecodeString(key)
	b, _ := hex.DecodeString(token)
	w, err := newWrapper(types.EncryptionKey{KeyType: etypeID.AES128_CTS_HMAC_SHA1_96, KeyValue: k}, false, 0, 0x575e85d6)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.open(b, false); err != nil || hex.EncodeToString(got) != "01010000" {
		t.Errorf("%x, %v", got, err)
	}
}

func TestGokrb5VerifiesOurSignature(t *testing.T) {
	initiator, _ := pair(t, randomKey(t, etypeID.AES128_CTS_HMAC_SHA1_96))
	b, err := initiator.sign([]byte{4, 0, 1, 0})
	if err != nil {
		t.Fatal(err)
	}
	var theirs gssapi.WrapToken
	if err := theirs.Unmarshal(b, false); err != nil {
		t.Fatal(err)
	}
	if ok, err := theirs.Verify(initiator.key, keyusage.GSSAPI_INITIATOR_SEAL); !ok {
		t.Error(err)
	}
}

func FuzzOpenWrapToken(f *testing.F) {
	key := types.EncryptionKey{KeyType: etypeID.AES256_CTS_HMAC_SHA1_96, KeyValue: make([]byte, 32)}
	_, acceptor := pair(f, key)
	for _, message := range []string{"", "hello"} {
		acceptor.sendSeq = 200
		sealed, err := acceptor.seal([]byte(message))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sealed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		initiator, _ := pair(t, key)
		_, _ = initiator.open(b, true) // no panic, whatever comes
		_, _ = initiator.open(b, false)
	})
}
