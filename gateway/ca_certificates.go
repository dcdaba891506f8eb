package gateway

import (
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// certificates are read from a file into to, unless there is no file.
type certificates struct {
	file string
	to   *[]*x509.Certificate
}

func (g *Gateway) loadCertificates(c config.CA, list ...certificates) error {
	for _, l := range list {
		if l.file == "" {
			continue
		}
		var err error
		if *l.to, err = local.LoadCertificates(l.file); err != nil {
			return fmt.Errorf("CA %q: certificates: %w", c.Name, err)
		}
	}
	return nil
}

// unsaid are extensions that a client's request need not say: those that a driver is told of, and those in which the CA may differ.
func unsaid(c config.CA, ignore []string) []string {
	return slices.Concat(ignore, c.Tolerate.Missing, c.Tolerate.Changed)
}
