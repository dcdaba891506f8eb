package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// openProtocol makes the driver of a CA that is reached by its protocol. It does not connect.
func (g *Gateway) openProtocol(c config.CA) (upstream.Issuer, error) {
	switch c.Driver {
	case "cmp":
		return g.openCMP(c)
	case "adcs":
		return g.openADCS(c)
	case "scep":
		return g.openSCEP(c)
	case "acme":
		return g.openACME(c)
	case "aws-pca":
		return g.openAWSPCA(c)
	}
	return nil, fmt.Errorf("CA %q: there is no driver %q", c.Name, c.Driver)
}

// chainFile is where the chain of a foreign CA is kept for the next start.
func (g *Gateway) chainFile(c config.CA) string {
	return filepath.Join(g.Config.Data, "chain-"+url.PathEscape(c.Name)+".pem")
}

// trusting checks TLS servers with the roots in a file; "" is for the system's.
func trusting(path string) (*tls.Config, error) {
	if path == "" {
		return nil, nil
	}
	certs, err := local.LoadCertificates(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

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
