package stepca

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

func TestContract(t *testing.T) {
	contract.Run(t, func(t testing.TB) *contract.Subject {
		s := server.Start(t, stepca.Template)
		return &contract.Subject{Issuer: s.Issuer(t), Proxy: s.Proxy, Submits: server.IsSign,
			Issued: func(t testing.TB) (out []string) {
				for _, answer := range s.Proxy.Answers() {
					var signed struct {
						Certificate string `json:"crt"`
					}
					if json.Unmarshal(answer, &signed) != nil || signed.Certificate == "" {
						continue
					}
					block, _ := pem.Decode([]byte(signed.Certificate))
					out = append(out, testpki.Cert(t, block.Bytes).SerialNumber.Text(16))
				}
				return out
			},
			Revoked: func(t testing.TB, cert *x509.Certificate) bool {
				return slices.ContainsFunc(revoked(t, s), func(n *big.Int) bool { return n.Cmp(cert.SerialNumber) == 0 })
			},
			Refused: func(t testing.TB) upstream.Order {
				o := contract.WindowsOrder(t, "refused", testpki.RSA(t, 2048))
				o.Profile.NotAfter = time.Now().AddDate(100, 0, 0) // the provisioner has a limit
				return o
			}}
	})
}
