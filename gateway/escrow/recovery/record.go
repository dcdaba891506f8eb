package recovery

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Archived is an archived key, closed, with its certificate.
type Archived struct {
	Format      int    `json:"format"`
	Sealed      []byte `json:"sealed"`
	Certificate []byte `json:"certificate"` // DER
}

// part is what an agent has in hand: a share, or in format 1 the whole key. The signer is a key that only follows from the
// part, so that the gateway sees that somebody has opened it, and not what is in it.
type part struct {
	payload []byte
	signer  crypto.Signer
	wipe    func()
}

// record is one format of archived keys.
type record interface {
	// open decrypts an agent's part.
	open(agent *x509.Certificate, key crypto.Decrypter) (*part, error)
	// verifier is the public half of an agent's part's signer.
	verifier(fingerprint string) (crypto.PublicKey, error)
	// add checks a part and keeps a copy of it.
	add(fingerprint string, payload []byte) error
	// key puts the PKCS#8 key together; nil where there are too few parts. The caller wipes it.
	key() (pkcs8 []byte, err error)
	// wipe overwrites the parts.
	wipe()
}

// Check requires that the record is of the key, and sealed for the owner, that the statement names.
func (a *Archived) Check(s *Statement) error {
	_, _, err := a.read(s)
	return err
}

// Terms are the policy and the number of agents that the key was sealed under, as far as they are bound to it: a key that any
// one agent opens has none.
func (a *Archived) Terms() (policy string, required int, bound bool) {
	if a.Format != escrow.FormatShared {
		return "", 1, false
	}
	r, err := quorum.Parse(a.Sealed)
	if err != nil {
		return "", 0, false
	}
	return r.Policy, r.Required, true
}

// read checks that a record is of the key that the statement names, whatever the database says of whose it is.
func (a *Archived) read(s *Statement) (record, *x509.Certificate, error) {
	if len(a.Sealed) > quorum.MaxRecord {
		return nil, nil, fmt.Errorf("archived key %d: more than %d octets", s.Record, quorum.MaxRecord)
	}
	cert, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("archived key %d: certificate: %w", s.Record, err)
	}
	id := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	if hex.EncodeToString(id[:]) != s.KeyID {
		return nil, nil, fmt.Errorf("archived key %d comes with the certificate of another key (%s)", s.Record, cert.Subject)
	}
	switch a.Format {
	case escrow.FormatCMS, escrow.FormatKeyBlob:
		enveloped, err := wcce.ParseEnveloped(a.Sealed)
		if err != nil {
			return nil, nil, fmt.Errorf("archived key %d: %w", s.Record, err)
		}
		return &single{enveloped: enveloped, cert: cert}, cert, nil
	case escrow.FormatShared:
		r, err := quorum.Parse(a.Sealed)
		if err != nil {
			return nil, nil, fmt.Errorf("archived key %d: %w", s.Record, err)
		}
		if hex.EncodeToString(r.KeyID) != s.KeyID || r.Owner != s.Owner {
			return nil, nil, fmt.Errorf("archived key %d was sealed as a key of %s, not as this key of %s: records were exchanged", s.Record, r.Owner, s.Owner)
		}
		return &shared{record: r}, cert, nil
	}
	return nil, nil, fmt.Errorf("archived key %d: format %d is not understood; use a newer enrollgate", s.Record, a.Format)
}

// single is a key that any one agent opens.
type single struct {
	enveloped *wcce.Enveloped
	cert      *x509.Certificate
	pkcs8     []byte
}

func (r *single) open(agent *x509.Certificate, key crypto.Decrypter) (*part, error) {
	for i := range r.enveloped.Recipients {
		if to := &r.enveloped.Recipients[i]; to.Names(agent) {
			content, err := r.enveloped.Open(to, key)
			if err != nil {
				return nil, err
			}
			pkcs8, err := wcce.PrivateKeyDER(content)
			if err != nil {
				return nil, errors.New("the archived key cannot be read")
			}
			signer, err := matching(pkcs8, r.cert)
			if err != nil {
				wcce.Wipe(pkcs8)
				return nil, err
			}
			return &part{pkcs8, signer, func() { wcce.Wipe(pkcs8) }}, nil
		}
	}
	return nil, fmt.Errorf("the key is not sealed to %s", agent.Subject)
}

func (r *single) verifier(string) (crypto.PublicKey, error) { return r.cert.PublicKey, nil }

func (r *single) add(_ string, payload []byte) error {
	_, err := matching(payload, r.cert)
	if err == nil && r.pkcs8 == nil {
		r.pkcs8 = bytes.Clone(payload)
	}
	return err
}

func (r *single) key() ([]byte, error) { return bytes.Clone(r.pkcs8), nil }

func (r *single) wipe() { wcce.Wipe(r.pkcs8) }

// shared is a key that several agents open together.
type shared struct {
	record *quorum.Record
	shares []*quorum.Share
}

func (r *shared) open(agent *x509.Certificate, key crypto.Decrypter) (*part, error) {
	share, err := r.record.OpenShare(agent, key)
	if err != nil {
		return nil, err
	}
	defer share.Wipe()
	signer, err := share.Signer()
	if err != nil {
		return nil, err
	}
	der, err := share.Marshal()
	if err != nil {
		return nil, err
	}
	return &part{der, signer, func() { wcce.Wipe(der); wcce.Wipe(signer) }}, nil
}

func (r *shared) verifier(fingerprint string) (crypto.PublicKey, error) {
	if h := r.record.Holder(fingerprint); h != nil {
		return h.Verifier, nil
	}
	return nil, errors.New("the agent has no share of the key")
}

func (r *shared) add(fingerprint string, payload []byte) error {
	share, err := quorum.ParseShare(payload)
	if err != nil {
		return err
	}
	err = r.record.Check(share, fingerprint)
	if slices.ContainsFunc(r.shares, func(other *quorum.Share) bool { return other.Index == share.Index }) {
		err = errors.New("it occurs twice")
	}
	if err != nil {
		share.Wipe()
		return err
	}
	r.shares = append(r.shares, share)
	return nil
}

func (r *shared) key() ([]byte, error) {
	if len(r.shares) < r.record.Required {
		return nil, nil
	}
	return r.record.Combine(r.shares)
}

func (r *shared) wipe() {
	for _, s := range r.shares {
		s.Wipe()
	}
}

// matching parses a private key and requires that it is the certificate's.
func matching(pkcs8 []byte, cert *x509.Certificate) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, errors.New("the archived key cannot be read")
	}
	signer, ok := key.(crypto.Signer)
	if pub, isKey := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !isKey || !pub.Equal(signer.Public()) {
		return nil, errors.New("the archived key is not that of its certificate")
	}
	return signer, nil
}

func same(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }
