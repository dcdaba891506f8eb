package gateway

import (
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

// In front of a foreign CA clients see its certificates, the old one too, and last the gateway's own, by which it is published. What is
// known of its revocation is as it was looked at last: the CA is never asked.
func TestAForeignCAIsKnownAsItWasLookedAtLast(t *testing.T) {
	db := testpki.DB(t)
	g := &Gateway{DB: db, now: time.Now, Config: &config.Config{PublicName: "enroll.corp.example"}}
	if err := g.loadChains(t.Context()); err != nil {
		t.Fatal(err)
	}
	own, err := identity.Own(t.TempDir(), "Foreign", []byte("secret"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ca := &CA{Name: "Foreign", Identity: own} // without an issuer, who asks it panics
	signing := g.signing(t.Context(), ca)
	if len(signing) != 1 || !signing[0].Certificate.Equal(own.Certificate()) || !signing[0].NoCRL || signing[0].CRL != nil {
		t.Fatalf("before it was looked at: %+v", signing)
	}
	before, after := testpki.CA(t, db, time.Now), testpki.CA(t, db, time.Now)
	for _, c := range []*x509.Certificate{before.Certificate(), after.Certificate()} {
		if err := g.rememberChain(t.Context(), ca.Name, []*x509.Certificate{c}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := after.Issuer().Submit(t.Context(), contract.WindowsOrder(t, "1", testpki.RSA(t, 2048)))
	if err != nil {
		t.Fatal(err)
	}
	list := []byte("list")
	g.caStatus.Store(&[]CAStatus{{Name: ca.Name, issuing: after.Certificate(), newest: r.Certificate, CRL: &Revocation{list: list}}})
	signing = g.signing(t.Context(), ca)
	if len(signing) != 3 || !signing[2].Certificate.Equal(own.Certificate()) {
		t.Fatalf("%d certificates", len(signing))
	}
	for i, want := range []bool{false, true, false} {
		s := signing[i]
		if s.Certificate.Equal(after.Certificate()) != want || (s.CRL != nil) != want || (len(s.CDP) > 0) != (want && len(r.Certificate.CRLDistributionPoints) > 0) {
			t.Errorf("certificate %d: %+v", i, s)
		}
	}
	if crl, err := signing[1].CRL(); err != nil || string(crl) != "list" {
		t.Error(crl, err)
	}
}

// The embedded CA has the revocation list of the key that it signs with now.
func TestARenewedEmbeddedCAHasTheListOfItsKey(t *testing.T) {
	db := testpki.DB(t)
	g := &Gateway{DB: db, now: time.Now, Config: &config.Config{PublicName: "enroll.corp.example"}}
	if err := g.loadChains(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, local := testpki.CA(t, db, time.Now), testpki.CA(t, db, time.Now)
	if err := g.rememberChain(t.Context(), "CA", []*x509.Certificate{old.Certificate()}); err != nil {
		t.Fatal(err)
	}
	ca := &CA{Name: "CA", Local: local, Identity: local.Identity()}
	if err := local.Revoke(t.Context(), big.NewInt(77), 1); err != nil {
		t.Fatal(err)
	}
	signing := g.signing(t.Context(), ca)
	if len(signing) != 2 || signing[0].CRL != nil || signing[1].CRL == nil || signing[1].CDP[0] != "http://enroll.corp.example/crl/CA.crl" {
		t.Fatalf("%+v", signing)
	}
	der, err := signing[1].CRL()
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || list.CheckSignatureFrom(local.Certificate()) != nil || len(list.RevokedCertificateEntries) != 1 {
		t.Error(list, err)
	}
}
