//go:build cgo

package pkcs11_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/test/softhsm"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestKeysThatPKCS11ToolMadeAreUsed(t *testing.T) {
	hsm := softhsm.New(t)
	hsm.Tool(t, "--keypairgen", "--key-type", "rsa:2048", "--label", "ca", "--id", "01")
	hsm.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "02")
	for _, label := range []string{"ca", "curve"} {
		token, err := pkcs11.Open(hsm.URI(label), "")
		if err != nil {
			t.Fatal(err)
		}
		defer token.Close()
		key, err := token.Key()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		// OpenSSL checks the signature.
		if out, err := testpki.OpenSSL(t, der, "req", "-inform", "DER", "-verify", "-noout"); err != nil {
			t.Errorf("%s: %v\n%s", label, err, out)
		}
		if _, ok := key.(crypto.Decrypter); ok != (label == "ca") {
			t.Errorf("%s decrypts: %v", label, ok)
		}
	}
}

func TestAWrongBlockGivesARandomKey(t *testing.T) {
	token := open(t, softhsm.New(t))
	made, err := token.GenerateRSA([]byte{7}, "exchange", 2048, true)
	if err != nil {
		t.Fatal(err)
	}
	key, pub := made.(pkcs11.Key), made.Public().(*rsa.PublicKey)
	//lint:ignore SA1019 what Windows clients send
	opts := &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 32}
	secret := []byte("0123456789abcdef0123456789abcdef")
	good, err := rsa.EncryptPKCS1v15(rand.Reader, pub, secret) //lint:ignore SA1019 as above
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.EncryptPKCS1v15(rand.Reader, pub, secret[:24]) //lint:ignore SA1019 as above
	if err != nil {
		t.Fatal(err)
	}
	broken := append([]byte{}, good...)
	broken[len(broken)-1] ^= 1
	if got, err := key.Decrypt(rand.Reader, good, opts); err != nil || string(got) != string(secret) {
		t.Fatalf("%q, %v", got, err)
	}
	for name, block := range map[string][]byte{"of another length": short, "broken": broken} {
		one, err := key.Decrypt(rand.Reader, block, opts)
		two, err2 := key.Decrypt(rand.Reader, block, opts)
		if err != nil || err2 != nil || len(one) != 32 || string(one) == string(two) {
			t.Errorf("a block that is %s: %x, %v; %x, %v", name, one, err, two, err2)
		}
	}
	sum := sha256.Sum256(secret)
	if _, err := key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}); err != nil {
		t.Error(err)
	}
}

func TestADestroyedKeyIsGone(t *testing.T) {
	hsm := softhsm.New(t)
	token := open(t, hsm)
	if _, err := token.GenerateRSA([]byte{9}, "old", 2048, true); err != nil {
		t.Fatal(err)
	}
	if !hsm.Has(t, "old") {
		t.Fatal("pkcs11-tool does not see the key")
	}
	if text := hsm.Tool(t, "--list-objects", "--type", "privkey"); !strings.Contains(text, "never extractable") {
		t.Errorf("the key can leave the token:\n%s", text)
	}
	for range 2 { // again is no error
		if err := token.Destroy([]byte{9}); err != nil {
			t.Fatal(err)
		}
	}
	if key, err := token.Find([]byte{9}); err != nil || key != nil || hsm.Has(t, "old") {
		t.Errorf("%v, %v", key, err)
	}
}

func TestACertificateInTheTokenIsFound(t *testing.T) {
	hsm := softhsm.New(t)
	key, cert := testpki.Agent(t, "kra", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	hsm.Import(t, "kra", "05", key, cert)
	token, err := pkcs11.Open(hsm.URI("kra"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	got, err := token.Certificate()
	if err != nil || got == nil || !got.Equal(cert) {
		t.Fatalf("%v, %v", got, err)
	}
	// No public key lies beside it: the certificate's serves.
	found, err := token.Key()
	if err != nil || !key.PublicKey.Equal(found.Public()) {
		t.Errorf("%v, %v", found, err)
	}
}

func TestWhatIsWrongWithAURIIsSaid(t *testing.T) {
	hsm := softhsm.New(t)
	for uri, want := range map[string]string{
		"pkcs11:object=ca?module-path=" + hsm.Module + "&pin-source=file:/x": "token=",
		"pkcs11:token=test;object=ca?pin-source=file:/x":                     "module-path",
		"pkcs11:token=test?module-path=" + hsm.Module:                        "pin-source",
		"pkcs11:token=test?module-path=" + hsm.Module + "&pin-value=4711":    "PIN is in the URI",
		strings.Replace(hsm.URI("ca"), "token=test", "token=other", 1):       "other",
		hsm.URI("nobody"): "nobody",
		"pkcs11:token=test?module-path=/nowhere.so&pin-source=file:/x": "/nowhere.so",
	} {
		if _, err := pkcs11.OpenKey(uri, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", uri, err, want)
		}
	}
	if _, err := pkcs11.Open(strings.Split(hsm.URI(""), "&")[0], "wrong"); err == nil {
		t.Error("a wrong PIN opens the token")
	}
}

func open(t *testing.T, hsm *softhsm.Token) *pkcs11.Token {
	t.Helper()
	token, err := pkcs11.Open(hsm.URI(""), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = token.Close() })
	return token
}
