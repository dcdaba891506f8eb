package quorum_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"pgregory.net/rapid"
)

type agent struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

func (a agent) fingerprint() string {
	sum := sha256.Sum256(a.cert.Raw)
	return hex.EncodeToString(sum[:])
}

func agents(t testing.TB, n int) (out []agent, certs []*x509.Certificate) {
	t.Helper()
	for i := range n {
		key, cert := testpki.Agent(t, fmt.Sprintf("kra%d", i+1), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
		out, certs = append(out, agent{key, cert}), append(certs, cert)
	}
	return out, certs
}

func keyID(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

func seal(t testing.TB, secret string, required int, certs []*x509.Certificate) *quorum.Record {
	t.Helper()
	der, err := quorum.Seal([]byte(secret), quorum.Terms{KeyID: keyID(secret), Owner: "alice@LAB.TEST", Policy: "boss", Required: required}, quorum.Certificates(certs...))
	if err != nil {
		t.Fatal(err)
	}
	r, err := quorum.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t testing.TB, r *quorum.Record, who ...agent) []*quorum.Share {
	t.Helper()
	var out []*quorum.Share
	for _, a := range who {
		s, err := r.OpenShare(a.cert, a.key)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func TestEveryQuorumOpensAndNoFewerDo(t *testing.T) {
	all, certs := agents(t, 5)
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(2, 5).Draw(rt, "n")
		m := rapid.IntRange(2, n).Draw(rt, "m")
		r := seal(t, "the private key", m, certs[:n])
		who := rapid.Permutation(all[:n]).Draw(rt, "who")
		plain, err := r.Combine(open(t, r, who[:m]...))
		if err != nil || string(plain) != "the private key" {
			rt.Fatalf("%d of %d: %q, %v", m, n, plain, err)
		}
		if _, err := r.Combine(open(t, r, who[:m-1]...)); err == nil {
			rt.Fatalf("%d of %d opened with %d", m, n, m-1)
		}
	})
}

func TestOneAgentTwiceIsNoQuorum(t *testing.T) {
	all, certs := agents(t, 3)
	r := seal(t, "secret", 2, certs)
	if _, err := r.Combine(open(t, r, all[0], all[0])); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("%v", err)
	}
}

// What m-1 agents hold is consistent with every secret: with their shares fixed, each candidate for the missing share gives
// another content key, and only the authentication of the content tells which is right.
func TestColludingAgentsBelowTheQuorumLearnNothing(t *testing.T) {
	all, certs := agents(t, 3)
	r := seal(t, "secret", 3, certs)
	other := seal(t, "secret", 3, certs)
	known := open(t, r, all[0], all[1])
	guess := open(t, other, all[2]) // a share like any other, as good as a guess
	if _, err := r.Combine(append(known, guess...)); err == nil {
		t.Error("two shares and a guess opened the record")
	}
	raised := *r
	raised.Required = 2 // what a patched program would try
	if _, err := raised.Combine(known); err == nil {
		t.Error("the number of shares is only a field")
	}
}

func TestAShareOfAnotherRecordIsFoundOut(t *testing.T) {
	all, certs := agents(t, 2)
	alice, bob := seal(t, "alice", 2, certs), seal(t, "bob", 2, certs)
	theirs := open(t, bob, all[0])[0]
	if err := alice.Check(theirs, all[0].fingerprint()); err == nil {
		t.Error("a share of bob's key passed as one of alice's")
	}
	mine := open(t, alice, all[0])[0]
	if err := alice.Check(mine, all[1].fingerprint()); err == nil {
		t.Error("the share of one agent passed as another's")
	}
	if _, err := alice.OpenShare(certs[0], all[1].key); err == nil {
		t.Error("one agent's key opened another's share")
	}
}

// Every octet of the record is protected: those of the content and the binding by the AEAD, each share by its verifier.
func TestAChangedRecordDoesNotOpen(t *testing.T) {
	all, certs := agents(t, 2)
	der, err := quorum.Seal([]byte("secret"), quorum.Terms{KeyID: keyID("secret"), Owner: "alice@LAB.TEST", Policy: "boss", Required: 2}, quorum.Certificates(certs...))
	if err != nil {
		t.Fatal(err)
	}
	for i := range der {
		changed := bytes.Clone(der)
		changed[i] ^= 1
		r, err := quorum.Parse(changed)
		if err != nil {
			continue
		}
		var shares []*quorum.Share
		for _, a := range all {
			if s, err := r.OpenShare(a.cert, a.key); err == nil {
				shares = append(shares, s)
			}
		}
		if plain, err := r.Combine(shares); err == nil && !opensTheSame(plain, i, der) {
			t.Fatalf("octet %d changed, and the record opens to %q", i, plain)
		}
	}
	for _, cut := range []int{0, 1, len(der) / 2, len(der) - 1} {
		if _, err := quorum.Parse(der[:cut]); err == nil {
			t.Errorf("a record of %d octets was read", cut)
		}
	}
}

// opensTheSame allows octets of a share's envelope that do not matter for opening it, such as its version number.
func opensTheSame(plain []byte, at int, der []byte) bool {
	shares := bytes.Index(der, []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03})
	return string(plain) == "secret" && at > shares-8
}

func TestOpenSSLOpensAnAgentsShareWithTheAgentsKey(t *testing.T) {
	all, certs := agents(t, 3)
	r := seal(t, "secret", 2, certs)
	for i, a := range all {
		keyFile := testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(a.key))
		der, err := testpki.OpenSSL(t, r.SealedShare(a.fingerprint()), "cms", "-decrypt", "-inform", "DER", "-inkey", keyFile, "-recip", testpki.PEM(t, "CERTIFICATE", a.cert.Raw))
		if err != nil {
			t.Fatal("OpenSSL cannot open the share")
		}
		want, err := open(t, r, a)[0].Marshal()
		if err != nil || !bytes.Equal(der, want) {
			t.Errorf("share %d: OpenSSL reads something else", i+1)
		}
		text, err := testpki.OpenSSL(t, der, "asn1parse", "-inform", "DER")
		if err != nil || !strings.Contains(string(text), ":boss") {
			t.Errorf("share %d is no DER to OpenSSL: %s", i+1, text)
		}
	}
}

func TestOutOfRangeTermsAreRefused(t *testing.T) {
	_, certs := agents(t, 2)
	for _, c := range []quorum.Terms{
		{KeyID: keyID("x"), Required: 0}, {KeyID: keyID("x"), Required: 3}, {KeyID: nil, Required: 2},
		{KeyID: keyID("x"), Required: 2, Owner: strings.Repeat("x", 257)},
	} {
		if _, err := quorum.Seal([]byte("x"), c, quorum.Certificates(certs...)); err == nil {
			t.Errorf("%+v was sealed", c)
		}
	}
}

func FuzzParse(f *testing.F) {
	_, certs := agents(f, 2)
	der, err := quorum.Seal([]byte("x"), quorum.Terms{KeyID: keyID("x"), Owner: "a", Policy: "p", Required: 2}, quorum.Certificates(certs...))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if r, err := quorum.Parse(der); err == nil {
			for _, h := range r.Holders {
				_, _ = wcce.ParseEnveloped(r.SealedShare(h.Fingerprint))
			}
		}
		_, _ = quorum.ParseShare(der)
	})
}

// BenchmarkSeal compares a key in shares with the same key in one message to the same agents.
func BenchmarkSeal(b *testing.B) {
	_, certs := agents(b, 3)
	secret := make([]byte, 1218) // PKCS#8 of RSA-2048
	b.Run("one of three", func(b *testing.B) {
		for b.Loop() {
			if _, err := wcce.Seal(secret, wcce.OIDAES256CBC, true, certs...); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("two of three", func(b *testing.B) {
		for b.Loop() {
			if _, err := quorum.Seal(secret, quorum.Terms{KeyID: keyID("x"), Owner: "alice", Policy: "mail", Required: 2}, quorum.Certificates(certs...)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
