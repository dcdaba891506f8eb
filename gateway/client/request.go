package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
)

// buildRequest makes the CMC request, with the private key enclosed where the template demands that, and notes in p what
// the reply has to confirm.
func (s *session) buildRequest(ctx context.Context, policy *soap.Policy, at service, p *Pending) ([]byte, error) {
	if err := s.canSatisfy(policy); err != nil {
		return nil, fmt.Errorf("template %q: %w", policy.CommonName, err)
	}
	o := wcce.RequestOptions{Key: p.Key, Signers: s.Signers, RequestorName: s.OnBehalfOf}
	if s.Renews != nil {
		o.Renews, o.RenewsKey = s.Renews.Certificate, s.Renews.Key
	}
	var err error
	if o.Hash, err = hashOf(policy); err != nil {
		return nil, fmt.Errorf("template %q: %w", policy.CommonName, err)
	}
	for _, e := range policy.Extensions {
		o.Extensions = append(o.Extensions, wcce.Extension{OID: e.OID.Value, Critical: e.Critical, Value: e.Value})
	}
	if err := s.addNames(policy, &o); err != nil {
		return nil, fmt.Errorf("template %q: %w", policy.CommonName, err)
	}
	if value(policy.EnrollmentFlags)&templates.EnrollIncludeSymmetricAlgorithms != 0 && !has(o.Extensions, oidCapabilities) {
		o.Extensions = append(o.Extensions, capabilities())
	}
	if archives(policy) {
		if at.ca == nil {
			return nil, fmt.Errorf("template %q archives keys, and the address of the service alone does not say which CA to trust with it", policy.CommonName)
		}
		s.progress("exchange certificate", "%s", at.url)
		der, err := s.soap.KeyExchange(ctx, at.url)
		if err != nil {
			return nil, fmt.Errorf("getting the exchange certificate: %w", err)
		}
		if o.Exchange, err = checkExchange(der, at.ca, s.Now()); err != nil {
			return nil, fmt.Errorf("exchange certificate: %w", err)
		}
		if policy.Archival != nil {
			o.Cipher = policy.Archival.Algorithm.Value
		}
	}
	s.progress("request", "CMC, template %q, private key enclosed: %t", policy.CommonName, o.Exchange != nil)
	request, err := wcce.NewRequest(o)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	if o.Exchange != nil {
		own, err := wcce.ParseRequest(request)
		if err != nil {
			return nil, fmt.Errorf("reading back the request: %w", err)
		}
		p.ArchivedHash = own.Archived.Hash
	}
	return request, nil
}

// canSatisfy refuses templates whose requests need what this client does not have.
func (s *session) canSatisfy(p *soap.Policy) error {
	if p.RA != nil && int(p.RA.Signatures) > len(s.Signers) && s.Renews == nil && !s.Force {
		return fmt.Errorf("its requests need %d signatures of registration authorities, not %d", p.RA.Signatures, len(s.Signers))
	}
	if value(p.PrivateKeyFlags)&templates.KeyAttestRequired != 0 {
		return errors.New("its keys must be attested by a TPM, which this client does not use")
	}
	return nil
}

func hashOf(p *soap.Policy) (crypto.Hash, error) {
	if p.HashAlgorithm == nil {
		return crypto.SHA256, nil
	}
	switch p.HashAlgorithm.Value {
	case wcce.OIDSHA1:
		return crypto.SHA1, nil
	case wcce.OIDSHA256:
		return crypto.SHA256, nil
	case wcce.OIDSHA384:
		return crypto.SHA384, nil
	case wcce.OIDSHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("its hash algorithm %s is not supported", p.HashAlgorithm.Value)
}

// addNames puts the caller's names into the request if the template asks for them, and refuses names that would be
// ignored ([MS-CRTD] 2.28).
func (s *session) addNames(p *soap.Policy, o *wcce.RequestOptions) error {
	flags := value(p.SubjectNameFlags)
	subject := flags&templates.NameEnrolleeSuppliesSubject != 0
	san := subject || flags&templates.NameEnrolleeSuppliesSAN != 0
	switch {
	case s.Subject != "" && !subject && !s.Force:
		return errors.New("the subject comes from the directory and cannot be chosen")
	case len(s.SANs) > 0 && !san && !s.Force:
		return errors.New("alternative names come from the directory and cannot be chosen")
	case subject && s.Subject == "" && len(s.SANs) == 0 && s.Renews != nil: // as Windows does: the old names
		o.Subject = s.Renews.Certificate.RawSubject
		for _, e := range s.Renews.Certificate.Extensions {
			if e.Id.String() == oidSAN {
				o.Extensions = append(o.Extensions, wcce.Extension{OID: oidSAN, Critical: e.Critical, Value: e.Value})
			}
		}
		return nil
	case subject && s.Subject == "" && len(s.SANs) == 0:
		return errors.New("the enrollee supplies the names: give a subject or alternative names")
	}
	var err error
	if s.Subject != "" {
		if o.Subject, err = SubjectDER(s.Subject); err != nil {
			return err
		}
	}
	if len(s.SANs) == 0 {
		return nil
	}
	names, err := SANValue(s.SANs)
	if err != nil {
		return err
	}
	// RFC 5280 4.2.1.6: critical where there is no subject.
	o.Extensions = append(o.Extensions, wcce.Extension{OID: oidSAN, Critical: s.Subject == "", Value: names})
	return nil
}

const (
	oidSAN          = "2.5.29.17"
	oidCapabilities = "1.2.840.113549.1.9.15"
)

func has(list []wcce.Extension, oid string) bool {
	return slices.ContainsFunc(list, func(e wcce.Extension) bool { return e.OID == oid })
}

// capabilities lists the ciphers that mail to the holder may use (RFC 8551 2.5.2), the best first.
func capabilities() wcce.Extension {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, oid := range []asn1.ObjectIdentifier{
			{2, 16, 840, 1, 101, 3, 4, 1, 42}, {2, 16, 840, 1, 101, 3, 4, 1, 22}, {2, 16, 840, 1, 101, 3, 4, 1, 2}, {1, 2, 840, 113549, 3, 7},
		} {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
		}
	})
	return wcce.Extension{OID: oidCapabilities, Value: b.BytesOrPanic()}
}

// checkExchange does what Windows checks before it hands out a private key ([MS-WCCE] 3.2.1.4.3.2.15.1): the certificate
// comes from the published CA, is in date, and is for this purpose.
func checkExchange(der []byte, ca *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	name := cert.Subject.String()
	if !bytes.Equal(cert.RawIssuer, ca.RawSubject) {
		return nil, fmt.Errorf("%q was issued by %q, not by the published CA %q", name, cert.Issuer, ca.Subject)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("%q is not signed by the published CA %q: %w", name, ca.Subject, err)
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, fmt.Errorf("%q is valid from %s to %s, not now", name, cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
	}
	exchange := func(oid asn1.ObjectIdentifier) bool { return oid.String() == wcce.OIDCAExchange }
	if !slices.ContainsFunc(cert.UnknownExtKeyUsage, exchange) {
		return nil, fmt.Errorf("%q is not a CA exchange certificate: extended key usage %s is missing", name, wcce.OIDCAExchange)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageKeyEncipherment == 0 {
		return nil, fmt.Errorf("%q may not be used for key encipherment", name)
	}
	return cert, nil
}
