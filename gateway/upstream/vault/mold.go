package vault

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
)

// mold makes certificates as Vault 1.21 does, by the same crypto/x509, under a key that nobody trusts: so it is known before an order is
// sent whether what Vault will sign is what was decided.
type mold struct {
	key    ed25519.PrivateKey
	issuer *x509.Certificate
}

func newMold() (*mold, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &mold{key, &x509.Certificate{Subject: pkix.Name{CommonName: "mold"}, SubjectKeyId: []byte{1}}}, nil
}

// compare makes the certificate and compares it with the decision.
func (m *mold) compare(order upstream.Order, template *x509.Certificate, t upstream.Tolerance) error {
	template.SerialNumber, template.NotBefore = big.NewInt(1), order.Profile.NotBefore
	if template.NotAfter.IsZero() {
		template.NotAfter = order.Profile.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, m.issuer, order.PublicKey, m.key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	return upstream.Compare(order, cert, t)
}

// verbatim tells whether /sign-verbatim makes the decided certificate from the request: its subject, with one attribute in each RDN, and
// all of its extensions.
func (m *mold) verbatim(order upstream.Order, csr *x509.CertificateRequest, t upstream.Tolerance) error {
	subject := csr.Subject
	subject.ExtraNames = subject.Names
	return m.compare(order, &x509.Certificate{Subject: subject, ExtraExtensions: csr.Extensions}, t)
}

// byRole tells whether /sign/:role makes the decided certificate.
func (m *mold) byRole(order upstream.Order, b *request, r *role, t upstream.Tolerance) error {
	csr, err := x509.ParseCertificateRequest(order.CSR)
	if err != nil {
		return err
	}
	template := &x509.Certificate{KeyUsage: r.keyUsage(), DNSNames: b.dns, EmailAddresses: b.emails, IPAddresses: b.addresses(), URIs: b.locations(),
		Subject: pkix.Name{CommonName: b.commonName, SerialNumber: b.serialNumber, Country: unique(r.Country), Organization: unique(r.Organization),
			OrganizationalUnit: unique(r.OrganizationalUnit), Locality: unique(r.Locality), Province: unique(r.Province), StreetAddress: unique(r.StreetAddress),
			PostalCode: unique(r.PostalCode)}}
	template.ExtKeyUsage, template.UnknownExtKeyUsage = r.purposes()
	// What the order does not say Vault takes from the request, even so.
	if b.serialNumber == "" && r.SerialSource != "json" {
		template.Subject.SerialNumber = csr.Subject.SerialNumber
	}
	users := b.userIDs
	for _, n := range csr.Subject.Names {
		if text, ok := n.Value.(string); ok && len(b.userIDs) == 0 && n.Type.String() == oidUserID {
			users = append(users, text)
		}
	}
	for _, u := range users {
		template.Subject.ExtraNames = append(template.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, Value: u})
	}
	for _, text := range r.Policies {
		oid, err := x509.ParseOID(text)
		if err != nil { // with a notice or an address, in JSON
			template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 32}, Value: []byte{0x30, 0}})
			break
		}
		template.Policies = append(template.Policies, oid)
	}
	if r.NotAfter != "" {
		if template.NotAfter, err = time.Parse(time.RFC3339, r.NotAfter); err != nil {
			return fmt.Errorf("its not_after is no time: %w", err)
		}
	}
	if len(b.others) > 0 {
		// With other names Vault writes the extension itself, and never as a critical one.
		i := slices.IndexFunc(order.Profile.Extensions, func(e templates.Extension) bool { return e.OID == wcce.OIDSAN })
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: order.Profile.Extensions[i].Value})
	}
	return m.compare(order, template, t)
}

// unique drops what is there twice, and keeps the order.
func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
