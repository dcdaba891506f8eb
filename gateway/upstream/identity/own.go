package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// ownYears is for how long the gateway's own CA is valid. Whoever trusts it trusts it for enrollment only.
const ownYears = 10

// Own is the gateway's own small CA for one foreign CA. Its key signs exchange certificates and responses, and nothing else:
// it is not reachable as an Issuer. Files in dir keep it; secret encrypts the key.
func Own(dir, ca string, secret []byte, now func() time.Time) (upstream.Identity, error) {
	key, err := loadOrCreateKey(path(dir, "identity", ca, ".key"), secret)
	if err != nil {
		return nil, fmt.Errorf("CA %q: enrollment identity: %w", ca, err)
	}
	file := path(dir, "identity", ca, ".pem")
	certs, err := local.LoadCertificates(file)
	if errors.Is(err, fs.ErrNotExist) {
		der, err := local.SelfSigned(ca+" Enrollment", key, now(), ownYears)
		if err != nil {
			return nil, fmt.Errorf("CA %q: enrollment identity: %w", ca, err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("CA %q: enrollment identity: %w", ca, err)
		}
		if err := writeFile(file, encodePEM(cert)); err != nil {
			return nil, fmt.Errorf("CA %q: enrollment identity: %w", ca, err)
		}
		certs = []*x509.Certificate{cert}
	} else if err != nil {
		return nil, fmt.Errorf("CA %q: enrollment identity: %w", ca, err)
	}
	own, err := local.New(local.Options{Name: ca + " Enrollment", Certificate: certs[0], Key: key, Now: now})
	if err != nil {
		return nil, fmt.Errorf("CA %q: enrollment identity in %s: %w", ca, file, err)
	}
	return own.Identity(), nil
}
