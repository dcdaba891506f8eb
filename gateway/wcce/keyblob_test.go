package wcce_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func parseBlob(t testing.TB, blob []byte) *wcce.KeyBlob {
	t.Helper()
	k, err := wcce.ParseKeyBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyBlobsAndOpenSSLAgree(t *testing.T) {
	for _, bits := range []int{1024, 2048, 3072, 4096} {
		t.Run(fmt.Sprintf("RSA %d", bits), func(t *testing.T) {
			keyPEM, err := testpki.OpenSSL(t, nil, "genrsa", "-traditional", fmt.Sprint(bits))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(keyPEM)
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := testpki.OpenSSL(t, keyPEM, "rsa", "-outform", "MSBLOB")
			if err != nil {
				t.Fatal(err)
			}
			blob := parseBlob(t, theirs)
			if blob.Form != "PRIVATEKEYBLOB" || blob.Bits != bits || blob.Algorithm != "RSA" || !blob.Matches(key.Public()) {
				t.Errorf("%s %s %d", blob.Form, blob.Algorithm, blob.Bits)
			}
			checkPKCS8(t, blob, key)
			ours, err := wcce.MarshalKeyBlob(key)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours, theirs) {
				t.Error("OpenSSL writes another blob for this key")
			}
			back, err := testpki.OpenSSL(t, ours, "rsa", "-inform", "MSBLOB", "-check", "-traditional")
			if err != nil {
				t.Fatal(err)
			}
			if block, _ := pem.Decode(back); block == nil || !bytes.Equal(block.Bytes, x509.MarshalPKCS1PrivateKey(key)) {
				t.Error("OpenSSL reads another key")
			}
		})
	}
}

// checkPKCS8 requires that the standard library finds the same whole key in the PKCS#8 form.
func checkPKCS8(t *testing.T, blob *wcce.KeyBlob, want *rsa.PrivateKey) {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(blob.PKCS8)
	if err != nil {
		t.Fatal(err)
	}
	if !want.Equal(key) {
		t.Error("the PKCS#8 form holds another key")
	}
}

func fill(value *big.Int, size int) []byte { return value.FillBytes(make([]byte, size)) }

// bcryptRSA writes BCRYPT_RSAPRIVATE_BLOB or BCRYPT_RSAFULLPRIVATE_BLOB as bcrypt.h describes them.
func bcryptRSA(key *rsa.PrivateKey, full bool, order binary.ByteOrder) []byte {
	key.Precompute()
	n, half := (key.N.BitLen()+7)/8, (key.N.BitLen()+15)/16
	e := big.NewInt(int64(key.E)).Bytes()
	magic := uint32(0x32415352)
	if full {
		magic = 0x33415352
	}
	out := make([]byte, 24)
	order.PutUint32(out, magic)
	for i, v := range []int{key.N.BitLen(), len(e), n, half, half} {
		order.PutUint32(out[4+4*i:], uint32(v))
	}
	out = slices.Concat(out, e, fill(key.N, n), fill(key.Primes[0], half), fill(key.Primes[1], half))
	if full {
		p := key.Precomputed
		out = slices.Concat(out, fill(p.Dp, half), fill(p.Dq, half), fill(p.Qinv, half), fill(key.D, n))
	}
	return out
}

// bcryptEC writes BCRYPT_ECCPRIVATE_BLOB; little asks for the byte order that [MS-WCCE] 2.2.2.9.3 prints.
func bcryptEC(t testing.TB, key *ecdsa.PrivateKey, magic string, little bool) []byte {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	size := len(d)
	x, y := slices.Clone(point[1:1+size]), slices.Clone(point[1+size:])
	if little {
		slices.Reverse(x)
		slices.Reverse(y)
		slices.Reverse(d)
	}
	return slices.Concat([]byte(magic), binary.LittleEndian.AppendUint32(nil, uint32(size)), x, y, d)
}

func TestBCryptRSABlobs(t *testing.T) {
	for _, bits := range []int{1024, 2048, 3072, 4096} {
		key := testpki.RSA(t, bits)
		for _, full := range []bool{false, true} {
			for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
				blob := parseBlob(t, bcryptRSA(key, full, order))
				want := "RSAPRIVATEBLOB"
				if full {
					want = "RSAFULLPRIVATEBLOB"
				}
				if blob.Form != want || blob.Bits != bits || !blob.Matches(key.Public()) {
					t.Errorf("%d bits, %s: %s", bits, order, blob.Form)
				}
				parsed, err := x509.ParsePKCS8PrivateKey(blob.PKCS8)
				if err != nil {
					t.Fatal(err)
				}
				// The short form leaves d out; what is derived may differ by a multiple of the least common multiple.
				if got := parsed.(*rsa.PrivateKey); got.Validate() != nil || !got.PublicKey.Equal(key.Public()) {
					t.Errorf("%d bits, %s: the PKCS#8 form is not the key", bits, want)
				}
			}
		}
	}
}

func TestECBlobs(t *testing.T) {
	for _, c := range []struct {
		curve elliptic.Curve
		magic []string
	}{{elliptic.P256(), []string{"ECK2", "ECS2"}}, {elliptic.P384(), []string{"ECK4", "ECS4"}}, {elliptic.P521(), []string{"ECK6", "ECS6"}}} {
		key, err := ecdsa.GenerateKey(c.curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		name := c.curve.Params().Name
		for _, magic := range c.magic {
			for _, little := range []bool{false, true} {
				blob := parseBlob(t, bcryptEC(t, key, magic, little))
				if blob.Algorithm != name || blob.Bits != c.curve.Params().BitSize || !blob.Matches(key.Public()) {
					t.Errorf("%s: %s %d", magic, blob.Algorithm, blob.Bits)
				}
				parsed, err := x509.ParsePKCS8PrivateKey(blob.PKCS8)
				if err != nil || !key.Equal(parsed) {
					t.Errorf("%s: the PKCS#8 form is not the key: %v", magic, err)
				}
			}
		}
		ours, err := wcce.MarshalKeyBlob(key)
		if err != nil {
			t.Fatal(err)
		}
		// ECDH keys: the form of keys that are archived.
		magic := map[string]string{"P-256": "ECK2", "P-384": "ECK4", "P-521": "ECK6"}[name]
		if !bytes.Equal(ours, bcryptEC(t, key, magic, false)) {
			t.Errorf("%s: another blob is written", name)
		}
		out, err := testpki.OpenSSL(t, parseBlob(t, ours).PKCS8, "pkey", "-inform", "DER", "-check", "-noout")
		if err != nil || !strings.Contains(string(out), "valid") {
			t.Errorf("OpenSSL does not take the key: %s %v", out, err)
		}
	}
}

// The blobs of testdata/bcryptblob.py are made of what OpenSSL prints of its keys.
func TestBCryptBlobsOfOpenSSLsKeys(t *testing.T) {
	for _, c := range []struct {
		make  []string
		forms []string
	}{
		{[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, []string{"RSA2", "RSA3"}},
		{[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"}, []string{"RSA2", "RSA3"}},
		{[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, []string{"ECK2", "ECS2"}},
		{[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, []string{"ECK4", "ECS4"}},
		{[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"}, []string{"ECK6", "ECS6"}},
	} {
		pemKey, err := testpki.OpenSSL(t, nil, append([]string{"genpkey"}, c.make...)...)
		if err != nil {
			t.Fatalf("%s %v", pemKey, err)
		}
		block, _ := pem.Decode(pemKey)
		want, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range c.forms {
			cmd := exec.Command("python3", "testdata/bcryptblob.py", form)
			cmd.Stdin = bytes.NewReader(pemKey)
			blob, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: %v", form, err)
			}
			got, err := x509.ParsePKCS8PrivateKey(parseBlob(t, blob).PKCS8)
			if err != nil || !got.(interface{ Public() crypto.PublicKey }).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(want.(crypto.Signer).Public()) {
				t.Errorf("%s, %s: the PKCS#8 form is not the key: %v", form, c.make[3], err)
			}
			if key, ok := got.(*rsa.PrivateKey); ok && key.Validate() != nil {
				t.Errorf("%s, %s: %v", form, c.make[3], key.Validate())
			}
		}
	}
}

// TestEveryPartOfAKeyBlobIsChecked changes the last octet that counts in each field.
func TestEveryPartOfAKeyBlobIsChecked(t *testing.T) {
	key := testpki.RSA(t, 1024)
	capi, err := wcce.MarshalKeyBlob(key)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	full, short := bcryptRSA(key, true, binary.LittleEndian), bcryptRSA(key, false, binary.LittleEndian)
	type field struct {
		name string
		at   int
	}
	for _, c := range []struct {
		name   string
		blob   []byte
		fields []field
	}{
		{"PRIVATEKEYBLOB", capi, []field{{"type", 0}, {"version", 1}, {"reserved", 2}, {"algorithm", 5}, {"magic", 8}, {"bits", 12}, {"e", 16}, {"n", 20}, {"p", 148}, {"q", 212}, {"dP", 276},
			{"dQ", 340}, {"qInv", 404}, {"d", 468}}},
		{"RSAFULLPRIVATEBLOB", full, []field{{"bits", 4}, {"cbE", 8}, {"cbN", 12}, {"cbP", 16}, {"cbQ", 20}, {"e", 26}, {"n", 154}, {"p", 218}, {"q", 282},
			{"dP", 346}, {"dQ", 410}, {"qInv", 474}, {"d", 602}}},
		{"RSAPRIVATEBLOB", short, []field{{"bits", 4}, {"e", 26}, {"n", 154}, {"p", 218}, {"q", 282}}},
		{"ECCPRIVATEBLOB", bcryptEC(t, ec, "ECK2", false), []field{{"magic", 0}, {"size", 4}, {"x", 39}, {"y", 71}, {"d", 103}}},
	} {
		parseBlob(t, c.blob)
		for _, f := range c.fields {
			bad := slices.Clone(c.blob)
			bad[f.at] ^= 2
			if _, err := wcce.ParseKeyBlob(bad); err == nil && !(c.name == "RSAPRIVATEBLOB" && f.name == "e") {
				t.Errorf("%s with a wrong %s was accepted", c.name, f.name)
			}
		}
		for n := range c.blob {
			if _, err := wcce.ParseKeyBlob(c.blob[:n]); err == nil {
				t.Errorf("%d of %d octets of %s were accepted", n, len(c.blob), c.name)
			}
		}
		if _, err := wcce.ParseKeyBlob(append(slices.Clone(c.blob), 0)); err == nil {
			t.Errorf("%s with one octet too many was accepted", c.name)
		}
	}
}

func TestAKeyThatDoesNotFitABlobIsAnError(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []any{p224, "no key", nil} {
		if _, err := wcce.MarshalKeyBlob(key); err == nil {
			t.Errorf("%T was written", key)
		}
	}
}

func FuzzParseKeyBlob(f *testing.F) {
	key := testpki.RSA(f, 1024)
	capi, err := wcce.MarshalKeyBlob(key)
	if err != nil {
		f.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{capi, bcryptRSA(key, true, binary.LittleEndian), bcryptRSA(key, false, binary.BigEndian), bcryptEC(f, ec, "ECK2", true)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		before := slices.Clone(blob)
		k, err := wcce.ParseKeyBlob(blob)
		if !bytes.Equal(before, blob) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			return
		}
		defer k.Wipe()
		if !k.Matches(k.Public) {
			t.Fatal("the key does not match itself")
		}
		if _, err := x509.ParsePKCS8PrivateKey(k.PKCS8); err != nil && k.Bits >= 1024 {
			t.Fatalf("an accepted key has an unreadable PKCS#8 form: %v", err)
		}
	})
}
