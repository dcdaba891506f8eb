package escrow_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestAPolicyThatRequiresHybridKeysSealsToNoOthers(t *testing.T) {
	policy := escrow.Policy{Name: "secret", Agents: []string{escrow.AllAgents}, Required: 1, Minimum: 1, Hybrid: true}
	v := newVault(t, func(o *escrow.Options) { o.Policies = []escrow.Policy{policy} })
	key, cert := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	_, other := testpki.Agent(t, "other", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	for _, c := range []*x509.Certificate{cert, other} {
		if err := v.AddAgent(background, c, "test"); err != nil {
			t.Fatal(err)
		}
	}
	err := v.ReadyFor(&policy)
	wantCode(t, err, hresult.NoValidKRA)
	if !strings.Contains(err.Error(), "hybrid") {
		t.Errorf("%v does not say what is missing", err)
	}
	h, hybrid, err := quorum.NewHybridKey(cert, key, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.AddHybridAgent(background, h, "test"); err != nil {
		t.Fatal(err)
	}
	if err := v.AddHybridAgent(background, h, "test"); err == nil {
		t.Error("an agent's hybrid key was exchanged while it is designated")
	}
	entry := v.archive(t, request(t, v.exchange(t)))
	if entry.Format != escrow.FormatShared || entry.Required != 1 || len(entry.Recipients) != 1 || entry.Recipients[0] != escrow.Fingerprint(cert) {
		t.Errorf("%+v", entry)
	}
	if _, err := v.Recover(background, entry, key, cert, "test", "the certificate's key alone"); err == nil {
		t.Error("the certificate's key alone opens the record")
	}
	both := quorum.NewAgentKey(cert, key, hybrid)
	r, err := v.Recover(background, entry, both, cert, "test", "lost laptop")
	if err != nil || r.Key == nil {
		t.Fatal(err)
	}
	// A record that was put under another name is not opened.
	if err := v.db.Write(background, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE escrow_records SET owner = 'mallory@LAB.TEST' WHERE id = ?", entry.ID)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if entry, err = v.Get(background, entry.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Recover(background, entry, both, cert, "test", "swapped"); err == nil || !strings.Contains(err.Error(), "database was changed") {
		t.Errorf("a record under another name: %v", err)
	}
}

// Elliptic curve certificates, which CMS of Windows cannot be sealed to, serve with a hybrid key instead.
func TestAnAgentWithAHybridKeyInsteadOfRSA(t *testing.T) {
	v := newVault(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "curve"},
		NotBefore: v.now.Add(-time.Hour), NotAfter: v.now.AddDate(1, 0, 0), UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 21, 6}}},
		&x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := testpki.Cert(t, der)
	if err := v.AddAgent(background, cert, "test"); err == nil || !strings.Contains(err.Error(), "hybrid key instead") {
		t.Errorf("a curve alone: %v", err)
	}
	h, hybrid, err := quorum.NewHybridKey(cert, key, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.AddHybridAgent(background, h, "test"); err != nil {
		t.Fatal(err)
	}
	entry := v.archive(t, request(t, v.exchange(t)))
	if _, err := v.Recover(background, entry, quorum.NewAgentKey(cert, nil, hybrid), cert, "test", "lost laptop"); err != nil {
		t.Error(err)
	}
}
