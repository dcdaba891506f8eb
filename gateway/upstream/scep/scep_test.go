package scep

import (
	"crypto"
	"crypto/x509"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// certRep signs a CertRep.
func certRep(t testing.TB, cert *x509.Certificate, key crypto.Signer, hash crypto.Hash, attributes map[string]string) []byte {
	t.Helper()
	var list []wcce.Attribute
	for oid, value := range attributes {
		list = append(list, wcce.Attribute{OID: oid, Values: [][]byte{element(cbasn1.PrintableString, []byte(value))}})
	}
	der, err := wcce.SignData(nil, wcce.RequestSigner{Certificate: cert, Key: key}, hash, list...)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func good() map[string]string {
	return map[string]string{oidMessageType: "3", oidTransactionID: "t", oidRecipientNonce: "n", oidPKIStatus: "2", oidFailInfo: "2", oidFailInfoText: "no\x00way"}
}

func TestReplies(t *testing.T) {
	key, cert := testpki.Agent(t, "CA", time.Now(), time.Now().Add(time.Hour))
	other, stranger := testpki.Agent(t, "Stranger", time.Now(), time.Now().Add(time.Hour))
	signers := []*x509.Certificate{cert}
	r, err := parseReply(certRep(t, cert, key, crypto.SHA256, good()), signers)
	if err != nil || r.status != statusFailure || r.fail != failBadRequest || r.transaction != "t" || string(r.nonce) != "n" || r.text != "no\ufffdway" {
		t.Errorf("%+v, %v", r, err)
	}
	without := good()
	delete(without, oidRecipientNonce)
	request := good()
	request[oidMessageType] = messagePKCSReq
	for name, der := range map[string][]byte{
		"SHA-1":          certRep(t, cert, key, crypto.SHA1, good()),
		"a stranger":     certRep(t, stranger, other, crypto.SHA256, good()),
		"no nonce":       certRep(t, cert, key, crypto.SHA256, without),
		"a request":      certRep(t, cert, key, crypto.SHA256, request),
		"another's name": certRep(t, cert, other, crypto.SHA256, good()),
		"nothing":        nil,
	} {
		if r, err := parseReply(der, signers); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func FuzzReply(f *testing.F) {
	key, cert := testpki.Agent(f, "CA", time.Now(), time.Now().Add(time.Hour))
	f.Add(certRep(f, cert, key, crypto.SHA256, good()))
	f.Add(cert.Raw)
	f.Fuzz(func(_ *testing.T, der []byte) {
		_, _ = parseReply(der, []*x509.Certificate{cert})
		_, _ = parseCACert(der)
	})
}
