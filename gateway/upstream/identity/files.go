// Package identity has the ways in which the gateway shows itself to clients in front of a CA whose key it does not hold.
//
// Windows checks that the CA published in the policy signed the exchange certificate, and AD CS signs its CMC responses
// with the CA's key. Own answers with a small CA of the gateway's, published in place of the foreign one; Foreign with
// certificates that the foreign CA issues to the gateway.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// path is where a file of an identity lies.
func path(dir, kind, ca, suffix string) string {
	return filepath.Join(dir, kind+"-"+url.PathEscape(ca)+suffix)
}

// loadOrCreateKey returns the key in the file, made on first start.
func loadOrCreateKey(file string, secret []byte) (crypto.Signer, error) {
	// P-256: what Windows has verified since Vista, and a signature costs a fraction of RSA's.
	return LoadOrCreateKey(file, secret, func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) })
}

// LoadOrCreateKey returns the key in the file, made by create where there is no file yet. It is encrypted at rest.
func LoadOrCreateKey(file string, secret []byte, create func() (crypto.Signer, error)) (crypto.Signer, error) {
	key, err := local.LoadKey(file, secret)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = create(); err != nil {
		return nil, err
	}
	text, err := local.EncryptKey(key, secret)
	if err != nil {
		return nil, err
	}
	return key, writeFile(file, text)
}

// writeFile replaces a file durably: after a crash it is the old or the new one.
func writeFile(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func encodePEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// belongs tells whether cert has the key.
func belongs(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(cert.PublicKey)
}
