package stepca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/go-jose/go-jose/v4"
)

// provisionerKey signs one-time tokens.
type provisionerKey struct {
	signer jose.Signer
}

// readKey opens a provisioner's key as step writes it: a JWK in a JWE, encrypted with a password.
func readKey(text, password []byte) (*provisionerKey, error) {
	parse, trimmed := jose.ParseEncryptedCompact, strings.TrimSpace(string(text))
	if strings.HasPrefix(trimmed, "{") {
		parse = jose.ParseEncryptedJSON
	}
	jwe, err := parse(trimmed,
		[]jose.KeyAlgorithm{jose.PBES2_HS256_A128KW, jose.PBES2_HS384_A192KW, jose.PBES2_HS512_A256KW},
		[]jose.ContentEncryption{jose.A128GCM, jose.A192GCM, jose.A256GCM, jose.A128CBC_HS256, jose.A192CBC_HS384, jose.A256CBC_HS512})
	if err != nil {
		return nil, fmt.Errorf("the key is not an encrypted JWK (%w); make one with: step crypto jwk create PUB.json KEY.json", err)
	}
	plain, err := jwe.Decrypt(password)
	if err != nil {
		return nil, fmt.Errorf("the key cannot be decrypted with the configured password: %w", err)
	}
	defer clear(plain)
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(plain, &jwk); err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	if jwk.IsPublic() || !jwk.Valid() {
		return nil, errors.New("the key is not a private signing key")
	}
	if jwk.KeyID == "" { // step names keys without a name by their thumbprint
		sum, err := jwk.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("the key: %w", err)
		}
		jwk.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	}
	algorithm := jose.SignatureAlgorithm(jwk.Algorithm)
	if algorithm == "" {
		if algorithm, err = algorithmOf(jwk.Key); err != nil {
			return nil, err
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jwk}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	return &provisionerKey{signer: signer}, nil
}

func algorithmOf(key any) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return jose.ES256, nil
		case 384:
			return jose.ES384, nil
		case 521:
			return jose.ES512, nil
		}
	case *rsa.PrivateKey:
		return jose.RS256, nil
	}
	return "", fmt.Errorf("the key has type %T, which signs no tokens", key)
}

// claims are the payload of a one-time token.
type claims struct {
	Issuer     string        `json:"iss"`
	Audience   string        `json:"aud"`
	Subject    string        `json:"sub"`
	IssuedAt   int64         `json:"iat"`
	NotBefore  int64         `json:"nbf"`
	Expiry     int64         `json:"exp"`
	ID         string        `json:"jti"`
	SANs       []string      `json:"sans,omitempty"`
	Confirm    *confirmation `json:"cnf,omitempty"`
	Enrollgate *contents     `json:"enrollgate,omitempty"`
}

// confirmation binds a token to one request.
type confirmation struct {
	Fingerprint string `json:"x5rt#S256"`
}

// contents is the decided certificate, as the provisioner's template reads it.
type contents struct {
	SerialNumber     string      `json:"serialNumber"` // decimal
	RawSubject       []byte      `json:"rawSubject"`
	NotBefore        time.Time   `json:"notBefore"`
	NotAfter         time.Time   `json:"notAfter"`
	NoRevocationInfo bool        `json:"noRevocationInfo,omitempty"`
	Extensions       []extension `json:"extensions"`
}

type extension struct {
	ID       string `json:"id"`
	Critical bool   `json:"critical"`
	Value    []byte `json:"value"`
}

// tokenLife bounds for how long a token that leaked could be used; step-ca allows a minute of clock skew.
const tokenLife = 5 * time.Minute

func (k *provisionerKey) sign(c claims, now time.Time) (string, error) {
	c.IssuedAt, c.NotBefore, c.Expiry = now.Unix(), now.Add(-30*time.Second).Unix(), now.Add(tokenLife).Unix()
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	jws, err := k.signer.Sign(body)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return jws.CompactSerialize()
}

// contentsOf puts an order into the words of the template.
func contentsOf(order upstream.Order, serial *big.Int) *contents {
	p := order.Profile
	c := &contents{SerialNumber: serial.String(), RawSubject: p.Subject, NotBefore: p.NotBefore.UTC().Truncate(time.Second),
		NotAfter: p.NotAfter.UTC().Truncate(time.Second), NoRevocationInfo: p.NoRevocationInfo, Extensions: []extension{}}
	if len(c.RawSubject) == 0 {
		c.RawSubject = []byte{0x30, 0x00}
	}
	for _, e := range p.Extensions {
		c.Extensions = append(c.Extensions, extension{ID: e.OID, Critical: e.Critical, Value: e.Value})
	}
	return c
}

// requestedNames are the names in a CSR, which step-ca insists to find in the token too, although the template ignores both.
func requestedNames(csr *x509.CertificateRequest) []string {
	out := append([]string(nil), csr.DNSNames...)
	out = append(out, csr.EmailAddresses...)
	for _, ip := range csr.IPAddresses {
		out = append(out, ip.String())
	}
	for _, u := range csr.URIs {
		out = append(out, u.String())
	}
	return out
}

// digest hashes everything that is in the certificate, and the order's name, with a label for what the hash is used for.
func digest(label string, order upstream.Order) ([]byte, error) {
	profile, err := json.Marshal(order.Profile)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte("enrollgate step-ca " + label), []byte(order.ID), profile, spki} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":"))
		h.Write(part)
	}
	return h.Sum(nil), nil
}

// serialOf is the serial number of an order: 159 bits, positive (RFC 5280 4.1.2.2), always the same.
func serialOf(order upstream.Order) (*big.Int, error) {
	sum, err := digest("serial", order)
	if err != nil {
		return nil, err
	}
	octets := sum[:20]
	octets[0] = octets[0]&0x7f | 0x40
	return new(big.Int).SetBytes(octets), nil
}

func randomID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}
