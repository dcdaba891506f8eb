package escrow_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
)

// signer is the CA of a vault as ExportBlob wants it.
func (v *vault) signer(t testing.TB) escrow.Signer {
	t.Helper()
	cert, key, hash, err := v.ca.Identity().ResponseSigner(background)
	if err != nil {
		t.Fatal(err)
	}
	return escrow.Signer{Certificate: cert, Chain: v.ca.Identity().Chain(), Key: key, Hash: hash}
}

// OpenSSL does with an exported blob what certutil -recoverkey does: verifies the CA's signature, opens the envelope with the
// agent's key and reads the key blob.
func TestOpenSSLOpensAnExportedRecoveryBlob(t *testing.T) {
	v := newVault(t)
	key, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	r := request(t, v.exchange(t))
	entry := v.archive(t, r)
	if _, err := v.ExportBlob(background, entry, v.signer(t), "test", " "); err == nil {
		t.Error("exported without a reason")
	}
	blob, err := v.ExportBlob(background, entry, v.signer(t), "test", "for the agent")
	if err != nil {
		t.Fatal(err)
	}
	wantEvents(t, v, "key-exported", 1)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := file("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.signer(t).Certificate.Raw}))
	enveloped, err := testpki.OpenSSL(t, blob, "cms", "-verify", "-inform", "DER", "-CAfile", ca, "-binary", "-purpose", "any")
	if err != nil {
		t.Fatal("OpenSSL does not verify the blob")
	}
	keyFile := testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	content, err := testpki.OpenSSL(t, enveloped, "cms", "-decrypt", "-inform", "DER", "-inkey", keyFile, "-recip", testpki.PEM(t, "CERTIFICATE", kra.Raw))
	if err != nil {
		t.Fatal("OpenSSL does not open the envelope")
	}
	public, err := testpki.OpenSSL(t, nil, "rsa", "-inform", "MSBLOB", "-pubout", "-in", file("key.blob", content))
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(public); !bytes.Equal(block.Bytes, r.CSR.RawSPKI) {
		t.Error("another key was exported")
	}
	// Another gateway takes it over, and the same agent opens it there.
	other := newVault(t)
	o := escrow.BlobImport{CA: v.signer(t).Certificate, Owner: alice}
	if _, err := other.ImportBlob(background, blob, o, "test"); err == nil || !strings.Contains(err.Error(), "--designate") {
		t.Errorf("without agents: %v", err)
	}
	o.Designate = true
	id, err := other.ImportBlob(background, blob, o, "test")
	if err != nil {
		t.Fatal(err)
	}
	moved, err := other.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := other.Recover(background, moved, key, kra, "test", "lost laptop")
	if err != nil {
		t.Fatal(err)
	}
	if !got.Key.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(r.CSR.PublicKey) {
		t.Error("another key came out")
	}
	if _, err := other.ImportBlob(background, blob, o, "test"); err == nil || !strings.Contains(err.Error(), "archived already") {
		t.Errorf("the same blob again: %v", err)
	}
	stranger := newVault(t)
	o.CA = stranger.signer(t).Certificate
	if _, err := stranger.ImportBlob(background, blob, o, "test"); err == nil || !strings.Contains(err.Error(), "not by the CA that you name") {
		t.Errorf("a blob of another CA: %v", err)
	}
}

func TestKeysThatWindowsFormatCannotExpressAreNotExported(t *testing.T) {
	v := newVault(t, func(o *escrow.Options) {
		o.Policies = []escrow.Policy{{Name: "mail", Agents: []string{escrow.AllAgents}, Required: 2, Minimum: 2}}
	})
	for _, name := range []string{"one", "two"} {
		_, cert := testpki.Agent(t, name, v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
		if err := v.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
	}
	entry := v.archive(t, request(t, v.exchange(t)))
	if _, err := v.ExportBlob(background, entry, v.signer(t), "test", "because"); err == nil || !strings.Contains(err.Error(), "shared among agents") {
		t.Error(err)
	}
}

// A blob that certutil -getkey of a Windows CA wrote is taken over, with its agent, whose certificate expired long ago; and a
// blob of ours has the same shape.
func TestARecordedWindowsRecoveryBlobIsTakenOver(t *testing.T) {
	recorded := vectors.Read(t, "pkix.net/getkey-recovery-blob.p7.der")
	parsed, ca, err := wcce.ParseRecoveryBlob(recorded)
	if err != nil {
		t.Fatal(err)
	}
	v := newVault(t)
	id, err := v.ImportBlob(background, recorded, escrow.BlobImport{CA: ca, Owner: alice, Designate: true}, "test")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := v.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err := entry.Certificate(); err != nil || !cert.Equal(parsed.Certificate) || !bytes.Equal(entry.Sealed(), parsed.Enveloped) || len(entry.Recipients) != 1 {
		t.Errorf("%+v, %v", entry, err)
	}
	wantEvents(t, v, "agent-added", 1)
	if err := v.Ready(); err == nil {
		t.Error("new keys are sealed to an agent whose certificate has expired")
	}
	for i := range recorded { // whatever octet is changed, it is refused or nothing but unsigned
		if i%7 != 0 {
			continue
		}
		changed := bytes.Clone(recorded)
		changed[i] ^= 1
		if got, by, err := wcce.ParseRecoveryBlob(changed); err == nil && by.Equal(ca) && !bytes.Equal(got.Enveloped, parsed.Enveloped) {
			t.Fatalf("octet %d was changed, and the CA's signature still holds over another content", i)
		}
	}
	again := &wcce.RecoveryBlob{Enveloped: parsed.Enveloped, Certificate: parsed.Certificate, Certificates: append(parsed.Certificates, v.signer(t).Certificate)}
	s := v.signer(t)
	ours, err := again.Sign(s.Certificate, s.Key, s.Hash)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := wcce.ParseSignedData(recorded)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := wcce.ParseSignedData(ours)
	if err != nil {
		t.Fatal(err)
	}
	if mine.Version != theirs.Version || mine.ContentType != theirs.ContentType || !bytes.Equal(mine.Content, theirs.Content) || mine.Signers[0].Version != theirs.Signers[0].Version ||
		mine.Signers[0].Digest != theirs.Signers[0].Digest || len(mine.Signers[0].SignedAttrs) != len(theirs.Signers[0].SignedAttrs) {
		t.Errorf("our blob differs in shape:\n%+v\n%+v", mine.Signers[0], theirs.Signers[0])
	}
	for i, a := range theirs.Signers[0].SignedAttrs {
		if mine.Signers[0].SignedAttrs[i].OID != a.OID {
			t.Errorf("signed attribute %d is %s, Windows has %s", i, mine.Signers[0].SignedAttrs[i].OID, a.OID)
		}
	}
}
