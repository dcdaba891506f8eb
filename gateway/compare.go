package gateway

import (
	"crypto/x509"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/upstream"
)

func equalFold(a, b string) bool { return strings.EqualFold(a, b) }

// compare checks what a CA returned against the decision.
func compare(order upstream.Order, cert *x509.Certificate) error {
	return upstream.Compare(order, cert)
}
