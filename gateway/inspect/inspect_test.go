package inspect_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/inspect"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
)

func describe(t testing.TB, data []byte, key crypto.Decrypter) *inspect.Report {
	t.Helper()
	r, err := inspect.Describe(data, key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func exchangeKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	r, err := wcce.ParseRequest(vectors.Read(t, "ejbca/user-enroll-1.cmc.der"))
	if err != nil {
		t.Fatal(err)
	}
	_, key := vectors.ExchangeCertificate(t, r.Archived.Raw)
	return key
}

// recorded is what a recording must turn out to be; the facts are those of the MANIFEST files beside the recordings.
type recorded struct {
	kind     string
	template string // "name|OID prefix|major.minor"
	bits     int
	cipher   string // of an archived key
}

func TestEveryRecordingIsDescribed(t *testing.T) {
	want := map[string]recorded{
		"ejbca/sample-request.cmc.der":         {"cmc-request", "User||", 1024, "3DES-CBC"},
		"ejbca/user-enroll-1.cmc.der":          {"cmc-request", "|1.3.6.1.4.1.311.21.8.|100.135", 2048, "3DES-CBC"},
		"ejbca/user-enroll-4.cmc.der":          {"cmc-request", "|1.3.6.1.4.1.311.21.8.|100.137", 2048, "3DES-CBC"},
		"pbyk/win-tpm-aik-attest.cmc.der":      {"cmc-request", "", 2048, ""},
		"pkix.net/mmc-cmc.cmc.der":             {"cmc-request", "|1.3.6.1.4.1.311.21.8.|100.17", 2048, ""},
		"pkix.net/getkey-recovery-blob.p7.der": {"recovery-blob", "|1.3.6.1.4.1.311.21.8.|101.2", 2048, "3DES-CBC"},
		"pkix.net/236fa1df4c0c.p10.der":        {"pkcs10", "", 1024, ""},
		"pkix.net/v1-template.p10.der":         {"pkcs10", "SubCA||", 384, ""},
		"pkix.net/offline-req-nvp.p10.der":     {"pkcs10", "", 2048, ""},
		"ms-wstep/4.1.1.1-tok0.der":            {"pkcs10", "User||", 2048, ""},
		"ms-wstep/4.1.1.2-tok0.der":            {"cmc-response", "User||", 2048, ""},
		"ms-wstep/4.1.1.2-tok1.der":            {"certificate", "User||", 2048, ""},
		"ms-wstep/4.1.2.2-tok0.der":            {"certificate", "CAExchange|1.3.6.1.4.1.311.21.8.|106.0", 2048, ""},
		"ms-wstep/4.1.5.1-tok0.der":            {"pkcs7-request", "User||", 2048, ""},
		"ms-wstep/4.1.1.1.xml":                 {"pkcs10", "User||", 2048, ""},
		"ms-wstep/4.1.1.2.xml":                 {"cmc-response", "User||", 2048, ""},
		"ms-wstep/4.1.5.1.xml":                 {"pkcs7-request", "User||", 2048, ""},
		"tamemycerts/eb04ec48b2ea.p10.der":     {"pkcs10", "", 8192, ""},
		"tamemycerts/416a72a3e762.p10.der":     {"pkcs10", "", 256, ""},
		"tamemycerts/c412a75c3cb1.p10.der":     {"pkcs10", "", 1024, ""},
	}
	files, err := filepath.Glob(filepath.Join(vectors.Dir(t), "*", "*.der"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d recordings: %v", len(files), err)
	}
	names := map[string]bool{}
	for _, f := range files {
		names[filepath.Base(filepath.Dir(f))+"/"+filepath.Base(f)] = true
	}
	for name := range want {
		names[name] = true
	}
	delete(names, "ejbca/exchange-key.p8.der")
	for name := range names {
		t.Run(name, func(t *testing.T) {
			w, ok := want[name]
			if !ok {
				w.kind = "pkcs10"
			}
			r := describe(t, vectors.Read(t, name), nil)
			if r.Kind != w.kind {
				t.Errorf("kind %s, want %s", r.Kind, w.kind)
			}
			if r.Problem != "" {
				t.Errorf("problem: %s", r.Problem)
			}
			checkRecorded(t, r, w)
		})
	}
}

func checkRecorded(t *testing.T, r *inspect.Report, w recorded) {
	t.Helper()
	if len(r.Signers) == 0 && r.Kind != inspect.KindCertificate {
		t.Error("no signers")
	}
	for _, s := range r.Signers {
		if !s.Verified {
			t.Errorf("signer %+v is not verified", s)
		}
		if s.KeyID == "" && (s.Issuer == "" || s.Serial == "") {
			t.Errorf("signer %+v has no name", s)
		}
	}
	if w.bits != 0 && (r.PublicKey == nil || r.PublicKey.Bits != w.bits) {
		t.Errorf("public key %+v, want %d bits", r.PublicKey, w.bits)
	}
	if w.template == "" {
		if r.Template != nil {
			t.Errorf("template %+v, want none", *r.Template)
		}
	} else if r.Template == nil {
		t.Error("no template")
	} else {
		checkTemplate(t, r.Template, strings.Split(w.template, "|"))
	}
	a := r.ArchivedKey
	if a.Present != (w.cipher != "") || a.Cipher != w.cipher {
		t.Errorf("archived key present: %t, cipher %q, want %q", a.Present, a.Cipher, w.cipher)
	}
	if a.Present && r.Kind == inspect.KindCMC && (a.HashValid == nil || !*a.HashValid) {
		t.Error("the archived key's hash is not valid")
	}
	if a.Opened || a.Algorithm != "" || a.Bits != 0 || a.MatchesRequest != nil {
		t.Errorf("without an exchange key nothing may be claimed about the archived key: %+v", a)
	}
	var text bytes.Buffer
	if err := r.Text(&text); err != nil || !strings.Contains(text.String(), r.Kind) {
		t.Errorf("text: %v\n%s", err, text.String())
	}
}

func checkTemplate(t *testing.T, got *inspect.Template, want []string) {
	t.Helper()
	if got.Name != want[0] || !strings.HasPrefix(got.OID, want[1]) || (want[1] == "") != (got.OID == "") {
		t.Errorf("template %+v, want %v", *got, want)
	}
	version := ""
	if got.Major != nil && got.Minor != nil {
		b, _ := json.Marshal([]int{*got.Major, *got.Minor})
		version = strings.NewReplacer("[", "", "]", "", ",", ".").Replace(string(b))
	}
	if version != want[2] {
		t.Errorf("template version %q, want %q", version, want[2])
	}
}

func TestTheExchangeKeyOpensTheArchivedKey(t *testing.T) {
	r := describe(t, vectors.Read(t, "ejbca/user-enroll-1.cmc.der"), exchangeKey(t))
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		ArchivedKey map[string]any `json:"archived_key"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]any{"present": true, "algorithm": "RSA", "bits": 2048.0, "matches_request": true, "hash_valid": true, "opened": true,
		"cipher": "3DES-CBC", "form": "PRIVATEKEYBLOB"} {
		if got.ArchivedKey[field] != want {
			t.Errorf("%s is %v, want %v", field, got.ArchivedKey[field], want)
		}
	}
	to := r.ArchivedKey.Recipients
	if len(to) != 1 || to[0].Issuer != "CN=Issuer2" || to[0].Serial != "57de0e626d8b863629bafc07367785a1e2319737" || to[0].Transport != "rsaEncryption" {
		t.Errorf("recipients %+v", to)
	}
}

func TestAWrongKeyIsSaidInTheReport(t *testing.T) {
	for name, key := range map[string]crypto.Decrypter{"ejbca/user-enroll-4.cmc.der": exchangeKey(t),
		"ejbca/user-enroll-1.cmc.der": testpki.RSA(t, 2048), "pkix.net/getkey-recovery-blob.p7.der": testpki.RSA(t, 1024)} {
		r := describe(t, vectors.Read(t, name), key)
		if a := r.ArchivedKey; a.Opened || a.Error == "" || a.MatchesRequest != nil || a.Algorithm != "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestAttributesAreReadable(t *testing.T) {
	r := describe(t, vectors.Read(t, "ejbca/sample-request.cmc.der"), nil)
	want := map[string]string{ // read off with openssl asn1parse
		"OS version|pkcs10":              "6.0.5361.2",
		"name/value pair|pkcs10":         "CertificateTemplate=User",
		"cryptographic provider|pkcs10":  "Microsoft Enhanced Cryptographic Provider v1.0 (key spec 1, key exchange)",
		"client information|cmc control": `client 9, machine vich3d.jdomcsc.nttest.microsoft.com, user JDOMCSC\administrator, process certreq`,
		"encrypted key hash|cmc control": "7746e7e66bb597a67d08bf6e059c79e16dd66b83",
		"contentType|signed":             "CMC PKIData",
	}
	for _, a := range r.Attributes {
		if value, ok := want[a.Name+"|"+a.Where]; ok && a.Value == value {
			delete(want, a.Name+"|"+a.Where)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing %v in %+v", want, r.Attributes)
	}
}

// TestSubjectsAgreeWithOpenSSL compares with another implementation of RFC 4514.
func TestSubjectsAgreeWithOpenSSL(t *testing.T) {
	same := strings.NewReplacer("emailAddress=", "E=", "title=", "T=", "GN=", "G=", "initials=", "I=", "street=", "STREET=", "serialNumber=", "SERIALNUMBER=",
		"unstructuredName=", "1.2.840.113549.1.9.2=", "unstructuredAddress=", "1.2.840.113549.1.9.8=", "postalCode=", "2.5.4.17=", "postOfficeBox=", "2.5.4.18=", "telephoneNumber=", "2.5.4.20=", "description=", "2.5.4.13=")
	compared := 0
	for name, der := range vectors.Requests(t) {
		r := describe(t, der, nil)
		if r.Kind != inspect.KindPKCS10 || r.PublicKey.Algorithm == "DSA" {
			continue
		}
		out, err := testpki.OpenSSL(t, der, "req", "-inform", "DER", "-noout", "-subject", "-nameopt", "RFC2253,-esc_msb,utf8")
		if err != nil {
			t.Fatal(err)
		}
		want := same.Replace(strings.TrimSpace(strings.TrimPrefix(string(out), "subject=")))
		if r.Subject != want {
			t.Errorf("%s: subject %q, OpenSSL says %q", name, r.Subject, want)
		}
		compared++
	}
	if compared < 15 {
		t.Errorf("only %d subjects were compared", compared)
	}
}

func TestAllTextFormsAreRead(t *testing.T) {
	der := syntheticRequest(t, testpki.RSA(t, 2048), nil)
	text := base64.StdEncoding.EncodeToString(der)
	soap := `<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Body><x:BinarySecurityToken xmlns:x="y">` + text[:60] + "\n" + text[60:] +
		`</x:BinarySecurityToken></s:Body></s:Envelope>`
	for input, data := range map[string][]byte{
		"DER":                        der,
		"PEM (NEW REQUEST)":          pem.EncodeToMemory(&pem.Block{Type: "NEW REQUEST", Bytes: der}),
		"base64":                     []byte("\xef\xbb\xbf" + text[:64] + "\r\n" + text[64:] + "\r\n"),
		"SOAP (BinarySecurityToken)": []byte(soap),
	} {
		r := describe(t, data, nil)
		if r.Kind != inspect.KindCMC || r.Input != input {
			t.Errorf("%s: kind %s, input %s", input, r.Kind, r.Input)
		}
	}
}

func TestWhatIsNotAMessageIsAnError(t *testing.T) {
	for data, want := range map[string]string{
		"":                                "empty",
		"\x00\x01\x02":                    "neither one DER sequence nor a private key blob",
		"hello, world!":                   "neither one DER sequence nor a private key blob",
		"-----BEGIN CERTIFICATE-----\nAA": "PEM",
		"AAAA":                            "base64: neither one DER sequence",
		"<a/>":                            "no BinarySecurityToken",
		"0\x03\x02\x01\x05":               "neither a PKCS#10 request",
		"0\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02": "ContentInfo",
	} {
		_, err := inspect.Describe([]byte(data), nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", data, err, want)
		}
	}
}

func TestInvalidMessagesAreStillShown(t *testing.T) {
	der := vectors.Read(t, "ejbca/user-enroll-1.cmc.der")
	bad := bytes.Clone(der)
	e := bytes.LastIndex(bad, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x03, 0x07})
	if e < 0 {
		t.Fatal("the recording has changed")
	}
	bad[e+30] ^= 1 // within the encrypted content: the hash no longer fits
	r := describe(t, bad, exchangeKey(t))
	if r.ArchivedKey.HashValid == nil || *r.ArchivedKey.HashValid || r.Problem == "" {
		t.Errorf("a changed archived key: hash valid %v, problem %q", r.ArchivedKey.HashValid, r.Problem)
	}
	if len(r.Signers) != 1 || !r.Signers[0].Verified {
		t.Errorf("the archived key is not signed, the signature must hold: %+v", r.Signers)
	}

	bad = bytes.Clone(der)
	hash := bytes.Index(bad, []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x15, 0x15})
	bad[hash+15] ^= 1 // within the signed control
	r = describe(t, bad, exchangeKey(t))
	if len(r.Signers) != 1 || r.Signers[0].Verified || r.Signers[0].Error == "" || r.Problem == "" {
		t.Errorf("a changed control: %+v, problem %q", r.Signers, r.Problem)
	}
	if r.Template == nil || !r.Possession.Verified {
		t.Error("the rest must be shown")
	}
}

func TestTruncatedAndFlippedRecordingsNeverPanic(t *testing.T) {
	key := exchangeKey(t)
	for _, name := range []string{"ejbca/user-enroll-1.cmc.der", "pkix.net/getkey-recovery-blob.p7.der", "ms-wstep/4.1.1.2-tok0.der", "ms-wstep/4.1.5.1-tok0.der"} {
		der := vectors.Read(t, name)
		for n := range der {
			if _, err := inspect.Describe(der[:n], nil); err == nil {
				t.Fatalf("%s: %d of %d octets were described", name, n, len(der))
			}
		}
		for i := range der {
			bad := bytes.Clone(der)
			bad[i] ^= 1 << (i % 8)
			k := crypto.Decrypter(nil)
			if i%64 == 0 {
				k = key
			}
			if r, err := inspect.Describe(bad, k); err == nil {
				if err := r.Text(&bytes.Buffer{}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestNoReportHoldsAPrivateKey(t *testing.T) {
	own := testpki.RSA(t, 2048)
	blob, err := wcce.MarshalKeyBlob(own)
	if err != nil {
		t.Fatal(err)
	}
	blobReport, err := json.Marshal(describe(t, blob, nil))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(blobReport); n > 600 || bytes.Contains(blobReport, []byte(own.Primes[0].Text(16)[:32])) {
		t.Errorf("a report of %d octets about a key blob: %s", n, blobReport)
	}
}

func syntheticRequest(t testing.TB, key crypto.Signer, o func(*wcce.RequestOptions)) []byte {
	t.Helper()
	options := wcce.RequestOptions{Key: key, Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("Mail")}}}
	if o != nil {
		o(&options)
	}
	der, err := wcce.NewRequest(options)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func FuzzDescribe(f *testing.F) {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		f.Fatal(err)
	}
	seeds(f, key, func(der []byte) { f.Add(der) })
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := inspect.Describe(data, key)
		if err != nil {
			return
		}
		if err := r.Text(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
	})
}
