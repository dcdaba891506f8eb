package gateway

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
)

// Limits of what is fetched for a revocation check.
const (
	crlTimeout = 15 * time.Second
	maxCRL     = 32 << 20
	maxIssuer  = 64 << 10
)

// RevokedElsewhere asks the CRLs of other CAs about the agents, over HTTP from the certificates' distribution points (RFC 5280
// 4.2.1.13). It returns the fingerprints of revoked ones, and why others could not be asked about.
func (g *Gateway) RevokedElsewhere(ctx context.Context) (revoked map[string]bool, unknown map[string]error, err error) {
	agents, err := g.Escrow.Agents(ctx)
	if err != nil {
		return nil, nil, err
	}
	revoked, unknown = map[string]bool{}, map[string]error{}
	client := &http.Client{Timeout: crlTimeout}
	for _, a := range agents {
		if row, err := g.issuedHere(ctx, a.Certificate); err != nil {
			return nil, nil, err
		} else if row != nil { // the ledger knows
			continue
		}
		yes, err := g.onCRL(ctx, client, a)
		if err != nil {
			unknown[a.Fingerprint] = err
		} else if yes {
			revoked[a.Fingerprint] = true
		}
	}
	return revoked, unknown, nil
}

// onCRL tells whether the agent's certificate is on the CRL of its CA. The list is believed if it is signed by the key that signed
// the certificate.
func (g *Gateway) onCRL(ctx context.Context, client *http.Client, a escrow.Agent) (bool, error) {
	issuer, err := g.issuerOf(ctx, client, a.Certificate)
	if err != nil {
		return false, err
	}
	err = errors.New("the certificate names no revocation list that can be had over HTTP")
	for _, url := range a.Certificate.CRLDistributionPoints {
		if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
			continue
		}
		var der []byte
		if der, err = fetch(ctx, client, url, maxCRL); err != nil {
			continue
		}
		var list *x509.RevocationList
		if list, err = x509.ParseRevocationList(der); err != nil {
			continue
		}
		if err = list.CheckSignatureFrom(issuer); err != nil {
			err = fmt.Errorf("%s: %w", url, err)
			continue
		}
		if now := g.now(); now.After(list.NextUpdate) {
			err = fmt.Errorf("%s: the revocation list has ended at %s", url, list.NextUpdate.UTC().Format(time.RFC3339))
			continue
		}
		return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
			return e.SerialNumber.Cmp(a.Certificate.SerialNumber) == 0 && e.ReasonCode != removeFromCRL
		}), nil
	}
	return false, err
}

// removeFromCRL is the reason of an entry that takes another back (RFC 5280 5.3.1).
const removeFromCRL = 8

// issuerOf is the certificate of who signed a certificate: one that the gateway knows, or one from where the certificate says.
func (g *Gateway) issuerOf(ctx context.Context, client *http.Client, cert *x509.Certificate) (*x509.Certificate, error) {
	for _, ca := range g.CAs {
		for _, c := range g.ChainOf(ca.Name) {
			if cert.CheckSignatureFrom(c) == nil {
				return c, nil
			}
		}
	}
	for _, url := range cert.IssuingCertificateURL {
		if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
			continue
		}
		der, err := fetch(ctx, client, url, maxIssuer)
		if err != nil {
			continue
		}
		if c, err := x509.ParseCertificate(der); err == nil && cert.CheckSignatureFrom(c) == nil {
			return c, nil
		}
	}
	return nil, errors.New("the certificate of its CA is not known, nor can be had from where the certificate says")
}

// fetch gets at most limit octets, DER or PEM.
func fetch(ctx context.Context, client *http.Client, url string, limit int64) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	case int64(len(body)) > limit:
		return nil, fmt.Errorf("%s: more than %d octets", url, limit)
	}
	if block, _ := pem.Decode(body); block != nil && bytes.HasPrefix(body, []byte("-----")) {
		return block.Bytes, nil
	}
	return body, nil
}
