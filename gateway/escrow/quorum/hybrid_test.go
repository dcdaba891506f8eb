package quorum_test

import (
	"bytes"
	"crypto/hpke"
	"strings"
	"testing"

	circl "github.com/cloudflare/circl/hpke"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
)

// hybrids are agents of which the first has no hybrid key, the second one beside its certificate's key, the third one instead.
func hybrids(t testing.TB) ([]agent, []quorum.Recipient, []hpke.PrivateKey) {
	t.Helper()
	all, certs := agents(t, 3)
	to, keys := quorum.Certificates(certs...), make([]hpke.PrivateKey, 3)
	for i := range to[1:] {
		h, key, err := quorum.NewHybridKey(all[i+1].cert, all[i+1].key, i == 1)
		if err != nil {
			t.Fatal(err)
		}
		if cert, err := h.Check(); err != nil || !cert.Equal(all[i+1].cert) {
			t.Fatal(cert, err)
		}
		to[i+1].Hybrid, to[i+1].HybridOnly, keys[i+1] = h.Public, h.Only, key
	}
	return all, to, keys
}

func sealTo(t testing.TB, secret string, required int, to []quorum.Recipient) []byte {
	t.Helper()
	der, err := quorum.Seal([]byte(secret), quorum.Terms{KeyID: keyID(secret), Owner: "alice@LAB.TEST", Policy: "boss", Required: required}, to)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestHybridAgentsOpenWithTheirKeys(t *testing.T) {
	all, to, keys := hybrids(t)
	for required := 1; required <= 3; required++ {
		r, err := quorum.Parse(sealTo(t, "the private key", required, to))
		if err != nil {
			t.Fatal(err)
		}
		var shares []*quorum.Share
		for i, a := range all {
			var s *quorum.Share
			switch i {
			case 0:
				s, err = r.OpenShare(a.cert, a.key)
			case 1:
				s, err = r.OpenShare(a.cert, quorum.NewAgentKey(a.cert, a.key, keys[i]))
			case 2:
				s, err = r.OpenShare(a.cert, quorum.NewAgentKey(a.cert, nil, keys[i]))
			}
			if err != nil {
				t.Fatalf("agent %d: %v", i, err)
			}
			shares = append(shares, s)
		}
		if plain, err := r.Combine(shares[3-required:]); err != nil || string(plain) != "the private key" {
			t.Errorf("%d shares: %q, %v", required, plain, err)
		}
	}
}

func TestAttackBrokenRSADoesNotOpenAHybridShare(t *testing.T) {
	all, to, keys := hybrids(t)
	r, err := quorum.Parse(sealTo(t, "the private key", 1, to[1:]))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"hybrid key too", "hybrid key too"} {
		if _, err := r.OpenShare(all[i+1].cert, all[i+1].key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("agent %d with the certificate's key alone: %v", i+1, err)
		}
	}
	if _, err := r.OpenShare(all[1].cert, quorum.NewAgentKey(all[1].cert, nil, keys[1])); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with the hybrid key alone: %v", err)
	}
	if _, err := r.OpenShare(all[1].cert, quorum.NewAgentKey(all[1].cert, all[1].key, keys[2])); err == nil {
		t.Error("another agent's hybrid key opens the share")
	}
}

func TestAttackHybridKeyOfAnotherIsSlippedIn(t *testing.T) {
	all, _, _ := hybrids(t)
	h, _, err := quorum.NewHybridKey(all[1].cert, all[1].key, false)
	if err != nil {
		t.Fatal(err)
	}
	mine, _, err := quorum.NewHybridKey(all[0].cert, all[0].key, false)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*quorum.HybridKey){
		"another key":    func(h *quorum.HybridKey) { h.Public = mine.Public },
		"another person": func(h *quorum.HybridKey) { h.Certificate = mine.Certificate },
		"only":           func(h *quorum.HybridKey) { h.Only = true },
		"short":          func(h *quorum.HybridKey) { h.Public = h.Public[1:] },
	} {
		forged := *h
		change(&forged)
		if _, err := forged.Check(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, _, err := quorum.NewHybridKey(all[0].cert, all[1].key, false); err == nil {
		t.Error("a key was made for another agent's certificate")
	}
}

func TestAttackProtectionLoweredInTheRecord(t *testing.T) {
	all, to, keys := hybrids(t)
	der := sealTo(t, "the private key", 1, to[2:])
	// Version 3 with protection 2 says what the share needs; each change of an octet is found, at the latest by Combine.
	for i := range der {
		changed := bytes.Clone(der)
		changed[i] ^= 3
		r, err := quorum.Parse(changed)
		if err != nil {
			continue
		}
		share, err := r.OpenShare(all[2].cert, quorum.NewAgentKey(all[2].cert, all[2].key, keys[2]))
		if err != nil {
			continue
		}
		if plain, err := r.Combine([]*quorum.Share{share}); err == nil {
			t.Fatalf("octet %d was changed and %q came out", i, plain)
		}
	}
}

// The hybrid encryption is what another implementation says it is.
func TestCirclOpensAHybridMessage(t *testing.T) {
	key, err := quorum.KEM().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := quorum.SealHybrid(key.PublicKey().Bytes(), []byte("info"), []byte("the share"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	scheme := circl.KEM_XWING.Scheme()
	private, err := scheme.UnmarshalBinaryPrivateKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := circl.NewSuite(circl.KEM_XWING, circl.KDF_HKDF_SHA256, circl.AEAD_AES256GCM).NewReceiver(private, []byte("info"))
	if err != nil {
		t.Fatal(err)
	}
	opener, err := receiver.Setup(sealed[:scheme.CiphertextSize()])
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := opener.Open(sealed[scheme.CiphertextSize():], nil); err != nil || string(plain) != "the share" {
		t.Errorf("%q, %v", plain, err)
	}
}
