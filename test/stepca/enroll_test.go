package stepca

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
	"github.com/enrollgate/enrollgate/test/world"
)

// gateway runs the gateway in front of the server.
func gateway(t testing.TB, s *server.Server, identity string) *world.World {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{"key.jwk": s.Key, "password": []byte(server.Password + "\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return world.StartChanged(t, "", func(cfg *config.Config) {
		cfg.CAs = []config.CA{{Name: world.CAName, Driver: "step-ca", Identity: identity, StepCA: config.StepCA{URL: s.URL, Root: s.RootFile,
			Provisioner: server.Provisioner, Key: filepath.Join(dir, "key.jwk"), Password: config.Secret{File: filepath.Join(dir, "password")}}}}
	})
}

func TestAnArchivedEnrollmentThroughStepCA(t *testing.T) {
	inlab.Need(t)
	for _, identity := range []string{"own", "upstream"} {
		t.Run(identity, func(t *testing.T) {
			s := server.Start(t, stepca.Template)
			w := gateway(t, s, identity)
			alice := w.Client(t, "alice")

			// As our client does it: everything that it checks of an AD CS reply.
			result, err := client.Enroll(background, client.Options{PolicyURL: alice.CEP, HTTP: alice.HTTP, Template: "LabUserSMIME"})
			if err != nil {
				t.Fatal(err)
			}
			if !result.ArchivedConfirmed || len(result.Chain) != 2 || !result.Chain[1].Equal(s.Root) {
				t.Errorf("archived %v, chain %v", result.ArchivedConfirmed, result.Chain)
			}
			if published := result.CA.Equal(s.Issuing); published != (identity == "upstream") {
				t.Errorf("the policy publishes %q", result.CA.Subject)
			}

			// By hand, to know what must not be sent.
			exchange := alice.Exchange(t)
			if err := exchange.CheckSignatureFrom(result.CA); err != nil {
				t.Errorf("exchange certificate: %v", err)
			}
			der, key := world.Request(t, "LabUserSMIME", exchange)
			reply, err := alice.Submit(t, der)
			if err != nil {
				t.Fatal(err)
			}
			sent, err := wcce.ParseRequest(der)
			if err != nil {
				t.Fatal(err)
			}
			full, err := wcce.ParseResponse(reply.PKCS7)
			if err != nil || !bytes.Equal(full.KeyHash, sent.Archived.Hash) {
				t.Fatalf("response %+v, %v", full, err)
			}
			cert := testpki.Cert(t, reply.Certificate)
			if identity == "upstream" {
				verifies(t, s, full.Signer)
				verifies(t, s, exchange)
			} else if !full.Signer.Equal(result.CA) {
				t.Errorf("the response is signed by %q", full.Signer.Subject)
			}

			verifies(t, s, cert)
			checkContents(t, cert)
			entries, err := w.Escrow.List(background, "alice", 10)
			if err != nil || len(entries) != 2 {
				t.Fatalf("%d archived keys, %v", len(entries), err)
			}
			recovered := map[string]crypto.PrivateKey{}
			for i := range entries {
				got, err := w.Escrow.Recover(background, &entries[i], w.AgentKey, w.Agent, "test", "drill")
				if err != nil {
					t.Fatal(err)
				}
				recovered[got.Certificate.SerialNumber.String()] = got.Key
			}
			if !key.Equal(recovered[cert.SerialNumber.String()]) || !result.Key.(*rsa.PrivateKey).Equal(recovered[result.Certificate.SerialNumber.String()]) {
				t.Error("other keys were recovered")
			}
			nothingSecretWasSent(t, s, sent, key, result.Key.(*rsa.PrivateKey))
		})
	}
}

// verifies lets openssl check the chain to step-ca's root.
func verifies(t testing.TB, s *server.Server, cert *x509.Certificate) {
	t.Helper()
	out, err := testpki.OpenSSL(t, nil, "verify", "-x509_strict", "-CAfile", s.RootFile, "-untrusted", testpki.PEM(t, "CERTIFICATE", s.Issuing.Raw), testpki.PEM(t, "CERTIFICATE", cert.Raw))
	if err != nil || !strings.Contains(string(out), ": OK") {
		t.Errorf("openssl verify: %s %v", out, err)
	}
}

// checkContents lets openssl read the certificate.
func checkContents(t testing.TB, cert *x509.Certificate) {
	t.Helper()
	text, err := testpki.OpenSSL(t, cert.Raw, "x509", "-inform", "DER", "-noout", "-text", "-nameopt", "RFC2253")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Issuer: CN=Step Issuing CA,O=Lab", "emailAddress=alice@lab.test,CN=Alice Archer,CN=Users,DC=lab,DC=test", "email:alice@lab.test",
		"E-mail Protection", "Digital Signature, Key Encipherment", "1.3.6.1.4.1.311.25.2", "1.3.6.1.4.1.311.21.7", "http://ca.lab.test/1.0/crl"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the certificate lacks %q:\n%s", want, text)
		}
	}
}

// nothingSecretWasSent looks for the archived key, sealed and in the clear, in every octet that step-ca was sent: as it is,
// and within what is encoded there. That the search would find it is shown with the CSR, which was sent.
func nothingSecretWasSent(t testing.TB, s *server.Server, request *wcce.Request, keys ...*rsa.PrivateKey) {
	t.Helper()
	sent := views(s.Proxy.Everything())
	contains := func(part []byte) bool {
		return slices.ContainsFunc(sent, func(v []byte) bool { return bytes.Contains(v, part) })
	}
	if !contains(request.CSR.Raw) {
		t.Fatal("the search does not even find the CSR")
	}
	secrets := map[string][]byte{"the archived key": request.Archived.Raw, "its hash": request.Archived.Hash}
	for i, key := range keys {
		secrets[fmt.Sprintf("prime 1 of key %d", i)] = key.Primes[0].Bytes()
		secrets[fmt.Sprintf("prime 2 of key %d", i)] = key.Primes[1].Bytes()
		secrets[fmt.Sprintf("exponent of key %d", i)] = key.D.Bytes()
	}
	for name, secret := range secrets {
		// Any 24 octets in a row would be too many.
		for i := 0; i+24 <= len(secret); i += 8 {
			if part := secret[i : i+24]; contains(part) && !bytes.Contains(request.CSR.Raw, part) {
				t.Errorf("step-ca was sent a part of %s (octets %d to %d)", name, i, i+24)
				break
			}
		}
		if len(secret) < 24 && contains(secret) {
			t.Errorf("step-ca was sent %s", name)
		}
		reversed := slices.Clone(secret)
		slices.Reverse(reversed) // CAPI key BLOBs are little-endian
		if contains(reversed) {
			t.Errorf("step-ca was sent %s, reversed", name)
		}
	}
}

// views are the octets, and what is in them as JSON strings, PEM, tokens and base64.
func views(sent []byte) [][]byte {
	out := [][]byte{sent}
	for rest := sent; ; {
		i := bytes.Index(rest, []byte("\r\n\r\n"))
		if i < 0 {
			break
		}
		rest = rest[i+4:]
		var body map[string]any
		if json.NewDecoder(bytes.NewReader(rest)).Decode(&body) != nil {
			continue
		}
		for _, v := range body {
			text, ok := v.(string)
			if !ok {
				continue
			}
			out = append(out, []byte(text))
			out = append(out, quoted([]byte(text))...)
			if block, _ := pem.Decode([]byte(text)); block != nil {
				out = append(out, block.Bytes)
			}
			for part := range strings.SplitSeq(text, ".") { // a token
				if der, err := base64.RawURLEncoding.DecodeString(part); err == nil {
					out = append(out, der)
					out = append(out, quoted(der)...)
				}
			}
		}
	}
	return out
}

// quoted decodes the base64 strings in a JSON text.
func quoted(text []byte) [][]byte {
	var out [][]byte
	for part := range strings.SplitSeq(string(text), `"`) {
		if der, err := base64.StdEncoding.DecodeString(part); err == nil && len(der) > 0 {
			out = append(out, der)
		}
	}
	return out
}

func TestARequestThatStepCACannotSignIsRefusedBeforeItsKeyIsArchived(t *testing.T) {
	inlab.Need(t)
	s := server.Start(t, stepca.Template)
	w := gateway(t, s, "own")
	alice := w.Client(t, "alice")
	exchange := alice.Exchange(t)
	before := len(s.Proxy.Everything())
	der, key := world.Request(t, "LabUserSMIME", exchange)
	der = withNullSignature(t, der, key)
	if r, err := wcce.ParseRequest(der); err != nil || !r.CSR.NullSignature || r.Archived == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := alice.Submit(t, der); err == nil || !strings.Contains(err.Error(), "hash in place of the signature") {
		t.Errorf("%v %v", err, hresult.From(err))
	}
	if entries, err := w.Escrow.List(background, "", 10); err != nil || len(entries) != 0 {
		t.Errorf("%d archived keys, %v", len(entries), err)
	}
	if rows, err := w.Ledger.List(background, ledger.Denied, 10); err != nil || len(rows) != 1 || rows[0].Archived {
		t.Errorf("%+v, %v", rows, err)
	}
	if bytes.Contains(s.Proxy.Everything()[before:], []byte("/1.0/sign")) {
		t.Error("step-ca was asked")
	}
}

// withNullSignature puts a hash in place of the signature of the enclosed PKCS#10 request and signs the message anew.
func withNullSignature(t testing.TB, der []byte, key *rsa.PrivateKey) []byte {
	t.Helper()
	csr, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	old, err := wcce.ParseSignedData(der)
	if err != nil {
		t.Fatal(err)
	}
	der = splice(t, der, csr.CSR.Raw, nullSigned(t, csr.CSR.Raw))
	changed, err := wcce.ParseSignedData(der)
	if err != nil {
		t.Fatal(err)
	}
	before, after := sha256.Sum256(old.Content), sha256.Sum256(changed.Content)
	der = splice(t, der, before[:], after[:])
	// The signature is over the signed attributes, which begin with the content type, as a SET OF.
	var message struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version int
			Digests asn1.RawValue
			Content asn1.RawValue
			Signers []struct {
				Version    int
				ID         asn1.RawValue
				Digest     asn1.RawValue
				Attributes asn1.RawValue
				Algorithm  asn1.RawValue
				Signature  []byte
				Unsigned   asn1.RawValue
			} `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &message); err != nil {
		t.Fatal(err)
	}
	signer := message.Content.Signers[0]
	attributes := bytes.Clone(signer.Attributes.FullBytes)
	attributes[0] = 0x31
	sum := sha256.Sum256(attributes)
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return splice(t, der, signer.Signature, signature)
}

// splice replaces a part of DER, and with it the lengths of all that is around it.
func splice(t testing.TB, der, old, replacement []byte) []byte {
	t.Helper()
	if bytes.Equal(der, old) {
		return replacement
	}
	if !bytes.Contains(der, old) {
		return der
	}
	var out []byte
	for s := cryptobyte.String(der); !s.Empty(); {
		var element, content cryptobyte.String
		var tag cbasn1.Tag
		rest := s
		if !s.ReadAnyASN1Element(&element, &tag) {
			t.Fatalf("not DER: %x", rest)
		}
		content = element
		content.ReadAnyASN1(&content, &tag)
		switch {
		case bytes.Equal(element, old):
			out = append(out, replacement...)
		case !bytes.Contains(content, old):
			out = append(out, element...)
		default:
			var b cryptobyte.Builder
			b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(splice(t, content, old, replacement)) })
			out = append(out, b.BytesOrPanic()...)
		}
	}
	return out
}

func TestALostAnswerIsFoundWithTheSameCertificate(t *testing.T) {
	inlab.Need(t)
	s := server.Start(t, stepca.Template)
	alice := gateway(t, s, "own").Client(t, "alice")
	der, key := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	s.Proxy.Make(proxy.Lost, 1, server.IsSign)
	reply, err := alice.Submit(t, der)
	if err != nil || !reply.Pending || reply.RetryAfter == 0 {
		t.Fatalf("%+v, %v", reply, err)
	}
	for range 100 { // the gateway asks again by itself
		if reply, err = alice.Poll(t, reply.RequestID); err != nil || !reply.Pending {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil || reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	cert := testpki.Cert(t, reply.Certificate)
	if !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("the certificate is for another key")
	}
	verifies(t, s, cert)
}
