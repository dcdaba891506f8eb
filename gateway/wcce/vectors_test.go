package wcce_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/vectors"
)

// What each recorded request must turn out to be. The attribute counts were read off with OpenSSL's asn1parse.
type expectation struct {
	format   wcce.Format
	archived bool
	template string
	renewal  bool
	values   int // name/value pairs
}

func expectations() map[string]expectation {
	const ejbcaOID = "1.3.6.1.4.1.311.21.8."
	return map[string]expectation{
		"ejbca/sample-request.cmc.der":     {format: wcce.CMC, archived: true, template: "User", values: 1},
		"ejbca/user-enroll-1.cmc.der":      {format: wcce.CMC, archived: true, template: ejbcaOID},
		"ejbca/user-enroll-4.cmc.der":      {format: wcce.CMC, archived: true, template: ejbcaOID},
		"pbyk/win-tpm-aik-attest.cmc.der":  {format: wcce.CMC},
		"pkix.net/mmc-cmc.cmc.der":         {format: wcce.CMC, template: ejbcaOID},
		"ms-wstep/4.1.5.1-tok0.der":        {format: wcce.PKCS7, renewal: true},
		"pkix.net/v1-template.p10.der":     {format: wcce.PKCS10, template: "*"},
		"pkix.net/offline-req-nvp.p10.der": {format: wcce.PKCS10, values: 1},
	}
}

func TestEveryRecordedRequestDecodesAndVerifies(t *testing.T) {
	want := expectations()
	for name, der := range vectors.Requests(t) {
		t.Run(name, func(t *testing.T) {
			r, err := wcce.ParseRequest(der)
			if err != nil {
				t.Fatal(err)
			}
			w, ok := want[name]
			if !ok {
				w.format = wcce.PKCS10
			}
			if r.Format != w.format {
				t.Errorf("format %s, want %s", r.Format, w.format)
			}
			if (r.Archived != nil) != w.archived {
				t.Errorf("archived key present: %t, want %t", r.Archived != nil, w.archived)
			}
			if r.ArchivedErr != nil {
				t.Errorf("archived key: %v", r.ArchivedErr)
			}
			if (r.Renewal != nil) != w.renewal {
				t.Errorf("renewal: %t, want %t", r.Renewal != nil, w.renewal)
			}
			if len(r.Values) != w.values {
				t.Errorf("name/value pairs %v, want %d", r.Values, w.values)
			}
			switch {
			case w.template == "*":
				if r.Template.Name == "" {
					t.Errorf("no template name")
				}
			case w.template == "User":
				if r.Template.Name != "User" {
					t.Errorf("template %q, want User", r.Template.Name)
				}
			case w.template != "" && (len(r.Template.OID) < len(w.template) || r.Template.OID[:len(w.template)] != w.template):
				t.Errorf("template OID %q, want prefix %q", r.Template.OID, w.template)
			}
			// The standard library knows only the extension request: everything else must not be lost.
			if std, err := x509.ParseCertificateRequest(r.CSR.Raw); err == nil && len(std.Extensions) != len(r.CSR.Extensions) && r.Format != wcce.CMC {
				t.Errorf("%d extensions, crypto/x509 finds %d", len(r.CSR.Extensions), len(std.Extensions))
			}
			t.Logf("%s, %d attributes, %d extensions, %d signers, template %+v", r.Format, len(r.CSR.Attributes), len(r.CSR.Extensions), len(r.Signers), r.Template)
		})
	}
}

func exchangeKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(vectors.Read(t, "ejbca/exchange-key.pem"))
	if block == nil {
		t.Fatal("exchange-key.pem holds no PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	return key.(*rsa.PrivateKey)
}

func TestTheRecordedArchivedKeyOpensAndMatchesTheRequest(t *testing.T) {
	r, err := wcce.ParseRequest(vectors.Read(t, "ejbca/user-enroll-1.cmc.der"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := wcce.ParseEnveloped(r.Archived.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if r.Archived.HashAlg != crypto.SHA1 {
		t.Errorf("hash algorithm %v, want SHA-1", r.Archived.HashAlg)
	}
	plain, err := e.Open(&e.Recipients[0], exchangeKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(plain) != 1172 {
		t.Errorf("key blob of %d octets, want 1172", len(plain))
	}
	blob, err := wcce.ParseKeyBlob(plain)
	if err != nil {
		t.Fatal(err)
	}
	if !blob.Matches(r.CSR.PublicKey) {
		t.Error("the archived key is not that of the request")
	}
	// The standard library, which nobody here wrote, must accept the PKCS#8 form and agree on the key.
	key, err := x509.ParsePKCS8PrivateKey(blob.PKCS8)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.(*rsa.PrivateKey).Validate(); err != nil {
		t.Error(err)
	}
	if !key.(*rsa.PrivateKey).PublicKey.Equal(r.CSR.PublicKey) {
		t.Error("the PKCS#8 form holds another key")
	}
	blob.Wipe()
	for _, b := range blob.PKCS8 {
		if b != 0 {
			t.Fatal("the key was not wiped")
		}
	}
}

func TestAWrongExchangeKeyOpensNothing(t *testing.T) {
	r, err := wcce.ParseRequest(vectors.Read(t, "ejbca/user-enroll-4.cmc.der"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := wcce.ParseEnveloped(r.Archived.Raw)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := e.Open(&e.Recipients[0], exchangeKey(t))
	if err == nil {
		if _, err = wcce.ParseKeyBlob(plain); err == nil {
			t.Fatal("a foreign exchange key opened the archived key")
		}
	}
}

func TestRecordedRepliesParse(t *testing.T) {
	t.Run("the CMC full response of AD CS", func(t *testing.T) {
		r, err := wcce.ParseResponse(vectors.Read(t, "ms-wstep/4.1.1.2-tok0.der"))
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != wcce.StatusIssued || r.Text != "Issued" || r.Certificate == nil || len(r.Chain) != 2 {
			t.Errorf("status %d %q, certificate %t, chain of %d", r.Status, r.Text, r.Certificate != nil, len(r.Chain))
		}
		issued, err := x509.ParseCertificate(vectors.Read(t, "ms-wstep/4.1.1.2-tok1.der"))
		if err != nil {
			t.Fatal(err)
		}
		if r.Certificate == nil || !r.Certificate.Equal(issued) {
			t.Error("the enclosed certificate is not the issued one")
		}
	})
	t.Run("the recovery blob of certutil", func(t *testing.T) {
		sd, err := wcce.ParseSignedData(vectors.Read(t, "pkix.net/getkey-recovery-blob.p7.der"))
		if err != nil {
			t.Fatal(err)
		}
		if err := sd.VerifyAll(); err != nil {
			t.Error(err)
		}
		e, err := wcce.ParseEnveloped(sd.Content)
		if err != nil {
			t.Fatal(err)
		}
		if e.Cipher != wcce.OIDDESEDE3CBC || len(e.Recipients) != 1 {
			t.Errorf("cipher %s, %d recipients", e.Cipher, len(e.Recipients))
		}
	})
}

func TestEveryTruncationIsAnErrorAndNoFlippedBitIsAccepted(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: every octet of every recorded request")
	}
	for name, der := range vectors.Requests(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := range der {
				if _, err := wcce.ParseRequest(der[:n]); err == nil {
					t.Fatalf("%d of %d octets were accepted", n, len(der))
				}
			}
			good, err := wcce.ParseRequest(der)
			if err != nil {
				t.Fatal(err)
			}
			step := max(1, len(der)/400)
			for i := 0; i < len(der); i += step {
				bad := append([]byte{}, der...)
				bad[i] ^= 1 << (i % 8)
				r, err := wcce.ParseRequest(bad)
				if err != nil || r.ArchivedErr != nil {
					continue
				}
				// A flip may go unnoticed only where nothing is signed: it must not change what was asked for.
				if string(r.CSR.RawInfo) != string(good.CSR.RawInfo) {
					t.Fatalf("octet %d flipped: another request was accepted", i)
				}
				if (r.Archived == nil) != (good.Archived == nil) {
					continue // the attribute's type was hit: the request now encloses no key, which policy refuses
				}
				if r.Archived != nil && string(r.Archived.Raw) != string(good.Archived.Raw) {
					t.Fatalf("octet %d flipped: another enclosed key was accepted", i)
				}
			}
		})
	}
}
