package quorum

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

const labelStatement = "enrollgate hybrid key 1"

// HybridKey is the public half of an agent's hybrid key, signed with the key of the agent's certificate, so that nobody
// between the agent and those who seal to it can exchange it.
type HybridKey struct {
	Certificate []byte `json:"certificate"` // DER
	Public      []byte `json:"hybrid_key"`  // of KEM
	Only        bool   `json:"only"`        // seal to it instead of the certificate's key, not beside it
	Signature   []byte `json:"signature"`   // RSASSA-PSS, ECDSA or Ed25519, over a SHA-256
}

// NewHybridKey makes a hybrid key for an agent. key is that of the agent's certificate.
func NewHybridKey(cert *x509.Certificate, key crypto.Signer, only bool) (*HybridKey, hpke.PrivateKey, error) {
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, nil, errors.New("hybrid key: the private key is not that of the agent's certificate")
	}
	private, err := KEM().GenerateKey()
	if err != nil {
		return nil, nil, fmt.Errorf("hybrid key: %w", err)
	}
	h := &HybridKey{Certificate: cert.Raw, Public: private.PublicKey().Bytes(), Only: only}
	if h.Signature, err = Sign(key, h.digest()); err != nil {
		return nil, nil, fmt.Errorf("hybrid key: sign with the agent's key: %w", err)
	}
	return h, private, nil
}

// Check verifies the signature and returns the agent's certificate.
func (h *HybridKey) Check() (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(h.Certificate)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: certificate: %w", err)
	}
	if _, err := KEM().NewPublicKey(h.Public); err != nil {
		return nil, fmt.Errorf("hybrid key of %q: %w", cert.Subject, err)
	}
	if !Verify(cert.PublicKey, h.digest(), h.Signature) {
		return nil, fmt.Errorf("the hybrid key is not signed with the key of %q: make it again on the agent's machine", cert.Subject)
	}
	return cert, nil
}

func (h *HybridKey) digest() []byte {
	cert, public := sha256.Sum256(h.Certificate), sha256.Sum256(h.Public)
	text := append([]byte(labelStatement), cert[:]...)
	text = append(text, public[:]...)
	if h.Only {
		text = append(text, 1)
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

// Sign and Verify use the one algorithm for each type of key: RSASSA-PSS, ECDSA or Ed25519, over a SHA-256.
func Sign(key crypto.Signer, sum []byte) ([]byte, error) {
	switch key.Public().(type) {
	case *rsa.PublicKey:
		return key.Sign(rand.Reader, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, sum, crypto.Hash(0))
	}
	return key.Sign(rand.Reader, sum, crypto.SHA256)
}

// Verify checks what Sign made.
func Verify(key crypto.PublicKey, sum, signature []byte) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPSS(k, crypto.SHA256, sum, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, sum, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, sum, signature)
	}
	return false
}
