package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// openConnection loads the roots of what a CA issues, and what is needed for TLS with it. A client certificate is read again for each
// connection, so that it can be renewed.
func openConnection(c config.Connection) (roots []*x509.Certificate, t *tls.Config, err error) {
	if roots, err = local.LoadCertificates(c.Root); err != nil {
		return nil, nil, fmt.Errorf("root: %w", err)
	}
	t = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		list, err := local.LoadCertificates(c.CAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		for _, cert := range list {
			t.RootCAs.AddCert(cert)
		}
	}
	if c.Certificate == "" {
		return roots, t, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return nil, fmt.Errorf("the TLS client certificate: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, nil, err
	}
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return roots, t, nil
}

// chainFile is where the chain of a foreign CA is kept for when it cannot be asked.
func (g *Gateway) chainFile(name string) string {
	return filepath.Join(g.Config.Data, "chain-"+url.PathEscape(name)+".pem")
}
