// Package stepca tests the gateway in front of a real step-ca. Run it with: make upstreams
package stepca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

var background = context.Background()

// order is what a Windows client of an archival template leads to: an empty CSR, and everything decided.
func order(t testing.TB, id string, key crypto.Signer, csr *x509.CertificateRequest) upstream.Order {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, csr, key)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: "Alice Ärcher", Organization: []string{"Lab"}}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	return upstream.Order{ID: id, CSR: der, PublicKey: key.Public(), Profile: templates.CertificateProfile{
		Template: "T", Subject: subject, SubjectText: "Alice", NotBefore: now.Add(-10 * time.Minute), NotAfter: now.AddDate(1, 0, 0),
		Extensions: []templates.Extension{
			{OID: wcce.OIDTemplateName, Value: wcce.BMPString("T")},
			{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x05, 0x20}},
			{OID: "2.5.29.17", Value: []byte{0x30, 0x10, 0x81, 0x0e, 'a', 'l', 'i', 'c', 'e', '@', 'l', 'a', 'b', '.', 't', 'e', 's', 't'}},
			{OID: "1.3.6.1.4.1.311.25.2", Value: []byte{0x30, 0x03, 0x02, 0x01, 0x07}},
		},
	}}
}

func submit(t testing.TB, ca upstream.Issuer, o upstream.Order) *x509.Certificate {
	t.Helper()
	r, err := ca.Submit(background, o)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	return r.Certificate
}

func TestTheCertificateIsWhatWasDecided(t *testing.T) {
	s := server.Start(t, stepca.Template)
	ca := s.Issuer(t)
	o := order(t, "1-aa", testpki.RSA(t, 2048), &x509.CertificateRequest{})
	cert := submit(t, ca, o)
	if err := upstream.Compare(o, cert, upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(cert.RawSubject, o.Profile.Subject) || !cert.NotAfter.Equal(o.Profile.NotAfter) || !cert.NotBefore.Equal(o.Profile.NotBefore) {
		t.Errorf("subject %v, %v to %v", cert.Subject, cert.NotBefore, cert.NotAfter)
	}
	if len(cert.CRLDistributionPoints) != 1 || cert.CRLDistributionPoints[0] != "http://ca.lab.test/1.0/crl" {
		t.Errorf("revocation addresses %v", cert.CRLDistributionPoints)
	}
	chain, err := ca.Chain(background)
	if err != nil || len(chain) != 2 || !chain[0].Equal(s.Issuing) || !chain[1].Equal(s.Root) {
		t.Errorf("chain %v, %v", chain, err)
	}
	o.Profile.NoRevocationInfo = true
	if cert = submit(t, ca, o); len(cert.CRLDistributionPoints) != 0 {
		t.Errorf("revocation addresses %v, although the template wants none", cert.CRLDistributionPoints)
	}
}

func TestNamesInTheRequestAreIgnored(t *testing.T) {
	ca := server.Start(t, stepca.Template).Issuer(t)
	o := order(t, "1-aa", authority.Key(t), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Administrator"}, DNSNames: []string{"dc1.lab.test"},
		EmailAddresses: []string{"root@lab.test"}})
	if err := upstream.Compare(o, submit(t, ca, o), upstream.Tolerance{}); err != nil {
		t.Error(err)
	}
}

func TestALostAnswerNeverLeadsToASecondCertificate(t *testing.T) {
	s := server.Start(t, stepca.Template)
	ca := s.Issuer(t)
	o := order(t, "7-ff", testpki.RSA(t, 2048), &x509.CertificateRequest{})
	s.Proxy.Make(proxy.Lost, 1, server.IsSign)
	if r, err := ca.Submit(background, o); err == nil {
		t.Fatalf("the answer was not lost: %+v", r)
	}
	found, err := ca.Find(background, o, "")
	if err != nil || found.State != upstream.Issued {
		t.Fatalf("%+v, %v", found, err)
	}
	again := submit(t, ca, o)
	if !bytes.Equal(found.Certificate.RawTBSCertificate, again.RawTBSCertificate) {
		t.Error("a repeated order has another certificate")
	}
	other := o
	other.ID = "8-ff"
	if submit(t, ca, other).SerialNumber.Cmp(again.SerialNumber) == 0 {
		t.Error("two orders share a serial number")
	}
	// A repeated order that is refused now is revoked: its first answer may have been a certificate.
	o = order(t, "9-ff", testpki.RSA(t, 2048), &x509.CertificateRequest{})
	o.Profile.NotAfter = time.Now().Add(2 * time.Second)
	o.Profile.NotBefore = time.Now().Add(-time.Hour)
	s.Proxy.Make(proxy.Lost, 1, server.IsSign)
	if r, err := ca.Submit(background, o); err == nil {
		t.Fatalf("the answer was not lost: %+v", r)
	}
	time.Sleep(3 * time.Second)
	before := len(revoked(t, s))
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Refused {
		t.Errorf("%+v, %v", r, err)
	}
	if got := revoked(t, s); len(got) != before+1 {
		t.Errorf("%d revoked certificates, want %d", len(got), before+1)
	}
}

func TestRevocation(t *testing.T) {
	s := server.Start(t, stepca.Template)
	ca := s.Issuer(t)
	cert := submit(t, ca, order(t, "1-aa", authority.Key(t), &x509.CertificateRequest{}))
	for range 2 { // twice is no error
		if err := ca.Revoke(background, cert.SerialNumber, 5); err != nil {
			t.Fatal(err)
		}
	}
	if got := revoked(t, s); len(got) != 1 || got[0].Cmp(cert.SerialNumber) != 0 {
		t.Errorf("revoked %v, want %v", got, cert.SerialNumber)
	}
	if err := ca.Revoke(background, big.NewInt(1), 7); err == nil {
		t.Error("an undefined reason is taken")
	}
}

// revoked are the serial numbers in step-ca's CRL.
func revoked(t testing.TB, s *server.Server) []*big.Int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: server.Pool(s.Root)}}}
	defer client.CloseIdleConnections()
	res, err := client.Get(s.URL + "/1.0/crl")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	der, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatalf("%v: %q", err, der)
	}
	var out []*big.Int
	for _, e := range list.RevokedCertificateEntries {
		out = append(out, e.SerialNumber)
	}
	return out
}

func TestAProvisionerWithoutOurTemplateIsFoundOut(t *testing.T) {
	s := server.Start(t, "")
	r, err := s.Issuer(t).Submit(background, order(t, "1-aa", authority.Key(t), &x509.CertificateRequest{}))
	if err != nil || r.State != upstream.Refused || !strings.Contains(r.Reason, "template") || strings.Contains(r.Reason, "could not be revoked") {
		t.Errorf("%+v, %v", r, err)
	}
	if n := len(revoked(t, s)); n != 1 {
		t.Errorf("%d revoked certificates: what step-ca made up is still valid", n)
	}
}

func TestWhatCannotBeSignedIsRefusedBefore(t *testing.T) {
	s := server.Start(t, stepca.Template)
	ca := s.Issuer(t)
	good := order(t, "1-aa", authority.Key(t), &x509.CertificateRequest{})
	if err := upstream.Check(ca, good); err != nil {
		t.Error(err)
	}
	null := good
	null.CSR = nullSigned(t, good.CSR)
	small := order(t, "1-aa", smallRSA(t), &x509.CertificateRequest{})
	broken := good
	broken.CSR = bytes.Clone(good.CSR)
	broken.CSR[len(broken.CSR)-1] ^= 1
	for name, c := range map[string]struct {
		order upstream.Order
		word  string
	}{"a null signature": {null, "hash in place of the signature"}, "a small key": {small, "2048"}, "a wrong signature": {broken, "signature"}} {
		sent := len(s.Proxy.Everything())
		if err := upstream.Check(ca, c.order); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", name, err)
		}
		if r, err := ca.Submit(background, c.order); err != nil || r.State != upstream.Refused {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if len(s.Proxy.Everything()) != sent {
			t.Errorf("%s: something was sent", name)
		}
	}
}

func TestAnUnreachableCAIsNoRefusal(t *testing.T) {
	s := server.Start(t, stepca.Template)
	ca, err := stepca.New(stepca.Options{Name: "Step", URL: "https://" + server.Free(t), Roots: []*x509.Certificate{s.Root}, Provisioner: server.Provisioner, Key: s.Key,
		Password: []byte(server.Password), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ca.Submit(background, order(t, "1-aa", authority.Key(t), &x509.CertificateRequest{})); err == nil {
		t.Errorf("%+v", r)
	}
	if _, err := stepca.New(stepca.Options{Name: "Step", URL: s.URL, Roots: []*x509.Certificate{s.Root}, Provisioner: server.Provisioner, Key: s.Key, Password: []byte("wrong"), Now: time.Now}); err == nil {
		t.Error("the key opens with a wrong password")
	}
	stranger, err := stepca.New(stepca.Options{Name: "Step", URL: s.URL, Roots: []*x509.Certificate{authority.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "R"}, IsCA: true,
		BasicConstraintsValid: true}, nil, authority.Key(t).Public(), authority.Key(t))}, Provisioner: server.Provisioner, Key: s.Key, Password: []byte(server.Password), Now: time.Now})
	if err == nil {
		_, err = stranger.Submit(background, order(t, "1-aa", authority.Key(t), &x509.CertificateRequest{}))
	}
	if err == nil {
		t.Error("another root is trusted")
	}
}

// nullSigned replaces the signature by a SHA-1 hash of what was to be signed ([MS-WCCE] 2.2.2.6.5).
func nullSigned(t testing.TB, csr []byte) []byte {
	t.Helper()
	parsed, err := wcce.ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(parsed.RawInfo) //nolint:gosec // what the protocol says
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: parsed.RawInfo}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: sum[:], BitLength: 160}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func smallRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(fmt.Errorf("small key: %w", err))
	}
	return k
}
