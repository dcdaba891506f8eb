package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"fmt"
	"slices"
	"sync"
)

// chainStore remembers every certificate that a CA had in its chain: what it has issued keeps its chain after the CA got another
// certificate.
type chainStore struct {
	mu    sync.Mutex // guards known
	known map[string][]*x509.Certificate
}

// loadChains reads what was remembered.
func (g *Gateway) loadChains(ctx context.Context) error {
	rows, err := g.DB.SQL.QueryContext(ctx, "SELECT ca, certificate FROM ca_certificates ORDER BY seen")
	if err != nil {
		return fmt.Errorf("certificates of CAs: %w", err)
	}
	defer rows.Close()
	g.chains.known = map[string][]*x509.Certificate{}
	for rows.Next() {
		var ca string
		var der []byte
		if err := rows.Scan(&ca, &der); err != nil {
			return fmt.Errorf("certificates of CAs: %w", err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("a certificate of CA %q: %w", ca, err)
		}
		g.chains.known[ca] = append(g.chains.known[ca], c)
	}
	return rows.Err()
}

// rememberChain keeps what is new of a chain.
func (g *Gateway) rememberChain(ctx context.Context, ca string, chain []*x509.Certificate) error {
	g.chains.mu.Lock()
	defer g.chains.mu.Unlock()
	var fresh []*x509.Certificate
	for _, c := range chain {
		if !slices.ContainsFunc(g.chains.known[ca], c.Equal) {
			fresh = append(fresh, c)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	err := g.DB.Write(ctx, func(tx *sql.Tx) error {
		for _, c := range fresh {
			sum := sha256.Sum256(c.Raw)
			if _, err := tx.Exec("INSERT INTO ca_certificates (ca, fingerprint, certificate, seen) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", ca, sum[:], c.Raw, g.now().UnixMilli()); err != nil {
				return fmt.Errorf("certificates of CA %q: %w", ca, err)
			}
		}
		return nil
	})
	if err == nil {
		g.chains.known[ca] = append(g.chains.known[ca], fresh...)
	}
	return err
}

// chainFor is what is above a certificate that a CA has issued: the CA's chain of today, or the one that it had then.
func (g *Gateway) chainFor(ca string, today []*x509.Certificate, cert *x509.Certificate) []*x509.Certificate {
	if cert == nil || len(today) > 0 && issuedBy(cert, today[0]) {
		return today
	}
	g.chains.mu.Lock()
	known := slices.Clone(g.chains.known[ca])
	g.chains.mu.Unlock()
	var out []*x509.Certificate
	for cur := cert; len(out) < 8; {
		i := slices.IndexFunc(known, func(c *x509.Certificate) bool { return issuedBy(cur, c) && !slices.ContainsFunc(out, c.Equal) })
		if i < 0 {
			break
		}
		cur = known[i]
		out = append(out, cur)
	}
	if len(out) == 0 {
		return today
	}
	return out
}

// issuers are the names of all CAs that certificates in the ledger are by: the configured ones, and those of which it was imported.
func (g *Gateway) issuers() []string {
	out := names(g.signers)
	g.chains.mu.Lock()
	defer g.chains.mu.Unlock()
	for name := range g.chains.known {
		if g.Signer(name) == nil {
			out = append(out, name)
		}
	}
	return out
}

// everyCertificateOf are the certificates that a CA has, or had.
func (g *Gateway) everyCertificateOf(issuer string) []*x509.Certificate {
	out := g.ChainOf(issuer)
	g.chains.mu.Lock()
	defer g.chains.mu.Unlock()
	for _, c := range g.chains.known[issuer] {
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(slices.Clip(out), c)
		}
	}
	return out
}

// issuedBy looks at names before it spends time on a signature.
func issuedBy(cert, issuer *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, issuer.RawSubject) && cert.CheckSignatureFrom(issuer) == nil
}
