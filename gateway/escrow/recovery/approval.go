package recovery

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// File is what an agent needs to approve a case, also on a machine without a network.
type File struct {
	Case      int64     `json:"case"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Policy    string    `json:"policy"`
	Required  int       `json:"required"`
	Statement Statement `json:"statement"`
	Archived
	Agents [][]byte `json:"agents"` // their certificates, DER
}

// MaxFile is the size up to which a File is read.
const MaxFile = maxFile

// Approval is an agent's part of a key, sealed to the case key.
type Approval struct {
	Case      int64  `json:"case"`
	Statement string `json:"statement"` // Statement.Hash, hexadecimal
	Agent     string `json:"agent"`     // SHA-256 fingerprint of the agent's certificate
	Sealed    []byte `json:"sealed"`    // HPKE
	Signature []byte `json:"signature"` // with the key that follows from the part
}

// Errors of Approve.
var (
	ErrCode    = errors.New("the code is not that of the case")
	ErrExpired = errors.New("the case has expired")
)

// Approve opens the agent's part with the agent's key, which may be in a smart card, and seals it to the case key. code is
// Statement.Code as who opened the case has told it, not as the file says.
func Approve(f *File, code string, agent *x509.Certificate, key crypto.Decrypter, now time.Time) (*Approval, error) {
	s := &f.Statement
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("case %d: %w", f.Case, err)
	}
	if !codeIs(s.Code(), code) {
		return nil, fmt.Errorf("case %d: %w: do not approve; ask %s for the code, by phone or in person", f.Case, ErrCode, s.Manager)
	}
	if now.After(f.Expires) {
		return nil, fmt.Errorf("case %d: %w", f.Case, ErrExpired)
	}
	if pub, ok := agent.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the agent's private key is not that of the agent's certificate")
	}
	r, _, err := f.read(s)
	if err != nil {
		return nil, err
	}
	if policy, required, bound := f.Terms(); bound && (policy != f.Policy || required > f.Required) {
		return nil, fmt.Errorf("case %d: the key takes %d agents under policy %q, not %d under %q", f.Case, required, policy, f.Required, f.Policy)
	}
	p, err := r.open(agent, key)
	if err != nil {
		return nil, fmt.Errorf("case %d: %w", f.Case, err)
	}
	defer p.wipe()
	sum := sha256.Sum256(agent.Raw)
	a := &Approval{Case: f.Case, Statement: hex.EncodeToString(s.Hash()), Agent: hex.EncodeToString(sum[:])}
	if a.Sealed, err = quorum.SealHybrid(s.PublicKey, a.info(), p.payload); err != nil {
		return nil, fmt.Errorf("case %d: %w", f.Case, err)
	}
	if err := a.Sign(p.signer); err != nil {
		return nil, fmt.Errorf("case %d: %w", f.Case, err)
	}
	return a, nil
}

// Sign signs the approval with the key that follows from the agent's part.
func (a *Approval) Sign(key crypto.Signer) (err error) {
	a.Signature, err = quorum.Sign(key, a.digest())
	return err
}

// info is what the encryption is bound to.
func (a *Approval) info() []byte {
	return digest("enrollgate recovery approval 1", []byte(a.Statement+a.Agent))
}

func (a *Approval) digest() []byte {
	return digest("enrollgate recovery signature 1", a.info(), a.Sealed)
}

// Verify tells whether an approval is for this statement and comes from somebody who has opened the agent's part of this very
// key. It does not tell whether the right part is inside: Combine does.
func (a *Approval) Verify(s *Statement, key *Archived) error {
	if !same([]byte(a.Statement), []byte(hex.EncodeToString(s.Hash()))) {
		return errors.New("the approval is for another case")
	}
	r, _, err := key.read(s)
	if err != nil {
		return err
	}
	return a.verify(r)
}

func (a *Approval) verify(r record) error {
	public, err := r.verifier(a.Agent)
	if err != nil {
		return err
	}
	if !quorum.Verify(public, a.digest(), a.Signature) {
		return errors.New("the approval is not signed by who has opened the agent's share")
	}
	return nil
}

// BadShare is an approval that cannot be used, by whose it is.
type BadShare struct {
	Agent string // fingerprint
	Err   error
}

func (b BadShare) Error() string {
	return fmt.Sprintf("the share of agent %s is bad: %v", b.Agent, b.Err)
}

// Combine opens approvals with the case key, puts the key together and requires that it is the certificate's. Bad shares are
// named, and left out where enough others remain. The caller wipes the key.
func Combine(s *Statement, archived *Archived, approvals []Approval, key *CaseKey) (pkcs8 []byte, cert *x509.Certificate, bad []BadShare, err error) {
	memory.Secret(func() { pkcs8, cert, bad, err = combine(s, archived, approvals, key) })
	return pkcs8, cert, bad, err
}

func combine(s *Statement, archived *Archived, approvals []Approval, key *CaseKey) (pkcs8 []byte, cert *x509.Certificate, bad []BadShare, err error) {
	if !same(key.Public(), s.PublicKey) {
		return nil, nil, nil, errors.New("the case key is not that of the case")
	}
	r, cert, err := archived.read(s)
	if err != nil {
		return nil, nil, nil, err
	}
	defer r.wipe()
	for i := range approvals {
		if err := combineOne(s, &approvals[i], r, key); err != nil {
			bad = append(bad, BadShare{approvals[i].Agent, err})
		}
	}
	if pkcs8, err = r.key(); err != nil {
		return nil, nil, bad, err
	}
	if pkcs8 == nil {
		return nil, nil, bad, fmt.Errorf("%d of %d shares are good: too few to recover the key; open a new case", len(approvals)-len(bad), len(approvals))
	}
	if _, err := matching(pkcs8, cert); err != nil {
		wcce.Wipe(pkcs8)
		return nil, nil, bad, err
	}
	return pkcs8, cert, bad, nil
}

func combineOne(s *Statement, a *Approval, r record, key *CaseKey) error {
	if !same([]byte(a.Statement), []byte(hex.EncodeToString(s.Hash()))) {
		return errors.New("the approval is for another case")
	}
	if err := a.verify(r); err != nil {
		return err
	}
	payload, err := key.open(a.info(), a.Sealed)
	if err != nil {
		return errors.New("it is not sealed to the case key")
	}
	defer wcce.Wipe(payload)
	return r.add(a.Agent, payload)
}
