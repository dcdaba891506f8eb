package recovery

import (
	"crypto/hpke"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// CaseKey is a key pair for one case: a hybrid key, which approvals are sealed to (quorum.SealHybrid).
type CaseKey struct{ private hpke.PrivateKey }

// NewCaseKey makes one.
func NewCaseKey() (*CaseKey, error) {
	key, err := quorum.KEM().GenerateKey()
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
	key, err := quorum.KEM().NewPrivateKey(f.Private)
	if err != nil {
		return nil, fmt.Errorf("case key: %w", err)
	}
	return &CaseKey{key}, nil
}

func (k *CaseKey) open(info, sealed []byte) ([]byte, error) {
	return quorum.OpenHybrid(k.private, info, sealed)
}
