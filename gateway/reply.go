package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// reply is the answer for a row: the certificate, or that it is pending, or the refusal.
func (g *Gateway) reply(ctx context.Context, ca *CA, row *ledger.Row) (*Reply, error) {
	r := &Reply{RequestID: row.ID, State: row.State, Message: row.Message}
	issuing := g.Signer(row.Issuer)
	if issuing == nil {
		issuing = ca
	}
	response := wcce.Response{Text: row.Message}
	switch row.State {
	case ledger.Issued:
		cert, err := x509.ParseCertificate(row.Certificate)
		if err != nil {
			return nil, fmt.Errorf("request %d: stored certificate: %w", row.ID, err)
		}
		r.Certificate, r.Message = cert, messageIssued
		response.Status, response.Text, response.Certificate = wcce.StatusIssued, messageIssued, cert
		if row.Archived {
			response.KeyHash = row.KeyHash
		}
	case ledger.Open, ledger.Pending, ledger.Approved, ledger.Waiting:
		r.Message = messagePending
		response.Status, response.Text = wcce.StatusPending, messagePending
		response.RequestID, response.Received = strconv.FormatInt(row.ID, 10), row.Created
		if row.Created.IsZero() {
			response.Received = g.now()
		}
		if row.State == ledger.Waiting && row.Doubt == "" {
			r.RetryAfter = max(row.Due.Sub(g.now()), firstPoll)
		}
	default:
		return nil, &Refusal{RequestID: row.ID, Err: hresult.New(row.HResult, "%s", row.Message)}
	}
	r.Chain = g.replyChain(ctx, ca, issuing, r.Certificate)
	response.Chain = r.Chain
	signer, key, hash, err := ca.Identity.ResponseSigner(ctx)
	if err != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the reply to request %d cannot be signed now; ask again for it", row.ID)
	}
	response.Signer = signer
	if r.Full, err = wcce.FullResponse(response, key, hash); err != nil {
		return nil, fmt.Errorf("request %d: response: %w", row.ID, err)
	}
	return r, nil
}

// replyAhead makes the reply to what is being recorded meanwhile. What it returns waits for the reply, which may go out only when the
// record is durable.
func (g *Gateway) replyAhead(ctx context.Context, ca *CA, row *ledger.Row) func() (*Reply, error) {
	var reply *Reply
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil { // of this request alone
				reply, err = nil, fmt.Errorf("request %d: making the reply: panic: %v\n%s", row.ID, p, debug.Stack())
			}
		}()
		reply, err = g.reply(ctx, ca, row)
	}()
	return func() (*Reply, error) {
		<-done
		return reply, err
	}
}

// Poll tells what became of a request. Only its own caller learns that it exists.
func (g *Gateway) Poll(ctx context.Context, caller templates.Caller, requestID string) (*Reply, error) {
	unknown := hresult.New(hresult.PropertyEmpty, "there is no request %q of yours", requestID)
	id, err := strconv.ParseInt(requestID, 10, 64)
	if err != nil {
		return nil, unknown
	}
	row, err := g.Ledger.Get(ctx, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil, unknown
	case err != nil:
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the request could not be looked up; try again")
	case row.CallerSID != caller.SID:
		return nil, unknown
	}
	ca := g.CA(row.CA)
	if ca == nil {
		return nil, hresult.New(hresult.ServerUnavailable, "CA %q is not configured any more", row.CA)
	}
	if g.worthAsking(row) {
		if reply, err := g.takeOver(ctx, ca, row); reply != nil || err != nil {
			return reply, err
		}
	}
	return g.reply(ctx, ca, row)
}

// worthAsking tells whether a poll may ask the CA: not before it is time, nor past others in the queue, nor where it cannot tell.
func (g *Gateway) worthAsking(row *ledger.Row) bool {
	signer := g.Signer(row.Issuer)
	if signer == nil || row.Doubt != "" || row.Sent.IsZero() && signer.Limits.Backlog() {
		return false
	}
	return row.State == ledger.Approved || row.State == ledger.Waiting && !g.now().Before(row.Due)
}
