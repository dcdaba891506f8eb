package gateway

import (
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

// A CA gets another key and certificate: what it has issued before keeps its chain, also after a restart.
func TestAnOldCertificateKeepsItsChain(t *testing.T) {
	db := testpki.DB(t)
	g := &Gateway{DB: db, now: time.Now}
	ctx := context.Background()
	if err := g.loadChains(ctx); err != nil {
		t.Fatal(err)
	}
	before, after := testpki.CA(t, db, time.Now), testpki.CA(t, db, time.Now)
	old := []*x509.Certificate{before.Certificate()}
	today := []*x509.Certificate{after.Certificate()}
	issue := func(ca upstream.Issuer) *x509.Certificate {
		o := contract.WindowsOrder(t, "1", testpki.RSA(t, 2048))
		r, err := ca.Submit(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return r.Certificate
	}
	cert, fresh := issue(before.Issuer()), issue(after.Issuer())
	for range 2 { // what is remembered is not remembered again
		if err := g.rememberChain(ctx, "CA", old); err != nil {
			t.Fatal(err)
		}
	}
	g = &Gateway{DB: db, now: time.Now}
	if err := g.loadChains(ctx); err != nil {
		t.Fatal(err)
	}
	if got := g.chainFor("CA", today, cert); len(got) != 1 || !got[0].Equal(old[0]) {
		t.Errorf("the old certificate has another chain: %v", got)
	}
	if got := g.chainFor("CA", today, fresh); len(got) != 1 || !got[0].Equal(today[0]) {
		t.Errorf("the new certificate has another chain: %v", got)
	}
	if got := g.chainFor("CA", today, nil); len(got) != 1 || !got[0].Equal(today[0]) {
		t.Errorf("without a certificate: %v", got)
	}
}

func TestTheForestIsComparedWithTheChain(t *testing.T) {
	ca := testpki.CA(t, testpki.DB(t), time.Now).Certificate()
	s := &templates.Snapshot{}
	advice := strings.Join(forestAdvice(s, []*x509.Certificate{ca}), "\n")
	if !strings.Contains(advice, "NTAuthCA") || !strings.Contains(advice, "RootCA") {
		t.Error(advice)
	}
	s.NTAuth = []*x509.Certificate{ca}
	s.PKI = []templates.PKIObject{{Name: "Test CA", DN: "CN=Test CA,CN=Certification Authorities,CN=Public Key Services,CN=Services,CN=Configuration,DC=lab", Certificates: []*x509.Certificate{ca}}}
	if advice := forestAdvice(s, []*x509.Certificate{ca}); len(advice) != 0 {
		t.Errorf("%q", advice)
	}
}
