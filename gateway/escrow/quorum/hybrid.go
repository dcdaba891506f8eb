package quorum

import (
	"crypto"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Protection is what a share is sealed to.
type Protection int

// The protections.
const (
	ByCertificate Protection = 0 // the key of the agent's certificate
	ByBoth        Protection = 1 // that and the hybrid key: it takes both
	ByHybrid      Protection = 2 // the agent's hybrid key
)

// Recipient is an agent that gets a share.
type Recipient struct {
	Certificate *x509.Certificate
	Hybrid      []byte // public key of KEM; nil where the agent has none
	HybridOnly  bool   // seal to the hybrid key instead of the certificate's, not beside it
}

// Certificates are recipients without hybrid keys.
func Certificates(certs ...*x509.Certificate) []Recipient {
	var out []Recipient
	for _, c := range certs {
		out = append(out, Recipient{Certificate: c})
	}
	return out
}

// KEM is the key encapsulation of hybrid keys: ML-KEM-768 with X25519, also called X-Wing (draft-ietf-hpke-pq, HPKE KEM 0x647a).
// Whoever breaks one of the two has nothing.
func KEM() hpke.KEM { return hpke.MLKEM768X25519() }

const labelHybrid = "enrollgate quorum 3 share"

// SealHybrid encrypts to a hybrid public key: HPKE base mode (RFC 9180 6.1) with KEM, HKDF-SHA256 and AES-256-GCM. info binds
// the message to what it is for.
func SealHybrid(public, info, plain []byte) ([]byte, error) {
	key, err := KEM().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("hybrid key: %w", err)
	}
	return hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, plain)
}

// OpenHybrid decrypts what SealHybrid encrypted. The caller wipes the result.
func OpenHybrid(key hpke.PrivateKey, info, sealed []byte) ([]byte, error) {
	return hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, sealed)
}

// AgentKey is the private side of a Recipient with a hybrid key. It stands where the certificate's key alone does elsewhere.
type AgentKey struct {
	Certificate crypto.Decrypter // nil where all shares are sealed to the hybrid key alone
	Hybrid      hpke.PrivateKey
	public      crypto.PublicKey
}

// NewAgentKey joins an agent's keys. key may be nil.
func NewAgentKey(cert *x509.Certificate, key crypto.Decrypter, hybrid hpke.PrivateKey) *AgentKey {
	return &AgentKey{key, hybrid, cert.PublicKey}
}

// Public is the certificate's public key.
func (k *AgentKey) Public() crypto.PublicKey { return k.public }

// Decrypt decrypts with the certificate's key.
func (k *AgentKey) Decrypt(rand io.Reader, message []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if k.Certificate == nil {
		return nil, errors.New("it is sealed to the key of the agent's certificate, and only the hybrid key is at hand")
	}
	return k.Certificate.Decrypt(rand, message, opts)
}

// Protection is what a share for the agent is sealed to.
func (a *Recipient) Protection() Protection {
	switch {
	case a.Hybrid == nil:
		return ByCertificate
	case a.HybridOnly:
		return ByHybrid
	}
	return ByBoth
}

func (a *Recipient) seal(der, info []byte) (sealed []byte, err error) {
	p := a.Protection()
	if p != ByCertificate {
		if der, err = SealHybrid(a.Hybrid, info, der); err != nil || p == ByHybrid {
			return der, err
		}
	}
	return wcce.Seal(der, wcce.OIDAES256CBC, true, a.Certificate)
}

// open decrypts a share. The caller wipes the result.
func (p Protection) open(sealed, info []byte, agent *x509.Certificate, key crypto.Decrypter) ([]byte, error) {
	if p == ByCertificate {
		return openCMS(sealed, agent, key)
	}
	k, ok := key.(*AgentKey)
	if !ok {
		return nil, errors.New("it is sealed to the agent's hybrid key too, and only the certificate's is at hand")
	}
	if p == ByBoth {
		inner, err := openCMS(sealed, agent, k)
		if err != nil {
			return nil, err
		}
		sealed = inner
	}
	der, err := OpenHybrid(k.Hybrid, info, sealed)
	if err != nil {
		return nil, errors.New("the hybrid key at hand is not the one that it is sealed to")
	}
	return der, nil
}

func openCMS(sealed []byte, agent *x509.Certificate, key crypto.Decrypter) ([]byte, error) {
	enveloped, err := wcce.ParseEnveloped(sealed)
	if err != nil {
		return nil, err
	}
	if len(enveloped.Recipients) != 1 || !enveloped.Recipients[0].Names(agent) {
		return nil, fmt.Errorf("it is not sealed to %q alone", agent.Subject)
	}
	return enveloped.Open(&enveloped.Recipients[0], key)
}

// shareInfo is what the hybrid encryption of an agent's share is bound to.
func (r *Record) shareInfo(agent string) []byte {
	return append([]byte(labelHybrid+agent), r.ID...)
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}
