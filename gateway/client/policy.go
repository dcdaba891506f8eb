package client

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
)

// offer is a template and where it can be had, best first.
type offer struct {
	policy   *soap.Policy
	services []service
}

// service is one address of a CA.
type service struct {
	url      string
	ca       *x509.Certificate // nil where the caller gave the address
	priority uint32
}

// clientVersion and serverVersion are those of Windows 10 and Server 2016: the newest that [MS-CRTD] 2.27 knows.
const (
	clientVersion = 6
	serverVersion = 6
)

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return err
	}
	if u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is not an https address; enrollment goes over TLS only", text)
	}
	return nil
}

// findOffer asks the policy service and picks the template and the addresses of the CAs that offer it.
func (s *session) findOffer(ctx context.Context) (*offer, error) {
	if err := checkURL(s.PolicyURL); err != nil {
		return nil, fmt.Errorf("policy service: %w", err)
	}
	s.progress("policy", "%s", s.PolicyURL)
	policies, err := s.soap.GetPolicies(ctx, s.PolicyURL, soap.GetPoliciesRequest{ClientVersion: clientVersion, ServerVersion: serverVersion})
	if err != nil {
		return nil, fmt.Errorf("getting the policy: %w", err)
	}
	for i := range policies.Policies {
		p := &policies.Policies[i]
		if !strings.EqualFold(p.CommonName, s.Template) && p.OID.Value != s.Template {
			continue
		}
		s.progress("template", "%q (%s), version %d.%d", p.CommonName, p.OID.Value, p.MajorRevision, value(p.MinorRevision))
		if !p.Enroll && !s.Force {
			return nil, fmt.Errorf("template %q: the policy does not let you enroll", p.CommonName)
		}
		services, err := s.services(policies, p.CAs)
		if err != nil {
			return nil, fmt.Errorf("template %q: %w", p.CommonName, err)
		}
		return &offer{policy: p, services: services}, nil
	}
	if s.Force {
		return s.forcedOffer(policies)
	}
	var names []string
	for _, p := range policies.Policies {
		names = append(names, p.CommonName)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("template %q is not offered to you; no template is", s.Template)
	}
	return nil, fmt.Errorf("template %q is not offered to you; offered are %s", s.Template, strings.Join(names, ", "))
}

// forcedOffer names the template without knowing anything about it.
func (s *session) forcedOffer(policies *soap.Policies) (*offer, error) {
	all := make([]int, len(policies.CAs))
	for i := range all {
		all[i] = i
	}
	services, err := s.services(policies, all)
	if s.EnrollURL != "" {
		if err := checkURL(s.EnrollURL); err != nil {
			return nil, fmt.Errorf("enrollment service: %w", err)
		}
		services, err = []service{{url: s.EnrollURL}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("template %q is not offered to you, and there is no address to send a request to: %w", s.Template, err)
	}
	p := &soap.Policy{CommonName: s.Template, Extensions: []soap.Extension{
		{OID: soap.OIDRef{Value: wcce.OIDTemplateName, Group: soap.GroupExtension}, Value: wcce.BMPString(s.Template)}}}
	return &offer{policy: p, services: services}, nil
}

// services lists the usable addresses of the CAs, the lowest priority number first ([MS-XCEP] 3.1.4.1.3.3).
func (s *session) services(policies *soap.Policies, indexes []int) ([]service, error) {
	var out []service
	var seen []string
	for _, i := range indexes {
		if i < 0 || i >= len(policies.CAs) {
			return nil, fmt.Errorf("the policy refers to CA %d of %d", i+1, len(policies.CAs))
		}
		ca := policies.CAs[i]
		cert, err := x509.ParseCertificate(ca.Certificate)
		if err != nil {
			return nil, fmt.Errorf("the published certificate of CA %d: %w", i+1, err)
		}
		seen = append(seen, cert.Subject.CommonName)
		if s.CA != "" && !strings.EqualFold(s.CA, cert.Subject.CommonName) || !ca.EnrollPermission && !s.Force {
			continue
		}
		for _, u := range ca.URIs {
			if u.ClientAuthentication == s.Authentication && (!u.RenewalOnly || s.Renews != nil) && checkURL(u.URI) == nil {
				out = append(out, service{url: u.URI, ca: cert, priority: value(u.Priority)})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no CA offers it at an https address with this kind of authentication (%d) to you; CAs: %s", s.Authentication, strings.Join(seen, ", "))
	}
	slices.SortStableFunc(out, func(a, b service) int { return cmp.Compare(a.priority, b.priority) })
	return out, nil
}

func value(p *uint32) uint32 {
	if p == nil {
		return 0
	}
	return *p
}

// archives tells whether the template demands that the private key be archived.
func archives(p *soap.Policy) bool {
	if p.PrivateKeyFlags == nil {
		return p.Archival != nil
	}
	return *p.PrivateKeyFlags&templates.KeyRequireArchival != 0
}

// minimumRSA is what the client makes where the template allows less: a longer key satisfies every template.
const minimumRSA = 2048

// newKey makes a key as the template says. An override must satisfy the template too, or the server would refuse.
func (s *session) newKey(p *soap.Policy) (crypto.Signer, error) {
	if s.Renews != nil && value(p.PrivateKeyFlags)&templates.KeyRequireSameKeyRenewal != 0 {
		s.progress("key", "that of the renewed certificate")
		return s.Renews.Key, nil
	}
	algorithm, bits, err := keyOf(p)
	if err != nil {
		return nil, err
	}
	if s.Algorithm != "" && !strings.EqualFold(s.Algorithm, algorithm) {
		if p.PrivateKey.Algorithm != nil {
			return nil, fmt.Errorf("its keys are %s, not %s", algorithm, s.Algorithm)
		}
		algorithm = strings.ToUpper(s.Algorithm)
	}
	if curve := curveOf(algorithm); curve != nil {
		if s.KeyBits != 0 && s.KeyBits != curve.Params().BitSize {
			return nil, fmt.Errorf("a %s key has %d bits, not %d", algorithm, curve.Params().BitSize, s.KeyBits)
		}
		s.progress("key", "%s", algorithm)
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	if algorithm != "RSA" {
		return nil, fmt.Errorf("key algorithm %q is not supported; use RSA, P-256, P-384 or P-521", algorithm)
	}
	if s.KeyBits != 0 {
		if s.KeyBits < bits {
			return nil, fmt.Errorf("it wants at least %d bits, not %d", bits, s.KeyBits)
		}
		bits = s.KeyBits
	} else {
		bits = max(bits, minimumRSA)
	}
	s.progress("key", "RSA, %d bits", bits)
	return rsa.GenerateKey(rand.Reader, bits)
}

// keyOf reads algorithm and least size of the template's keys. AD CS leaves the algorithm out for RSA.
func keyOf(p *soap.Policy) (algorithm string, bits int, err error) {
	bits = int(p.PrivateKey.MinimalKeyLength)
	if p.PrivateKey.Algorithm == nil {
		return "RSA", bits, nil
	}
	switch oid := p.PrivateKey.Algorithm.Value; oid {
	case wcce.OIDRSAEncryption:
		return "RSA", bits, nil
	case "1.2.840.10045.3.1.7":
		return "P-256", 256, nil
	case "1.3.132.0.34":
		return "P-384", 384, nil
	case "1.3.132.0.35":
		return "P-521", 521, nil
	case wcce.OIDECPublicKey:
		if curveOf(fmt.Sprintf("P-%d", bits)) != nil {
			return fmt.Sprintf("P-%d", bits), bits, nil
		}
		return "", 0, fmt.Errorf("elliptic curve keys of %d bits are not supported", bits)
	default:
		return "", 0, fmt.Errorf("its key algorithm %s (%s) is not supported", oid, p.PrivateKey.Algorithm.Name)
	}
}

func curveOf(name string) elliptic.Curve {
	switch strings.ToUpper(name) {
	case "P-256":
		return elliptic.P256()
	case "P-384":
		return elliptic.P384()
	case "P-521":
		return elliptic.P521()
	}
	return nil
}
