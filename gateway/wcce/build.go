package wcce

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// addContentInfo writes ContentInfo { type, [0] content }.
func addContentInfo(b *cryptobyte.Builder, contentType string, content cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(parsedOID(contentType))
		b.AddASN1(tag0, content)
	})
}

// addSetOf writes elements in DER order.
func addSetOf(b *cryptobyte.Builder, tag cbasn1.Tag, elements [][]byte) {
	sorted := slices.SortedFunc(slices.Values(elements), bytes.Compare)
	b.AddASN1(tag, func(b *cryptobyte.Builder) {
		for _, e := range sorted {
			b.AddBytes(e)
		}
	})
}

func addIssuerAndSerial(b *cryptobyte.Builder, cert *x509.Certificate) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(cert.RawIssuer)
		b.AddASN1BigInt(cert.SerialNumber)
	})
}

func addAlgorithm(b *cryptobyte.Builder, oid string) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(parsedOID(oid))
		b.AddASN1NULL()
	})
}

// attribute returns the DER of an Attribute with one value.
func attribute(oid string, value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(parsedOID(oid))
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(value) })
	})
	return b.BytesOrPanic()
}

func octetString(value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1OctetString(value)
	return b.BytesOrPanic()
}

// outgoingSigner is one signature to make.
type outgoingSigner struct {
	key      crypto.Signer
	cert     *x509.Certificate // names the signer by issuer and serial; nil: by keyID
	keyID    []byte
	hash     crypto.Hash
	signed   [][]byte // attributes beside contentType and messageDigest
	unsigned [][]byte
}

// signedData builds a CMS SignedData around content (RFC 5652 5).
func signedData(contentType string, content []byte, certs []*x509.Certificate, signers ...outgoingSigner) ([]byte, error) {
	var infos, digests [][]byte
	for _, s := range signers {
		info, err := s.sign(contentType, content)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
		var d cryptobyte.Builder
		addAlgorithm(&d, oidOfHash(s.hash))
		digests = append(digests, d.BytesOrPanic())
	}
	version := int64(3)
	if contentType == OIDData && !slices.ContainsFunc(signers, func(s outgoingSigner) bool { return s.cert == nil }) { // RFC 5652 5.1
		version = 1
	}
	var b cryptobyte.Builder
	addContentInfo(&b, OIDSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(version)
			addSetOf(b, cbasn1.SET, slices.CompactFunc(digests, bytes.Equal))
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(parsedOID(contentType))
				b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(content) })
			})
			if len(certs) > 0 {
				b.AddASN1(tag0, func(b *cryptobyte.Builder) {
					for _, c := range certs {
						b.AddBytes(c.Raw)
					}
				})
			}
			// In the order given, as Windows writes them: the first signer of a request has a meaning.
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(infos...)) })
		})
	})
	return b.Bytes()
}

func (s *outgoingSigner) sign(contentType string, content []byte) ([]byte, error) {
	var kind cryptobyte.Builder
	kind.AddASN1ObjectIdentifier(parsedOID(contentType))
	attrs := append([][]byte{
		attribute(OIDContentType, kind.BytesOrPanic()),
		attribute(OIDMessageDigest, octetString(sum(s.hash, content))),
	}, s.signed...)
	var signed cryptobyte.Builder
	addSetOf(&signed, cbasn1.SET, attrs)
	signature, err := s.key.Sign(rand.Reader, sum(s.hash, signed.BytesOrPanic()), s.hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if s.cert != nil {
			b.AddASN1Int64(1)
			addIssuerAndSerial(b, s.cert)
		} else {
			b.AddASN1Int64(3)
			b.AddASN1(tag0p, func(b *cryptobyte.Builder) { b.AddBytes(s.keyID) })
		}
		addAlgorithm(b, oidOfHash(s.hash))
		addSetOf(b, tag0, attrs)
		addSignatureAlgorithm(b, s.key.Public(), s.hash)
		b.AddASN1OctetString(signature)
		if len(s.unsigned) > 0 {
			addSetOf(b, tag1, s.unsigned)
		}
	})
	return b.Bytes()
}

// addSignatureAlgorithm writes what Windows writes: the bare key type for RSA, the full name for ECDSA.
func addSignatureAlgorithm(b *cryptobyte.Builder, key crypto.PublicKey, hash crypto.Hash) {
	if _, ok := key.(*ecdsa.PublicKey); !ok {
		addAlgorithm(b, OIDRSAEncryption)
		return
	}
	oid := map[crypto.Hash]string{crypto.SHA1: "1.2.840.10045.4.1", crypto.SHA256: "1.2.840.10045.4.3.2",
		crypto.SHA384: "1.2.840.10045.4.3.3", crypto.SHA512: "1.2.840.10045.4.3.4"}[hash]
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(parsedOID(oid)) })
}

// RequestOptions say what NewRequest puts into a request.
type RequestOptions struct {
	Key        crypto.Signer // RSA or ECDSA
	Hash       crypto.Hash   // default SHA-256
	Subject    []byte        // DER of the Name; empty: the empty Name, as a domain client sends it
	Extensions []Extension   // template information and whatever else
	// Exchange is the CA exchange certificate; with it the private key is enclosed for archival.
	Exchange *x509.Certificate
	// Cipher is the OID of the content cipher for the enclosed key; default 3DES, as Windows.
	Cipher string
	// Renews is the certificate that the request renews, RenewsKey its key, which signs too.
	Renews    *x509.Certificate
	RenewsKey crypto.Signer
	// Signers sign too: registration authorities, or the enrollment agent that enrolls RequestorName, DOMAIN\account.
	Signers       []RequestSigner
	RequestorName string
}

// RequestSigner is a key that signs a request beside the subject's, and its certificate.
type RequestSigner struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// NewRequest builds a CMC full PKIRequest as a Windows client does ([MS-WCCE] 3.1.1.4.3.1.3, 3.1.1.4.3.6.1).
func NewRequest(o RequestOptions) ([]byte, error) {
	if o.Hash == 0 {
		o.Hash = crypto.SHA256
	}
	csr, id, err := newCSR(&o)
	if err != nil {
		return nil, err
	}
	signers := []outgoingSigner{{key: o.Key, keyID: id, hash: o.Hash}}
	var certs []*x509.Certificate
	if o.Renews != nil {
		signers = append(signers, outgoingSigner{key: o.RenewsKey, cert: o.Renews, hash: o.Hash})
		certs = append(certs, o.Renews)
	}
	for _, s := range o.Signers {
		signers = append(signers, outgoingSigner{key: s.Key, cert: s.Certificate, hash: o.Hash})
		certs = append(certs, s.Certificate)
	}
	var attrs [][]byte
	if o.Exchange != nil {
		sealed, err := encloseKey(&o)
		if err != nil {
			return nil, err
		}
		signers[0].unsigned = [][]byte{attribute(OIDArchivedKey, sealed)}
		attrs = append(attrs, attribute(OIDArchivedHash, octetString(sum(o.Hash, sealed))))
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if len(attrs) > 0 {
				addAttributesControl(b, 2, attrs)
			}
			if o.RequestorName != "" {
				addRegInfo(b, 3, "RequesterName="+url.QueryEscape(o.RequestorName))
			}
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(tag0, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddBytes(csr)
			})
		})
		b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {})
		b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {})
	})
	body, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	return signedData(OIDPKIData, body, certs, signers...)
}

// addRegInfo writes the CMC registration information ([MS-WCCE] 2.2.2.6.3).
func addRegInfo(b *cryptobyte.Builder, bodyPart int64, text string) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(bodyPart)
		b.AddASN1ObjectIdentifier(parsedOID(OIDCMCRegInfo))
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddASN1OctetString([]byte(text)) })
	})
}

// addAttributesControl writes the CMC add-attributes control for body part 1.
func addAttributesControl(b *cryptobyte.Builder, bodyPart int64, attrs [][]byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(bodyPart)
		b.AddASN1ObjectIdentifier(parsedOID(OIDCMCAddAttrs))
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Int64(1) })
				addSetOf(b, cbasn1.SET, attrs)
			})
		})
	})
}

func encloseKey(o *RequestOptions) ([]byte, error) {
	blob, err := MarshalKeyBlob(o.Key)
	if err != nil {
		return nil, err
	}
	defer Wipe(blob)
	cipher := o.Cipher
	if cipher == "" {
		cipher = OIDDESEDE3CBC
	}
	return Seal(blob, cipher, false, o.Exchange)
}

// newCSR builds and signs the inner PKCS#10 request and returns the key identifier that the signer is named by.
func newCSR(o *RequestOptions) (der, id []byte, err error) {
	spki, err := x509.MarshalPKIXPublicKey(o.Key.Public())
	if err != nil {
		return nil, nil, err
	}
	if id, err = keyID(spki); err != nil {
		return nil, nil, err
	}
	subject := o.Subject
	if len(subject) == 0 {
		subject = []byte{0x30, 0x00}
	}
	extensions := append(slices.Clone(o.Extensions), Extension{OID: OIDSKI, Value: octetString(id)})
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		attrs := [][]byte{attribute(OIDExtensions, extensionList(extensions))}
		if o.Renews != nil {
			attrs = append(attrs, attribute(OIDRenewalCert, o.Renews.Raw))
		}
		addSetOf(b, tag0, attrs)
	})
	raw, err := info.Bytes()
	if err != nil {
		return nil, nil, err
	}
	signature, err := o.Key.Sign(rand.Reader, sum(o.Hash, raw), o.Hash)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(raw)
		if _, ok := o.Key.Public().(*rsa.PublicKey); ok {
			addAlgorithm(b, map[crypto.Hash]string{crypto.SHA1: "1.2.840.113549.1.1.5", crypto.SHA256: "1.2.840.113549.1.1.11",
				crypto.SHA384: "1.2.840.113549.1.1.12", crypto.SHA512: "1.2.840.113549.1.1.13"}[o.Hash])
		} else {
			addSignatureAlgorithm(b, o.Key.Public(), o.Hash)
		}
		b.AddASN1BitString(signature)
	})
	der, err = b.Bytes()
	return der, id, err
}

func extensionList(extensions []Extension) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, e := range extensions {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(parsedOID(e.OID))
				if e.Critical {
					b.AddASN1Boolean(true)
				}
				b.AddASN1OctetString(e.Value)
			})
		}
	})
	return b.BytesOrPanic()
}

// BMPString is the DER of text as a BMPString, in which Windows writes template names.
func BMPString(text string) []byte {
	var octets []byte
	for _, u := range utf16.Encode([]rune(text)) {
		octets = append(octets, byte(u>>8), byte(u))
	}
	var b cryptobyte.Builder
	b.AddASN1(tagBMP, func(b *cryptobyte.Builder) { b.AddBytes(octets) })
	return b.BytesOrPanic()
}
