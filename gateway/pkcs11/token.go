//go:build cgo

package pkcs11

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"

	"github.com/enrollgate/enrollgate/gateway/memory"
)

// Token is an open token. All methods are safe for concurrent use.
type Token struct {
	target *target
	ctx    *crypto11.Context
}

// Open opens the token that a URI names. pin is used where the URI names no pin-source.
func Open(uri, pin string) (*Token, error) {
	t, err := parse(uri, pin)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11: %w", err)
	}
	config := &crypto11.Config{Path: t.module, TokenLabel: t.label, Pin: t.pin}
	if t.serial != "" {
		config.TokenLabel, config.TokenSerial = "", t.serial
	}
	ctx, err := crypto11.Configure(config)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 token %q: %w", t.label+t.serial, err)
	}
	return &Token{t, ctx}, nil
}

// Close ends the session. Keys of the token cannot be used any more.
func (t *Token) Close() error { return t.ctx.Close() }

// Key finds the key that the URI names with object, id or both.
func (t *Token) Key() (crypto.Signer, error) {
	if t.target.object == "" && len(t.target.id) == 0 {
		return nil, errors.New("PKCS#11: name the key with object=LABEL or id=%NN")
	}
	var label []byte // nil: any
	if t.target.object != "" {
		label = []byte(t.target.object)
	}
	pairs, err := t.ctx.FindKeyPairs(t.target.id, label)
	switch {
	case err != nil:
		return nil, fmt.Errorf("PKCS#11 key %q: %w", t.target.object, err)
	case len(pairs) == 0:
		return nil, fmt.Errorf("PKCS#11 key %q, id %x: %w", t.target.object, t.target.id, ErrNoKey)
	case len(pairs) > 1:
		return nil, fmt.Errorf("PKCS#11: the token has %d keys with the label %q: name one with id=%%NN", len(pairs), t.target.object)
	}
	return wrap(pairs[0]), nil
}

// Certificate finds the certificate beside the key; nil where there is none.
func (t *Token) Certificate() (*x509.Certificate, error) {
	var label []byte
	if t.target.object != "" {
		label = []byte(t.target.object)
	}
	cert, err := t.ctx.FindCertificate(t.target.id, label, nil)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 certificate %q: %w", t.target.object, err)
	}
	return cert, nil
}

// Find finds a key by its id (CKA_ID); nil where there is none.
func (t *Token) Find(id []byte) (Key, error) {
	pairs, err := t.ctx.FindKeyPairs(id, nil)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 key %x: %w", id, err)
	}
	if len(pairs) == 0 {
		return nil, nil
	}
	key, ok := wrap(pairs[0]).(Key)
	if !ok {
		return nil, fmt.Errorf("PKCS#11 key %x cannot decrypt", id)
	}
	return key, nil
}

// GenerateRSA makes a key that never leaves the token (CKA_SENSITIVE, not CKA_EXTRACTABLE), for decryption if decrypt, else for
// signatures.
func (t *Token) GenerateRSA(id []byte, label string, bits int, decrypt bool) (crypto.Signer, error) {
	attributes := func() crypto11.AttributeSet {
		set, err := crypto11.NewAttributeSetWithIDAndLabel(id, []byte(label))
		if err != nil { // of ids and labels that are empty
			panic(err)
		}
		return set
	}
	public, private := attributes(), attributes()
	// A key that decrypts signs too: an exchange key the request for its own certificate.
	for attribute, value := range map[uint]any{p11.CKA_PRIVATE: true, p11.CKA_DECRYPT: decrypt, p11.CKA_SIGN: true} {
		if err := private.Set(attribute, value); err != nil {
			return nil, fmt.Errorf("PKCS#11: make a key: %w", err)
		}
	}
	key, err := t.ctx.GenerateRSAKeyPairWithAttributes(public, private, bits)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11: make a key in token %q: %w", t.target.label+t.target.serial, err)
	}
	return wrap(key), nil
}

// create makes the key that the URI names.
func (t *Token) create(bits int) (crypto.Signer, error) {
	if t.target.object == "" {
		return nil, errors.New("PKCS#11: name the new key with object=LABEL")
	}
	id := t.target.id
	if id == nil {
		id = make([]byte, 16)
		rand.Read(id)
	}
	return t.GenerateRSA(id, t.target.object, bits, false)
}

// Destroy deletes a key by its id. That it is gone already is no error.
func (t *Token) Destroy(id []byte) error {
	pairs, err := t.ctx.FindKeyPairs(id, nil)
	if err != nil {
		return fmt.Errorf("PKCS#11 key %x: %w", id, err)
	}
	for _, k := range pairs {
		if err := k.Delete(); err != nil {
			return fmt.Errorf("PKCS#11 key %x: %w", id, err)
		}
	}
	return nil
}

func wrap(key crypto11.Signer) crypto.Signer {
	if k, ok := key.(crypto11.SignerDecrypter); ok {
		if _, isRSA := k.Public().(*rsa.PublicKey); isRSA {
			return &rsaKey{k}
		}
	}
	return signer{key}
}

// signer may be used within memory.Secret.
type signer struct{ crypto11.Signer }

func (k signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	memory.Outside(func() { signature, err = k.Signer.Sign(random, digest, opts) })
	return signature, err
}

// wrongBlock is what tokens answer to a block that does not decrypt; SoftHSM says the last.
var wrongBlock = []p11.Error{p11.CKR_ENCRYPTED_DATA_INVALID, p11.CKR_ENCRYPTED_DATA_LEN_RANGE, p11.CKR_DATA_INVALID, p11.CKR_FUNCTION_FAILED, p11.CKR_GENERAL_ERROR}

// rsaKey adds what crypto11 leaves out: SessionKeyLen, with which a wrong PKCS#1 v1.5 block gives a random key instead of an
// error that an attacker could learn from (RFC 3218).
type rsaKey struct{ crypto11.SignerDecrypter }

func (k *rsaKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return signer{k.SignerDecrypter}.Sign(random, digest, opts)
}

func (k *rsaKey) Decrypt(random io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) (plain []byte, err error) {
	memory.Outside(func() { plain, err = k.decrypt(random, ciphertext, opts) })
	return plain, err
}

func (k *rsaKey) decrypt(random io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	o, ok := opts.(*rsa.PKCS1v15DecryptOptions) //lint:ignore SA1019 what Windows clients send
	if !ok || o.SessionKeyLen == 0 {
		return k.SignerDecrypter.Decrypt(random, ciphertext, opts)
	}
	key := make([]byte, o.SessionKeyLen)
	rand.Read(key)
	plain, err := k.SignerDecrypter.Decrypt(random, ciphertext, nil)
	if err != nil {
		if e, isToken := errors.AsType[p11.Error](err); isToken && slices.Contains(wrongBlock, e) {
			return key, nil
		}
		return nil, fmt.Errorf("PKCS#11: %w", err) // the token does not answer
	}
	if len(plain) == len(key) {
		copy(key, plain)
	}
	clear(plain)
	return key, nil
}
