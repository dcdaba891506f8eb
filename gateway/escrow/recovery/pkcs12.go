package recovery

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
	"slices"
	"unicode/utf16"

	"software.sslmate.com/src/go-pkcs12"
)

// Recovered is a private key that somebody is given, with its certificate and those above it.
type Recovered struct {
	Key         crypto.PrivateKey
	Certificate *x509.Certificate
	Chain       []*x509.Certificate
}

// PKCS12 writes keys into one file (RFC 7292): AES-256 and SHA-256, or where legacy 3DES and SHA-1. Certificates that several
// keys have above them are in it once.
func PKCS12(keys []Recovered, password string, legacy bool) ([]byte, error) {
	encoder := pkcs12.Modern
	if legacy {
		encoder = pkcs12.LegacyDES
	}
	var safes []asn1.RawValue
	var above []*x509.Certificate
	var file []byte
	for _, k := range keys {
		chain := slices.DeleteFunc(slices.Clone(k.Chain), func(c *x509.Certificate) bool { return slices.ContainsFunc(above, c.Equal) })
		above = append(above, chain...)
		var err error
		if file, err = encoder.Encode(k.Key, k.Certificate, chain, password); err != nil {
			return nil, fmt.Errorf("write PKCS#12: %w", err)
		}
		content, err := contents(file)
		if err != nil {
			return nil, fmt.Errorf("write PKCS#12: %w", err)
		}
		safes = append(safes, content...)
	}
	switch len(keys) {
	case 0:
		return nil, errors.New("write PKCS#12: there is no key")
	case 1:
		return file, nil
	}
	return join(safes, password, legacy)
}

type pfx struct {
	Version  int
	AuthSafe contentInfo
	MacData  macData `asn1:"optional"`
}

type contentInfo struct {
	ContentType asn1.ObjectIdentifier
	Content     []byte `asn1:"tag:0,explicit"`
}

type macData struct {
	Mac struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}
	MacSalt    []byte
	Iterations int `asn1:"optional,default:1"`
}

// contents are the members of a file's AuthenticatedSafe, each encrypted by itself.
func contents(file []byte) (safes []asn1.RawValue, err error) {
	var p pfx
	if rest, err := asn1.Unmarshal(file, &p); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("malformed PFX: %w", err)
	}
	if rest, err := asn1.Unmarshal(p.AuthSafe.Content, &safes); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("malformed AuthenticatedSafe: %w", err)
	}
	return safes, nil
}

// macIterations is how often the password is hashed for the MAC. The passwords that protect recovered keys are random.
const macIterations = 2048

// join makes one file of the members of several, with a MAC of its own.
func join(safes []asn1.RawValue, password string, legacy bool) ([]byte, error) {
	content, err := asn1.Marshal(safes)
	if err != nil {
		return nil, fmt.Errorf("write PKCS#12: %w", err)
	}
	p := pfx{Version: 3, AuthSafe: contentInfo{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}, content}}
	h, algorithm := sha256.New, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	if legacy {
		h, algorithm = sha1.New, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	}
	p.MacData.MacSalt, p.MacData.Iterations = make([]byte, 16), macIterations
	rand.Read(p.MacData.MacSalt)
	key := macKey(h, p.MacData.MacSalt, password)
	defer clear(key)
	mac := hmac.New(h, key)
	mac.Write(content)
	p.MacData.Mac.Algorithm = pkix.AlgorithmIdentifier{Algorithm: algorithm, Parameters: asn1.NullRawValue}
	p.MacData.Mac.Digest = mac.Sum(nil)
	return asn1.Marshal(p)
}

// macKey derives the key of the MAC from the password (RFC 7292 B.2 with ID 3). Its length is the hash's, so that the first
// block of B.2 is all of it.
func macKey(h func() hash.Hash, salt []byte, password string) []byte {
	var text []byte // BMPString with its terminating zero (B.1)
	for _, u := range append(utf16.Encode([]rune(password)), 0) {
		text = append(text, byte(u>>8), byte(u))
	}
	defer clear(text)
	block := h().BlockSize()
	input := slices.Repeat([]byte{3}, block)
	for _, part := range [][]byte{salt, text} {
		for i := range (len(part) + block - 1) / block * block {
			input = append(input, part[i%len(part)])
		}
	}
	defer clear(input)
	for range macIterations {
		sum := h()
		sum.Write(input)
		input = sum.Sum(nil)
	}
	return input
}
