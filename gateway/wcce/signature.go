package wcce

import (
	"crypto"
	"crypto/dsa" //lint:ignore SA1019 recorded Windows requests have DSA keys; they are verified to be shown, and refused by policy
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha1"   // clients sign with SHA-1 by default
	_ "crypto/sha256" // registers the hash
	_ "crypto/sha512" // registers the hash
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// signatureHash maps signature algorithms that name their hash.
var signatureHash = map[string]crypto.Hash{
	"1.2.840.113549.1.1.5": crypto.SHA1, "1.2.840.113549.1.1.11": crypto.SHA256, "1.2.840.113549.1.1.12": crypto.SHA384,
	"1.2.840.113549.1.1.13": crypto.SHA512, "1.3.14.3.2.29": crypto.SHA1, // RSA; the last is the old sha1WithRSA of OIW
	"1.2.840.10045.4.1": crypto.SHA1, "1.2.840.10045.4.3.2": crypto.SHA256, "1.2.840.10045.4.3.3": crypto.SHA384,
	"1.2.840.10045.4.3.4": crypto.SHA512,                                        // ECDSA
	"1.2.840.10040.4.3":   crypto.SHA1, "2.16.840.1.101.3.4.3.2": crypto.SHA256, // DSA
	"1.3.101.112": crypto.Hash(0), // Ed25519
}

func hashByOID(oid string) (crypto.Hash, error) {
	switch oid {
	case OIDSHA1:
		return crypto.SHA1, nil
	case OIDSHA256:
		return crypto.SHA256, nil
	case OIDSHA384:
		return crypto.SHA384, nil
	case OIDSHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("hash algorithm %s is not supported", oid)
}

func oidOfHash(h crypto.Hash) string {
	return map[crypto.Hash]string{crypto.SHA1: OIDSHA1, crypto.SHA256: OIDSHA256, crypto.SHA384: OIDSHA384, crypto.SHA512: OIDSHA512}[h]
}

func sum(h crypto.Hash, data []byte) []byte {
	w := h.New()
	w.Write(data)
	return w.Sum(nil)
}

// verifySignature checks a signature whose AlgorithmIdentifier is algorithm. Where that names only the key type, as
// Windows does in CMS, the hash is digest (an OID).
func verifySignature(key crypto.PublicKey, algorithm []byte, digest string, message, signature []byte) error {
	s := cryptobyte.String(algorithm)
	var body cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&body, cbasn1.SEQUENCE) || !s.Empty() || !body.ReadASN1ObjectIdentifier(&oid) {
		return errors.New("malformed signature algorithm")
	}
	name := oid.String()
	if name == OIDRSASSAPSS {
		return verifyPSS(key, body, message, signature)
	}
	hash, named := signatureHash[name]
	if !named {
		if name != OIDRSAEncryption && name != OIDECPublicKey {
			return fmt.Errorf("signature algorithm %s is not supported", name)
		}
		var err error
		if hash, err = hashByOID(digest); err != nil {
			return err
		}
	}
	if hash == 0 {
		k, ok := key.(ed25519.PublicKey)
		if !ok || !ed25519.Verify(k, message, signature) {
			return errBadSignature
		}
		return nil
	}
	return verifyDigest(key, hash, sum(hash, message), signature)
}

var errBadSignature = errors.New("the signature does not verify")

// maxVerifyBits bounds RSA keys whose signatures are verified: the time grows with the square of the size, and a message
// could hold a key of millions of bits.
const maxVerifyBits = 16384

func verifyDigest(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) error {
	ok := false
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() > maxVerifyBits {
			return errTooLarge(k)
		}
		ok = rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest, signature)
	case *dsa.PublicKey:
		ok = verifyDSA(k, digest, signature)
	default:
		return fmt.Errorf("key type %T is not supported", key)
	}
	if !ok {
		return errBadSignature
	}
	return nil
}

func errTooLarge(k *rsa.PublicKey) error {
	return fmt.Errorf("RSA key of %d bits, at most %d are supported", k.N.BitLen(), maxVerifyBits)
}

func verifyDSA(key *dsa.PublicKey, digest, signature []byte) bool {
	s := cryptobyte.String(signature)
	var seq cryptobyte.String
	r, v := new(big.Int), new(big.Int)
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1Integer(r) || !seq.ReadASN1Integer(v) || !seq.Empty() {
		return false
	}
	if key.P.BitLen() > 3072 {
		return false
	}
	if n := (key.Q.BitLen() + 7) / 8; len(digest) > n {
		digest = digest[:n]
	}
	return dsa.Verify(key, digest, r, v)
}

// verifyPSS reads RSASSA-PSS-params (RFC 4055 3.1). Mask generation must use the same hash, as everywhere in practice.
func verifyPSS(key crypto.PublicKey, body cryptobyte.String, message, signature []byte) error {
	k, ok := key.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("RSASSA-PSS with a key of type %T", key)
	}
	if k.N.BitLen() > maxVerifyBits {
		return errTooLarge(k)
	}
	hash, err := readPSSHash(body)
	if err != nil {
		return err
	}
	if rsa.VerifyPSS(k, hash, sum(hash, message), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}) != nil {
		return errBadSignature
	}
	return nil
}

// readPSSHash returns the hash of the [0] hashAlgorithm field; absent means SHA-1. OAEP parameters begin the same way.
func readPSSHash(body cryptobyte.String) (crypto.Hash, error) {
	if body.Empty() {
		return crypto.SHA1, nil
	}
	var params, explicit, algorithm cryptobyte.String
	var present bool
	if !body.ReadASN1(&params, cbasn1.SEQUENCE) || !body.Empty() || !params.ReadOptionalASN1(&explicit, &present, tag0) {
		return 0, errors.New("malformed algorithm parameters")
	}
	if !present {
		return crypto.SHA1, nil
	}
	if !explicit.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !explicit.Empty() {
		return 0, errors.New("malformed hash in algorithm parameters")
	}
	oid, err := readAlgorithm(algorithm)
	if err != nil {
		return 0, err
	}
	return hashByOID(oid)
}
