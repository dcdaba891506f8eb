// Package e2e tests the whole gateway from outside. Run it with: test/lab/lab.sh ns go test ./test/e2e/
package e2e

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
	"github.com/enrollgate/enrollgate/test/world"
)

var background = context.Background()

// wantFault requires a refusal with this code and these words.
func wantFault(t testing.TB, err error, code hresult.Code, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code != code {
		t.Errorf("error %v, want %v", err, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Error(), word) {
			t.Errorf("error %q does not say %q", e.Error(), word)
		}
	}
}

// eventually waits for what the gateway does in the background.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not happen within 10 s", what)
}

func TestAnArchivedEnrollmentFromTicketToRecovery(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	p := alice.Policy(t, "LabUserSMIME")
	if p == nil || p.Archival == nil || !p.Enroll || !p.AutoEnroll {
		t.Fatalf("alice is not offered the template: %+v", p)
	}
	exchange := alice.Exchange(t)
	if err := exchange.CheckSignatureFrom(w.CAs[0].Identity.Certificate()); err != nil {
		t.Fatal(err)
	}
	der, key := world.Request(t, "LabUserSMIME", exchange)
	reply, err := alice.Submit(t, der)
	if err != nil {
		t.Fatal(err)
	}
	full, err := wcce.ParseResponse(reply.PKCS7)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if full.Status != wcce.StatusIssued || !bytes.Equal(full.KeyHash, sent.Archived.Hash) || !full.Signer.Equal(w.CAs[0].Identity.Certificate()) {
		t.Errorf("response: status %d, key hash %x, signer %v", full.Status, full.KeyHash, full.Signer.Subject)
	}
	cert := testpki.Cert(t, reply.Certificate)
	if !key.PublicKey.Equal(cert.PublicKey) || !full.Certificate.Equal(cert) {
		t.Error("the certificate is for another key")
	}
	text, err := testpki.OpenSSL(t, cert.Raw, "x509", "-inform", "DER", "-noout", "-text", "-nameopt", "RFC2253")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"emailAddress=alice@lab.test,CN=Alice Archer,CN=Users,DC=lab,DC=test", "email:alice@lab.test", "E-mail Protection",
		"Digital Signature, Key Encipherment", "1.3.6.1.4.1.311.25.2", "1.3.6.1.4.1.311.21.7", "http://enroll.lab.test/crl/LAB%20Issuing%20CA.crl"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the certificate lacks %q:\n%s", want, text)
		}
	}
	entries, err := w.Escrow.List(background, "alice", 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d archived keys, %v", len(entries), err)
	}
	got, err := w.Escrow.Recover(background, &entries[0], w.AgentKey, w.Agent, "test", "drill")
	if err != nil {
		t.Fatal(err)
	}
	if !key.Equal(got.Key) || !got.Certificate.Equal(cert) {
		t.Error("another key was recovered")
	}
}

func TestRefusalsSayWhy(t *testing.T) {
	w := world.Start(t)
	exchange := w.Client(t, "alice").Exchange(t)
	for account, want := range map[string]struct {
		code hresult.Code
		word string
	}{
		"bob":   {hresult.TemplateDenied, "Enroll right"},
		"carol": {hresult.SubjectEmailRequired, "mail"},
	} {
		t.Run(account, func(t *testing.T) {
			der, _ := world.Request(t, "LabUserSMIME", exchange)
			_, err := w.Client(t, account).Submit(t, der)
			wantFault(t, err, want.code, want.word)
		})
	}
	t.Run("a disabled account with an old ticket", func(t *testing.T) {
		setAccountControl(t, "CN=Dave Draper", "512")
		t.Cleanup(func() { setAccountControl(t, "CN=Dave Draper", "514") })
		dave := w.Client(t, "dave")
		if dave.Policy(t, "LabUserSMIME") == nil {
			t.Fatal("dave is not offered the template while he is enabled")
		}
		setAccountControl(t, "CN=Dave Draper", "514")
		der, _ := world.Request(t, "LabUserSMIME", exchange)
		_, err := dave.Submit(t, der)
		wantFault(t, err, hresult.AccountDisabled, "disabled")
	})
	t.Run("nested groups count", func(t *testing.T) {
		der, _ := world.Request(t, "LabUserSMIME", exchange)
		if _, err := w.Client(t, "erin").Submit(t, der); err != nil {
			t.Error(err)
		}
	})
	t.Run("refused requests are recorded with their reason", func(t *testing.T) {
		rows, err := w.Ledger.List(background, ledger.Denied, 10)
		if err != nil || len(rows) < 3 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		for _, r := range rows {
			if r.Message == "" || r.HResult == 0 || r.Archived {
				t.Errorf("%+v", r)
			}
		}
	})
}

func TestPoliciesAreTailored(t *testing.T) {
	w := world.Start(t)
	for account, want := range map[string][]string{
		"alice":    {"LabOnBehalf", "LabUserAuth", "LabUserSMIME", "LabV4"},
		"bob":      {"LabOnBehalf", "LabUserAuth", "LabV4"},
		"helpdesk": {"LabEnrollmentAgent", "LabOnBehalf", "LabUserAuth", "LabV4", "LabWebServer"},
		"WS1$":     {"LabMachine"},
		"kra1":     {"LabKRA", "LabOnBehalf", "LabUserAuth", "LabV4"},
	} {
		t.Run(account, func(t *testing.T) {
			c := w.Client(t, account)
			p, err := c.GetPolicies(background, c.CEP, soap.GetPoliciesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, policy := range p.Policies {
				got = append(got, policy.CommonName)
			}
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("offered %v, want %v", got, want)
			}
		})
	}
}

func TestAMachineEnrollsWithAPlainRequestAsLinuxClientsSend(t *testing.T) {
	w := world.Start(t)
	csr, err := testpki.OpenSSL(t, nil, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", t.TempDir()+"/k", "-subj", "/CN=whatever",
		"-addext", "1.3.6.1.4.1.311.20.2=ASN1:BMPSTRING:LabMachine", "-outform", "DER")
	if err != nil {
		t.Fatal(err)
	}
	reply, err := w.Client(t, "WS1$").Submit(t, csr)
	if err != nil {
		t.Fatal(err)
	}
	cert := testpki.Cert(t, reply.Certificate)
	if len(cert.DNSNames) != 1 || cert.DNSNames[0] != "ws1.lab.test" || cert.Subject.CommonName != "ws1.lab.test" {
		t.Errorf("subject %q, names %v: they must come from the directory", cert.Subject, cert.DNSNames)
	}
	chain := x509.NewCertPool()
	for _, c := range w.CAs[0].Identity.Chain() {
		chain.AddCert(c)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: w.Roots, Intermediates: chain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
}

func TestARenewalIsSignedByTheOldKey(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	der, oldKey := world.Request(t, "LabUserAuth", nil)
	reply, err := alice.Submit(t, der)
	if err != nil {
		t.Fatal(err)
	}
	old := testpki.Cert(t, reply.Certificate)
	renew := func(template string, signer crypto.Signer) error {
		der, err := wcce.NewRequest(wcce.RequestOptions{Key: testpki.RSA(t, 2048), Renews: old, RenewsKey: signer,
			Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString(template)}}})
		if err != nil {
			t.Fatal(err)
		}
		reply, err = alice.Submit(t, der)
		return err
	}
	if err := renew("LabUserAuth", oldKey); err != nil {
		t.Fatal(err)
	}
	if renewed := testpki.Cert(t, reply.Certificate); renewed.SerialNumber.Cmp(old.SerialNumber) == 0 || !bytes.Equal(renewed.RawSubject, old.RawSubject) {
		t.Errorf("renewed %v", renewed.Subject)
	}
	wantFault(t, renew("LabUserAuth", testpki.RSA(t, 2048)), hresult.InvalidData, "signer 2")
	wantFault(t, renew("LabV4", oldKey), hresult.KeyLength)
}

func TestPendingRequestsWaitForAManager(t *testing.T) {
	w := world.Start(t)
	helpdesk := w.Client(t, "helpdesk")
	submit := func() string {
		csr, err := testpki.OpenSSL(t, nil, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", t.TempDir()+"/k", "-subj", "/CN=www.lab.test",
			"-addext", "subjectAltName=DNS:www.lab.test", "-addext", "1.3.6.1.4.1.311.20.2=ASN1:BMPSTRING:LabWebServer", "-outform", "DER")
		if err != nil {
			t.Fatal(err)
		}
		reply, err := helpdesk.Submit(t, csr)
		if err != nil || !reply.Pending || reply.RequestID == "" {
			t.Fatalf("%+v, %v", reply, err)
		}
		if full, err := wcce.ParseResponse(reply.PKCS7); err != nil || full.Status != wcce.StatusPending || full.RequestID != reply.RequestID {
			t.Errorf("%+v, %v", full, err)
		}
		return reply.RequestID
	}
	number := func(id string) int64 {
		n, _ := new(big.Int).SetString(id, 10)
		return n.Int64()
	}
	id := submit()
	if reply, err := helpdesk.Poll(t, id); err != nil || !reply.Pending {
		t.Errorf("before the decision: %+v, %v", reply, err)
	}
	_, err := w.Client(t, "alice").Poll(t, id)
	wantFault(t, err, hresult.PropertyEmpty)
	if err := w.Ledger.Decide(background, number(id), "manager", true, ""); err != nil {
		t.Fatal(err)
	}
	reply, err := helpdesk.Poll(t, id)
	if err != nil || reply.Pending {
		t.Fatalf("after the approval: %+v, %v", reply, err)
	}
	if cert := testpki.Cert(t, reply.Certificate); cert.Subject.CommonName != "www.lab.test" || len(cert.DNSNames) != 1 {
		t.Errorf("%v %v", cert.Subject, cert.DNSNames)
	}
	id = submit()
	if err := w.Ledger.Decide(background, number(id), "manager", false, "not this name"); err != nil {
		t.Fatal(err)
	}
	_, err = helpdesk.Poll(t, id)
	wantFault(t, err, hresult.AdminDeniedRequest, "not this name")
	_, err = helpdesk.Poll(t, "999999")
	wantFault(t, err, hresult.PropertyEmpty)
	// Approved, but the account was disabled meanwhile.
	id = submit()
	setAccountControl(t, "CN=Help Desk", "514")
	t.Cleanup(func() { setAccountControl(t, "CN=Help Desk", "512") })
	time.Sleep(3200 * time.Millisecond) // what the gateway knows of an account may be 3 s old
	if err := w.Ledger.Decide(background, number(id), "manager", true, ""); err != nil {
		t.Fatal(err)
	}
	_, err = helpdesk.Poll(t, id)
	wantFault(t, err, hresult.AccountDisabled, "while the request waited")
}

// setAccountControl enables (512) or disables (514) an account.
func setAccountControl(t testing.TB, cn, value string) {
	t.Helper()
	setAttribute(t, cn+",CN=Users,"+world.Env("LAB_BASE_DN"), "userAccountControl", value)
}

func TestTheRecordedWindowsRequestTravelsTheWholeWay(t *testing.T) {
	recorded := vectors.Read(t, "ejbca/user-enroll-1.cmc.der")
	w := world.Start(t)
	parsed, err := wcce.ParseRequest(recorded)
	if err != nil {
		t.Fatal(err)
	}
	addTemplate(t, w, "RecordedSMIME", parsed.Template)
	alice := w.Client(t, "alice")
	_, err = alice.Submit(t, recorded)
	wantFault(t, err, hresult.BadRequestKeyArchival)

	cert, key := vectors.ExchangeCertificate(t, parsed.Archived.Raw)
	if err := w.Escrow.ImportExchange(background, world.CAName, cert, key, time.Now().Add(time.Hour), "test"); err != nil {
		t.Fatal(err)
	}
	reply, err := alice.Submit(t, recorded)
	if err != nil {
		t.Fatal(err)
	}
	full, err := wcce.ParseResponse(reply.PKCS7)
	if err != nil || !bytes.Equal(full.KeyHash, parsed.Archived.Hash) {
		t.Errorf("key hash %x, %v", full.KeyHash, err)
	}
	entries, err := w.Escrow.List(background, "alice", 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d archived keys, %v", len(entries), err)
	}
	got, err := w.Escrow.Recover(background, &entries[0], w.AgentKey, w.Agent, "test", "drill")
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := got.Key.(*rsa.PrivateKey); !ok || !k.PublicKey.Equal(parsed.CSR.PublicKey) || k.Validate() != nil {
		t.Error("the recovered key is not that of the recorded request")
	}
}

// addTemplate copies LabUserSMIME under another name and OID and offers it.
func addTemplate(t testing.TB, w *world.World, name string, ref wcce.Template) {
	t.Helper()
	copyTemplate(t, w, "LabUserSMIME", name, map[string]string{"mspki-cert-template-oid": ref.OID,
		"revision": strconv.Itoa(ref.Major), "mspki-template-minor-revision": strconv.Itoa(ref.Minor)})
}

// copyTemplate copies a template under another name, with other values, and offers it, as an administrator would. It ends
// with the test. Names in set are in lower case, and have the OID among them.
func copyTemplate(t testing.TB, w *world.World, source, name string, set map[string]string) {
	t.Helper()
	w.CopyTemplate(t, source, name, set)
}

func TestBadInputIsRefusedClearly(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	good, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	parsed, err := wcce.ParseRequest(good)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[bytes.Index(good, parsed.CSR.Raw)+100] ^= 4
	foreign, _ := world.Request(t, "LabUserSMIME", w.Agent) // sealed to a key that is no exchange key
	for name, c := range map[string]struct {
		der  []byte
		code hresult.Code
		word string
	}{
		"a truncated request":        {good[:len(good)-7], hresult.InvalidMessageFormat, "malformed"},
		"a flipped bit":              {flipped, hresult.InvalidData, ""},
		"nothing":                    {[]byte{}, hresult.InvalidData, ""},
		"an enclosed key for others": {foreign, hresult.BadRequestKeyArchival, "exchange"},
		"an unknown template":        {first(world.Request(t, "Nonsense", nil)), hresult.UnsupportedCertType, "Nonsense"},
		"no enclosed key":            {first(world.Request(t, "LabUserSMIME", nil)), hresult.ArchivedKeyRequired, "archived"},
		"an unexpected key":          {first(world.Request(t, "LabUserAuth", alice.Exchange(t))), hresult.ArchivedKeyUnexpected, ""},
		"a dangerous template":       {first(world.Request(t, "LabVulnESC1", nil)), hresult.NotSupported, "dangerous"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := alice.Submit(t, c.der)
			if name == "nothing" {
				if err == nil {
					t.Error("accepted")
				}
				return
			}
			wantFault(t, err, c.code, c.word)
		})
	}
	t.Run("a body that is too large", func(t *testing.T) {
		if _, err := alice.Submit(t, make([]byte, 3<<20)); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("plain HTTP", func(t *testing.T) {
		resp, err := http.Post("http://"+world.Env("LAB_GATEWAY")+soap.Kerberos.CEPPath, "application/soap+xml", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), "https://") {
			t.Errorf("%s: %s", resp.Status, body)
		}
	})
	t.Run("a ticket for another service", func(t *testing.T) {
		token, err := alice.Kerberos.Token("host/" + world.Env("LAB_GATEWAY"))
		if err != nil {
			t.Fatal(err)
		}
		status, body := postWith(t, w, alice.CEP, token)
		if status != http.StatusUnauthorized || !strings.Contains(body, "host/") {
			t.Errorf("%d: %s", status, body)
		}
	})
	t.Run("the escrow has nothing from all this", func(t *testing.T) {
		if entries, err := w.Escrow.List(background, "", 10); err != nil || len(entries) != 0 {
			t.Errorf("%d archived keys, %v", len(entries), err)
		}
	})
}

func first(der []byte, _ *rsa.PrivateKey) []byte { return der }

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func negotiate(token []byte) string { return "Negotiate " + b64(token) }

// postWith sends a message with a ready-made token.
func postWith(t testing.TB, w *world.World, url string, token []byte) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", negotiate(token))
	resp, err := w.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func TestRevocationListAndCACertificateAreServedOverHTTP(t *testing.T) {
	w := world.Start(t)
	reply, err := w.Client(t, "alice").Submit(t, first(world.Request(t, "LabUserAuth", nil)))
	if err != nil {
		t.Fatal(err)
	}
	cert := testpki.Cert(t, reply.Certificate)
	issuer := testpki.Cert(t, fetch(t, cert.IssuingCertificateURL[0]))
	if err := cert.CheckSignatureFrom(issuer); err != nil {
		t.Error(err)
	}
	if err := w.CAs[0].Issuer.Revoke(background, cert.SerialNumber, 1); err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(fetch(t, cert.CRLDistributionPoints[0]))
	if err != nil || crl.CheckSignatureFrom(issuer) != nil || len(crl.RevokedCertificateEntries) != 1 {
		t.Errorf("%+v, %v", crl, err)
	}
}

func fetch(t testing.TB, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return body
}
