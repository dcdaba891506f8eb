// Package upstream is the contract between the gateway and the CAs that sign for it. Each CA is a folder below this one;
// the embedded local CA is the default.
package upstream

import (
	"context"
	"crypto"
	"crypto/x509"
	"math/big"

	"github.com/enrollgate/enrollgate/templates"
)

// Order is a certificate to issue. Everything in it is decided; nothing is left to the CA but serial number, issuer, key
// identifiers and revocation addresses.
type Order struct {
	ID        string // the same on every retry
	CSR       []byte // PKCS#10 in DER, without any archived key
	PublicKey crypto.PublicKey
	Profile   templates.CertificateProfile
}

// State is how a CA answered an order.
type State int

// The answers.
const (
	Issued  State = iota + 1
	Pending       // the CA works on it; Token names the order at the CA
	Refused       // final; Reason is for the client
	Unknown       // the CA has never seen the order (Find only)
)

// Result is a CA's answer.
type Result struct {
	State       State
	Certificate *x509.Certificate
	Token       string
	Reason      string
}

// Issuer is an upstream CA. Errors mean that the answer is not known: the order may be repeated.
type Issuer interface {
	// Submit asks for the certificate. It must be safe to repeat with the same order.
	Submit(ctx context.Context, order Order) (Result, error)
	// Find tells what became of an order whose answer was lost, or that was Pending.
	Find(ctx context.Context, order Order, token string) (Result, error)
	// Revoke revokes a certificate with a CRLReason (RFC 5280 5.3.1).
	Revoke(ctx context.Context, serial *big.Int, reason int) error
	// Chain returns the certificates from the issuing CA up to, and with, its root as far as known.
	Chain(ctx context.Context) ([]*x509.Certificate, error)
}

// Checker is an Issuer that cannot carry every order.
type Checker interface {
	// Check refuses, by name, an order that the CA could never sign. It is asked before anything is archived or recorded as
	// on its way, and asks nobody: what it says depends on the order alone.
	Check(order Order) error
}

// Check asks the issuer where it is a Checker; any other carries every order.
func Check(issuer Issuer, order Order) error {
	if c, ok := issuer.(Checker); ok {
		return c.Check(order)
	}
	return nil
}

// Identity is the CA that the gateway publishes to clients for an Issuer. It signs the exchange certificate and the CMC
// full responses, which Windows checks against the published CA. For the embedded CA it is that CA itself.
type Identity interface {
	// Certificate is the published CA certificate.
	Certificate() *x509.Certificate
	// Chain returns Certificate and what is above it.
	Chain() []*x509.Certificate
	// ResponseSigner returns what signs responses and its certificate: Certificate itself, or one that it has issued to the
	// gateway for this purpose (extended key usage id-kp-cmcCA, RFC 6402 2.10).
	ResponseSigner(ctx context.Context) (*x509.Certificate, crypto.Signer, crypto.Hash, error)
	// IssueExchange signs a CA exchange certificate. A foreign CA needs order.CSR for it.
	IssueExchange(order Order) (*x509.Certificate, error)
}
