package pkcs11

import (
	"crypto"
	"errors"
	"fmt"
)

// Key signs and decrypts inside a token.
type Key interface {
	crypto.Signer
	crypto.Decrypter
}

// OpenKey opens the token and finds the key that a URI names. The token stays open for as long as the program runs.
func OpenKey(uri, pin string) (crypto.Signer, error) {
	token, err := Open(uri, pin)
	if err != nil {
		return nil, err
	}
	key, err := token.Key()
	if err != nil {
		token.Close()
		return nil, fmt.Errorf("%w; the library's own tool, or pkcs11-tool --list-objects, shows what there is", err)
	}
	return key, nil
}

// OpenOrCreateKey is OpenKey that makes an RSA key for signatures where the token has none with the URI's object (label). The
// token stays open for as long as the program runs.
func OpenOrCreateKey(uri, pin string, bits int) (crypto.Signer, error) {
	token, err := Open(uri, pin)
	if err != nil {
		return nil, err
	}
	key, err := token.Key()
	if errors.Is(err, ErrNoKey) {
		key, err = token.create(bits)
	}
	if err != nil {
		token.Close()
		return nil, err
	}
	return key, nil
}

// ErrNoKey is a token without the key that the URI names.
var ErrNoKey = errors.New("there is no such key pair in the token")
