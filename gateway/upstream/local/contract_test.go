package local_test

import (
	"context"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

// counted notes what an issuer has issued: the embedded CA has no list of its own.
type counted struct {
	upstream.Issuer
	mu     sync.Mutex
	issued []string
}

func (c *counted) Submit(ctx context.Context, o upstream.Order) (upstream.Result, error) {
	r, err := c.Issuer.Submit(ctx, o)
	if r.Certificate != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.issued = append(c.issued, r.Certificate.SerialNumber.Text(16))
	}
	return r, err
}

func TestContract(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		ca := testpki.CA(t, testpki.DB(t), time.Now)
		c := &counted{Issuer: ca.Issuer()}
		return &contract.Subject{Issuer: c, Issued: func(testing.TB) []string { return c.issued }, Revoked: func(t testing.TB, cert *x509.Certificate) bool {
			der, err := ca.CRL(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
					return true
				}
			}
			return false
		}}
	})
}
