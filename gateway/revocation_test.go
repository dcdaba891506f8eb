package gateway

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// otherCA is a CA that is not the gateway's, with a web server for its certificate and its revocation list.
type otherCA struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
	url  string
	crl  []byte
}

func newOtherCA(t *testing.T) *otherCA {
	t.Helper()
	ca := &otherCA{key: testpki.RSA(t, 2048)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Other CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	ca.cert = testpki.Cert(t, der)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := ca.crl
		if r.URL.Path == "/ca.crt" {
			body = ca.cert.Raw
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	ca.url = s.URL
	return ca
}

func (ca *otherCA) issue(t *testing.T, serial int64) escrow.Agent {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), CRLDistributionPoints: []string{"ldap:///cn=x", ca.url + "/ca.crl"},
		IssuingCertificateURL: []string{ca.url + "/ca.crt"}}, ca.cert, testpki.RSA(t, 2048).Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return escrow.Agent{Certificate: testpki.Cert(t, der)}
}

func (ca *otherCA) revoke(t *testing.T, key *rsa.PrivateKey, next time.Time, serials ...int64) {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: next.Add(-2 * time.Hour), NextUpdate: next}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now()})
	}
	issuer := *ca.cert
	if key != ca.key {
		issuer.PublicKey = key.Public()
	}
	var err error
	if ca.crl, err = x509.CreateRevocationList(rand.Reader, list, &issuer, key); err != nil {
		t.Fatal(err)
	}
}

func TestAnAgentOfAnotherCAIsLookedForOnItsRevocationList(t *testing.T) {
	ca, g := newOtherCA(t), &Gateway{now: time.Now}
	good, bad := ca.issue(t, 7), ca.issue(t, 8)
	ask := func(a escrow.Agent) (bool, error) { return g.onCRL(t.Context(), http.DefaultClient, a) }
	ca.revoke(t, ca.key, time.Now().Add(time.Hour), 8)
	if revoked, err := ask(good); revoked || err != nil {
		t.Errorf("not on the list: %t, %v", revoked, err)
	}
	if revoked, err := ask(bad); !revoked || err != nil {
		t.Errorf("on the list: %t, %v", revoked, err)
	}
	ca.revoke(t, testpki.RSA(t, 2048), time.Now().Add(time.Hour))
	if _, err := ask(bad); err == nil {
		t.Error("a list that somebody else has signed was believed")
	}
	ca.revoke(t, ca.key, time.Now().Add(-time.Minute))
	if _, err := ask(bad); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("an old list was believed: %v", err)
	}
}
