package upstream

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// SignedCSR reads an order's request for a CA that wants one which its own key has signed. product is the CA's, for people: "a step-ca".
func SignedCSR(order Order, product string) (*wcce.CSR, error) {
	csr, err := wcce.ParseCSR(order.CSR)
	if err == nil {
		err = csr.Verify(true)
	}
	if err == nil && csr.NullSignature {
		err = fmt.Errorf("it is %s, which needs a request that is signed with its own key; this one has a hash in place of the signature", product)
	}
	return csr, err
}

// CarriedByCSR tells, as an error, which part of the decision a PKCS#10 request does not say, or says otherwise. It is for
// CAs that take names and extensions from the request. Extensions in ignore need not be in it; what is not decided must not be.
// A request of Windows has no names unless the template lets the enrollee supply them.
func CarriedByCSR(order Order, ignore []string) error {
	csr, err := wcce.ParseCSR(order.CSR)
	if err != nil {
		return err
	}
	if !SameName(csr.RawSubject, order.Profile.Subject) {
		return fmt.Errorf("the CA takes the subject from the request, which says %q; decided is %q", dn.Show(csr.RawSubject), order.Profile.SubjectText)
	}
	requested := map[string][]byte{}
	for _, e := range csr.Extensions {
		requested[e.OID] = e.Value
	}
	for _, d := range order.Profile.Extensions {
		value, ok := requested[d.OID]
		delete(requested, d.OID)
		switch {
		case slices.Contains(ignore, d.OID):
		case !ok:
			return fmt.Errorf("the CA takes extensions from the request, which does not have the decided %s", extensionName(d.OID))
		case !bytes.Equal(value, d.Value) && !sameExtension(d.OID, value, d.Value):
			return fmt.Errorf("the CA takes extensions from the request, whose %s is not the decided one", extensionName(d.OID))
		}
	}
	for oid := range requested {
		if !slices.Contains(ignore, oid) && !slices.Contains(ownedByCA, oid) {
			return fmt.Errorf("the CA takes extensions from the request, which has %s; it was not decided", extensionName(oid))
		}
	}
	return nil
}

// NewCSR makes a PKCS#10 request that says what was decided, so that every CA can carry it. It is for the gateway's own certificates:
// clients make their requests themselves.
func NewCSR(p templates.CertificateProfile, key crypto.Signer) ([]byte, error) {
	csr := &x509.CertificateRequest{RawSubject: p.Subject}
	for _, d := range p.Extensions {
		x, err := d.X509()
		if err != nil {
			return nil, err
		}
		csr.ExtraExtensions = append(csr.ExtraExtensions, x)
	}
	return x509.CreateCertificateRequest(rand.Reader, csr, key)
}
