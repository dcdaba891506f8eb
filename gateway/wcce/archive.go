package wcce

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// readArchivedKey finds the archived key and its hash ([MS-WCCE] 3.2.2.6.2.1.2.2). The key is an unsigned attribute of
// the subject key's signature; the hash is signed and binds it to the request.
func (r *Request) readArchivedKey(sd *SignedData) {
	var enclosed [][]byte
	for i, si := range sd.Signers {
		for _, a := range si.UnsignedAttrs {
			if a.OID == OIDArchivedKey {
				enclosed = append(enclosed, a.Values...)
				if r.Signers[i].Role != "subject key" {
					r.ArchivedErr = errArchival("the enclosed key is not at the request's own signature")
				}
			}
		}
	}
	hash, hashErr := single(r.Attributes, OIDArchivedHash)
	r.ArchivedHash = hash != nil || hashErr != nil
	if len(enclosed) == 0 {
		return
	}
	r.Archived = &ArchivedKey{Raw: enclosed[0]}
	switch {
	case r.ArchivedErr != nil:
	case r.Format != CMC:
		r.ArchivedErr = errArchival("only CMC requests can enclose a key")
	case len(enclosed) > 1:
		r.ArchivedErr = errArchival("more than one key is enclosed")
	case hashErr != nil || hash == nil:
		r.ArchivedErr = errArchival("the hash of the enclosed key is missing or not single")
	default:
		r.ArchivedErr = r.Archived.checkHash(hash)
	}
}

func errArchival(text string) error { return hresult.New(hresult.BadRequestKeyArchival, "%s", text) }

// checkHash compares the hash attribute with the hash of the whole attribute value. Its algorithm is that of the
// request's signature or SHA-1; the length tells.
func (k *ArchivedKey) checkHash(der []byte) error {
	s := cryptobyte.String(der)
	var hash cryptobyte.String
	if !s.ReadASN1(&hash, cbasn1.OCTET_STRING) || !s.Empty() {
		return errArchival("the hash of the enclosed key is malformed")
	}
	k.Hash = hash
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if h.Size() != len(hash) {
			continue
		}
		if subtle.ConstantTimeCompare(sum(h, k.Raw), hash) == 1 {
			k.HashAlg = h
			return nil
		}
	}
	return errArchival("the hash of the enclosed key does not match the key")
}

// Enveloped is a CMS EnvelopedData (RFC 5652 6.1), still closed.
type Enveloped struct {
	Recipients []Recipient
	Cipher     string // OID of the content encryption
	iv         []byte
	ciphertext []byte
}

// Recipient is one KeyTransRecipientInfo (RFC 5652 6.2.1), named by issuer and serial number or by key identifier.
type Recipient struct {
	Issuer       []byte
	Serial       *big.Int
	KeyID        []byte
	Transport    string // OID of the key transport
	oaepHash     crypto.Hash
	encryptedKey []byte
}

// ParseEnveloped reads a ContentInfo with EnvelopedData.
func ParseEnveloped(der []byte) (*Enveloped, error) {
	kind, content, err := ParseContentInfo(der)
	if err != nil {
		return nil, err
	}
	if kind != OIDEnvelopedData {
		return nil, fmt.Errorf("content type %s, want envelopedData", kind)
	}
	s := cryptobyte.String(content)
	var seq, originator, recipients, info, algorithm, ciphertext cryptobyte.String
	var version int
	var hasOriginator bool
	var contentType, alg asn1.ObjectIdentifier
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1Integer(&version) ||
		!seq.ReadOptionalASN1(&originator, &hasOriginator, tag0) || !seq.ReadASN1(&recipients, cbasn1.SET) ||
		!seq.ReadASN1(&info, cbasn1.SEQUENCE) {
		return nil, errors.New("EnvelopedData: malformed")
	}
	e := &Enveloped{}
	if !info.ReadASN1ObjectIdentifier(&contentType) || contentType.String() != OIDData || !info.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!info.ReadASN1(&ciphertext, tag0p) || !info.Empty() || !algorithm.ReadASN1ObjectIdentifier(&alg) {
		return nil, errors.New("EnvelopedData: malformed encrypted content")
	}
	var iv cryptobyte.String
	if !algorithm.ReadASN1(&iv, cbasn1.OCTET_STRING) || !algorithm.Empty() {
		return nil, errors.New("EnvelopedData: malformed cipher parameters")
	}
	e.Cipher, e.iv, e.ciphertext = alg.String(), iv, ciphertext
	for !recipients.Empty() {
		if len(e.Recipients) == maxRecipients {
			return nil, fmt.Errorf("EnvelopedData: more than %d recipients", maxRecipients)
		}
		r, err := readRecipient(&recipients)
		if err != nil {
			return nil, fmt.Errorf("EnvelopedData: recipient %d: %w", len(e.Recipients)+1, err)
		}
		e.Recipients = append(e.Recipients, *r)
	}
	return e, nil
}

func readRecipient(s *cryptobyte.String) (*Recipient, error) {
	r := &Recipient{}
	var seq, algorithm, key cryptobyte.String
	var version int
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&version) {
		return nil, errors.New("not a key transport recipient")
	}
	if seq.PeekASN1Tag(tag0p) {
		var id cryptobyte.String
		if !seq.ReadASN1(&id, tag0p) {
			return nil, errors.New("malformed key identifier")
		}
		r.KeyID = id
	} else {
		var err error
		if r.Issuer, r.Serial, err = readIssuerAndSerial(&seq); err != nil {
			return nil, err
		}
	}
	var oid asn1.ObjectIdentifier
	if !seq.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!seq.ReadASN1(&key, cbasn1.OCTET_STRING) || !seq.Empty() {
		return nil, errors.New("malformed key transport")
	}
	r.Transport, r.encryptedKey = oid.String(), key
	switch r.Transport {
	case OIDRSAEncryption:
	case OIDRSAESOAEP:
		var err error
		if r.oaepHash, err = readPSSHash(algorithm); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("key transport %s is not supported", r.Transport)
	}
	return r, nil
}

// Names tells whether the recipient is the holder of the certificate.
func (r *Recipient) Names(cert *x509.Certificate) bool {
	if r.KeyID != nil {
		return bytes.Equal(r.KeyID, cert.SubjectKeyId)
	}
	return bytes.Equal(r.Issuer, cert.RawIssuer) && r.Serial.Cmp(cert.SerialNumber) == 0
}

// errOpen is the one answer to everything that goes wrong behind a private key, so that nobody learns which step it was.
var errOpen = errors.New("the content cannot be decrypted")

// Open decrypts with the recipient's private key. The result is secret: the caller wipes it.
//
// Every failure after the recipient is known gives the same error after the same work: a bad key transport block is
// replaced by a random key (Bleichenbacher's attack, RFC 3218).
func (e *Enveloped) Open(r *Recipient, key crypto.Decrypter) ([]byte, error) {
	size := keySize(e.Cipher)
	if size == 0 {
		return nil, fmt.Errorf("content cipher %s is not supported", e.Cipher)
	}
	//lint:ignore SA1019 Windows clients know nothing else; with SessionKeyLen a bad block gives a random key, not an error
	var options crypto.DecrypterOpts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: size}
	if r.Transport == OIDRSAESOAEP {
		options = &rsa.OAEPOptions{Hash: r.oaepHash}
	}
	spare := make([]byte, size)
	rand.Read(spare)
	contentKey, err := key.Decrypt(rand.Reader, r.encryptedKey, options)
	if err != nil || len(contentKey) != size {
		contentKey = spare
	}
	defer Wipe(contentKey)
	plain, failed := e.decrypt(contentKey)
	if err != nil && !errors.Is(err, rsa.ErrDecryption) { // for the log: a token that does not answer
		Wipe(plain)
		return nil, fmt.Errorf("%w: %w", errOpen, err)
	}
	return plain, failed
}

func keySize(cipherOID string) int {
	switch cipherOID {
	case OIDDESEDE3CBC, OIDAES192CBC:
		return 24
	case OIDAES128CBC:
		return 16
	case OIDAES256CBC:
		return 32
	}
	return 0
}

func (e *Enveloped) decrypt(key []byte) ([]byte, error) {
	block, err := newCipher(e.Cipher, key)
	if err != nil {
		return nil, errOpen
	}
	n := block.BlockSize()
	if len(e.iv) != n || len(e.ciphertext) == 0 || len(e.ciphertext)%n != 0 {
		return nil, errOpen
	}
	plain := make([]byte, len(e.ciphertext))
	cipher.NewCBCDecrypter(block, e.iv).CryptBlocks(plain, e.ciphertext)
	pad := int(plain[len(plain)-1])
	good := subtle.ConstantTimeLessOrEq(1, pad) & subtle.ConstantTimeLessOrEq(pad, n)
	for i := range n {
		inside := subtle.ConstantTimeLessOrEq(i+1, pad)
		same := subtle.ConstantTimeByteEq(plain[len(plain)-1-i], byte(pad))
		good &= same | (1 - inside)
	}
	if good != 1 {
		Wipe(plain)
		return nil, errOpen
	}
	return plain[:len(plain)-pad], nil
}

func newCipher(oid string, key []byte) (cipher.Block, error) {
	if oid == OIDDESEDE3CBC {
		return des.NewTripleDESCipher(key)
	}
	return aes.NewCipher(key)
}

// Wipe overwrites a secret.
func Wipe(secret []byte) { clear(secret) }

// Seal encrypts content to the holders of the certificates: EnvelopedData with the given content cipher. RSA keys only;
// oaep chooses RSAES-OAEP over PKCS#1 v1.5, which is what Windows clients use. Its hash is SHA-1, the default of RFC 4055 4.1:
// many tokens know no other, and OAEP does not rest on the hash's resistance to collisions.
func Seal(content []byte, cipherOID string, oaep bool, recipients ...*x509.Certificate) ([]byte, error) {
	size := keySize(cipherOID)
	if size == 0 {
		return nil, fmt.Errorf("content cipher %s is not supported", cipherOID)
	}
	key := make([]byte, size)
	rand.Read(key)
	defer Wipe(key)
	block, err := newCipher(cipherOID, key)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, block.BlockSize())
	rand.Read(iv)
	pad := block.BlockSize() - len(content)%block.BlockSize()
	ciphertext := make([]byte, len(content)+pad)
	copy(ciphertext, content)
	for i := len(content); i < len(ciphertext); i++ {
		ciphertext[i] = byte(pad)
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(ciphertext, ciphertext)

	var infos [][]byte
	for _, cert := range recipients {
		info, err := sealKey(key, cert, oaep)
		if err != nil {
			return nil, fmt.Errorf("recipient %q: %w", cert.Subject, err)
		}
		infos = append(infos, info)
	}
	if len(infos) == 0 {
		return nil, errors.New("no recipient")
	}
	var b cryptobyte.Builder
	addContentInfo(&b, OIDEnvelopedData, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			addSetOf(b, cbasn1.SET, infos)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(parsedOID(OIDData))
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(parsedOID(cipherOID))
					b.AddASN1OctetString(iv)
				})
				b.AddASN1(tag0p, func(b *cryptobyte.Builder) { b.AddBytes(ciphertext) })
			})
		})
	})
	return b.Bytes()
}

func sealKey(key []byte, cert *x509.Certificate, oaep bool) ([]byte, error) {
	pub, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key type %T is not supported, use RSA", cert.PublicKey)
	}
	var encrypted []byte
	var err error
	if oaep {
		encrypted, err = rsa.EncryptOAEP(sha1.New(), rand.Reader, pub, key, nil)
	} else {
		encrypted, err = rsa.EncryptPKCS1v15(rand.Reader, pub, key) //lint:ignore SA1019 what Windows clients and AD CS use for exchange keys
	}
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		addIssuerAndSerial(b, cert)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if !oaep {
				b.AddASN1ObjectIdentifier(parsedOID(OIDRSAEncryption))
				b.AddASN1NULL()
				return
			}
			b.AddASN1ObjectIdentifier(parsedOID(OIDRSAESOAEP))
			b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {}) // the defaults
		})
		b.AddASN1OctetString(encrypted)
	})
	return b.Bytes()
}

// SHA1Of is the identifier by which Windows names certificates: the SHA-1 of the DER.
func SHA1Of(der []byte) []byte {
	h := sha1.Sum(der)
	return h[:]
}
