// Package authority is what tests of drivers need around a CA: a root with an issuing CA, TLS certificates and clients', and programs
// that run for the time of a test.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/testpki"
)

// Authority is a root and an issuing CA below it.
type Authority struct {
	Root, Issuing       *x509.Certificate
	RootKey, IssuingKey crypto.Signer
}

// New makes both.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{RootKey: Key(t), IssuingKey: Key(t)}
	a.Root = Sign(t, CA("Test Root"), nil, a.RootKey.Public(), a.RootKey)
	a.Issuing = Sign(t, CA("Test Issuing CA"), a.Root, a.IssuingKey.Public(), a.RootKey)
	return a
}

// CA is what Sign makes the certificate of a CA from.
func CA(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
}

// Key makes a P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Sign makes a certificate, with a serial number of its own; by itself where issuer is nil.
func Sign(t testing.TB, template, issuer *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	number := make([]byte, 16)
	rand.Read(number)
	number[0] = number[0]&0x7f | 0x40
	template.SerialNumber = new(big.Int).SetBytes(number)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(9, 0, 0)
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

// Sign makes a certificate by the issuing CA.
func (a *Authority) Sign(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	return Sign(t, template, a.Issuing, public, a.IssuingKey)
}

// Pool has the root.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Root)
	return p
}

// Server is for TLS on 127.0.0.1; with clients it asks for certificates of the root, and takes none other.
func (a *Authority) Server(t testing.TB, clients bool) *tls.Config {
	t.Helper()
	key := Key(t)
	cert := a.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key.Public())
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, a.Issuing.Raw}, PrivateKey: key}}}
	if clients {
		c.ClientCAs, c.ClientAuth = a.Pool(), tls.RequireAndVerifyClientCert
	}
	return c
}

// Client trusts the root, and has a certificate for name where that is not empty.
func (a *Authority) Client(t testing.TB, name string) *tls.Config {
	t.Helper()
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.Pool()}
	if name != "" {
		key := Key(t)
		cert := a.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key.Public())
		c.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw, a.Issuing.Raw}, PrivateKey: key}}
	}
	return c
}
