package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/upstream/status"
)

// RevokedElsewhere asks the CRLs of other CAs about the agents, over HTTP from the certificates' distribution points (RFC 5280
// 4.2.1.13). It returns the fingerprints of revoked ones, and why others could not be asked about.
func (g *Gateway) RevokedElsewhere(ctx context.Context) (revoked map[string]bool, unknown map[string]error, err error) {
	agents, err := g.Escrow.Agents(ctx)
	if err != nil {
		return nil, nil, err
	}
	revoked, unknown = map[string]bool{}, map[string]error{}
	client := &http.Client{Timeout: status.Timeout}
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
	list, _, err := status.FetchCRL(ctx, client, a.Certificate, issuer, g.now())
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(a.Certificate.SerialNumber) == 0 && e.ReasonCode != removeFromCRL
	}), nil
}

// removeFromCRL is the reason of an entry that takes another back (RFC 5280 5.3.1).
const removeFromCRL = 8

// issuerOf is the certificate of who signed a certificate: one that the gateway knows, or one from where the certificate says.
func (g *Gateway) issuerOf(ctx context.Context, client *http.Client, cert *x509.Certificate) (*x509.Certificate, error) {
	for _, ca := range g.signers {
		for _, c := range g.ChainOf(ca.Name) {
			if cert.CheckSignatureFrom(c) == nil {
				return c, nil
			}
		}
	}
	for _, url := range cert.IssuingCertificateURL {
		if !status.IsHTTP(url) {
			continue
		}
		der, err := status.Fetch(ctx, client, url, status.MaxIssuer)
		if err != nil {
			continue
		}
		if c, err := x509.ParseCertificate(der); err == nil && cert.CheckSignatureFrom(c) == nil {
			return c, nil
		}
	}
	return nil, errors.New("the certificate of its CA is not known, nor can be had from where the certificate says")
}
