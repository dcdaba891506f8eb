package wcce

import (
	"crypto"
	"crypto/x509"
)

// SignerForTest is one signature that a test puts on a message.
type SignerForTest struct {
	Key      crypto.Signer
	Cert     *x509.Certificate // nil: named by KeyID
	KeyID    []byte
	Unsigned [][]byte
}

// MessageForTest wraps content in SignedData, so that tests can build messages that NewRequest never makes.
func MessageForTest(contentType string, content []byte, certs []*x509.Certificate, signers ...SignerForTest) ([]byte, error) {
	var list []outgoingSigner
	for _, s := range signers {
		list = append(list, outgoingSigner{key: s.Key, cert: s.Cert, keyID: s.KeyID, hash: crypto.SHA256, unsigned: s.Unsigned})
	}
	return signedData(contentType, content, certs, list...)
}

// AttributeForTest is the DER of an attribute with one value.
func AttributeForTest(oid string, value []byte) []byte { return attribute(oid, value) }
