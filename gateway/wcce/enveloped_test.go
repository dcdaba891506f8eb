package wcce_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// holder is somebody that content is encrypted to.
type holder struct {
	key               *rsa.PrivateKey
	cert              *x509.Certificate
	keyFile, certFile string
}

func newHolder(t testing.TB, name string) *holder {
	t.Helper()
	key, cert := testpki.Agent(t, name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	return &holder{key, cert, testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), testpki.PEM(t, "CERTIFICATE", cert.Raw)}
}

func TestWhatOpenSSLEncryptsOpens(t *testing.T) {
	h := newHolder(t, "holder")
	for cipher, oid := range map[string]string{"des3": wcce.OIDDESEDE3CBC, "aes128": wcce.OIDAES128CBC, "aes192": wcce.OIDAES192CBC, "aes256": wcce.OIDAES256CBC} {
		for _, mode := range []struct {
			name, transport string
			args            []string
		}{
			{"PKCS#1 v1.5", wcce.OIDRSAEncryption, nil},
			{"OAEP", wcce.OIDRSAESOAEP, []string{"-keyopt", "rsa_padding_mode:oaep"}},
			{"OAEP with SHA-256", wcce.OIDRSAESOAEP, []string{"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256"}},
		} {
			t.Run(cipher+" "+mode.name, func(t *testing.T) {
				for _, size := range []int{1, 15, 16, 1172} { // padding of every kind, and an RSA 2048 key blob
					content := bytes.Repeat([]byte{0x5a}, size)
					args := append([]string{"cms", "-encrypt", "-" + cipher, "-binary", "-outform", "DER", "-recip", h.certFile}, mode.args...)
					der, err := testpki.OpenSSL(t, content, args...)
					if err != nil {
						t.Fatal(err)
					}
					e, err := wcce.ParseEnveloped(der)
					if err != nil {
						t.Fatal(err)
					}
					if e.Cipher != oid || len(e.Recipients) != 1 || e.Recipients[0].Transport != mode.transport || !e.Recipients[0].Names(h.cert) {
						t.Errorf("cipher %s, recipients %+v", e.Cipher, e.Recipients)
					}
					plain, err := e.Open(&e.Recipients[0], h.key)
					if err != nil || !bytes.Equal(plain, content) {
						t.Errorf("%d octets came out as %d: %v", size, len(plain), err)
					}
				}
			})
		}
	}
}

func TestOpenSSLRecipientsByKeyIdentifier(t *testing.T) {
	key := testpki.RSA(t, 2048)
	template := &x509.Certificate{SerialNumber: newHolder(t, "x").cert.SerialNumber, SubjectKeyId: []byte{1, 2, 3, 4}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err = testpki.OpenSSL(t, []byte("text"), "cms", "-encrypt", "-aes256", "-binary", "-outform", "DER", "-keyid", "-recip", testpki.PEM(t, "CERTIFICATE", der))
	if err != nil {
		t.Fatal(err)
	}
	e, err := wcce.ParseEnveloped(der)
	if err != nil {
		t.Fatal(err)
	}
	if r := e.Recipients[0]; !bytes.Equal(r.KeyID, []byte{1, 2, 3, 4}) || !r.Names(&x509.Certificate{SubjectKeyId: []byte{1, 2, 3, 4}}) || r.Names(&x509.Certificate{SubjectKeyId: []byte{1}}) {
		t.Errorf("%+v", r)
	}
	if plain, err := e.Open(&e.Recipients[0], key); err != nil || string(plain) != "text" {
		t.Errorf("%q: %v", plain, err)
	}
}

func TestEachRecipientOpensWhatIsSealedWithOpenSSL(t *testing.T) {
	holders := []*holder{newHolder(t, "first"), newHolder(t, "second"), newHolder(t, "third")}
	stranger := newHolder(t, "stranger")
	content := bytes.Repeat([]byte("secret"), 99)
	for _, cipher := range []string{wcce.OIDDESEDE3CBC, wcce.OIDAES128CBC, wcce.OIDAES192CBC, wcce.OIDAES256CBC} {
		for _, oaep := range []bool{false, true} {
			sealed, err := wcce.Seal(content, cipher, oaep, holders[0].cert, holders[1].cert, holders[2].cert)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "sealed.der")
			if err := os.WriteFile(file, sealed, 0o600); err != nil {
				t.Fatal(err)
			}
			open := func(h *holder) ([]byte, error) {
				return testpki.OpenSSL(t, nil, "cms", "-decrypt", "-inform", "DER", "-binary", "-in", file, "-recip", h.certFile, "-inkey", h.keyFile)
			}
			for _, h := range holders {
				if plain, err := open(h); err != nil || !bytes.Equal(plain, content) {
					t.Errorf("%s, OAEP %t, %s: OpenSSL finds %d octets: %v", cipher, oaep, h.cert.Subject, len(plain), err)
				}
			}
			if plain, err := open(stranger); err == nil && bytes.Equal(plain, content) {
				t.Error("a stranger opens it")
			}
		}
	}
}

func TestDamageToSealedContentGivesOneError(t *testing.T) {
	h := newHolder(t, "holder")
	der, err := wcce.Seal(bytes.Repeat([]byte{1}, 64), wcce.OIDAES256CBC, false, h.cert)
	if err != nil {
		t.Fatal(err)
	}
	e, err := wcce.ParseEnveloped(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(&e.Recipients[0], h.key); err != nil {
		t.Fatal(err)
	}
	texts := map[string]bool{}
	stranger := testpki.RSA(t, 2048)
	for range 20 {
		plain, err := e.Open(&e.Recipients[0], stranger)
		if err == nil { // one in 256: what looks like padding is not the content
			if bytes.Equal(plain, bytes.Repeat([]byte{1}, 64)) {
				t.Fatal("a wrong key opened it")
			}
			continue
		}
		texts[err.Error()] = true
	}
	short := bytes.Clone(der)
	// The last block holds the padding: flipping it must give the same error as a wrong key.
	short[len(short)-17] ^= 0x80
	if e, err = wcce.ParseEnveloped(short); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(&e.Recipients[0], h.key); err == nil {
		t.Error("broken padding was accepted")
	} else {
		texts[err.Error()] = true
	}
	if len(texts) != 1 {
		t.Errorf("errors tell failures apart: %v", texts)
	}
	if _, err := wcce.Seal([]byte{1}, "1.2.3", false, h.cert); err == nil {
		t.Error("an unknown cipher was taken")
	}
	if _, err := wcce.Seal([]byte{1}, wcce.OIDAES256CBC, false); err == nil || !strings.Contains(err.Error(), "recipient") {
		t.Errorf("nobody to seal to: %v", err)
	}
}

func FuzzParseEnveloped(f *testing.F) {
	key := testpki.RSA(f, 1024)
	template := &x509.Certificate{SerialNumber: newHolder(f, "x").cert.SerialNumber, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	cert := testpki.Cert(f, raw)
	for _, cipher := range []string{wcce.OIDDESEDE3CBC, wcce.OIDAES128CBC} {
		seed, err := wcce.Seal([]byte("content"), cipher, cipher == wcce.OIDAES128CBC, cert)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		e, err := wcce.ParseEnveloped(der)
		if err != nil {
			return
		}
		for i := range e.Recipients {
			e.Recipients[i].Names(cert)
			if plain, err := e.Open(&e.Recipients[i], key); err == nil {
				wcce.Wipe(plain)
			}
		}
	})
}
