package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
)

// certificateFile is the server certificate, read again when its file changes, so that it can be renewed without a restart.
type certificateFile struct {
	certPath, keyPath string

	mu       sync.Mutex // guards the rest
	cert     *tls.Certificate
	modified time.Time
	checked  time.Time
}

func newCertificateFile(certPath, keyPath string) (*certificateFile, error) {
	f := &certificateFile{certPath: certPath, keyPath: keyPath}
	_, err := f.get(nil)
	return f, err
}

const certificateCheckPeriod = 10 * time.Second

func (f *certificateFile) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cert != nil && time.Since(f.checked) < certificateCheckPeriod {
		return f.cert, nil
	}
	f.checked = time.Now()
	info, err := os.Stat(f.certPath)
	if err == nil && f.cert != nil && info.ModTime().Equal(f.modified) {
		return f.cert, nil
	}
	var cert tls.Certificate
	if err == nil {
		cert, err = tls.LoadX509KeyPair(f.certPath, f.keyPath)
	}
	switch {
	case err == nil:
		f.cert, f.modified = &cert, info.ModTime()
	case f.cert == nil:
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	return f.cert, nil // a file that is just being replaced: keep the old one
}

// leaves gives the acceptor what channel bindings refer to.
func (f *certificateFile) leaves() []*x509.Certificate {
	cert, err := f.get(nil)
	if err != nil || cert.Leaf == nil {
		return nil
	}
	return []*x509.Certificate{cert.Leaf}
}

// CheckHealth asks the gateway that runs with this configuration on this machine whether it can decide. It accepts no
// other certificate than the configured one.
func CheckHealth(ctx context.Context, cfg *config.Config) error {
	own, err := tls.LoadX509KeyPair(cfg.TLS.Certificate, cfg.TLS.Key)
	if err != nil {
		return fmt.Errorf("TLS certificate: %w", err)
	}
	host, port, err := net.SplitHostPort(cfg.Listen.HTTPS)
	if err != nil {
		return fmt.Errorf("listen.https: %w", err)
	}
	if host == "" {
		host = "localhost"
	}
	// The name in the certificate is not this machine's loopback name: the certificate itself is what is compared.
	pinned := &tls.Config{InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		if len(raw) == 0 || !bytes.Equal(raw[0], own.Certificate[0]) {
			return errors.New("somebody else answers with another certificate")
		}
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: pinned, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return fmt.Errorf("the gateway does not answer: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the gateway is not healthy: %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return err
}
