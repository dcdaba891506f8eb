package wcce_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// certFor makes a certificate for public, by parent (nil: self-signed by key).
func certFor(t testing.TB, name string, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: parent == nil}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

func TestOpenSSLVerifiesTheFullResponse(t *testing.T) {
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{testpki.RSA(t, 2048), ecKey} {
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			ca := certFor(t, "CA", nil, key.Public(), key)
			cert := certFor(t, "alice", ca, testpki.RSA(t, 1024).Public(), key)
			der, err := wcce.FullResponse(wcce.Response{Text: "Issued", Certificate: cert, Chain: []*x509.Certificate{ca}, Signer: ca, KeyHash: []byte{9, 9}}, key, hash)
			if err != nil {
				t.Fatal(err)
			}
			body, err := testpki.OpenSSL(t, der, "cms", "-verify", "-inform", "DER", "-binary", "-CAfile", testpki.PEM(t, "CERTIFICATE", ca.Raw), "-purpose", "any")
			if err != nil {
				t.Fatalf("%T %s: OpenSSL does not verify it", key, hash)
			}
			// What is signed must hold the hash by which Windows finds the issued certificate.
			want := sha1.Sum(cert.Raw)
			if !bytes.Contains(body, want[:]) || !bytes.Contains(body, []byte("Issued")) {
				t.Error("the signed body lacks the certificate's hash or the text")
			}
			certs, err := testpki.OpenSSL(t, der, "pkcs7", "-inform", "DER", "-print_certs")
			if err != nil || strings.Count(string(certs), "BEGIN CERTIFICATE") != 2 {
				t.Errorf("OpenSSL finds other certificates: %v\n%s", err, certs)
			}
			r, err := wcce.ParseResponse(der)
			if err != nil || !r.Certificate.Equal(cert) || !r.Signer.Equal(ca) || !bytes.Equal(r.KeyHash, []byte{9, 9}) || r.Status != wcce.StatusIssued {
				t.Errorf("%+v: %v", r, err)
			}
		}
	}
}

func TestPendingAndDeniedResponses(t *testing.T) {
	key := testpki.RSA(t, 2048)
	ca := certFor(t, "CA", nil, key.Public(), key)
	received := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)
	for _, want := range []wcce.Response{
		{Status: wcce.StatusPending, Text: "Taken Under Submission", RequestID: "4711", Received: received, Signer: ca},
		{Status: wcce.StatusDenied, Text: "Denied by Policy Module — ä", Signer: ca},
	} {
		der, err := wcce.FullResponse(want, key, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := testpki.OpenSSL(t, der, "cms", "-cmsout", "-print", "-noout", "-inform", "DER"); err != nil {
			t.Error(err)
		}
		r, err := wcce.ParseResponse(der)
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != want.Status || r.Text != want.Text || r.RequestID != want.RequestID || !r.Received.Equal(want.Received.Truncate(time.Second)) || r.Certificate != nil {
			t.Errorf("%+v, want %+v", r, want)
		}
	}
}

func TestOpenSSLReadsCertsOnly(t *testing.T) {
	key := testpki.RSA(t, 2048)
	ca := certFor(t, "CA", nil, key.Public(), key)
	cert := certFor(t, "alice", ca, key.Public(), key)
	der, err := wcce.CertsOnly(cert, []*x509.Certificate{ca})
	if err != nil {
		t.Fatal(err)
	}
	out, err := testpki.OpenSSL(t, der, "pkcs7", "-inform", "DER", "-print_certs", "-noout")
	if err != nil {
		t.Fatal(err)
	}
	if text := string(out); !strings.Contains(text, "subject=CN = alice") || !strings.Contains(text, "subject=CN = CA") {
		t.Errorf("OpenSSL reads %s", text)
	}
	r, err := wcce.ParseResponse(der)
	if err != nil || !r.Certificate.Equal(cert) || len(r.Chain) != 1 || r.Signer != nil {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestEveryFlippedBitOfAResponseIsNoticed(t *testing.T) {
	key := testpki.RSA(t, 2048)
	ca := certFor(t, "CA", nil, key.Public(), key)
	cert := certFor(t, "alice", ca, testpki.RSA(t, 1024).Public(), key)
	der, err := wcce.FullResponse(wcce.Response{Text: "Issued", Certificate: cert, Chain: []*x509.Certificate{ca}, Signer: ca, KeyHash: []byte{1, 2, 3, 4}}, key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for i := range der {
		bad := bytes.Clone(der)
		bad[i] ^= 1 << (i % 8)
		r, err := wcce.ParseResponse(bad)
		if err != nil {
			continue
		}
		same := r.Certificate != nil && r.Certificate.Equal(cert) && bytes.Equal(r.KeyHash, []byte{1, 2, 3, 4}) && r.Status == wcce.StatusIssued && r.Text == "Issued"
		if !same {
			t.Fatalf("octet %d flipped: the response now says something else", i)
		}
	}
	for n := range der {
		if _, err := wcce.ParseResponse(der[:n]); err == nil {
			t.Fatalf("%d of %d octets were accepted", n, len(der))
		}
	}
}

func TestResponsesThatDoNotSayEnoughAreErrors(t *testing.T) {
	key := testpki.RSA(t, 2048)
	ca := certFor(t, "CA", nil, key.Public(), key)
	announced := control(2, wcce.OIDCMCAddAttrs, sequence(integer(0), sequence(integer(1)), set(wcce.AttributeForTest(wcce.OIDIssuedCertHash, octets(make([]byte, 20))))))
	status := control(1, wcce.OIDCMCStatusInfo, sequence(integer(0), sequence(integer(1)), tlv(12, []byte("Issued"))))
	for want, controls := range map[string][]byte{
		"announced hash":        slices.Concat(status, announced),
		"the status is missing": announced,
		"malformed status":      control(1, wcce.OIDCMCStatusInfo, integer(0)),
		"malformed attributes":  slices.Concat(status, control(2, wcce.OIDCMCAddAttrs, integer(0))),
	} {
		der := message(t, wcce.OIDPKIResponse, sequence(sequence(controls), sequence(), sequence()), []*x509.Certificate{ca}, wcce.SignerForTest{Key: key, Cert: ca})
		if _, err := wcce.ParseResponse(der); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzParseResponse(f *testing.F) {
	key := testpki.RSA(f, 1024)
	ca := certFor(f, "CA", nil, key.Public(), key)
	for i, r := range []wcce.Response{
		{Text: "Issued", Certificate: ca, Signer: ca, KeyHash: []byte{1}},
		{Status: wcce.StatusPending, RequestID: "1", Received: time.Unix(0, 0), Signer: ca},
	} {
		seed, err := wcce.FullResponse(r, key, crypto.SHA256)
		if err != nil {
			f.Fatal(fmt.Errorf("seed %d: %w", i, err))
		}
		f.Add(seed)
	}
	only, err := wcce.CertsOnly(ca, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(only)
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := wcce.ParseResponse(der)
		if err == nil && r.Signer == nil && r.Certificate == nil {
			t.Fatal("a response that says nothing was accepted")
		}
	})
}

func TestRevocationListsAreAddedToWholeMessagesOnly(t *testing.T) {
	key := testpki.RSA(t, 2048)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := testpki.Cert(t, der)
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := certFor(t, "alice", cert, testpki.RSA(t, 2048).Public(), key)
	plain, err := wcce.CertsOnly(leaf, []*x509.Certificate{cert})
	if err != nil {
		t.Fatal(err)
	}
	full, err := wcce.FullResponse(wcce.Response{Text: "Issued", Certificate: leaf, Chain: []*x509.Certificate{cert}, Signer: cert}, key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range [][]byte{plain, full} {
		with, err := wcce.AddCRLs(message, [][]byte{crl, crl})
		if err != nil {
			t.Fatal(err)
		}
		sd, err := wcce.ParseSignedData(with)
		if err != nil || len(sd.CRLs) != 2 || !bytes.Equal(sd.CRLs[1], crl) {
			t.Errorf("%v", err)
		}
		if r, err := wcce.ParseResponse(with); err != nil || !r.Certificate.Equal(leaf) {
			t.Error(err)
		}
		if same, err := wcce.AddCRLs(message, nil); err != nil || !bytes.Equal(same, message) {
			t.Error(err)
		}
		for i := range message { // cut off anywhere
			if _, err := wcce.AddCRLs(message[:i], [][]byte{crl}); err == nil {
				t.Errorf("%d octets of it are a message", i)
			}
		}
		if with, err = wcce.AddCRLs(with, [][]byte{crl}); err != nil {
			t.Fatal(err)
		}
		if sd, err := wcce.ParseSignedData(with); err != nil || len(sd.CRLs) != 3 {
			t.Errorf("another one: %v", err)
		}
	}
}

func FuzzAddCRLs(f *testing.F) {
	key := testpki.RSA(f, 2048)
	cert := certFor(f, "CA", nil, key.Public(), key)
	plain, err := wcce.CertsOnly(cert, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Fuzz(func(t *testing.T, der []byte) {
		if out, err := wcce.AddCRLs(der, [][]byte{{0x30, 0}}); err == nil && len(out) < len(der) {
			t.Error("shorter than before")
		}
	})
}
