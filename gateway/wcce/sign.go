package wcce

import (
	"crypto"
	"crypto/x509"
)

// SignData returns a SignedData around content (RFC 5652 5), signed by the holder of a certificate, which is enclosed. attributes are signed
// beside contentType and messageDigest; each has one value.
func SignData(content []byte, signer RequestSigner, hash crypto.Hash, attributes ...Attribute) ([]byte, error) {
	s := outgoingSigner{key: signer.Key, cert: signer.Certificate, hash: hash}
	for _, a := range attributes {
		for _, value := range a.Values {
			s.signed = append(s.signed, attribute(a.OID, value))
		}
	}
	return signedData(OIDData, content, []*x509.Certificate{signer.Certificate}, s)
}
