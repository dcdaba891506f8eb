//go:build !cgo

package pkcs11

import (
	"crypto"
	"crypto/x509"
	"errors"
)

// Token is not available without cgo.
type Token struct{}

// Open parses the URI and says that this program cannot use it.
func Open(uri, pin string) (*Token, error) {
	if _, err := parse(uri, pin); err != nil {
		return nil, err
	}
	return nil, errors.New("this program was built without PKCS#11: build it with CGO_ENABLED=1")
}

var errNoToken = errors.New("PKCS#11 is not available")

func (*Token) Close() error                                                 { return nil }
func (*Token) Key() (crypto.Signer, error)                                  { return nil, errNoToken }
func (*Token) Certificate() (*x509.Certificate, error)                      { return nil, errNoToken }
func (*Token) Find([]byte) (Key, error)                                     { return nil, errNoToken }
func (*Token) GenerateRSA([]byte, string, int, bool) (crypto.Signer, error) { return nil, errNoToken }
func (*Token) create(int) (crypto.Signer, error)                            { return nil, errNoToken }
func (*Token) Destroy([]byte) error                                         { return errNoToken }
