package gateway

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// A foreign CA is published by the certificate of the gateway's own small CA; for logon counts who signs.
func TestNativeCAs(t *testing.T) {
	db := testpki.DB(t)
	signing := testpki.CA(t, db, time.Now)
	own, err := identity.Own(t.TempDir(), "Front", []byte("secret"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	front := &CA{Name: "Front", Driver: "est", Issuer: signing.Issuer(), Identity: own}
	behind := &CA{Name: "Behind", Driver: "local", Local: signing, Issuer: signing.Issuer(), Identity: signing.Identity()}
	g := &Gateway{Config: &config.Config{PublicName: "enroll.corp.example", Listen: config.Listen{HTTPS: ":443", Certificate: "off"},
		Routes: []config.Route{{CAs: []string{"front"}, To: []config.Destination{{CA: "Front"}}, Failover: []string{"behind"}}}}, now: time.Now}
	g.signers, g.CAs = []*CA{front, behind}, []*CA{front}

	all, err := g.NativeCAs(t.Context(), "")
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	root := signing.Certificate()
	f, b := all[0], all[1]
	if !f.Published || f.Host != "enroll.corp.example" || !f.Certificates[0].Equal(own.Certificate()) || !f.Logon[0].Equal(root) || f.CRL != nil {
		t.Errorf("%+v", f)
	}
	for _, c := range []*x509.Certificate{own.Certificate(), root} {
		if !slices.ContainsFunc(f.Roots, c.Equal) {
			t.Errorf("%s is no root", c.Subject)
		}
	}
	if len(f.Servers) != 1 || !strings.Contains(f.Servers[0], "\nhttps://enroll.corp.example/Front_CES_Kerberos/service.svc/CES\n") {
		t.Errorf("%q", f.Servers)
	}
	if b.Published || len(b.Certificates) != 0 || !b.Logon[0].Equal(root) || b.CRL != nil {
		t.Errorf("%+v", b)
	}
	if one, err := g.NativeCAs(t.Context(), "front"); err != nil || len(one) != 2 {
		t.Errorf("a route leads to Behind: %v, %v", one, err)
	}
	g.Config.Routes = nil
	if one, err := g.NativeCAs(t.Context(), "front"); err != nil || len(one) != 1 {
		t.Errorf("%v, %v", one, err)
	}
	if _, err := g.NativeCAs(t.Context(), "Behind"); err == nil || !strings.Contains(err.Error(), "there are: Front") {
		t.Error(err)
	}
}
