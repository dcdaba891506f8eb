package inspect_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/inspect"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// seeds gives one small message of each kind.
func seeds(t testing.TB, key *rsa.PrivateKey, add func([]byte)) {
	t.Helper()
	must := func(der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Seed"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), SubjectKeyId: []byte{1, 2}}
	cert := testpki.Cert(t, must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)))
	blob := must(wcce.MarshalKeyBlob(key))
	add(cert.Raw)
	add(blob)
	add(must(wcce.Seal(blob, wcce.OIDAES128CBC, true, cert)))
	add(must(wcce.CertsOnly(cert, nil)))
	add(must(wcce.FullResponse(wcce.Response{Certificate: cert, Text: "Issued", Signer: cert, KeyHash: []byte{1}}, key, crypto.SHA256)))
	add(must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"host"}}, key)))
	add(syntheticRequest(t, key, func(o *wcce.RequestOptions) { o.Exchange = cert }))
}

func TestEachKindIsTold(t *testing.T) {
	key := testpki.RSA(t, 2048)
	want := []string{inspect.KindCertificate, inspect.KindKeyBlob, inspect.KindEnveloped, inspect.KindCertsOnly, inspect.KindResponse, inspect.KindPKCS10, inspect.KindCMC}
	seeds(t, key, func(der []byte) {
		r := describe(t, der, key)
		if r.Kind != want[0] {
			t.Errorf("kind %s, want %s", r.Kind, want[0])
		}
		switch r.Kind {
		case inspect.KindEnveloped, inspect.KindCMC:
			if a := r.ArchivedKey; !a.Opened || a.Bits != 2048 || a.Algorithm != "RSA" {
				t.Errorf("%s: %+v", r.Kind, a)
			}
		case inspect.KindResponse:
			if r.Response.State != "issued" || r.Response.Text != "Issued" || r.Response.ArchivedHash != "01" || !*r.Response.HashValid {
				t.Errorf("%+v", r.Response)
			}
		case inspect.KindPKCS10:
			if len(r.Extensions) != 1 || r.Extensions[0].Value != "dns:host" {
				t.Errorf("%+v", r.Extensions)
			}
		case inspect.KindKeyBlob:
			if r.PublicKey.Algorithm != "RSA" || r.PublicKey.Bits != 2048 {
				t.Errorf("%+v", r.PublicKey)
			}
		}
		want = want[1:]
	})
	if len(want) > 0 {
		t.Errorf("not seen: %v", want)
	}
}

// TestAnArchivedKeyOfAnotherRequestIsNoticed exchanges the enclosed key, which no signature covers, for another one.
func TestAnArchivedKeyOfAnotherRequestIsNoticed(t *testing.T) {
	exchange, cert := testpki.Agent(t, "Xchg", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	der := syntheticRequest(t, testpki.RSA(t, 2048), func(o *wcce.RequestOptions) { o.Exchange, o.Cipher = cert, wcce.OIDAES256CBC })
	req, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := wcce.MarshalKeyBlob(testpki.RSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	other, err := wcce.Seal(blob, wcce.OIDAES256CBC, false, cert)
	if err != nil || len(other) != len(req.Archived.Raw) {
		t.Fatalf("%d octets, want %d: %v", len(other), len(req.Archived.Raw), err)
	}
	good := describe(t, der, exchange).ArchivedKey
	if good.Cipher != "AES-256-CBC" || good.MatchesRequest == nil || !*good.MatchesRequest || !*good.HashValid {
		t.Errorf("before: %+v", good)
	}
	bad := describe(t, bytes.Replace(der, req.Archived.Raw, other, 1), exchange).ArchivedKey
	if !bad.Opened || bad.MatchesRequest == nil || *bad.MatchesRequest || *bad.HashValid {
		t.Errorf("after: %+v", bad)
	}
}

func TestSignaturesAndHashesThatDoNotFitAreSaid(t *testing.T) {
	key := testpki.RSA(t, 2048)
	_, cert := testpki.Agent(t, "alice", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "host"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr[len(csr)-1] ^= 1
	r := describe(t, csr, nil)
	if r.Possession.Verified || r.Possession.Error == "" || r.Signers[0].Verified || r.Problem == "" || r.Subject != "CN=host" {
		t.Errorf("request %+v, %+v", r.Possession, r.Signers)
	}

	der, err := wcce.FullResponse(wcce.Response{Text: "Issued", Certificate: cert, Signer: cert}, key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	r = describe(t, der, nil) // signed by a key that is not the signer's
	if r.Signers[0].Verified || !strings.Contains(r.Problem, "does not verify") || !*r.Response.HashValid || r.Certificate == nil {
		t.Errorf("response %+v, problem %q", r.Signers, r.Problem)
	}
	hash := wcce.SHA1Of(cert.Raw)
	other := bytes.Clone(hash)
	other[0] ^= 1
	r = describe(t, bytes.Replace(der, hash, other, 1), nil)
	if *r.Response.HashValid || r.Certificate != nil || r.Problem == "" || r.Response.State != "issued" {
		t.Errorf("response %+v, problem %q", r.Response, r.Problem)
	}
}

// TestANullSignatureIsShown makes the request by which a client leaves the proof to the outer signature.
func TestANullSignatureIsShown(t *testing.T) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, testpki.RSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(csr.RawTBSCertificateRequest)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(csr.RawTBSCertificateRequest)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1})
		})
		b.AddASN1BitString(digest[:])
	})
	r := describe(t, b.BytesOrPanic(), nil)
	if !r.NullSignature || r.Possession.Verified || r.Signers[0].Verified || !strings.Contains(r.Problem, "only inside CMC") || r.SignatureAlgorithm != "SHA-256" {
		t.Errorf("%+v, %+v, problem %q", r, r.Possession, r.Problem)
	}
}
