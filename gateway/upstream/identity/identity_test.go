package identity_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/identity"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

func TestTheOwnCAIsMadeOnceAndItsKeyIsEncrypted(t *testing.T) {
	dir := t.TempDir()
	first, err := identity.Own(dir, "Corp CA", []byte("secret"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := identity.Own(dir, "Corp CA", []byte("secret"), time.Now)
	if err != nil || !second.Certificate().Equal(first.Certificate()) {
		t.Errorf("another CA after a restart: %v", err)
	}
	if _, err := identity.Own(dir, "Corp CA", []byte("another secret"), time.Now); err == nil {
		t.Error("the key opens with another secret")
	}
	text, err := os.ReadFile(filepath.Join(dir, "identity-Corp%20CA.key"))
	if err != nil || !strings.Contains(string(text), "ENCRYPTED PRIVATE KEY") {
		t.Errorf("%q, %v", text, err)
	}
	signer, key, _, err := first.ResponseSigner(background)
	if err != nil || !signer.Equal(first.Certificate()) || !signer.IsCA || key == nil {
		t.Errorf("responses are signed by %v, %v", signer, err)
	}
	// A crash between key and certificate.
	if err := os.Remove(filepath.Join(dir, "identity-Corp%20CA.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Own(dir, "Corp CA", []byte("secret"), time.Now); err != nil {
		t.Error(err)
	}
}

// issuer is the embedded CA as a foreign one, which can fail.
type issuer struct {
	upstream.Issuer
	orders int
	down   bool
	change func(*upstream.Order)
	state  upstream.State
}

func (i *issuer) Submit(ctx context.Context, o upstream.Order) (upstream.Result, error) {
	i.orders++
	if i.down {
		return upstream.Result{}, errors.New("down")
	}
	if i.state != 0 {
		return upstream.Result{State: i.state, Reason: "no"}, nil
	}
	if csr, err := x509.ParseCertificateRequest(o.CSR); err != nil || csr.CheckSignature() != nil {
		return upstream.Result{}, errors.New("the request is not signed")
	}
	if i.change != nil {
		i.change(&o)
	}
	return i.Issuer.Submit(ctx, o)
}

func TestTheForeignCAIssuesTheResponseCertificate(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	ca := testpki.CA(t, testpki.DB(t), clock)
	ca1 := &issuer{Issuer: ca.Issuer()}
	o := identity.Options{Dir: t.TempDir(), CA: "Corp CA", Secret: []byte("secret"), Issuer: ca1, Now: clock}
	id, err := identity.Foreign(background, o)
	if err != nil {
		t.Fatal(err)
	}
	first, key, _, err := id.ResponseSigner(background)
	if err != nil {
		t.Fatal(err)
	}
	if !id.Certificate().Equal(ca.Certificate()) || first.CheckSignatureFrom(id.Certificate()) != nil || first.IsCA || key == nil || first.Subject.CommonName != "Test CA-CMC" {
		t.Errorf("published %v, signer %v", id.Certificate().Subject, first.Subject)
	}
	if _, err := identity.Foreign(background, o); err != nil || ca1.orders != 1 {
		t.Errorf("after a restart: %d orders, %v", ca1.orders, err)
	}

	now = now.Add(70 * 24 * time.Hour) // in the last third of its life
	ca1.down = true
	if same, _, _, err := id.ResponseSigner(background); err != nil || !same.Equal(first) {
		t.Errorf("while the CA is down: %v, %v", same, err)
	}
	if _, _, _, err := id.ResponseSigner(background); err != nil || ca1.orders != 2 {
		t.Errorf("the CA that is down is asked all the time: %d orders, %v", ca1.orders, err)
	}
	ca1.down, now = false, now.Add(2*time.Minute)
	if renewed, _, _, err := id.ResponseSigner(background); err != nil || renewed.Equal(first) {
		t.Errorf("not renewed: %v", err)
	}
	now, ca1.down = now.AddDate(1, 0, 0), true
	if _, _, _, err := id.ResponseSigner(background); err == nil {
		t.Error("an expired certificate signs responses")
	}
}

func TestABadAnswerOfTheForeignCAIsNoIdentity(t *testing.T) {
	ca := testpki.CA(t, testpki.DB(t), time.Now)
	for name, c := range map[string]*issuer{
		"down":           {down: true},
		"refused":        {state: upstream.Refused},
		"waits":          {state: upstream.Pending},
		"another usage":  {change: func(o *upstream.Order) { o.Profile.Extensions = o.Profile.Extensions[:1] }},
		"another holder": {change: func(o *upstream.Order) { o.PublicKey = testpki.RSA(t, 2048).Public() }},
	} {
		c.Issuer = ca.Issuer()
		if _, err := identity.Foreign(background, identity.Options{Dir: t.TempDir(), CA: "Corp CA", Secret: []byte("s"), Issuer: c, Now: time.Now}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
