package wcce

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// KeyBlob is a private key as a Windows client encloses it, checked to be consistent in itself.
type KeyBlob struct {
	Form      string           // "PRIVATEKEYBLOB", "RSAPRIVATEBLOB", "RSAFULLPRIVATEBLOB", "ECCPRIVATEBLOB"
	Algorithm string           // "RSA", "P-256", "P-384", "P-521"
	Bits      int              // of the modulus or the curve
	Public    crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
	PKCS8     []byte           // the key as unencrypted PKCS#8 DER: secret
}

// Wipe overwrites the secret.
func (k *KeyBlob) Wipe() { Wipe(k.PKCS8) }

// Matches tells whether the blob is the private half of the public key.
func (k *KeyBlob) Matches(public crypto.PublicKey) bool {
	key, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(public)
}

// Magic numbers of key blobs, little-endian as they stand in the first four octets (wincrypt.h, bcrypt.h).
const (
	magicCAPI   = 0x00000207 // PRIVATEKEYBLOB, version 2
	magicRSA2   = 0x32415352 // BCRYPT_RSAPRIVATE_MAGIC
	magicRSA3   = 0x33415352 // BCRYPT_RSAFULLPRIVATE_MAGIC
	algRSAKeyX  = 0x0000a400 // CALG_RSA_KEYX
	algRSASign  = 0x00002400 // CALG_RSA_SIGN
	maxRSABits  = 16384
	minRSABits  = 512
	maxExponent = 8
)

// ecMagic maps the ECDH and ECDSA private magic numbers to curves ([MS-WCCE] 2.2.2.9.3, bcrypt.h).
var ecMagic = map[uint32]ecCurve{
	0x324B4345: {elliptic.P256(), ecdh.P256(), "1.2.840.10045.3.1.7"}, 0x32534345: {elliptic.P256(), ecdh.P256(), "1.2.840.10045.3.1.7"},
	0x344B4345: {elliptic.P384(), ecdh.P384(), "1.3.132.0.34"}, 0x34534345: {elliptic.P384(), ecdh.P384(), "1.3.132.0.34"},
	0x364B4345: {elliptic.P521(), ecdh.P521(), "1.3.132.0.35"}, 0x36534345: {elliptic.P521(), ecdh.P521(), "1.3.132.0.35"},
}

type ecCurve struct {
	curve elliptic.Curve
	ecdh  ecdh.Curve
	oid   string
}

// ParseKeyBlob reads a private key blob of any form that Windows sends, of exactly the right length, and proves by
// arithmetic that its parts belong together. The caller wipes the result.
func ParseKeyBlob(blob []byte) (*KeyBlob, error) {
	if len(blob) < 8 {
		return nil, fmt.Errorf("key blob: %d octets", len(blob))
	}
	switch magic := binary.LittleEndian.Uint32(blob); magic {
	case magicCAPI:
		return parseCAPI(blob)
	case magicRSA2, magicRSA3:
		return parseBCryptRSA(blob, magic == magicRSA3, binary.LittleEndian)
	case 0x52534132, 0x52534133: // the header in network order, as [MS-WCCE] 2.2.2.9.2 prints it
		return parseBCryptRSA(blob, magic == 0x52534133, binary.BigEndian)
	default:
		if curve, ok := ecMagic[magic]; ok {
			return parseEC(blob, curve)
		}
		return nil, fmt.Errorf("key blob: unknown magic 0x%08x", magic)
	}
}

// rsaParts are the components of an RSA key, big-endian.
type rsaParts struct{ n, e, d, p, q, dP, dQ, qInv []byte }

// parseCAPI reads a PRIVATEKEYBLOB ([MS-WCCE] 2.2.2.9.1): little-endian fields of fixed width, leading zeros included.
func parseCAPI(blob []byte) (*KeyBlob, error) {
	if len(blob) < 20 || string(blob[8:12]) != "RSA2" {
		return nil, errors.New("PRIVATEKEYBLOB: malformed head")
	}
	if alg := binary.LittleEndian.Uint32(blob[4:]); alg != algRSAKeyX && alg != algRSASign {
		return nil, fmt.Errorf("PRIVATEKEYBLOB: algorithm 0x%x is not RSA", alg)
	}
	bits, e := int(binary.LittleEndian.Uint32(blob[12:])), blob[16:20]
	if bits < minRSABits || bits > maxRSABits || bits%16 != 0 {
		return nil, fmt.Errorf("PRIVATEKEYBLOB: %d bits", bits)
	}
	full, half := bits/8, bits/16
	if len(blob) != 20+2*full+5*half {
		return nil, fmt.Errorf("PRIVATEKEYBLOB: %d octets, want %d for %d bits", len(blob), 20+2*full+5*half, bits)
	}
	whole := slices.Clone(blob[20:])
	defer Wipe(whole)
	secret := whole
	next := func(n int) []byte {
		field := secret[:n]
		secret = secret[n:]
		slices.Reverse(field)
		return field
	}
	exponent := slices.Clone(e)
	slices.Reverse(exponent)
	parts := rsaParts{e: exponent, n: next(full), p: next(half), q: next(half), dP: next(half), dQ: next(half), qInv: next(half), d: next(full)}
	return parts.blob("PRIVATEKEYBLOB", bits)
}

// parseBCryptRSA reads BCRYPT_RSAPRIVATE_BLOB and BCRYPT_RSAFULLPRIVATE_BLOB: six numbers, then big-endian fields.
func parseBCryptRSA(blob []byte, full bool, order binary.ByteOrder) (*KeyBlob, error) {
	form := "RSAPRIVATEBLOB"
	if full {
		form = "RSAFULLPRIVATEBLOB"
	}
	if len(blob) < 24 {
		return nil, fmt.Errorf("%s: malformed head", form)
	}
	bits, cbE, cbN := order.Uint32(blob[4:]), order.Uint32(blob[8:]), order.Uint32(blob[12:])
	cbP, cbQ := order.Uint32(blob[16:]), order.Uint32(blob[20:])
	if bits < minRSABits || bits > maxRSABits || cbE == 0 || cbE > maxExponent || cbN != (bits+7)/8 || cbP == 0 || cbP > cbN || cbQ == 0 || cbQ > cbN {
		return nil, fmt.Errorf("%s: implausible sizes", form)
	}
	want := 24 + cbE + cbN + cbP + cbQ
	if full {
		want += cbP + cbQ + cbP + cbN
	}
	if len(blob) != int(want) {
		return nil, fmt.Errorf("%s: %d octets, want %d", form, len(blob), want)
	}
	rest := blob[24:]
	next := func(n uint32) []byte {
		field := rest[:n]
		rest = rest[n:]
		return field
	}
	parts := rsaParts{e: next(cbE), n: next(cbN), p: next(cbP), q: next(cbQ)}
	if full {
		parts.dP, parts.dQ, parts.qInv, parts.d = next(cbP), next(cbQ), next(cbP), next(cbN)
	} else if err := parts.derive(); err != nil {
		return nil, fmt.Errorf("%s: %w", form, err)
	}
	if !full {
		defer func() {
			for _, b := range [][]byte{parts.d, parts.dP, parts.dQ, parts.qInv} {
				Wipe(b)
			}
		}()
	}
	return parts.blob(form, int(bits))
}

// derive computes what the short form leaves out: d = (1 + k·φ)/e with k = −1/φ mod e, dP, dQ and qInv.
func (r *rsaParts) derive() error {
	e := uint64(0)
	for _, octet := range r.e {
		e = e<<8 | uint64(octet)
	}
	p, q := wordsOf(r.p), wordsOf(r.q)
	defer wipeWords(p, q)
	if e < 3 || e&1 == 0 || len(p.trim()) == 0 || len(q.trim()) == 0 {
		return errInconsistent
	}
	p1, q1 := p.minusOne(), q.minusOne()
	phi := p1.mul(q1)
	defer wipeWords(p1, q1, phi)
	small := phi.mod(words{e})
	inverse, ok := small.inverse(words{e})
	if !ok || len(p1.trim()) == 0 || len(q1.trim()) == 0 {
		return errInconsistent
	}
	d := phi.mul(words{e - inverse[0]}) // k·φ
	d.add(words{1})
	d.divide(e)
	qInv, ok := q.inverse(p)
	dP, dQ := d.mod(p1), d.mod(q1)
	defer wipeWords(small, inverse, d, qInv, dP, dQ)
	if !ok {
		return errInconsistent
	}
	r.d, r.dP, r.dQ, r.qInv = d.bytes(len(r.n)), dP.bytes(len(r.p)), dQ.bytes(len(r.q)), qInv.bytes(len(r.p))
	return nil
}

var errInconsistent = errors.New("key blob: the parts of the key do not belong together")

func number(b []byte) *big.Int { return new(big.Int).SetBytes(b) }

func wipeWords(secrets ...words) {
	for _, x := range secrets {
		clear(x)
	}
}

// check proves that the parts form one RSA key, without the costly primality tests of rsa.PrivateKey.Validate:
// n = p·q, e·dP ≡ 1 mod p−1, e·dQ ≡ 1 mod q−1, dP and dQ from d, q·qInv ≡ 1 mod p. d may be reduced by the least common multiple.
func (r *rsaParts) check(bits int) error {
	n, e := number(r.n), number(r.e)
	if n.BitLen() != bits || e.BitLen() < 2 || e.BitLen() > 31 || e.Bit(0) == 0 {
		return errInconsistent
	}
	exponent := words{e.Uint64()}
	d, p, q := wordsOf(r.d), wordsOf(r.p), wordsOf(r.q)
	dP, dQ, qInv := wordsOf(r.dP), wordsOf(r.dQ), wordsOf(r.qInv)
	product := p.mul(q)
	defer wipeWords(d, p, q, dP, dQ, qInv, product)
	if !product.equal(wordsOf(r.n)) { // so that neither is zero
		return errInconsistent
	}
	p1, q1 := p.minusOne(), q.minusOne()
	defer wipeWords(p1, q1)
	if len(p1.trim()) == 0 || len(q1.trim()) == 0 {
		return errInconsistent
	}
	isOne := func(a, b, modulus words) bool {
		product := a.mul(b)
		rest := product.mod(modulus)
		defer wipeWords(product, rest)
		return rest.isOne()
	}
	fromD, fromD2 := d.mod(p1), d.mod(q1)
	defer wipeWords(fromD, fromD2)
	if !fromD.equal(dP) || !fromD2.equal(dQ) || !isOne(exponent, dP, p1) || !isOne(exponent, dQ, q1) || !isOne(q, qInv, p) {
		return errInconsistent
	}
	return nil
}

func (r *rsaParts) blob(form string, bits int) (*KeyBlob, error) {
	if err := r.check(bits); err != nil {
		return nil, err
	}
	public := &rsa.PublicKey{N: number(r.n), E: int(number(r.e).Int64())}
	// One buffer that never grows: no copy of the key is left behind.
	b := cryptobyte.NewBuilder(make([]byte, 0, 5*len(r.n)+128))
	addPKCS8(b, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(parsedOID(OIDRSAEncryption))
		b.AddASN1NULL()
	}, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			for _, field := range [][]byte{r.n, r.e, r.d, r.p, r.q, r.dP, r.dQ, r.qInv} {
				addUnsigned(b, field)
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	return &KeyBlob{Form: form, Algorithm: "RSA", Bits: bits, Public: public, PKCS8: der}, nil
}

// addPKCS8 writes PrivateKeyInfo (RFC 5208 5).
func addPKCS8(b *cryptobyte.Builder, algorithm, key cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(cbasn1.SEQUENCE, algorithm)
		b.AddASN1(cbasn1.OCTET_STRING, key)
	})
}

// addUnsigned writes a big-endian number as a DER INTEGER.
func addUnsigned(b *cryptobyte.Builder, field []byte) {
	field = bytes.TrimLeft(field, "\x00")
	b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) {
		if len(field) == 0 || field[0]&0x80 != 0 {
			b.AddUint8(0)
		}
		b.AddBytes(field)
	})
}

// parseEC reads a BCRYPT_ECCPRIVATE_BLOB: magic, size, X, Y, d. Windows writes big-endian fields, [MS-WCCE] 2.2.2.9.3
// says little-endian: d·G = (X, Y) shows which it is.
func parseEC(blob []byte, c ecCurve) (*KeyBlob, error) {
	size := (c.curve.Params().BitSize + 7) / 8
	if cb := binary.LittleEndian.Uint32(blob[4:]); cb != uint32(size) || len(blob) != 8+3*size {
		return nil, fmt.Errorf("ECCPRIVATEBLOB: %d octets, want %d", len(blob), 8+3*size)
	}
	fields := slices.Clone(blob[8:])
	defer Wipe(fields)
	x, y, d := fields[:size], fields[size:2*size], fields[2*size:]
	point := func() []byte { return slices.Concat([]byte{4}, x, y) }
	if !isKeyPair(c.ecdh, d, point()) {
		slices.Reverse(x)
		slices.Reverse(y)
		slices.Reverse(d)
		if !isKeyPair(c.ecdh, d, point()) {
			return nil, errInconsistent
		}
	}
	public, err := ecdsa.ParseUncompressedPublicKey(c.curve, point())
	if err != nil {
		return nil, errInconsistent
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 3*size+128))
	addPKCS8(b, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(parsedOID(OIDECPublicKey))
		b.AddASN1ObjectIdentifier(parsedOID(c.oid))
	}, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // RFC 5915 3
			b.AddASN1Int64(1)
			b.AddASN1OctetString(d)
			b.AddASN1(tag1, func(b *cryptobyte.Builder) { b.AddASN1BitString(point()) })
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	params := c.curve.Params()
	return &KeyBlob{Form: "ECCPRIVATEBLOB", Algorithm: params.Name, Bits: params.BitSize, Public: public, PKCS8: der}, nil
}

func isKeyPair(curve ecdh.Curve, d, point []byte) bool {
	key, err := curve.NewPrivateKey(d)
	return err == nil && bytes.Equal(key.PublicKey().Bytes(), point)
}

// MarshalKeyBlob writes a private key as a Windows client does: PRIVATEKEYBLOB for RSA, BCRYPT_ECCPRIVATE_BLOB for
// NIST curves. The caller wipes the result.
func MarshalKeyBlob(key crypto.PrivateKey) ([]byte, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return marshalCAPI(k)
	case *ecdsa.PrivateKey:
		return marshalEC(k)
	}
	return nil, fmt.Errorf("key blob: key type %T is not supported", key)
}

func marshalCAPI(k *rsa.PrivateKey) ([]byte, error) {
	bits := k.N.BitLen()
	if len(k.Primes) != 2 || bits%16 != 0 || bits > maxRSABits || k.E > math.MaxInt32 {
		return nil, errors.New("PRIVATEKEYBLOB: only RSA keys with two primes and a multiple of 16 bits fit")
	}
	k.Precompute()
	blob := make([]byte, 20, 20+9*bits/16)
	binary.LittleEndian.PutUint32(blob, magicCAPI)
	binary.LittleEndian.PutUint32(blob[4:], algRSAKeyX)
	copy(blob[8:], "RSA2")
	binary.LittleEndian.PutUint32(blob[12:], uint32(bits))
	binary.LittleEndian.PutUint32(blob[16:], uint32(k.E))
	p, q := k.Primes[0], k.Primes[1]
	for _, f := range []struct {
		value *big.Int
		size  int
	}{{k.N, bits / 8}, {p, bits / 16}, {q, bits / 16}, {k.Precomputed.Dp, bits / 16}, {k.Precomputed.Dq, bits / 16}, {k.Precomputed.Qinv, bits / 16}, {k.D, bits / 8}} {
		if f.value.BitLen() > f.size*8 {
			return nil, errors.New("PRIVATEKEYBLOB: the primes have different sizes")
		}
		at := len(blob)
		blob = blob[:at+f.size]
		f.value.FillBytes(blob[at:])
		slices.Reverse(blob[at:])
	}
	return blob, nil
}

func marshalEC(k *ecdsa.PrivateKey) ([]byte, error) {
	magic := map[string]uint32{"P-256": 0x324B4345, "P-384": 0x344B4345, "P-521": 0x364B4345}[k.Curve.Params().Name]
	if magic == 0 {
		return nil, fmt.Errorf("ECCPRIVATEBLOB: curve %s is not supported", k.Curve.Params().Name)
	}
	d, err := k.Bytes()
	if err != nil {
		return nil, err
	}
	defer Wipe(d)
	point, err := k.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	blob := make([]byte, 8, 8+3*len(d))
	binary.LittleEndian.PutUint32(blob, magic)
	binary.LittleEndian.PutUint32(blob[4:], uint32(len(d)))
	return append(append(blob, point[1:]...), d...), nil
}
