package local_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func order(t testing.TB, id string) upstream.Order {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	return upstream.Order{ID: id, PublicKey: testpki.RSA(t, 2048).Public(), Profile: templates.CertificateProfile{
		Subject: []byte{0x30, 0x00}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		Extensions: []templates.Extension{{OID: "2.5.29.37", Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, 4}},
			{OID: "2.5.29.17", Critical: true, Value: []byte{0x30, 0x08, 0x81, 0x06, 'a', '@', 'b', '.', 'c', 'd'}}},
	}}
}

func TestARepeatedOrderGivesTheSameCertificate(t *testing.T) {
	db := testpki.DB(t)
	for name, key := range map[string]crypto.Signer{"RSA": testpki.RSA(t, 2048), "P-256": ec(t, elliptic.P256()), "P-384": ec(t, elliptic.P384())} {
		t.Run(name, func(t *testing.T) {
			der, err := local.SelfSigned("Test CA", key, time.Now(), 1)
			if err != nil {
				t.Fatal(err)
			}
			ca, err := local.New(local.Options{Name: "Test CA", Certificate: testpki.Cert(t, der), Key: key, DB: db, Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			o := order(t, "7")
			first, err := ca.Submit(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := ca.Find(context.Background(), o, "")
			if err != nil || !bytes.Equal(first.Certificate.Raw, again.Certificate.Raw) {
				t.Errorf("the repeated order gave another certificate: %v", err)
			}
			if err := first.Certificate.CheckSignatureFrom(testpki.Cert(t, der)); err != nil {
				t.Error(err)
			}
			other := o
			other.Profile.NotAfter = other.Profile.NotAfter.Add(time.Second)
			different, err := ca.Submit(context.Background(), other)
			if err != nil || different.Certificate.SerialNumber.Cmp(first.Certificate.SerialNumber) == 0 {
				t.Errorf("two different certificates share a serial number: %v", err)
			}
		})
	}
}

func ec(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpenSSLAcceptsCertificateAndRevocationList(t *testing.T) {
	db := testpki.DB(t)
	ca := testpki.CA(t, db, time.Now)
	o := order(t, "1")
	r, err := ca.Submit(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	caFile, leaf := testpki.PEM(t, "CERTIFICATE", ca.Certificate().Raw), testpki.PEM(t, "CERTIFICATE", r.Certificate.Raw)
	verify := func() error {
		crl, err := ca.CRL(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_, err = testpki.OpenSSL(t, nil, "verify", "-x509_strict", "-crl_check", "-CRLfile", testpki.PEM(t, "X509 CRL", crl), "-CAfile", caFile, "-purpose", "smimeencrypt", leaf)
		return err
	}
	if err := verify(); err != nil {
		t.Errorf("before the revocation: %v", err)
	}
	if err := ca.Revoke(context.Background(), r.Certificate.SerialNumber, 1); err != nil {
		t.Fatal(err)
	}
	if verify() == nil {
		t.Error("OpenSSL accepts a revoked certificate")
	}
	crl, err := ca.CRL(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(crl)
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].ReasonCode != 1 {
		t.Errorf("revocation list: %v, %+v", err, list)
	}
	if err := ca.Revoke(context.Background(), r.Certificate.SerialNumber, 7); err == nil {
		t.Error("reason 7 does not exist and was accepted")
	}
}

func TestKeysInTheClearAreRefused(t *testing.T) {
	dir := t.TempDir()
	key := testpki.RSA(t, 2048)
	clearFile := testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	if _, err := local.LoadKey(clearFile, []byte("secret")); err == nil || !strings.Contains(err.Error(), "openssl pkcs8") {
		t.Errorf("a key in the clear: %v", err)
	}
	// What OpenSSL encrypts is read, and what is written OpenSSL reads.
	theirs := filepath.Join(dir, "theirs.key")
	if _, err := testpki.OpenSSL(t, nil, "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", clearFile, "-out", theirs, "-passout", "pass:secret"); err != nil {
		t.Fatal(err)
	}
	got, err := local.LoadKey(theirs, []byte("secret"))
	if err != nil || !key.PublicKey.Equal(got.Public()) {
		t.Errorf("OpenSSL's file: %v", err)
	}
	if _, err := local.LoadKey(theirs, []byte("wrong")); err == nil {
		t.Error("the wrong passphrase opened the key")
	}
	text, err := local.EncryptKey(key, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(dir, "ours.key")
	if err := os.WriteFile(ours, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := testpki.OpenSSL(t, nil, "pkey", "-in", ours, "-passin", "pass:secret", "-noout", "-check"); err != nil {
		t.Error("OpenSSL does not read our file")
	}
}

func TestAKeyOfAnotherCertificateIsRefused(t *testing.T) {
	der, err := local.SelfSigned("Test CA", testpki.RSA(t, 2048), time.Now(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.New(local.Options{Name: "x", Certificate: testpki.Cert(t, der), Key: testpki.RSA(t, 2048), Now: time.Now}); err == nil {
		t.Error("accepted")
	}
}
