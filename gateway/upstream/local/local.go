// Package local is the embedded CA: a key in an encrypted file, certificates signed exactly as decided, revocation lists.
//
// Signing is a pure function of the order: the serial number is derived from it and both signature schemes in use are
// deterministic, so that a repeated order yields the same certificate, octet for octet, and nothing can be issued twice.
package local

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/upstream"
)

// Options configure a CA.
type Options struct {
	Name        string              // as the directory publishes it
	Certificate *x509.Certificate   // the CA certificate
	Above       []*x509.Certificate // its issuers, up to the root; may be empty
	Key         crypto.Signer
	// Secret makes serial numbers unpredictable where the key is in a token; else the key itself does.
	Secret      []byte
	CRLURLs     []string // put into certificates
	AIAURLs     []string
	CRLValidity time.Duration // default 7 days
	DB          *store.DB     // revocations
	Now         func() time.Time
}

// CA is an embedded certification authority. It implements upstream.Issuer and upstream.Identity.
type CA struct {
	o         Options
	serialKey []byte
	algorithm x509.SignatureAlgorithm
	hash      crypto.Hash

	mu  sync.Mutex // guards crl
	crl crlState
}

type crlState struct {
	der   []byte
	count int64 // revocations in it
	until time.Time
}

// New checks that key and certificate belong together and returns the CA.
func New(o Options) (*CA, error) {
	cert := o.Certificate
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("CA %q: the certificate %q is not that of a certification authority", o.Name, cert.Subject)
	}
	pub, ok := o.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("CA %q: the key is not that of the certificate %q", o.Name, cert.Subject)
	}
	if o.CRLValidity == 0 {
		o.CRLValidity = 7 * 24 * time.Hour
	}
	ca := &CA{o: o}
	switch k := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		ca.algorithm, ca.hash = x509.SHA256WithRSA, crypto.SHA256
	case *ecdsa.PublicKey:
		ca.algorithm, ca.hash = x509.ECDSAWithSHA256, crypto.SHA256
		if k.Curve.Params().BitSize > 256 {
			ca.algorithm, ca.hash = x509.ECDSAWithSHA384, crypto.SHA384
		}
	default:
		return nil, fmt.Errorf("CA %q: key type %T is not supported", o.Name, k)
	}
	var err error
	ca.serialKey, err = serialKey(&o)
	return ca, err
}

// serialKey is what an order's serial number follows from, so that a repeated order has the same one.
func serialKey(o *Options) ([]byte, error) {
	secret, err := x509.MarshalPKCS8PrivateKey(o.Key)
	if err != nil { // the key is in a token
		if len(o.Secret) == 0 {
			return nil, fmt.Errorf("CA %q: the key is in a token, and there is no secret for serial numbers", o.Name)
		}
		secret = append([]byte("serial numbers"), o.Secret...)
	}
	defer clear(secret)
	sum := sha256.Sum256(secret)
	return sum[:], nil
}

// Submit signs the order.
func (ca *CA) Submit(_ context.Context, order upstream.Order) (upstream.Result, error) {
	cert, err := ca.sign(order)
	if err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

// Find is Submit: the same order gives the same certificate.
func (ca *CA) Find(ctx context.Context, order upstream.Order, _ string) (upstream.Result, error) {
	return ca.Submit(ctx, order)
}

// serial derives the serial number from everything that is in the certificate, so that two different certificates
// never share one, whatever happens to the database. 159 bits, positive (RFC 5280 4.1.2.2).
func (ca *CA) serial(order upstream.Order) (*big.Int, error) {
	profile, err := json.Marshal(order.Profile)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return nil, err
	}
	h := hmac.New(sha256.New, ca.serialKey)
	for _, part := range [][]byte{[]byte(order.ID), profile, spki, ca.o.Certificate.Raw} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":"))
		h.Write(part)
	}
	octets := h.Sum(nil)[:20]
	octets[0] = octets[0]&0x7f | 0x40
	return new(big.Int).SetBytes(octets), nil
}

func (ca *CA) sign(order upstream.Order) (*x509.Certificate, error) {
	p := order.Profile
	serial, err := ca.serial(order)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: p.Subject, NotBefore: p.NotBefore, NotAfter: p.NotAfter,
		SubjectKeyId: keyID(spki), SignatureAlgorithm: ca.algorithm,
	}
	if len(p.Subject) == 0 {
		template.RawSubject = []byte{0x30, 0x00}
	}
	if !p.NoRevocationInfo {
		template.CRLDistributionPoints = ca.o.CRLURLs
		template.IssuingCertificateURL = ca.o.AIAURLs
	}
	for _, e := range p.Extensions {
		x, err := e.X509()
		if err != nil {
			return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
		}
		template.ExtraExtensions = append(template.ExtraExtensions, x)
	}
	// No randomness: RSA PKCS#1 v1.5 needs none, and without it ECDSA is deterministic (RFC 6979).
	der, err := x509.CreateCertificate(nil, template, ca.o.Certificate, order.PublicKey, ca.o.Key)
	if err != nil {
		return nil, fmt.Errorf("CA %q: sign certificate: %w", ca.o.Name, err)
	}
	return x509.ParseCertificate(der)
}

func keyID(spki []byte) []byte {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20] // RFC 7093 2 method 1
}

// Chain returns the CA certificate and those above it.
func (ca *CA) chain() []*x509.Certificate {
	return append([]*x509.Certificate{ca.o.Certificate}, ca.o.Above...)
}

// Certificate returns the CA certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.o.Certificate }

// ResponseSigner returns the CA certificate and key: AD CS signs its responses so.
func (ca *CA) ResponseSigner(context.Context) (*x509.Certificate, crypto.Signer, crypto.Hash, error) {
	return ca.o.Certificate, ca.o.Key, ca.hash, nil
}

// IssueExchange signs an exchange certificate with the CA key, as AD CS does.
func (ca *CA) IssueExchange(order upstream.Order) (*x509.Certificate, error) { return ca.sign(order) }

// Revoke records a revocation; the next CRL lists it. Revoking twice keeps the first reason and time.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	if reason < 0 || reason > 10 || reason == 7 {
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	}
	text := serial.Text(16)
	return ca.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := ca.o.Now()
		_, err := tx.Exec("INSERT INTO revocations (ca, serial, reason, revoked) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", ca.o.Name, text, reason, now.UnixMilli())
		if err != nil {
			return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, text, err)
		}
		return audit.Append(tx, now, "CA "+ca.o.Name, audit.CertRevoked, map[string]any{"ca": ca.o.Name, "serial": text, "reason": reason})
	})
}

// CRL returns the current certificate revocation list in DER. It is signed anew when a certificate was revoked and when
// half of its life is over.
func (ca *CA) CRL(ctx context.Context) ([]byte, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	var count int64
	if err := ca.o.DB.SQL.QueryRowContext(ctx, "SELECT count(*) FROM revocations WHERE ca = ?", ca.o.Name).Scan(&count); err != nil {
		return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	now := ca.o.Now()
	if ca.crl.der != nil && ca.crl.count == count && now.Before(ca.crl.until) {
		return ca.crl.der, nil
	}
	entries, err := ca.revoked(ctx)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateRevocationList(nil, &x509.RevocationList{
		SignatureAlgorithm: ca.algorithm, RevokedCertificateEntries: entries,
		Number: big.NewInt(now.UnixMilli()), ThisUpdate: now.Add(-10 * time.Minute), NextUpdate: now.Add(ca.o.CRLValidity),
	}, ca.o.Certificate, ca.o.Key)
	if err != nil {
		return nil, fmt.Errorf("CA %q: sign CRL: %w", ca.o.Name, err)
	}
	ca.crl = crlState{der: der, count: count, until: now.Add(ca.o.CRLValidity / 2)}
	return der, nil
}

func (ca *CA) revoked(ctx context.Context) ([]x509.RevocationListEntry, error) {
	rows, err := ca.o.DB.SQL.QueryContext(ctx, "SELECT serial, reason, revoked FROM revocations WHERE ca = ? ORDER BY revoked, serial", ca.o.Name)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	defer rows.Close()
	var out []x509.RevocationListEntry
	for rows.Next() {
		var text string
		var reason int
		var ms int64
		if err := rows.Scan(&text, &reason, &ms); err != nil {
			return nil, fmt.Errorf("CA %q: %w", ca.o.Name, err)
		}
		serial, ok := new(big.Int).SetString(text, 16)
		if !ok {
			return nil, fmt.Errorf("CA %q: revoked serial number %q is not hexadecimal", ca.o.Name, text)
		}
		out = append(out, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.UnixMilli(ms).UTC(), ReasonCode: reason})
	}
	return out, rows.Err()
}

// issuer adapts CA to upstream.Issuer, whose Chain has another signature than Identity's.
type issuer struct{ *CA }

func (i issuer) Chain(context.Context) ([]*x509.Certificate, error) { return i.CA.chain(), nil }

type identity struct{ *CA }

func (i identity) Chain() []*x509.Certificate { return i.CA.chain() }

// Issuer returns the CA as the gateway's upstream.
func (ca *CA) Issuer() upstream.Issuer { return issuer{ca} }

// Identity returns the CA as what the gateway publishes.
func (ca *CA) Identity() upstream.Identity { return identity{ca} }

// SortChain orders certificates above leaf: each is the issuer of the one before. What does not belong is an error.
func SortChain(leaf *x509.Certificate, certs []*x509.Certificate) ([]*x509.Certificate, error) {
	rest := slices.Clone(certs)
	var out []*x509.Certificate
	for cur := leaf; !bytes.Equal(cur.RawIssuer, cur.RawSubject); {
		i := slices.IndexFunc(rest, func(c *x509.Certificate) bool { return cur.CheckSignatureFrom(c) == nil })
		if i < 0 {
			break
		}
		cur = rest[i]
		out = append(out, cur)
		rest = slices.Delete(rest, i, i+1)
	}
	if len(rest) > 0 {
		return out, errors.New("certificate " + strconv.Quote(rest[0].Subject.String()) + " is not part of the CA's chain")
	}
	return out, nil
}
