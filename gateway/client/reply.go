package client

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// result turns a reply into a Result, after all that it claims was checked.
func (s *session) result(p *Pending, reply *soap.TokenReply) (*Result, error) {
	r := &Result{Key: p.Key, RequestID: p.RequestID, Template: p.Template, CA: p.CA, Message: reply.Message, pending: p}
	if reply.RequestID != "" && reply.RequestID != p.RequestID {
		return nil, fmt.Errorf("the reply is about request %s, not %s", reply.RequestID, p.RequestID)
	}
	if reply.Pending {
		if r.RequestID == "" {
			return nil, errors.New("the request is pending, but the reply does not say its number")
		}
		r.Pending, r.retry = true, reply.RetryAfter
		return r, nil
	}
	if len(reply.PKCS7) == 0 {
		return nil, fmt.Errorf("request %s: the reply has no CMC response", p.RequestID)
	}
	response, err := wcce.ParseResponse(reply.PKCS7)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", p.RequestID, err)
	}
	if err := checkResponse(p, response, reply.Certificate, s.Now()); err != nil {
		return nil, fmt.Errorf("request %s: %w", p.RequestID, err)
	}
	r.Certificate, r.Chain = response.Certificate, path(response.Certificate, response.Chain)
	r.ArchivedConfirmed = p.ArchivedHash != nil
	if s.CheckTrust {
		if err := s.checkTrust(r.Certificate, r.Chain); err != nil {
			return nil, fmt.Errorf("the issued certificate: %w", err)
		}
	}
	s.progress("issued", "%s, serial %x", dn.Show(r.Certificate.RawSubject), r.Certificate.SerialNumber)
	return r, nil
}

// checkResponse believes nothing that the CA has not signed. wcce.ParseResponse has verified that the response is signed
// by r.Signer and that r.Certificate has the announced hash.
func checkResponse(p *Pending, r *wcce.Response, token []byte, now time.Time) error {
	switch {
	case r.Signer == nil:
		return errors.New("the response is not signed")
	case p.CA != nil && !mayAnswer(r.Signer, p.CA, now):
		return fmt.Errorf("the response is signed by %q, not by the published CA %q", r.Signer.Subject, p.CA.Subject)
	case r.Status == wcce.StatusDenied:
		return hresult.New(hresult.AdminDeniedRequest, "denied: %s", r.Text)
	case r.Status != wcce.StatusIssued || r.Certificate == nil:
		return fmt.Errorf("the response has status %d (%s) and no certificate", r.Status, r.Text)
	case token != nil && !bytes.Equal(token, r.Certificate.Raw):
		return errors.New("the certificate in the reply is not the one in the signed response")
	}
	public, ok := p.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(r.Certificate.PublicKey) {
		return errors.New("the issued certificate is for another key")
	}
	switch {
	case p.ArchivedHash == nil && r.KeyHash != nil:
		return errors.New("the response confirms an archived key, but none was sent")
	case p.ArchivedHash != nil && r.KeyHash == nil:
		return fmt.Errorf("%w: the response has no hash of it", ErrNotArchived)
	case subtle.ConstantTimeCompare(p.ArchivedHash, r.KeyHash) != 1:
		return fmt.Errorf("%w: the response has the hash of another one", ErrNotArchived)
	}
	return nil
}

// usageCMC is id-kp-cmcCA (RFC 6402 2.10).
var usageCMC = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 27}

// mayAnswer tells whether signer speaks for the published CA: it has the CA's key, or a valid certificate that the CA has
// issued for answering CMC requests. Any other certificate of the CA proves nothing: every user has one.
func mayAnswer(signer, ca *x509.Certificate, now time.Time) bool {
	if bytes.Equal(signer.RawSubjectPublicKeyInfo, ca.RawSubjectPublicKeyInfo) {
		return true
	}
	return !signer.IsCA && bytes.Equal(signer.RawIssuer, ca.RawSubject) && signer.CheckSignatureFrom(ca) == nil &&
		!now.Before(signer.NotBefore) && !now.After(signer.NotAfter) && len(signer.UnhandledCriticalExtensions) == 0 &&
		signer.KeyUsage&x509.KeyUsageDigitalSignature != 0 && slices.ContainsFunc(signer.UnknownExtKeyUsage, usageCMC.Equal)
}

// path orders certificates from the issuer of cert towards the root, and leaves out those that do not belong to it.
func path(cert *x509.Certificate, all []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		i := slices.IndexFunc(all, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(c) == nil && !slices.ContainsFunc(out, c.Equal)
		})
		if i < 0 {
			break
		}
		cert = all[i]
		out = append(out, cert)
	}
	return out
}

// checkTrust builds a chain to a trusted root for any purpose.
func (s *session) checkTrust(cert *x509.Certificate, chain []*x509.Certificate) error {
	pool := x509.NewCertPool()
	if s.Intermediates != nil {
		pool = s.Intermediates.Clone()
	}
	for _, c := range chain {
		pool.AddCert(c)
	}
	known := *cert
	// Application policies repeat the extended key usages; templates may mark them critical ([MS-WCCE] 2.2.2.7.7.3).
	known.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(cert.UnhandledCriticalExtensions),
		func(oid asn1.ObjectIdentifier) bool { return oid.String() == wcce.OIDAppPolicies })
	_, err := known.Verify(x509.VerifyOptions{Roots: s.Roots, Intermediates: pool, CurrentTime: s.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}
