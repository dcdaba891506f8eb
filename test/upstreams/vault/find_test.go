package vault

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/authority"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
	"github.com/enrollgate/enrollgate/test/upstreams/proxy"
)

func selfSigned(t testing.TB, like *x509.Certificate) []byte {
	t.Helper()
	key := authority.Key(t)
	like.SerialNumber, like.NotBefore, like.NotAfter = big.NewInt(1), time.Now(), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, like, like, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func request(t testing.TB, key crypto.Signer, subject pkix.Name) []byte {
	t.Helper()
	return requestOf(t, key, &x509.CertificateRequest{Subject: subject})
}

func requestOf(t testing.TB, key crypto.Signer, csr *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, csr, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func publicKey(t testing.TB, csr []byte) crypto.PublicKey {
	t.Helper()
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.PublicKey
}

// An order that Vault never got may be submitted again, but only when it cannot be under way any more.
func TestAnOrderThatNeverArrived(t *testing.T) {
	s := start(t)
	var ahead atomic.Int64
	now := time.Now()
	s.o.Settled, s.o.Now = 5*time.Minute, func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	ca := s.issuer()
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	for _, minutes := range []time.Duration{0, 4} {
		ahead.Store(int64(minutes * time.Minute))
		if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Pending {
			t.Fatalf("it may still be under way: %+v, %v", r, err)
		}
	}
	ahead.Store(int64(6 * time.Minute))
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Unknown {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := ca.Submit(background, o); err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
}

// A mount that is not there has no certificates, and says nothing about the order.
func TestAMountThatIsNotThereTellsNothing(t *testing.T) {
	s := start(t)
	s.o.Settled, s.o.Mount, s.o.Verbatim, s.o.Role = time.Nanosecond, "elsewhere", true, ""
	ca := s.issuer()
	for range 2 {
		if r, err := ca.Find(background, contract.NamedOrder(t, "1-aa", testpki.RSA(t, 2048)), ""); err == nil {
			t.Errorf("%+v", r)
		}
	}
}

// A lost answer counts from when it was lost, not from when it was asked for first.
func TestAnAnswerThatIsLostLater(t *testing.T) {
	s := start(t)
	var ahead atomic.Int64
	now := time.Now()
	s.o.Settled, s.o.Now = 5*time.Minute, func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	ca := s.issuer()
	o := contract.WindowsOrder(t, "1-aa", testpki.RSA(t, 2048))
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Pending {
		t.Fatalf("it may be under way: %+v, %v", r, err)
	}
	ahead.Store(int64(4 * time.Minute))
	s.Proxy.Make(proxy.Garbage, 1, s.subject().Submits)
	if _, err := ca.Submit(background, o); err == nil {
		t.Fatal("the answer was garbage")
	}
	ahead.Store(int64(6 * time.Minute))
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Pending {
		t.Fatalf("two minutes after it was submitted: %+v, %v", r, err)
	}
}

// The same key has certificates of other orders.
func TestTheCertificateOfAnotherOrderIsNotFound(t *testing.T) {
	s := start(t)
	s.o.Settled = time.Nanosecond
	ca := s.issuer()
	key := testpki.RSA(t, 2048)
	first := contract.WindowsOrder(t, "1-aa", key)
	r, err := ca.Submit(background, first)
	if err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	for id, later := range map[string]time.Duration{"2-bb": -time.Hour, "3-cc": time.Second} {
		second := contract.WindowsOrder(t, id, key)
		second.Profile.NotAfter = first.Profile.NotAfter.Add(later)
		_, _ = ca.Find(background, second, "")
		if got, err := ca.Find(background, second, ""); err != nil || got.State != upstream.Unknown {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for _, token := range []string{"", r.Token, "../../sys/seal", "ff:ff"} {
		if got, err := ca.Find(background, first, token); err != nil || got.State != upstream.Issued || !got.Certificate.Equal(r.Certificate) {
			t.Errorf("token %q: %+v, %v", token, got, err)
		}
	}
	if err := ca.Revoke(background, r.Certificate.SerialNumber, 4); err != nil {
		t.Fatal(err)
	}
	if got, err := ca.Find(background, first, ""); err != nil || got.State != upstream.Refused || !strings.Contains(got.Reason, "revoked") {
		t.Errorf("%+v, %v", got, err)
	}
}

// Each stored certificate is fetched once, however often is looked.
func TestLookingIsBounded(t *testing.T) {
	s := start(t)
	ca := s.issuer()
	for i := range 60 {
		if r, err := ca.Submit(background, contract.WindowsOrder(t, fmt.Sprint(i), authority.Key(t))); err != nil || r.State != upstream.Issued {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	var fetched atomic.Int64
	s.Proxy.Make(proxy.None, 1<<30, func(r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/cert/") {
			fetched.Add(1)
		}
		return false
	})
	o := contract.WindowsOrder(t, "x-1", testpki.RSA(t, 2048))
	for range 3 {
		if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Pending {
			t.Fatalf("it may be under way: %+v, %v", r, err)
		}
	}
	if all := int64(len(s.Stored()) + len(s.Own)); fetched.Load() != all {
		t.Errorf("%d certificates fetched, %d are stored", fetched.Load(), all)
	}
}

// A search that takes too long goes on where it has ended.
func TestALongSearchGoesOn(t *testing.T) {
	s := start(t)
	ca := s.issuer()
	o := contract.WindowsOrder(t, "x-1", testpki.RSA(t, 2048))
	for i := range 40 {
		if r, err := ca.Submit(background, contract.WindowsOrder(t, fmt.Sprint(i), authority.Key(t))); err != nil || r.State != upstream.Issued {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	s.Proxy.Make(proxy.Lost, 1, s.subject().Submits)
	if _, err := ca.Submit(background, o); err == nil {
		t.Fatal("the answer was not lost")
	}
	var fetched atomic.Int64
	s.Proxy.Make(proxy.Silence, 1<<30, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/cert/") && fetched.Add(1) > 20 })
	ctx, cancel := context.WithTimeout(background, 500*time.Millisecond)
	defer cancel()
	if r, err := ca.Find(ctx, o, ""); err != nil || r.State != upstream.Pending {
		t.Fatalf("half of them are looked at: %+v, %v", r, err)
	}
	s.Proxy.Make(proxy.None, 1<<30, func(r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/cert/") {
			fetched.Add(1)
		}
		return false
	})
	fetched.Store(0)
	if r, err := ca.Find(background, o, ""); err != nil || r.State != upstream.Issued {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := fetched.Load(); n > 25+1 {
		t.Errorf("%d were fetched again", n)
	}
}
