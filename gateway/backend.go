package gateway

import (
	"context"
	"errors"
	"strconv"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// backend lets the SOAP endpoints for one way in call the gateway.
type backend struct {
	g         *Gateway
	transport string
}

func (b backend) Policies(ctx context.Context, caller templates.Caller, req soap.GetPoliciesRequest) (*soap.Policies, error) {
	return b.g.Policies(ctx, caller, req, b.transport == transportCertificate)
}

func (b backend) Enroll(ctx context.Context, caller templates.Caller, req soap.TokenRequest) (*soap.TokenReply, error) {
	s := Submission{Renews: clientCertificate(ctx), Caller: caller, CA: req.CA, Transport: b.transport, Request: req.Token}
	for _, item := range req.Context {
		s.Attributes = append(s.Attributes, wcce.NameValue(item))
	}
	return tokenReply(b.g.Enroll(ctx, s))
}

func (b backend) Poll(ctx context.Context, caller templates.Caller, req soap.TokenRequest) (*soap.TokenReply, error) {
	return tokenReply(b.g.Poll(ctx, caller, req.RequestID))
}

func (b backend) ExchangeCertificate(ctx context.Context, _ templates.Caller, ca string) ([]byte, error) {
	return b.g.ExchangeCertificate(ctx, ca)
}

func tokenReply(r *Reply, err error) (*soap.TokenReply, error) {
	if err != nil {
		if refusal, ok := errors.AsType[*Refusal](err); ok {
			return nil, &soap.RequestError{Err: refusal.Err, RequestID: strconv.FormatInt(refusal.RequestID, 10)}
		}
		return nil, err
	}
	t := &soap.TokenReply{RequestID: strconv.FormatInt(r.RequestID, 10), Message: r.Message, PKCS7: r.Full, Pending: r.State != ledger.Issued, RetryAfter: r.RetryAfter}
	if r.Certificate != nil {
		t.Certificate = r.Certificate.Raw
	}
	return t, nil
}

// ExchangeCertificate returns the certificate that clients encrypt keys to be archived to.
func (g *Gateway) ExchangeCertificate(ctx context.Context, name string) ([]byte, error) {
	ca := g.CA(name)
	if ca == nil {
		return nil, hresult.New(hresult.InvalidArg, "there is no CA %q here", name)
	}
	if g.Escrow.Ready() != nil { // an agent may have been designated this very second
		if err := g.Escrow.Refresh(ctx); err != nil {
			return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the escrow cannot be read; try again")
		}
	}
	if err := g.Escrow.Ready(); err != nil {
		return nil, err
	}
	cert, err := g.Escrow.Exchange(ctx, ca.Name, ca.Identity)
	if err != nil {
		return nil, hresult.Wrap(hresult.KeyArchivalNotConfigured, err, "the exchange certificate cannot be made")
	}
	return cert.Raw, nil
}
