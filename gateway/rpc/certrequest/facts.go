package certrequest

import (
	"bytes"
	"crypto/x509"
	"time"
)

// CA is what clients are told of a CA.
type CA struct {
	Name    string // as the directory publishes it: the common name of its certificate
	Short   string // sanitized
	DNSName string // of this server
	Version string // "1.2.3.4"
	Locale  string // "en-US"
	Parent  string // configuration string of the CA above: server\name; "" where it is not known
	Now     time.Time

	Signing   []Signing  // oldest first; the last one is published. There is one at least.
	Templates []Template // that the CA offers, and no others
	Agents    []Agent    // key recovery agents, oldest first
	Required  int        // how many of them it takes at least to archive a key
}

// Signing is a certificate of the CA.
type Signing struct {
	Certificate *x509.Certificate
	Above       []*x509.Certificate    // its issuers, up to the root as far as known
	CRL         func() ([]byte, error) // its newest revocation list in DER; nil where none is known
	NoCRL       bool                   // its key signs no revocation lists
	Revoked     bool

	// What the CA puts into the certificates that it issues:
	CDP, AIA, OCSP []string
}

// Template is a certificate template.
type Template struct{ Name, OID string }

// Agent is a key recovery agent.
type Agent struct {
	Certificate *x509.Certificate
	State       AgentState
}

// AgentState is how an agent's certificate is ([MS-WCCE] 3.2.1.4.3.2.27).
type AgentState byte

// The states that there are here.
const (
	AgentExpired AgentState = 0
	AgentRevoked AgentState = 2
	AgentValid   AgentState = 3
	AgentInvalid AgentState = 5
)

// Dispositions of signing certificates and CRLs ([MS-WCCE] 3.2.1.4.3.2.19).
const (
	dispError   = 1
	dispRevoked = 2
	dispValid   = 3
	dispInvalid = 4
)

// crl is the revocation list; nil where there is none.
func (s *Signing) crl() ([]byte, error) {
	if s.CRL == nil {
		return nil, nil
	}
	return s.CRL()
}

// state is the disposition of a certificate.
func (ca *CA) state(s *Signing) byte {
	switch {
	case s.Revoked:
		return dispRevoked
	case ca.Now.After(s.Certificate.NotAfter):
		return dispInvalid
	case ca.Now.Before(s.Certificate.NotBefore):
		return dispError
	}
	return dispValid
}

// crlState tells whether the certificate is the one by which the CRLs of its key are named ([MS-WCCE] 3.2.1.4.3.2.20).
func (ca *CA) crlState(i int) byte {
	s := &ca.Signing[i]
	switch state := ca.state(s); {
	case state != dispValid:
		return state
	case s.NoCRL || ca.keyIndex(i) != i:
		return dispError
	}
	return dispValid
}

// keyIndex is the index of the first certificate with the same key ([MS-WCCE] 3.2.1.4.3.2.39).
func (ca *CA) keyIndex(i int) int {
	for j := range i {
		if bytes.Equal(ca.Signing[j].Certificate.RawSubjectPublicKeyInfo, ca.Signing[i].Certificate.RawSubjectPublicKeyInfo) {
			return j
		}
	}
	return i
}

// root tells whether the published certificate is its own issuer.
func (ca *CA) root() bool {
	c := ca.newest().Certificate
	return bytes.Equal(c.RawIssuer, c.RawSubject)
}

func (ca *CA) newest() *Signing { return &ca.Signing[len(ca.Signing)-1] }

// caType is the type of an enterprise CA ([MS-WCCE] 3.2.2.6.3.1.2).
func (ca *CA) caType() int32 {
	if ca.root() {
		return 0 // ENUM_ENTERPRISE_ROOTCA
	}
	return 1 // ENUM_ENTERPRISE_SUBCA
}
