package cmp

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

// OpenSSL's CMP server does not know PBMAC1; its key derivation and its HMAC are the witnesses here, for a request and for an answer that
// this test makes of it.
func TestPBMAC1(t *testing.T) {
	const secret = "correct horse"
	var problem error
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			body, err = reject(t, body, secret)
		}
		problem = err
		w.Header().Set("Content-Type", "application/pkixcmp")
		_, _ = w.Write(body)
	}))
	defer front.Close()
	s := Start(t)
	o := s.options()
	o.URL, o.Key, o.Certificates, o.Secret, o.Reference, o.PBMAC1 = front.URL, nil, nil, []byte(secret), "gateway", true
	r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048)))
	if problem != nil || err != nil || r.State != upstream.Refused || !strings.Contains(r.Reason, "badCertTemplate") {
		t.Errorf("%+v, %v; the server says: %v", r, err, problem)
	}
	o.Secret = []byte("another one")
	if r, err := s.driver(o).Submit(background, contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))); err == nil || problem == nil {
		t.Errorf("%+v; the server says: %v", r, problem)
	}
}

// mac lets OpenSSL compute PBMAC1 for an AlgorithmIdentifier.
func mac(t testing.TB, algorithm pkix.AlgorithmIdentifier, secret string, message []byte) ([]byte, error) {
	var p struct {
		KDF struct {
			OID    asn1.ObjectIdentifier
			Params struct {
				Salt       []byte
				Iterations int
				Length     int
				PRF        pkix.AlgorithmIdentifier
			}
		}
		MAC pkix.AlgorithmIdentifier
	}
	if _, err := asn1.Unmarshal(algorithm.Parameters.FullBytes, &p); err != nil {
		return nil, err
	}
	key, err := testpki.OpenSSL(t, nil, "kdf", "-binary", "-keylen", fmt.Sprint(p.KDF.Params.Length), "-kdfopt", "digest:SHA256", "-kdfopt", "pass:"+secret,
		"-kdfopt", "hexsalt:"+hex.EncodeToString(p.KDF.Params.Salt), "-kdfopt", fmt.Sprintf("iter:%d", p.KDF.Params.Iterations), "PBKDF2")
	if err != nil {
		return nil, err
	}
	return testpki.OpenSSL(t, message, "mac", "-binary", "-digest", "SHA256", "-macopt", "hexkey:"+hex.EncodeToString(key), "-in", "/dev/stdin", "HMAC")
}

// reject verifies a request and answers that its template is bad, whether or not it verifies.
func reject(t testing.TB, request []byte, secret string) ([]byte, error) {
	parts, err := elements(request)
	if err != nil || len(parts) != 3 {
		return nil, fmt.Errorf("%d parts: %w", len(parts), err)
	}
	header, err := elements(parts[0].FullBytes)
	if err != nil {
		return nil, err
	}
	tagged := map[int]asn1.RawValue{}
	for _, f := range header[3:] {
		tagged[f.Tag] = f
	}
	var algorithm pkix.AlgorithmIdentifier
	if _, err := asn1.Unmarshal(tagged[1].Bytes, &algorithm); err != nil {
		return nil, err
	}
	want, err := mac(t, algorithm, secret, sequence(parts[0].FullBytes, parts[1].FullBytes))
	if err != nil {
		return nil, err
	}
	var got asn1.BitString
	if _, err := asn1.Unmarshal(parts[2].Bytes, &got); err != nil {
		return nil, err
	}
	var wrong error
	if !bytes.Equal(got.Bytes, want) {
		wrong = fmt.Errorf("the request has MAC %x, OpenSSL says %x", got.Bytes, want)
	}
	answer := sequence(header[0].FullBytes, header[2].FullBytes, header[1].FullBytes, tagged[1].FullBytes, tagged[4].FullBytes,
		explicit(5, element(asn1.TagOctetString, []byte("a nonce of 16 oc"))), explicit(6, tagged[5].Bytes))
	body := explicit(23, sequence(sequence(element(asn1.TagInteger, []byte{2}), element(asn1.TagBitString, []byte{4, 0, 0, 0x10}))))
	protection, err := mac(t, algorithm, secret, sequence(answer, body))
	if err != nil {
		return nil, err
	}
	return sequence(answer, body, explicit(0, element(asn1.TagBitString, append([]byte{0}, protection...)))), wrong
}

func sequence(parts ...[]byte) []byte {
	der, _ := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Join(parts, nil)})
	return der
}

func element(tag int, value []byte) []byte {
	der, _ := asn1.Marshal(asn1.RawValue{Tag: tag, Bytes: value})
	return der
}

func explicit(tag int, value []byte) []byte {
	der, _ := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: value})
	return der
}
