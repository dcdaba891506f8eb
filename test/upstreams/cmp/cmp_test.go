// Package cmp tests the CMP driver on OpenSSL's CMP server.
package cmp

import (
	"context"
	"crypto"
	"crypto/x509"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/cmp"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

var background = context.Background()

func subject(s *Server, d *cmp.CA) *contract.Subject {
	return &contract.Subject{
		Issuer: d, Issued: s.list, Proxy: s.proxy, Submits: submits,
		Revoked: func(_ testing.TB, cert *x509.Certificate) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.revoked[cert.SerialNumber.Text(16)]
		},
		Refused: func(t testing.TB) upstream.Order { return mallory(t, testpki.RSA(t, 2048)) },
	}
}

// mallory is an order that OpenSSL is told to reject.
func mallory(t testing.TB, key crypto.Signer) upstream.Order {
	o := contract.WindowsOrder(t, "0-dd", key)
	for i, e := range o.Profile.Extensions {
		if e.OID == wcce.OIDSAN {
			o.Profile.Extensions[i].Value = append([]byte{0x30, 0x12, 0x81, 0x10}, "mallory@lab.test"...)
		}
	}
	return o
}

func TestContractWithSignatures(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := Start(t)
		return subject(s, s.driver(s.options()))
	})
}

func TestContractWithASecretAndImplicitConfirmation(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := Start(t, "-srv_secret", "pass:correct horse", "-grant_implicitconf")
		o := s.options()
		o.Certificates, o.Key, o.Secret, o.Reference, o.ImplicitConfirm = nil, nil, []byte("correct horse"), "enrollgate", true
		return subject(s, s.driver(o))
	})
}

// The client's request itself goes to the CA.
func TestContractWithTheClientsRequest(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := Start(t)
		o := s.options()
		o.PKCS10, o.Issuing = true, []*x509.Certificate{s.issuing}
		sub := subject(s, s.driver(o))
		sub.Order, sub.Refused = contract.NamedOrder, nil
		return sub
	})
}
