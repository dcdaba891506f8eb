package kerberos

import (
	"crypto"
	"crypto/md5" // RFC 4121 4.1.1.2 fixes MD5 for the channel binding field; it is not a choice here
	"crypto/sha256"
	_ "crypto/sha512" // registers SHA-384 and SHA-512
	"crypto/x509"
	"encoding/binary"
)

// bindingHash is the Bnd field for a TLS server certificate: MD5 over the GSS channel bindings structure with no
// addresses (RFC 4121 4.1.1.2) and the application data "tls-server-end-point:" + hash of the certificate (RFC 5929 4).
func bindingHash(cert *x509.Certificate) [md5.Size]byte {
	data := append([]byte("tls-server-end-point:"), endpointHash(cert)...)
	b := make([]byte, 16, 20+len(data)) // initiator and acceptor: address type 0, length 0, each
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return md5.Sum(append(b, data...))
}

// endpointHash uses the hash of the certificate's signature, but SHA-256 in the place of MD5 and SHA-1, and where the
// signature has no single hash (RFC 5929 4.1).
func endpointHash(cert *x509.Certificate) []byte {
	h := crypto.SHA256
	switch cert.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		h = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		h = crypto.SHA512
	default:
		sum := sha256.Sum256(cert.Raw)
		return sum[:]
	}
	w := h.New()
	w.Write(cert.Raw)
	return w.Sum(nil)
}
