// Package client enrolls for certificates as Windows does: it asks the policy service what may be had, makes a key as
// the template says, encloses it for archival where the template demands that, and checks everything that comes back.
//
// Call Enroll. A request that waits for a manager gives a Result with Pending set: keep MarshalPending's text, and call
// Poll with what LoadPending makes of it. Certificate and key leave as Result.PEM, Result.KeyPEM or Result.PKCS12.
//
// A refusal by the server is a *hresult.Error in the error's chain.
package client

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Options say what to enroll for, and where. PolicyURL and Template are necessary.
type Options struct {
	PolicyURL string       // of the policy service; https
	HTTP      *http.Client // authenticates (kerberos.Client.Transport, or a client certificate); http.DefaultClient if nil
	// Authentication chooses among the addresses of a CA; soap.AuthKerberos if zero.
	Authentication int

	Template string // common name or OID
	CA       string // common name of the CA's certificate; empty: the first that offers the template

	Algorithm string   // "RSA", "P-256", "P-384" or "P-521"; empty: what the template says
	KeyBits   int      // of an RSA key; 0: what the template says, but at least 2048
	Subject   string   // RFC 4514, for templates whose names the enrollee supplies
	SANs      []string // "dns:host", "email:user@domain", "upn:user@domain", "ip:address", for the same templates

	Credentials *soap.UsernameToken // user name and password, where Authentication is soap.AuthPassword

	Renews     *wcce.RequestSigner  // the certificate to renew, with its key
	Signers    []wcce.RequestSigner // registration authorities, which sign the request too
	OnBehalfOf string               // DOMAIN\account that the first of Signers, an enrollment agent, enrolls

	// Force sends a request although the policy does not offer the template, to learn from the server why not.
	Force     bool
	EnrollURL string // of the enrollment service, where Force leaves no other way to know it

	PollInterval time.Duration // how often to ask about a pending request; 0: return at once with Result.Pending
	PollTimeout  time.Duration // how long to ask; 0: until the context ends

	// CheckTrust also verifies that the published CA and the issued certificate chain to a trusted root: Roots, or those
	// of the system if nil.
	CheckTrust    bool
	Roots         *x509.CertPool
	Intermediates *x509.CertPool

	Progress func(step, detail string) // told before each step; may be nil
	Now      func() time.Time          // time.Now if nil
}

// Result is what became of a request.
type Result struct {
	Certificate *x509.Certificate   // nil while pending
	Chain       []*x509.Certificate // from the issuer towards the root
	Key         crypto.Signer
	RequestID   string
	Pending     bool
	Message     string // disposition text of the server
	// ArchivedConfirmed: the server confirmed, with its signature, the hash of the archived key that was sent.
	ArchivedConfirmed bool
	Template          string            // common name
	CA                *x509.Certificate // as the policy published it

	pending *Pending
	retry   time.Duration // the server says not to ask before
}

// ErrNotArchived says that a certificate was issued although nothing confirms that its key was archived. It is not to be
// used: what is encrypted to it may be lost with the key.
var ErrNotArchived = errors.New("the server did not confirm the archived key")

// session is one enrollment on its way.
type session struct {
	Options
	soap soap.Client
}

func newSession(o Options) *session {
	if o.Authentication == 0 {
		o.Authentication = soap.AuthKerberos
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &session{Options: o, soap: soap.Client{HTTP: o.HTTP, Credentials: o.Credentials}}
}

func (s *session) progress(step, format string, args ...any) {
	if s.Progress != nil {
		s.Progress(step, fmt.Sprintf(format, args...))
	}
}

// Enroll gets a certificate.
func Enroll(ctx context.Context, o Options) (*Result, error) {
	s := newSession(o)
	offer, err := s.findOffer(ctx)
	if err != nil {
		return nil, err
	}
	key, err := s.newKey(offer.policy)
	if err != nil {
		return nil, fmt.Errorf("template %q: %w", offer.policy.CommonName, err)
	}
	var last error
	for _, service := range offer.services {
		result, err := s.enrollAt(ctx, offer.policy, service, key)
		if err == nil || !unreachable(err) {
			return result, err
		}
		s.progress("service", "%s cannot be used now: %v", service.url, err)
		last = err
	}
	return nil, last
}

// unreachable tells whether nothing was asked of the server, so that another one may be asked: the connection failed, or
// the server says that it does not serve now.
func unreachable(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return true
	}
	e, ok := errors.AsType[*hresult.Error](err)
	return ok && (e.Code == hresult.ServerUnavailable || e.Code == hresult.ServerTooBusy)
}

// enrollAt sends a request to one enrollment service and follows it up.
func (s *session) enrollAt(ctx context.Context, policy *soap.Policy, at service, key crypto.Signer) (*Result, error) {
	p := &Pending{EnrollURL: at.url, Template: policy.CommonName, Key: key, CA: at.ca}
	if s.CheckTrust && at.ca != nil {
		if err := s.checkTrust(at.ca, nil); err != nil {
			return nil, fmt.Errorf("the published CA %q: %w", at.ca.Subject, err)
		}
	}
	request, err := s.buildRequest(ctx, policy, at, p)
	if err != nil {
		return nil, err
	}
	s.progress("submit", "%s, %d octets", at.url, len(request))
	reply, err := s.soap.RequestToken(ctx, at.url, soap.TokenRequest{Kind: soap.Issue, Token: request})
	if err != nil {
		return nil, fmt.Errorf("requesting a certificate: %w", err)
	}
	p.RequestID = reply.RequestID
	result, err := s.result(p, reply)
	if err != nil || !result.Pending || s.PollInterval == 0 {
		return result, err
	}
	return s.poll(ctx, p)
}

// Poll asks what became of a pending request: once, or every PollInterval until it is decided. Of the options it uses
// HTTP, the polling times and CheckTrust. A request that is still pending is no error.
func Poll(ctx context.Context, o Options, p *Pending) (*Result, error) {
	s := newSession(o)
	if s.PollInterval == 0 {
		return s.ask(ctx, p)
	}
	return s.poll(ctx, p)
}

func (s *session) ask(ctx context.Context, p *Pending) (*Result, error) {
	if err := checkURL(p.EnrollURL); err != nil {
		return nil, err
	}
	reply, err := s.soap.RequestToken(ctx, p.EnrollURL, soap.TokenRequest{Kind: soap.QueryTokenStatus, RequestID: p.RequestID})
	if err != nil {
		return nil, fmt.Errorf("asking about request %s: %w", p.RequestID, err)
	}
	return s.result(p, reply)
}

// poll asks until the request is decided or PollTimeout has passed.
func (s *session) poll(ctx context.Context, p *Pending) (*Result, error) {
	var expired <-chan time.Time
	if s.PollTimeout > 0 {
		timer := time.NewTimer(s.PollTimeout)
		defer timer.Stop()
		expired = timer.C
	}
	tick := time.NewTicker(s.PollInterval)
	defer tick.Stop()
	for {
		result, err := s.ask(ctx, p)
		if err != nil || !result.Pending {
			return result, err
		}
		s.progress("pending", "request %s: %s", p.RequestID, result.Message)
		if result.retry > s.PollInterval {
			tick.Reset(result.retry)
		} else {
			tick.Reset(s.PollInterval)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for request %s: %w", p.RequestID, ctx.Err())
		case <-expired:
			return result, nil
		case <-tick.C:
		}
	}
}
