package wcce_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fullsailor/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// DER by hand, so that what is tested is not what tests.

func tlv(tag cbasn1.Tag, parts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
	return b.BytesOrPanic()
}

func sequence(parts ...[]byte) []byte { return tlv(cbasn1.SEQUENCE, parts...) }
func set(parts ...[]byte) []byte      { return tlv(cbasn1.SET, parts...) }
func octets(value []byte) []byte      { return tlv(cbasn1.OCTET_STRING, value) }
func integer(v byte) []byte           { return tlv(cbasn1.INTEGER, []byte{v}) }

func oid(dotted string) []byte {
	var id asn1.ObjectIdentifier
	for part := range strings.SplitSeq(dotted, ".") {
		n := 0
		for _, c := range part {
			n = n*10 + int(c-'0')
		}
		id = append(id, n)
	}
	var b cryptobyte.Builder
	b.AddASN1ObjectIdentifier(id)
	return b.BytesOrPanic()
}

func control(id byte, kind string, value []byte) []byte {
	return sequence(integer(id), oid(kind), set(value))
}

// csrParts say what a hand-made PKCS#10 request holds.
type csrParts struct {
	key        crypto.Signer
	null       bool // a bare hash in place of the signature
	attributes [][]byte
	extensions [][]byte
}

func (c csrParts) der(t testing.TB) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	attributes := slices.Clone(c.attributes)
	if len(c.extensions) > 0 {
		attributes = append(attributes, wcce.AttributeForTest(wcce.OIDExtensions, sequence(c.extensions...)))
	}
	info := sequence(integer(0), sequence(), spki, tlv(cbasn1.Tag(0).ContextSpecific().Constructed(), attributes...))
	digest := sha256.Sum256(info)
	if c.null {
		return sequence(info, sequence(oid(wcce.OIDSHA256)), tlv(cbasn1.BIT_STRING, []byte{0}, digest[:]))
	}
	signature, err := c.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sequence(info, sequence(oid("1.2.840.113549.1.1.11"), []byte{5, 0}), tlv(cbasn1.BIT_STRING, []byte{0}, signature))
}

func extension(kind string, value []byte) []byte { return sequence(oid(kind), octets(value)) }

func keyID(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	r, ok := key.(*rsa.PublicKey)
	if !ok {
		t.Fatalf("key of type %T", key)
	}
	h := sha1.Sum(x509.MarshalPKCS1PublicKey(r))
	return h[:]
}

// cmc wraps a PKCS#10 request and controls in PKIData.
func cmc(csr []byte, controls ...[]byte) []byte {
	return sequence(sequence(controls...), sequence(tlv(cbasn1.Tag(0).ContextSpecific().Constructed(), integer(1), csr)), sequence(), sequence())
}

func message(t testing.TB, kind string, content []byte, certs []*x509.Certificate, signers ...wcce.SignerForTest) []byte {
	t.Helper()
	der, err := wcce.MessageForTest(kind, content, certs, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func wantCode(t *testing.T, what string, err error, code hresult.Code, text string) {
	t.Helper()
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code != code || !strings.Contains(e.Text, text) {
		t.Errorf("%s: %v, want %s with %q", what, err, code, text)
	}
}

func TestNewRequestIsReadBack(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := newHolder(t, "Xchg")
	for _, key := range []crypto.Signer{testpki.RSA(t, 2048), ec} {
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for _, cipher := range []string{"", wcce.OIDAES128CBC, wcce.OIDAES192CBC, wcce.OIDAES256CBC} {
				der, err := wcce.NewRequest(wcce.RequestOptions{Key: key, Hash: hash, Cipher: cipher, Exchange: h.cert,
					Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("Mäil")}, {OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{3, 2, 5, 0xa0}}}})
				if err != nil {
					t.Fatal(err)
				}
				r, err := wcce.ParseRequest(der)
				if err != nil {
					t.Fatal(err)
				}
				if r.Format != wcce.CMC || r.Template.Name != "Mäil" || r.ArchivedErr != nil || r.Archived == nil || r.Archived.HashAlg != hash ||
					len(r.Signers) != 1 || r.Signers[0].Role != "subject key" || r.Renewal != nil || r.CSR.NullSignature || !r.CSR.Extensions[1].Critical {
					t.Errorf("%T %s %s: %+v", key, hash, cipher, r)
				}
				e, err := wcce.ParseEnveloped(r.Archived.Raw)
				if err != nil {
					t.Fatal(err)
				}
				plain, err := e.Open(&e.Recipients[0], h.key)
				if err != nil || !parseBlob(t, plain).Matches(key.Public()) {
					t.Errorf("%T %s %s: the enclosed key is another one: %v", key, hash, cipher, err)
				}
				if _, err := testpki.OpenSSL(t, der, "asn1parse", "-inform", "DER"); err != nil {
					t.Error(err)
				}
				if _, err := testpki.OpenSSL(t, r.CSR.Raw, "req", "-inform", "DER", "-verify", "-noout"); err != nil {
					t.Error("OpenSSL does not verify the PKCS#10 request")
				}
			}
		}
	}
}

// TestOpenSSLVerifiesANewRequest gives OpenSSL the certificate that a CMC request lacks, so that it can check the signature.
func TestOpenSSLVerifiesANewRequest(t *testing.T) {
	key := testpki.RSA(t, 2048)
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	template := certFor(t, "self", nil, key.Public(), key)
	template.SubjectKeyId = keyID(t, key.Public())
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := testpki.OpenSSL(t, der, "cms", "-verify", "-inform", "DER", "-binary", "-noverify", "-certfile", testpki.PEM(t, "CERTIFICATE", raw))
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseRequest(der)
	if err != nil || !bytes.Contains(body, r.CSR.Raw) {
		t.Errorf("what is signed is not the request: %v", err)
	}
}

func TestANullSignatureCountsOnlyInsideCMS(t *testing.T) {
	key := testpki.RSA(t, 2048)
	csr := csrParts{key: key, null: true}.der(t)
	_, err := wcce.ParseRequest(csr)
	wantCode(t, "bare", err, hresult.InvalidData, "only inside CMC or PKCS#7")
	signer := wcce.SignerForTest{Key: key, KeyID: keyID(t, key.Public())}
	r, err := wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr), nil, signer))
	if err != nil || !r.CSR.NullSignature {
		t.Errorf("in CMC: %v", err)
	}
	damaged := bytes.Clone(csr)
	damaged[len(damaged)-1] ^= 1
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(damaged), nil, signer))
	wantCode(t, "wrong hash", err, hresult.InvalidData, "does not match")

	// Somebody else's signature proves nothing about the key in the request.
	other := testpki.RSA(t, 2048)
	cert := certFor(t, "other", nil, other.Public(), other)
	_, err = wcce.ParseRequest(message(t, wcce.OIDData, csr, []*x509.Certificate{cert}, wcce.SignerForTest{Key: other, Cert: cert}))
	wantCode(t, "foreign signer", err, hresult.InvalidData, "possession")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr), nil, wcce.SignerForTest{Key: other, KeyID: keyID(t, key.Public())}))
	wantCode(t, "signed by another key under this key's name", err, hresult.InvalidData, "signer 1")
}

// renewal is what a renewal is made of.
type renewal struct {
	csr                []byte // for the new key, with the old certificate in it
	old, ca            *x509.Certificate
	oldKey, newKey     *rsa.PrivateKey
	caKey              *rsa.PrivateKey
	subject, oldSigner wcce.SignerForTest
}

func newRenewal(t testing.TB) *renewal {
	t.Helper()
	r := &renewal{oldKey: testpki.RSA(t, 2048), newKey: testpki.RSA(t, 2048), caKey: testpki.RSA(t, 2048)}
	r.ca = certFor(t, "CA", nil, r.caKey.Public(), r.caKey)
	r.old = certFor(t, "alice", r.ca, r.oldKey.Public(), r.caKey)
	r.csr = csrParts{key: r.newKey, attributes: [][]byte{wcce.AttributeForTest(wcce.OIDRenewalCert, r.old.Raw)}}.der(t)
	r.oldSigner = wcce.SignerForTest{Key: r.oldKey, Cert: r.old}
	r.subject = wcce.SignerForTest{Key: r.newKey, KeyID: keyID(t, r.newKey.Public())}
	return r
}

func TestRenewals(t *testing.T) {
	n := newRenewal(t)
	csr, old, oldKey, subject, oldSigner := n.csr, n.old, n.oldKey, n.subject, n.oldSigner
	certs := []*x509.Certificate{old}

	theirs, err := pkcs7.NewSignedData(csr)
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.AddSigner(old, oldKey, pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	byLibrary, err := theirs.Finish()
	if err != nil {
		t.Fatal(err)
	}
	openssl := func(args ...string) []byte {
		der, err := testpki.OpenSSL(t, csr, append([]string{"cms", "-sign", "-nodetach", "-binary", "-outform", "DER", "-signer", testpki.PEM(t, "CERTIFICATE", old.Raw),
			"-inkey", testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(oldKey))}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for name, c := range map[string]struct {
		der    []byte
		format wcce.Format
		roles  []string
	}{
		"PKCS#7 by another library":               {byLibrary, wcce.PKCS7, []string{"renewed certificate"}},
		"PKCS#7 by OpenSSL":                       {openssl(), wcce.PKCS7, []string{"renewed certificate"}},
		"PKCS#7 by OpenSSL, no signed attributes": {openssl("-noattr", "-md", "sha1"), wcce.PKCS7, []string{"renewed certificate"}},
		"PKCS#7": {message(t, wcce.OIDData, csr, certs, oldSigner), wcce.PKCS7, []string{"renewed certificate"}},
		"CMC":    {message(t, wcce.OIDPKIData, cmc(csr), certs, subject, oldSigner), wcce.CMC, []string{"subject key", "renewed certificate"}},
	} {
		r, err := wcce.ParseRequest(c.der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var roles []string
		for _, s := range r.Signers {
			roles = append(roles, s.Role)
		}
		if r.Format != c.format || r.Renewal == nil || !r.Renewal.Equal(old) || !slices.Equal(roles, c.roles) {
			t.Errorf("%s: %s, renewal %t, roles %v", name, r.Format, r.Renewal != nil, roles)
		}
	}
}

func TestRenewalsThatTheOldKeyDidNotSignAreRefused(t *testing.T) {
	n := newRenewal(t)
	csr, old, subject, oldSigner := n.csr, n.old, n.subject, n.oldSigner
	certs := []*x509.Certificate{old}
	_, err := wcce.ParseRequest(csr)
	wantCode(t, "bare PKCS#10", err, hresult.BadRenewalCertAttribute, "has not signed")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr), certs, subject))
	wantCode(t, "without the old key's signature", err, hresult.BadRenewalCertAttribute, "has not signed")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr), nil, subject, oldSigner))
	wantCode(t, "without the old certificate", err, hresult.InvalidData, "signer 2")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr), certs, subject, wcce.SignerForTest{Key: n.newKey, Cert: old}))
	wantCode(t, "the old key's name on another key's signature", err, hresult.InvalidData, "signer 2")

	agentKey := testpki.RSA(t, 2048)
	agent := certFor(t, "agent", n.ca, agentKey.Public(), n.caKey)
	plain := csrParts{key: n.newKey}.der(t)
	r, err := wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(plain), []*x509.Certificate{agent}, subject, wcce.SignerForTest{Key: agentKey, Cert: agent}))
	if err != nil || r.Renewal != nil || len(r.Signers) != 2 || r.Signers[1].Role != "additional" {
		t.Errorf("an additional signer: %v", err)
	}
}
