package recovery

import (
	"crypto/hpke"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Approvals are sealed with HPKE (RFC 9180): ML-KEM-768 with X25519 (draft-ietf-hpke-pq), HKDF-SHA256, AES-256-GCM.
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// CaseKey is a key pair for one case.
type CaseKey struct{ private hpke.PrivateKey }

// NewCaseKey makes one.
func NewCaseKey() (*CaseKey, error) {
	key, err := kem().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("case key: %w", err)
	}
	return &CaseKey{key}, nil
}

// Public is the half that the statement has.
func (k *CaseKey) Public() []byte { return k.private.PublicKey().Bytes() }

// CaseFile is what stays on the machine of who opened a case, until the key is fetched. It is secret.
type CaseFile struct {
	Statement Statement `json:"statement"`
	Private   []byte    `json:"case_key"`
}

// NewCaseFile makes a case key and completes the statement with its public half.
func NewCaseFile(s Statement) (*CaseFile, error) {
	key, err := NewCaseKey()
	if err != nil {
		return nil, err
	}
	s.PublicKey = key.Public()
	f := &CaseFile{Statement: s}
	if f.Private, err = key.private.Bytes(); err != nil {
		return nil, fmt.Errorf("case key: %w", err)
	}
	return f, f.Statement.Check()
}

// Wipe overwrites the secret.
func (f *CaseFile) Wipe() { wcce.Wipe(f.Private) }

// Key is the case key.
func (f *CaseFile) Key() (*CaseKey, error) {
	key, err := kem().NewPrivateKey(f.Private)
	if err != nil {
		return nil, fmt.Errorf("case key: %w", err)
	}
	return &CaseKey{key}, nil
}

// sealTo encrypts to a case key; info binds what it is for.
func sealTo(public, info, plain []byte) ([]byte, error) {
	key, err := kem().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("case key: %w", err)
	}
	return hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, plain)
}

func (k *CaseKey) open(info, sealed []byte) ([]byte, error) {
	return hpke.Open(k.private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, sealed)
}
