// Package upstream is the contract between the gateway and the CAs that sign for it. Each CA is a folder below this one;
// the embedded local CA is the default.
package upstream

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
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
	Issued    State = iota + 1
	Pending         // the CA works on it; Token names the order at the CA
	Refused         // final; Reason is for the client
	Unknown         // the CA has never seen the order, so that it may be submitted (Find only)
	Uncertain       // nobody can tell whether the CA has issued; Reason says what to look for (Find only)
)

// Result is a CA's answer.
type Result struct {
	State       State
	Certificate *x509.Certificate
	Token       string
	Reason      string
}

// Issuer is an upstream CA. Its errors mean that the answer is not known; one made by NotIssued means that nothing was issued.
// It is safe for concurrent use.
type Issuer interface {
	// Submit asks for the certificate. Whether it may be repeated with the same order is in Traits.
	Submit(ctx context.Context, order Order) (Result, error)
	// Find tells what became of an order whose answer was lost, or that was Pending.
	Find(ctx context.Context, order Order, token string) (Result, error)
	// Revoke revokes a certificate with a CRLReason (RFC 5280 5.3.1).
	Revoke(ctx context.Context, serial *big.Int, reason int) error
	// Chain returns the certificates from the issuing CA up to, and with, its root as far as known.
	Chain(ctx context.Context) ([]*x509.Certificate, error)
}

// NameSource is where a CA takes subject, alternative names and other extensions from.
type NameSource int

// The sources of names.
const (
	NamesBeside NameSource = iota // from what travels beside the PKCS#10 request: it carries every decision
	NamesInCSR                    // from the PKCS#10 request: it carries a decision only that the request already says
)

// Repetition is what happens to an order whose answer was lost.
type Repetition int

// The ways to settle a lost answer.
const (
	RepeatSame  Repetition = iota // Submit again: the same order gives the same certificate
	RepeatFound                   // Find knows: it never answers Uncertain
	RepeatBlind                   // Find may answer Uncertain
)

// Traits are what a CA can take and tell. They depend on driver and configuration alone.
type Traits struct {
	Product    string // for people: "step-ca"
	Names      NameSource
	Repetition Repetition
	// NoRevocation says that certificates are revoked at the CA by other means than this driver's Revoke.
	NoRevocation bool
	// Unsigned says that a public key without proof of possession is taken, as from a request with a null signature.
	Unsigned bool
}

// Described is an Issuer that says what it can do; any other is a RepeatSame one with NamesBeside.
type Described interface{ Traits() Traits }

// TraitsOf returns what an issuer says of itself.
func TraitsOf(issuer Issuer) Traits {
	if d, ok := issuer.(Described); ok {
		return d.Traits()
	}
	return Traits{}
}

// notIssued marks an error after which it is certain that the CA has issued nothing.
type notIssued struct{ error }

func (e notIssued) Unwrap() error { return e.error }

// NotIssued marks an error after which it is certain that the CA has issued nothing, and will not: it was never reached, or it
// said that it does not want to work now. The order may go to it again, or to another CA.
func NotIssued(err error) error {
	if err == nil {
		return nil
	}
	return notIssued{err}
}

// IsNotIssued tells whether an error of Submit was marked by NotIssued.
func IsNotIssued(err error) bool {
	_, ok := errors.AsType[notIssued](err)
	return ok
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
