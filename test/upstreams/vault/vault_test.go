package vault

import (
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

func TestContractWithARole(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := start(t)
		subject := s.subject()
		subject.Refused = func(t testing.TB) upstream.Order {
			s.Role(map[string]any{"key_type": "ec", "key_bits": 256})
			return contract.WindowsOrder(t, "a-1", testpki.RSA(t, 2048))
		}
		return subject
	})
}

func TestContractVerbatim(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := start(t)
		s.o.Verbatim, s.o.Role, s.o.Tolerance = true, "", upstream.Tolerance{}
		subject := s.subject()
		subject.Order = contract.NamedOrder
		return subject
	})
}
