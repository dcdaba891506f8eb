package recovery

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// A worker deals two agents good shares of a key, and the third one that fits no other. Who proves the record with all three sees it.
func TestAttackADealtShareThatFitsNoOther(t *testing.T) {
	now := time.Now()
	var keys []*rsa.PrivateKey
	var certs []*x509.Certificate
	for _, name := range []string{"kra1", "kra2", "kra3"} {
		key, cert := testpki.Agent(t, name, now.Add(-time.Hour), now.Add(time.Hour))
		keys, certs = append(keys, key), append(certs, cert)
	}
	secret := []byte("the key")
	id := sha256.Sum256(secret)
	der, err := quorum.Seal(secret, quorum.Terms{KeyID: id[:], Owner: "alice", Policy: "mail", Required: 2}, quorum.Certificates(certs...))
	if err != nil {
		t.Fatal(err)
	}
	r := &shared{}
	if r.record, err = quorum.Parse(der); err != nil {
		t.Fatal(err)
	}
	for i := range certs {
		share, err := r.record.OpenShare(certs[i], keys[i])
		if err != nil {
			t.Fatal(err)
		}
		r.shares = append(r.shares, share)
	}
	if err := everyShare(r, secret); err != nil {
		t.Errorf("good shares: %v", err)
	}
	text, err := r.shares[2].Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-20] ^= 1 // within the value, which ends the message
	if r.shares[2], err = quorum.ParseShare(text); err != nil {
		t.Fatal(err)
	}
	if err := everyShare(r, secret); err == nil || !strings.Contains(err.Error(), "share 3 does not fit the others") {
		t.Errorf("with a bad third share: %v", err)
	}
}
