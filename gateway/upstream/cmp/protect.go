package cmp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // some CAs protect with HMAC-SHA1
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidPasswordBasedMAC = asn1.ObjectIdentifier{1, 2, 840, 113533, 7, 66, 13} // RFC 9810 5.1.3.1
	oidPBMAC1           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}  // RFC 9481 6.1.2
	oidPBKDF2           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidSHA256           = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidHMACSHA256       = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidCMCCA            = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 27} // extended key usage of those who speak for a CA (RFC 6402 2.10)
)

var hashes = map[string]crypto.Hash{
	"1.3.14.3.2.26": crypto.SHA1, "2.16.840.1.101.3.4.2.1": crypto.SHA256, "2.16.840.1.101.3.4.2.2": crypto.SHA384, "2.16.840.1.101.3.4.2.3": crypto.SHA512,
}

// macs are HMACs by their hash; the second is the old name of HMAC-SHA1 (RFC 4210 D.2).
var macs = map[string]crypto.Hash{
	"1.2.840.113549.2.7": crypto.SHA1, "1.3.6.1.5.5.8.1.2": crypto.SHA1, "1.2.840.113549.2.9": crypto.SHA256, "1.2.840.113549.2.10": crypto.SHA384,
	"1.2.840.113549.2.11": crypto.SHA512,
}

// signatures are what a CA may sign with; none of them with SHA-1.
var signatures = map[string]x509.SignatureAlgorithm{
	"1.2.840.113549.1.1.11": x509.SHA256WithRSA, "1.2.840.113549.1.1.12": x509.SHA384WithRSA, "1.2.840.113549.1.1.13": x509.SHA512WithRSA,
	"1.2.840.10045.4.3.2": x509.ECDSAWithSHA256, "1.2.840.10045.4.3.3": x509.ECDSAWithSHA384, "1.2.840.10045.4.3.4": x509.ECDSAWithSHA512, "1.3.101.112": x509.PureEd25519,
}

// Rounds of key derivation: ours, and what a CA can make us do.
const (
	ownRounds = 10_000
	maxRounds = 250_000
)

// protection makes the protection of one message.
type protection struct {
	algorithm []byte // AlgorithmIdentifier
	make      func(part []byte) ([]byte, error)
}

func (ca *CA) protector() (*protection, error) {
	if len(ca.o.Secret) == 0 {
		return signer(ca.o.Key)
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	var b cryptobyte.Builder
	addAlgorithm := func(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1NULL()
		})
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if !ca.o.PBMAC1 {
			b.AddASN1ObjectIdentifier(oidPasswordBasedMAC)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // PBMParameter
				b.AddASN1OctetString(salt)
				addAlgorithm(b, oidSHA256)
				b.AddASN1Int64(ownRounds)
				addAlgorithm(b, oidHMACSHA256)
			})
			return
		}
		b.AddASN1ObjectIdentifier(oidPBMAC1)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // PBMAC1-params (RFC 8018 A.5)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidPBKDF2)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(salt)
					b.AddASN1Int64(ownRounds)
					b.AddASN1Int64(32)
					addAlgorithm(b, oidHMACSHA256)
				})
			})
			addAlgorithm(b, oidHMACSHA256)
		})
	})
	algorithm, err := b.Bytes()
	return &protection{algorithm, func(part []byte) ([]byte, error) { return passwordMAC(algorithm, ca.o.Secret, part) }}, err
}

// signer makes signatures with what belongs to the key.
func signer(key crypto.Signer) (*protection, error) {
	var oid asn1.ObjectIdentifier
	var hash crypto.Hash
	null := false
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
		oid, hash, null = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256, true
	case *ecdsa.PublicKey:
		switch size := k.Curve.Params().BitSize; {
		case size <= 256:
			oid, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
		case size <= 384:
			oid, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
		default:
			oid, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512
		}
	case ed25519.PublicKey:
		oid = asn1.ObjectIdentifier{1, 3, 101, 112}
	default:
		return nil, fmt.Errorf("a key of type %T signs no messages", k)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if null {
			b.AddASN1NULL()
		}
	})
	return &protection{b.BytesOrPanic(), func(part []byte) ([]byte, error) {
		if hash != 0 {
			h := hash.New()
			h.Write(part)
			part = h.Sum(nil)
		}
		return key.Sign(rand.Reader, part, hash)
	}}, nil
}

// verify checks who a message is from: the shared secret, or a signature by somebody who may speak for the CA.
func (ca *CA) verify(m *message) error {
	if m.protection == nil || m.algorithm == nil {
		return errors.New("the message is not protected")
	}
	part := protectedPart(m.headerAndBody)
	oid, _, err := readAlgorithm(m.algorithm)
	if err != nil {
		return err
	}
	if oid.Equal(oidPasswordBasedMAC) || oid.Equal(oidPBMAC1) {
		if len(ca.o.Secret) == 0 {
			return errors.New("the message is protected by a shared secret, and none is configured")
		}
		want, err := passwordMAC(m.algorithm, ca.o.Secret, part)
		if err != nil {
			return err
		}
		if !hmac.Equal(want, m.protection) {
			return errors.New("the message is not protected with the configured secret")
		}
		return nil
	}
	algorithm, ok := signatures[oid.String()]
	if !ok {
		return fmt.Errorf("the message is protected by algorithm %s, which is not supported", oid)
	}
	why := errors.New("it names no certificate that signed it")
	for _, c := range slices.Concat(m.extra, ca.o.Responders, ca.chain.Known()) {
		if len(m.keyID) > 0 && len(c.SubjectKeyId) > 0 && !bytes.Equal(m.keyID, c.SubjectKeyId) {
			continue
		}
		if err := c.CheckSignature(algorithm, part, m.protection); err != nil {
			continue
		}
		if why = ca.speaks(c, m.extra); why == nil {
			return nil
		}
	}
	return fmt.Errorf("who signed the message may not speak for the CA: %w", why)
}

// speaks tells whether the holder of a certificate may answer for the CA: he is configured, he is the CA itself, or the CA has given
// him a certificate for just that (RFC 9483 1.5 names id-kp-cmcCA). That somebody has a certificate by the CA is not enough.
func (ca *CA) speaks(c *x509.Certificate, extra []*x509.Certificate) error {
	if slices.ContainsFunc(ca.o.Responders, c.Equal) {
		if now := ca.o.Now(); now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return fmt.Errorf("the configured certificate %q is valid from %s to %s", c.Subject, c.NotBefore.UTC(), c.NotAfter.UTC())
		}
		return nil
	}
	if len(ca.o.Responders) > 0 {
		return fmt.Errorf("%q is none of the configured responders", c.Subject)
	}
	if c.IsCA {
		_, err := ca.chain.Above(c, extra)
		return err
	}
	if !slices.ContainsFunc(c.UnknownExtKeyUsage, oidCMCCA.Equal) {
		return fmt.Errorf("%q is neither the CA nor has it the extended key usage id-kp-cmcCA; name its certificate as responder if it is the right one", c.Subject)
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("the key of %q is not for signatures", c.Subject)
	}
	between := x509.NewCertPool()
	for _, e := range slices.Concat(extra, ca.chain.Known()) {
		between.AddCert(e)
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: ca.chain.Roots(), Intermediates: between, CurrentTime: ca.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func readAlgorithm(der []byte) (oid asn1.ObjectIdentifier, parameters cryptobyte.String, err error) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1ObjectIdentifier(&oid) {
		return nil, nil, errors.New("an algorithm is malformed")
	}
	return oid, seq, nil
}

// readHash reads an AlgorithmIdentifier whose name is in a table.
func readHash(s *cryptobyte.String, known map[string]crypto.Hash) (crypto.Hash, error) {
	var raw cryptobyte.String
	if !s.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
		return 0, errors.New("an algorithm is malformed")
	}
	oid, _, err := readAlgorithm(raw)
	if err != nil {
		return 0, err
	}
	h, ok := known[oid.String()]
	if !ok {
		return 0, fmt.Errorf("algorithm %s is not supported", oid)
	}
	return h, nil
}

// passwordMAC computes the MAC that an AlgorithmIdentifier describes.
func passwordMAC(algorithm, secret, part []byte) ([]byte, error) {
	oid, parameters, err := readAlgorithm(algorithm)
	if err != nil {
		return nil, err
	}
	derive := pbmKey
	if oid.Equal(oidPBMAC1) {
		derive = pbmac1Key
	}
	key, mac, err := derive(parameters, secret)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	h := hmac.New(mac.New, key)
	h.Write(part)
	return h.Sum(nil), nil
}

// pbmKey derives the key of PasswordBasedMac (RFC 4211 4.4).
func pbmKey(parameters cryptobyte.String, secret []byte) ([]byte, crypto.Hash, error) {
	var seq, salt cryptobyte.String
	var rounds int
	if !parameters.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&salt, cbasn1.OCTET_STRING) {
		return nil, 0, errors.New("PBMParameter is malformed")
	}
	owf, err := readHash(&seq, hashes)
	if err != nil {
		return nil, 0, err
	}
	if !seq.ReadASN1Integer(&rounds) || rounds < 1 || rounds > maxRounds {
		return nil, 0, fmt.Errorf("PBMParameter: not between 1 and %d iterations", maxRounds)
	}
	mac, err := readHash(&seq, macs)
	if err != nil {
		return nil, 0, err
	}
	h := owf.New()
	h.Write(secret)
	h.Write(salt)
	key := h.Sum(nil)
	for range rounds - 1 {
		h.Reset()
		h.Write(key)
		key = h.Sum(key[:0])
	}
	return key, mac, nil
}

// pbmac1Key derives the key of PBMAC1 (RFC 8018 7.1).
func pbmac1Key(parameters cryptobyte.String, secret []byte) ([]byte, crypto.Hash, error) {
	var seq, kdf, salt cryptobyte.String
	var rounds int
	if !parameters.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Element(&kdf, cbasn1.SEQUENCE) {
		return nil, 0, errors.New("the parameters of PBMAC1 are malformed")
	}
	oid, derivation, err := readAlgorithm(kdf)
	if err != nil {
		return nil, 0, err
	}
	if !oid.Equal(oidPBKDF2) {
		return nil, 0, fmt.Errorf("PBMAC1 with key derivation %s is not supported", oid)
	}
	mac, err := readHash(&seq, macs)
	if err != nil {
		return nil, 0, err
	}
	length, prf := mac.Size(), crypto.SHA1 // the defaults of RFC 8018 A.2
	var inner cryptobyte.String
	if !derivation.ReadASN1(&inner, cbasn1.SEQUENCE) || !inner.ReadASN1(&salt, cbasn1.OCTET_STRING) || !inner.ReadASN1Integer(&rounds) || rounds < 1 || rounds > maxRounds {
		return nil, 0, fmt.Errorf("PBKDF2: the parameters are malformed, or not between 1 and %d iterations", maxRounds)
	}
	if inner.PeekASN1Tag(cbasn1.INTEGER) && (!inner.ReadASN1Integer(&length) || length < 16 || length > 128) {
		return nil, 0, errors.New("PBKDF2: the key is not of 16 to 128 octets")
	}
	if !inner.Empty() {
		if prf, err = readHash(&inner, macs); err != nil {
			return nil, 0, err
		}
	}
	key, err := pbkdf2.Key(prf.New, string(secret), salt, rounds, length)
	return key, mac, err
}
