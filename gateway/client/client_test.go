package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestAnArchivalTemplateSendsTheKeyAndConfirmsItsHash(t *testing.T) {
	s := newServer(t, webPolicy(), mailPolicy())
	var steps []string
	o := s.options("1.3.6.1.4.1.311.21.8.1.2.3") // by OID
	o.CheckTrust, o.Roots = true, x509.NewCertPool()
	o.Roots.AddCert(s.ca.cert)
	o.Progress = func(step, _ string) { steps = append(steps, step) }
	r, err := client.Enroll(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !r.ArchivedConfirmed || r.Pending || r.Template != "Mail" || r.RequestID != "17" || r.Certificate == nil || len(r.Chain) != 1 || !r.CA.Equal(s.ca.cert) {
		t.Errorf("%+v", r)
	}
	if want := "policy template key exchange certificate request submit issued"; strings.Join(steps, " ") != want {
		t.Errorf("steps %v, want %s", steps, want)
	}
	// What the server holds must open with the exchange key and be the client's key.
	req := s.last
	e, err := wcce.ParseEnveloped(req.Archived.Raw)
	if err != nil || e.Cipher != wcce.OIDAES256CBC || !e.Recipients[0].Names(s.exchangeCert) {
		t.Fatalf("%+v: %v", e, err)
	}
	plain, err := e.Open(&e.Recipients[0], s.exchangeKey)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := wcce.ParseKeyBlob(plain)
	if err != nil {
		t.Fatal(err)
	}
	if !blob.Matches(r.Key.Public()) || !blob.Matches(r.Certificate.PublicKey) {
		t.Error("the archived key is not the client's")
	}
	if req.Format != wcce.CMC || req.ArchivedErr != nil || req.Template.Major != 100 || len(req.CSR.RawSubject) != 2 || req.CSR.Extension("1.2.840.113549.1.9.15") == nil {
		t.Errorf("request %+v, subject %x", req.Template, req.CSR.RawSubject)
	}
}

func TestAnEnrolleeSuppliesNamesAndAnEllipticCurveKey(t *testing.T) {
	s := newServer(t, webPolicy())
	o := s.options("web")
	o.Subject, o.SANs = "CN=www.lab.test,O=Lab\\, Inc.,C=DE", []string{"dns:www.lab.test", "upn:alice@lab.test", "email:a@lab.test", "ip:192.0.2.1"}
	r, err := client.Enroll(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := r.Key.(*ecdsa.PrivateKey)
	if !ok || key.Curve.Params().Name != "P-384" || r.ArchivedConfirmed || s.last.Archived != nil {
		t.Errorf("key %T, archived %t", r.Key, s.last.Archived != nil)
	}
	if s.last.Signers[0].Digest != wcce.OIDSHA384 {
		t.Errorf("digest %s, want that of the template", s.last.Signers[0].Digest)
	}
	// OpenSSL, which nobody here wrote, reads the names.
	text, err := testpki.OpenSSL(t, s.last.CSR.Raw, "req", "-inform", "DER", "-noout", "-subject", "-nameopt", "RFC2253", "-text", "-verify")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`CN=www.lab.test,O=Lab\, Inc.,C=DE`, "DNS:www.lab.test", "email:a@lab.test", "IP Address:192.0.2.1", "UPN::alice@lab.test"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("OpenSSL does not show %q:\n%s", want, text)
		}
	}
}

func TestRefusals(t *testing.T) {
	other := newAuthority(t, "Other CA")
	impostor := newAuthority(t, serverCA)
	for _, c := range []struct {
		name, template, want string
		bend                 func(*server, *client.Options)
	}{
		{"a template that is not offered", "Nope", "offered are Mail, Web", nil},
		{"no right to enroll", "Mail", "does not let you enroll", func(s *server, _ *client.Options) { s.policies[0].Enroll = false }},
		{"no right to enroll at the CA", "Mail", "no CA offers it", func(s *server, _ *client.Options) { s.closed = true }},
		{"an exchange certificate of another CA", "Mail", "not by the published CA", func(s *server, _ *client.Options) { s.exchangeCert, _ = other.exchange(t, nil) }},
		{"an exchange certificate of an impostor", "Mail", "not signed by the published CA", func(s *server, _ *client.Options) { s.exchangeCert, _ = impostor.exchange(t, nil) }},
		{"an expired exchange certificate", "Mail", "not now", func(_ *server, o *client.Options) {
			o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
		}},
		{"an exchange certificate without the purpose", "Mail", "is not a CA exchange certificate", func(s *server, _ *client.Options) {
			s.exchangeCert, _ = s.ca.exchange(t, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil })
		}},
		{"an exchange certificate for signing", "Mail", "key encipherment", func(s *server, _ *client.Options) {
			s.exchangeCert, _ = s.ca.exchange(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
		}},
		{"a response without the archived hash", "Mail", "did not confirm", func(s *server, _ *client.Options) {
			s.respond = func(r *wcce.Response) { r.KeyHash = nil }
		}},
		{"a response with another hash", "Mail", "hash of another one", func(s *server, _ *client.Options) {
			s.respond = func(r *wcce.Response) { r.KeyHash = slices.Repeat([]byte{7}, len(r.KeyHash)) }
		}},
		{"a hash where no key was sent", "Web", "but none was sent", func(s *server, _ *client.Options) {
			s.respond = func(r *wcce.Response) { r.KeyHash = []byte{1} }
		}},
		{"a response signed by another CA", "Web", "not by the published CA", func(s *server, _ *client.Options) { s.signer = other }},
		{"a response signed by an impostor", "Web", "not by the published CA", func(s *server, _ *client.Options) { s.signer = impostor }},
		{"a certificate for another key", "Web", "for another key", func(s *server, _ *client.Options) { s.swapKey = true }},
		{"another certificate beside the response", "Web", "not the one in the signed response", func(s *server, _ *client.Options) {
			s.token = func([]byte) []byte { return s.exchangeCert.Raw }
		}},
		{"no response", "Web", "no CMC response", func(s *server, _ *client.Options) { s.noAnswer = true }},
		{"a denial in the response", "Web", "denied: because", func(s *server, _ *client.Options) {
			s.respond = func(r *wcce.Response) { r.Status, r.Text, r.Certificate = wcce.StatusDenied, "because", nil }
			s.token = func([]byte) []byte { return s.exchangeCert.Raw } // a reply must hold something
		}},
		{"an untrusted CA", "Web", "published CA", func(_ *server, o *client.Options) { o.CheckTrust, o.Roots = true, x509.NewCertPool() }},
		{"a subject that the directory supplies", "Mail", "comes from the directory", func(_ *server, o *client.Options) { o.Subject, o.SANs = "CN=x", nil }},
		{"names missing", "Web", "give a subject", func(_ *server, o *client.Options) { o.Subject, o.SANs = "", nil }},
		{"a short key", "Mail", "at least 2048 bits", func(_ *server, o *client.Options) { o.KeyBits = 1024 }},
		{"another algorithm", "Web", "its keys are P-384", func(_ *server, o *client.Options) { o.Algorithm = "RSA" }},
		{"an unknown algorithm", "Web", "not supported", func(s *server, _ *client.Options) { s.policies[1].PrivateKey.Algorithm.Value = "1.2.3" }},
		{"registration authorities", "Web", "registration authorities", func(s *server, _ *client.Options) { s.policies[1].RA = &soap.RARequirements{Signatures: 2} }},
		{"attestation", "Web", "attested", func(s *server, _ *client.Options) { s.policies[1].PrivateKeyFlags = ptr(templates.KeyAttestRequired) }},
		{"another CA's name", "Web", "no CA offers it", func(_ *server, o *client.Options) { o.CA = "Another" }},
		{"plain http", "Web", "TLS only", func(_ *server, o *client.Options) { o.PolicyURL = "http://x/" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, mailPolicy(), webPolicy())
			o := s.options(c.template)
			if c.template == "Web" {
				o.SANs = []string{"dns:www.lab.test"}
			}
			if c.bend != nil {
				c.bend(s, &o)
			}
			r, err := client.Enroll(context.Background(), o)
			if err == nil || r != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("result %+v, error %v, want %q", r, err, c.want)
			}
			if strings.Contains(c.want, "exchange") && s.last != nil {
				t.Error("the key was sent although the exchange certificate is not to be trusted")
			}
			if c.want == "did not confirm" && !errors.Is(err, client.ErrNotArchived) {
				t.Error("not ErrNotArchived")
			}
		})
	}
}

func TestAFaultIsAnErrorWithTheServersCodeAndText(t *testing.T) {
	s := newServer(t, mailPolicy())
	s.refuse = &soap.RequestError{Err: hresult.New(hresult.TemplateDenied, "no Enroll right on the template"), RequestID: "9"}
	_, err := client.Enroll(context.Background(), s.options("Mail"))
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code != hresult.TemplateDenied || !strings.Contains(e.Text, "no Enroll right") {
		t.Errorf("%v", err)
	}
	if q, ok := errors.AsType[*soap.RequestError](err); !ok || q.RequestID != "9" {
		t.Errorf("%v", err)
	}
}

func TestAPendingRequestIsPolledUntilIssued(t *testing.T) {
	s := newServer(t, mailPolicy())
	s.pend = 3
	o := s.options("Mail")
	o.PollInterval = time.Millisecond
	r, err := client.Enroll(context.Background(), o)
	if err != nil || r.Pending || !r.ArchivedConfirmed || s.polls != 3 {
		t.Errorf("%+v, %d polls: %v", r, s.polls, err)
	}
}

func TestAPendingRequestIsResumedFromItsFile(t *testing.T) {
	s := newServer(t, mailPolicy())
	s.pend = 2
	r, err := client.Enroll(context.Background(), s.options("Mail"))
	if err != nil || !r.Pending || r.RequestID != "17" || r.Certificate != nil || r.Message != "Taken Under Submission" {
		t.Fatalf("%+v: %v", r, err)
	}
	text, err := client.MarshalPending(r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := client.LoadPending(text)
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.Poll(context.Background(), s.options(""), p)
	if err != nil || !again.Pending {
		t.Fatalf("%+v: %v", again, err)
	}
	done, err := client.Poll(context.Background(), s.options(""), p)
	if err != nil || done.Pending || !done.ArchivedConfirmed {
		t.Fatalf("%+v: %v", done, err)
	}
	if !done.Key.(*rsa.PrivateKey).Equal(r.Key) {
		t.Error("another key came back")
	}
	if _, err := client.MarshalPending(done); err == nil {
		t.Error("a decided request was saved as pending")
	}

	// The file must carry what the answer is checked with.
	s.respond = func(r *wcce.Response) { r.KeyHash = nil }
	if _, err := client.Poll(context.Background(), s.options(""), p); !errors.Is(err, client.ErrNotArchived) {
		t.Errorf("%v", err)
	}
	s.respond, s.signer = nil, newAuthority(t, serverCA)
	if _, err := client.Poll(context.Background(), s.options(""), p); err == nil || !strings.Contains(err.Error(), "published CA") {
		t.Errorf("%v", err)
	}
}

func TestWaitingEnds(t *testing.T) {
	s := newServer(t, mailPolicy())
	s.pend = 1 << 30
	o := s.options("Mail")
	o.PollInterval, o.PollTimeout = time.Millisecond, 50*time.Millisecond
	r, err := client.Enroll(context.Background(), o)
	if err != nil || !r.Pending {
		t.Fatalf("%+v: %v", r, err)
	}
	text, err := client.MarshalPending(r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := client.LoadPending(text)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	o.PollTimeout = 0
	if _, err := client.Poll(ctx, o, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestDamagedPendingFilesAreErrors(t *testing.T) {
	s := newServer(t, mailPolicy())
	s.pend = 1
	r, err := client.Enroll(context.Background(), s.options("Mail"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := client.MarshalPending(r)
	if err != nil {
		t.Fatal(err)
	}
	for field, bad := range map[string]string{"enroll_url": "http://plain/", "request_id": "", "private_key": "none", "ca": "none"} {
		var f map[string]any
		if err := json.Unmarshal(text, &f); err != nil {
			t.Fatal(err)
		}
		if _, ok := f[field]; !ok {
			t.Fatalf("no field %s in %s", field, text)
		}
		f[field] = bad
		changed, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.LoadPending(changed); err == nil {
			t.Errorf("%s=%q was accepted", field, bad)
		}
	}
	if _, err := client.LoadPending([]byte(`{"unknown":1}`)); err == nil {
		t.Error("an unknown field was accepted")
	}
}

func TestAForcedRequestReachesTheServer(t *testing.T) {
	s := newServer(t, webPolicy())
	s.refuse = hresult.New(hresult.TemplateDenied, "no Enroll right on the template")
	o := s.options("Mail")
	o.Force = true
	_, err := client.Enroll(context.Background(), o)
	if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != hresult.TemplateDenied {
		t.Errorf("%v", err)
	}
	s.refuse, o.EnrollURL = nil, s.url+"/"+url.PathEscape(serverCA)+soap.Kerberos.CESSuffix
	r, err := client.Enroll(context.Background(), o)
	if err != nil || r.Certificate == nil || s.last.Template.Name != "Mail" {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestAnUnreachableServiceIsPassedOver(t *testing.T) {
	s := newServer(t, webPolicy())
	o := s.options("Web")
	o.SANs = []string{"dns:x"}
	var passed []string
	o.Progress = func(step, detail string) {
		if step == "service" {
			passed = append(passed, detail)
		}
	}
	(&twoAddresses{server: s}).attach(t, &o)
	r, err := client.Enroll(context.Background(), o)
	if err != nil || r.Certificate == nil || len(passed) != 1 || !strings.HasPrefix(passed[0], "https://127.0.0.1:1/x ") {
		t.Errorf("%+v, passed over: %q: %v", r, passed, err)
	}
}

func TestOpenSSLReadsWhatIsWritten(t *testing.T) {
	for _, policy := range []soap.Policy{mailPolicy(), webPolicy()} {
		s := newServer(t, policy)
		o := s.options(policy.CommonName)
		if policy.CommonName == "Web" {
			o.Subject = "CN=www"
		}
		r, err := client.Enroll(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		p12, err := r.PKCS12("secret")
		if err != nil {
			t.Fatal(err)
		}
		out, err := testpki.OpenSSL(t, p12, "pkcs12", "-passin", "pass:secret", "-nodes")
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(out), "BEGIN CERTIFICATE"); n != 2 || !strings.Contains(string(out), "BEGIN PRIVATE KEY") {
			t.Errorf("%d certificates in the PKCS#12 file", n)
		}
		if _, err := testpki.OpenSSL(t, p12, "pkcs12", "-passin", "pass:wrong", "-nodes"); err == nil {
			t.Error("the PKCS#12 file opens with another password")
		}
		key, err := r.KeyPEM()
		if err != nil {
			t.Fatal(err)
		}
		fromKey, err := testpki.OpenSSL(t, key, "pkey", "-pubout")
		if err != nil {
			t.Fatal(err)
		}
		fromCert, err := testpki.OpenSSL(t, r.PEM(), "x509", "-pubkey", "-noout")
		if err != nil {
			t.Fatal(err)
		}
		if string(fromKey) != string(fromCert) {
			t.Error("key and certificate do not belong together")
		}
		ca := testpki.PEM(t, "CERTIFICATE", s.ca.cert.Raw)
		file := filepath.Join(t.TempDir(), "cert.pem")
		if err := os.WriteFile(file, r.PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := testpki.OpenSSL(t, nil, "verify", "-CAfile", ca, file); err != nil {
			t.Error(err)
		}
	}
}

func TestAResponseMayBeSignedWithACertificateOfTheCAForThat(t *testing.T) {
	cmc := []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 27}}
	signature := x509.KeyUsageDigitalSignature
	for name, c := range map[string]struct {
		template x509.Certificate
		stranger bool // another CA of the same name issued it
		accepted bool
	}{
		"for CMC":              {template: x509.Certificate{KeyUsage: signature, UnknownExtKeyUsage: cmc}, accepted: true},
		"for e-mail":           {template: x509.Certificate{KeyUsage: signature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}}},
		"for any purpose":      {template: x509.Certificate{KeyUsage: signature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}},
		"without a purpose":    {template: x509.Certificate{KeyUsage: signature}},
		"not for signatures":   {template: x509.Certificate{KeyUsage: x509.KeyUsageKeyEncipherment, UnknownExtKeyUsage: cmc}},
		"expired":              {template: x509.Certificate{KeyUsage: signature, UnknownExtKeyUsage: cmc, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}},
		"of a CA below":        {template: x509.Certificate{KeyUsage: signature, UnknownExtKeyUsage: cmc, IsCA: true, BasicConstraintsValid: true}},
		"of a CA of that name": {template: x509.Certificate{KeyUsage: signature, UnknownExtKeyUsage: cmc}, stranger: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, mailPolicy())
			issuer := s.ca
			if c.stranger {
				issuer = newAuthority(t, serverCA)
			}
			c.template.Subject.CommonName = "gateway"
			s.signer = &authority{key: testpki.RSA(t, 2048)}
			s.signer.cert = issuer.issue(t, &c.template, s.signer.key.Public())
			_, err := client.Enroll(context.Background(), s.options("Mail"))
			if c.accepted && err != nil || !c.accepted && (err == nil || !strings.Contains(err.Error(), "not by the published CA")) {
				t.Error(err)
			}
		})
	}
}
