// Package status asks what a CA says about its certificates: its revocation lists and its OCSP responder.
package status

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Limits of what is fetched.
const (
	Timeout   = 15 * time.Second
	MaxCRL    = 32 << 20
	MaxIssuer = 64 << 10
	maxOCSP   = 64 << 10
)

// Fetch gets at most limit octets over HTTP, DER or PEM.
func Fetch(ctx context.Context, client *http.Client, url string, limit int64) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	body, err := read(client, r, limit)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(body); block != nil && bytes.HasPrefix(body, []byte("-----")) {
		return block.Bytes, nil
	}
	return body, nil
}

func read(client *http.Client, r *http.Request, limit int64) ([]byte, error) {
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
		return nil, fmt.Errorf("%s: %s", r.URL, resp.Status)
	case int64(len(body)) > limit:
		return nil, fmt.Errorf("%s: more than %d octets", r.URL, limit)
	}
	return body, nil
}

// IsHTTP tells whether an address can be fetched.
func IsHTTP(url string) bool {
	return strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://")
}

// FetchCRL gets the first good revocation list of a certificate's distribution points (RFC 5280 4.2.1.13). It is believed if it
// is signed by the key that signed the certificate. list is there with an error too where it has ended.
func FetchCRL(ctx context.Context, client *http.Client, cert, issuer *x509.Certificate, now time.Time) (list *x509.RevocationList, url string, err error) {
	err = errors.New("the certificate names no revocation list that can be had over HTTP")
	for _, url = range cert.CRLDistributionPoints {
		if !IsHTTP(url) {
			continue
		}
		var der []byte
		if der, err = Fetch(ctx, client, url, MaxCRL); err != nil {
			continue
		}
		if list, err = x509.ParseRevocationList(der); err != nil {
			continue
		}
		if err = list.CheckSignatureFrom(issuer); err != nil {
			list, err = nil, fmt.Errorf("%s: %w", url, err)
			continue
		}
		if now.After(list.NextUpdate) {
			err = fmt.Errorf("%s: the revocation list has ended at %s", url, list.NextUpdate.UTC().Format(time.RFC3339))
			continue
		}
		return list, url, nil
	}
	return list, url, err
}

// AskOCSP asks the first responder that a certificate names (RFC 6960). url is "" where it names none.
func AskOCSP(ctx context.Context, client *http.Client, cert, issuer *x509.Certificate) (answer *ocsp.Response, url string, err error) {
	for _, url = range cert.OCSPServer {
		if !IsHTTP(url) {
			continue
		}
		body, err := ocsp.CreateRequest(cert, issuer, nil)
		if err != nil {
			return nil, url, err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, url, err
		}
		r.Header.Set("Content-Type", "application/ocsp-request")
		der, err := read(client, r, maxOCSP)
		if err != nil {
			return nil, url, err
		}
		answer, err := ocsp.ParseResponseForCert(der, cert, issuer)
		return answer, url, err
	}
	return nil, "", nil
}
