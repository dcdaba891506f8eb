package wcce

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RecoveryBlob is an archived key as a CA hands it to somebody who takes it to a key recovery agent: what certutil -getkey
// writes and certutil -recoverkey reads ([MS-CSRA] 3.1.4.2.9). It is a SignedData of the CA around the EnvelopedData.
type RecoveryBlob struct {
	Enveloped    []byte              // ContentInfo with EnvelopedData, around the key blob
	Certificate  *x509.Certificate   // of the key; the signed attribute OIDArchivedCert names it
	Certificates []*x509.Certificate // Certificate, the agents', and the CA's chain
}

// Sign returns the blob as DER, signed by a CA. The shape is that of a blob that Windows Server wrote.
func (r *RecoveryBlob) Sign(ca *x509.Certificate, key crypto.Signer, hash crypto.Hash) ([]byte, error) {
	if !containsCert(r.Certificates, r.Certificate) || !containsCert(r.Certificates, ca) {
		return nil, errors.New("recovery blob: the certificates of the key and of the CA belong into it")
	}
	name := attribute(OIDArchivedCert, octetString(SHA1Of(r.Certificate.Raw)))
	der, err := signedData(OIDData, r.Enveloped, r.Certificates, outgoingSigner{key: key, cert: ca, hash: hash, signed: [][]byte{name}})
	if err != nil {
		return nil, fmt.Errorf("recovery blob: %w", err)
	}
	return der, nil
}

// ParseRecoveryBlob reads a blob and checks its signature with the certificate that is in it. Whether that one is trusted, and
// whether the key inside is the certificate's, is not known before somebody opens it.
func ParseRecoveryBlob(der []byte) (*RecoveryBlob, *x509.Certificate, error) {
	sd, err := ParseSignedData(der)
	if err != nil {
		return nil, nil, fmt.Errorf("recovery blob: %w", err)
	}
	if sd.ContentType != OIDData || len(sd.Signers) != 1 {
		return nil, nil, fmt.Errorf("recovery blob: %d signers and content of type %s, want one and data", len(sd.Signers), sd.ContentType)
	}
	if err := sd.VerifyAll(); err != nil {
		return nil, nil, fmt.Errorf("recovery blob: %w", err)
	}
	if _, err := ParseEnveloped(sd.Content); err != nil {
		return nil, nil, fmt.Errorf("recovery blob: %w", err)
	}
	value, err := single(sd.Signers[0].SignedAttrs, OIDArchivedCert)
	if err != nil {
		return nil, nil, fmt.Errorf("recovery blob: which certificate the key is for: %w", err)
	}
	s := cryptobyte.String(value)
	var name cryptobyte.String
	if !s.ReadASN1(&name, cbasn1.OCTET_STRING) || !s.Empty() {
		return nil, nil, errors.New("recovery blob: which certificate the key is for: malformed")
	}
	r := &RecoveryBlob{Enveloped: sd.Content, Certificates: sd.Certificates}
	for _, c := range sd.Certificates {
		if bytes.Equal(SHA1Of(c.Raw), name) {
			r.Certificate = c
		}
	}
	if r.Certificate == nil {
		return nil, nil, errors.New("recovery blob: the certificate of the key is not in it")
	}
	return r, sd.certificateOf(&sd.Signers[0]), nil
}

// PrivateKeyDER returns an archived key, as it comes out of its EnvelopedData, as PKCS#8: it is that, or a key blob as Windows
// clients send it. content is wiped if the result is another slice. The caller wipes the result.
func PrivateKeyDER(content []byte) ([]byte, error) {
	if len(content) > 0 && content[0] == 0x30 { // a SEQUENCE; no key blob begins so
		return content, nil
	}
	defer Wipe(content)
	blob, err := ParseKeyBlob(content)
	if err != nil {
		return nil, err
	}
	return blob.PKCS8, nil
}
