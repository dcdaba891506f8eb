package recovery

import (
	"bytes"
	"crypto/hpke"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// HybridFile is an agent's hybrid key with the certificate that it goes with. It is secret: Encrypt it.
type HybridFile struct {
	Certificate []byte `json:"certificate"`        // DER
	Private     []byte `json:"hybrid_private_key"` // of quorum.KEM
}

// NewHybridFile is for a key that quorum.NewHybridKey has made.
func NewHybridFile(cert *x509.Certificate, key hpke.PrivateKey) (*HybridFile, error) {
	private, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	return &HybridFile{cert.Raw, private}, nil
}

// Wipe overwrites the secret.
func (f *HybridFile) Wipe() { wcce.Wipe(f.Private) }

// Key returns the hybrid key and the agent's certificate.
func (f *HybridFile) Key() (hpke.PrivateKey, *x509.Certificate, error) {
	cert, err := x509.ParseCertificate(f.Certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("hybrid key: certificate: %w", err)
	}
	key, err := quorum.KEM().NewPrivateKey(f.Private)
	if err != nil {
		return nil, nil, fmt.Errorf("hybrid key: %w", err)
	}
	return key, cert, nil
}

// Encrypt returns the file as it is kept: JSON inside age with a passphrase (age-encryption.org/v1, scrypt), armored, so that
// age --decrypt opens it.
func (f *HybridFile) Encrypt(passphrase string) ([]byte, error) {
	text, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	defer wcce.Wipe(text)
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, recipient)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close(), a.Close()); err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	return out.Bytes(), nil
}

// OpenHybridFile decrypts what Encrypt returned. The caller wipes the result.
func OpenHybridFile(file []byte, passphrase string) (*HybridFile, error) {
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(file)), identity)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: the file cannot be decrypted: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxFile))
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	defer wcce.Wipe(text)
	f := &HybridFile{}
	if err := Decode(bytes.NewReader(text), maxFile, f); err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	return f, nil
}
