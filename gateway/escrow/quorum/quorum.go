// Package quorum is the record format of a private key that m of n recovery agents open together.
//
// Seal encrypts the key once and shares what decrypts it among the agents; each share is sealed to one agent. OpenShare is
// what one agent does, on the agent's machine; Combine puts m shares together, on the machine of who may have the key. It
// takes all m: fewer say nothing about the key. The record is
//
//	SharedKey ::= SEQUENCE {
//	    version  INTEGER (2 | 3),                  -- 3 where any holder has a protection
//	    binding  Binding,                          -- associated data of content
//	    content  OCTET STRING,                     -- AES-256-GCM: nonce, ciphertext, tag
//	    shares   SEQUENCE OF OCTET STRING }        -- sealed Share, in the order of holders
//	Binding ::= SEQUENCE {
//	    record   OCTET STRING (16),                -- random, of this record only
//	    keyID    OCTET STRING (32),                -- SHA-256 of the SubjectPublicKeyInfo
//	    owner    UTF8String,
//	    policy   UTF8String,
//	    required INTEGER,
//	    holders  SEQUENCE OF SEQUENCE {
//	        certificate OCTET STRING (32),         -- SHA-256 of the agent's certificate
//	        verifier    OCTET STRING (32),         -- Ed25519 public key that only the share gives the private half of
//	        protection  INTEGER { both (1), hybrid (2) } OPTIONAL } }
//	Share ::= SEQUENCE {
//	    version  INTEGER (2),
//	    record   OCTET STRING, keyID OCTET STRING, policy UTF8String,
//	    index    INTEGER (1..n),
//	    value    OCTET STRING (32) }
//
// A share is sealed as its protection says: absent, CMS EnvelopedData to the agent's certificate; hybrid, HPKE to the agent's
// hybrid key (ML-KEM-768 with X25519); both, the HPKE message inside CMS, so that it takes both keys. An agent's key of one kind
// is of no use in place of the other: what the record says is authenticated with it.
//
// The secret is a random scalar of ristretto255, shared by Shamir's scheme (circl's secretsharing, in constant time for this
// group); the content key is HKDF-SHA256 of it. A scalar has 252 random bits, so that nothing is lost against sharing 256 bits
// octet by octet. The verifiers say which share is wrong. They are not Feldman's commitments on purpose: those would let
// somebody who takes discrete logarithms read the record without any share.
package quorum

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

const (
	versionPlain  = 2
	versionHybrid = 3
	versionShare  = 2

	idSize     = 16
	scalarSize = 32
	// MaxAgents is how many agents can share a key.
	MaxAgents = 64
	// MaxRecord is the size in octets up to which a record is read.
	MaxRecord = 1 << 20
	maxName   = 256

	labelContent = "enrollgate quorum 2 content key"
	labelShare   = "enrollgate quorum 2 share signature"
)

// Terms are what a key is sealed under.
type Terms struct {
	KeyID    []byte // SHA-256 of the SubjectPublicKeyInfo
	Owner    string
	Policy   string
	Required int // shares that it takes
}

// Holder is an agent with a share.
type Holder struct {
	Fingerprint string            // SHA-256 of the certificate, hexadecimal
	Verifier    ed25519.PublicKey // of Share.Signer
	Protection  Protection
}

// Record is a parsed record, still closed.
type Record struct {
	ID []byte
	Terms
	Holders []Holder

	binding []byte // its DER
	content []byte
	shares  [][]byte
}

// Share is an agent's part, in the clear: the caller wipes it.
type Share struct {
	Record []byte
	KeyID  []byte
	Policy string
	Index  int // 1 to n
	value  []byte
}

// Wipe overwrites the secret.
func (s *Share) Wipe() { wcce.Wipe(s.value) }

// Seal encrypts a secret for the agents, so that terms.Required of them open it together. What decrypts it is forgotten
// before Seal returns, except for copies inside the sharing library that wait for the garbage collector.
func Seal(secret []byte, terms Terms, agents []Recipient) ([]byte, error) {
	if n := len(agents); terms.Required < 1 || n < terms.Required || n > MaxAgents {
		return nil, fmt.Errorf("quorum: %d of %d agents: at least 1 must be required, and at most %d can share", terms.Required, n, MaxAgents)
	}
	if len(terms.KeyID) != sha256.Size || len(terms.Owner) > maxName || len(terms.Policy) > maxName {
		return nil, errors.New("quorum: the key's identifier, owner or policy is out of range")
	}
	r := &Record{ID: make([]byte, idSize), Terms: terms}
	rand.Read(r.ID)
	scalar := group.Ristretto255.RandomNonZeroScalar(rand.Reader)
	defer scalar.SetUint64(0)
	for i, dealt := range secretsharing.New(rand.Reader, uint(terms.Required-1), scalar).Share(uint(len(agents))) {
		if err := r.deal(i+1, dealt, agents[i]); err != nil {
			return nil, fmt.Errorf("quorum: share of %q: %w", agents[i].Certificate.Subject, err)
		}
	}
	var err error
	if r.binding, err = r.marshalBinding(); err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	aead, err := r.cipher(scalar)
	if err != nil {
		return nil, err
	}
	r.content = aead.Seal(nil, nil, secret, r.binding)
	return r.marshal()
}

// deal seals one share to its agent.
func (r *Record) deal(index int, dealt secretsharing.Share, agent Recipient) error {
	defer dealt.Value.SetUint64(0)
	value, err := dealt.Value.MarshalBinary()
	if err != nil {
		return err
	}
	share := &Share{Record: r.ID, KeyID: r.KeyID, Policy: r.Policy, Index: index, value: value}
	defer share.Wipe()
	der, err := share.Marshal()
	if err != nil {
		return err
	}
	defer wcce.Wipe(der)
	signer, err := share.Signer()
	if err != nil {
		return err
	}
	defer wcce.Wipe(signer)
	holder := Holder{fingerprint(agent.Certificate), signer.Public().(ed25519.PublicKey), agent.Protection()}
	sealed, err := agent.seal(der, r.shareInfo(holder.Fingerprint))
	if err != nil {
		return err
	}
	r.Holders = append(r.Holders, holder)
	r.shares = append(r.shares, sealed)
	return nil
}

// cipher is the content's, whose key depends on the whole binding.
func (r *Record) cipher(scalar group.Scalar) (cipher.AEAD, error) {
	secret, err := scalar.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	defer wcce.Wipe(secret)
	sum := sha256.Sum256(r.binding)
	key, err := hkdf.Key(sha256.New, secret, r.ID, labelContent+string(sum[:]), 32)
	if err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	defer wcce.Wipe(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Signer is a key that only who has the share has, and whose public half is the holder's verifier. The caller wipes it.
func (s *Share) Signer() (ed25519.PrivateKey, error) {
	der, err := s.Marshal()
	if err != nil {
		return nil, err
	}
	defer wcce.Wipe(der)
	seed, err := hkdf.Key(sha256.New, der, s.Record, labelShare, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	defer wcce.Wipe(seed)
	return ed25519.NewKeyFromSeed(seed), nil
}

// Holder finds an agent by the fingerprint of its certificate; nil where it has no share.
func (r *Record) Holder(fingerprint string) *Holder {
	if i := r.index(fingerprint); i >= 0 {
		return &r.Holders[i]
	}
	return nil
}

func (r *Record) index(fingerprint string) int {
	for i, h := range r.Holders {
		if h.Fingerprint == fingerprint {
			return i
		}
	}
	return -1
}

// SealedShare is the share of an agent as it lies in the record.
func (r *Record) SealedShare(fingerprint string) []byte {
	if i := r.index(fingerprint); i >= 0 {
		return r.shares[i]
	}
	return nil
}

// OpenShare decrypts the share of the agent that key and certificate belong to. key may be in a smart card; it is an *AgentKey
// where the agent has a hybrid key.
func (r *Record) OpenShare(agent *x509.Certificate, key crypto.Decrypter) (*Share, error) {
	i := r.index(fingerprint(agent))
	if i < 0 {
		return nil, fmt.Errorf("the key is not shared with %q", agent.Subject)
	}
	der, err := r.Holders[i].Protection.open(r.shares[i], r.shareInfo(r.Holders[i].Fingerprint), agent, key)
	if err != nil {
		return nil, fmt.Errorf("share %d: %w", i+1, err)
	}
	defer wcce.Wipe(der)
	share, err := ParseShare(der)
	if err != nil {
		return nil, fmt.Errorf("share %d: %w", i+1, err)
	}
	if err := r.Check(share, r.Holders[i].Fingerprint); err != nil {
		share.Wipe()
		return nil, err
	}
	return share, nil
}

// Check tells whether a share is the one that the agent was given for this record.
func (r *Record) Check(s *Share, fingerprint string) error {
	i := r.index(fingerprint)
	if i < 0 || s.Index != i+1 || !same(s.Record, r.ID) || !same(s.KeyID, r.KeyID) || s.Policy != r.Policy {
		return fmt.Errorf("the share is of another record or of another agent (number %d, policy %q)", s.Index, s.Policy)
	}
	signer, err := s.Signer()
	if err != nil {
		return err
	}
	defer wcce.Wipe(signer)
	if !same(signer.Public().(ed25519.PublicKey), r.Holders[i].Verifier) {
		return fmt.Errorf("share %d is not the one that was sealed to the agent", s.Index)
	}
	return nil
}

// Combine decrypts the content with shares of different agents that have passed Check. The caller wipes the result.
func (r *Record) Combine(shares []*Share) ([]byte, error) {
	seen := map[int]bool{}
	var points []secretsharing.Share
	defer func() {
		for _, p := range points {
			p.Value.SetUint64(0)
		}
	}()
	for _, s := range shares {
		if seen[s.Index] {
			return nil, fmt.Errorf("share %d occurs twice", s.Index)
		}
		seen[s.Index] = true
		value := group.Ristretto255.NewScalar()
		if err := value.UnmarshalBinary(s.value); err != nil {
			return nil, fmt.Errorf("share %d: %w", s.Index, err)
		}
		points = append(points, secretsharing.Share{ID: group.Ristretto255.NewScalar().SetUint64(uint64(s.Index)), Value: value})
	}
	if len(points) < r.Required {
		return nil, fmt.Errorf("%d shares, %d are needed", len(points), r.Required)
	}
	scalar, err := secretsharing.Recover(uint(r.Required-1), points)
	if err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	defer scalar.SetUint64(0)
	aead, err := r.cipher(scalar)
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, r.content, r.binding)
	if err != nil {
		return nil, errors.New("the shares do not open the record: it was changed after it was sealed")
	}
	return secret, nil
}
