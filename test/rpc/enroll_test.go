package rpc

import (
	"crypto/rand"
	"crypto/x509"
	"testing"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
)

const (
	pkcs10 = 0x100
	cmc    = 0x400
	full   = 0x40000
)

func csr(t testing.TB) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, testpki.RSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEveryProtectionEnrolls(t *testing.T) {
	start(t)
	for name, h := range map[string]how{
		"SPNEGO by the endpoint mapper": {},
		"bare Kerberos":                 {bare: true, port: true},
		"RPCSS":                         {target: "RPCSS/enroll.lab.test", port: true},
		"the short name":                {target: "RPCSS/enroll", port: true},
		"HTTP":                          {target: "HTTP/enroll.lab.test", port: true},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial(t, "alice", h)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				out := ask(t, c, &icertpassage.CertServerRequestRequest{Flags: pkcs10, Attributes: template("LabUserAuth"), Request: blob(csr(t))})
				if out.Disposition != 3 || out.RequestID == 0 || text(out.DispositionMessage.Buffer) != "Issued\x00" {
					t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
				}
				cert := testpki.Cert(t, out.EncodedCert.Buffer)
				r, err := wcce.ParseResponse(out.Cert.Buffer)
				if err != nil || !r.Certificate.Equal(cert) || len(r.Chain) == 0 {
					t.Errorf("the chain: %v", err)
				}
			}
		})
	}
}
