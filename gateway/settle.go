package gateway

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Settle ends the doubt about an order with what an administrator found out at the CA: the certificate that it has issued, or, where
// that is nil, that it has issued none; resend then says whether the order goes to it again or the request is denied. The
// certificate is compared with the decision like any other.
func (g *Gateway) Settle(ctx context.Context, id int64, cert *x509.Certificate, resend bool, actor, reason string) (*ledger.Row, error) {
	row, err := g.Ledger.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if row.State != ledger.Waiting || row.Doubt == "" {
		return nil, fmt.Errorf("request %d is not in doubt", id)
	}
	settle := func(resend bool) error {
		return g.Ledger.Settle(ctx, id, actor, ledger.Settlement{Resend: resend, Reason: reason})
	}
	if cert == nil && resend {
		if err := settle(true); err != nil {
			return nil, err
		}
		return g.Ledger.Get(ctx, id)
	}
	result := ledger.Result{State: ledger.Denied, HResult: hresult.AdminDeniedRequest, Message: reason}
	if cert != nil {
		if result, err = g.foundAtCA(ctx, row, cert); err != nil {
			return nil, err
		}
	}
	if err := g.Ledger.Finish(ctx, id, actor, result); err != nil {
		return nil, err
	}
	g.finished(ctx, row, result)
	return g.Ledger.Get(ctx, id)
}

// foundAtCA is how a request ends of which somebody brings the certificate.
func (g *Gateway) foundAtCA(ctx context.Context, row *ledger.Row, cert *x509.Certificate) (ledger.Result, error) {
	signer := g.Signer(row.Issuer)
	if signer == nil {
		return ledger.Result{}, fmt.Errorf("request %d: CA %q is not configured any more", row.ID, row.Issuer)
	}
	chain, err := signer.Issuer.Chain(ctx)
	if err != nil {
		return ledger.Result{}, err
	}
	above := g.chainFor(signer.Name, chain, cert)
	if len(above) == 0 || !issuedBy(cert, above[0]) {
		return ledger.Result{}, fmt.Errorf("the certificate was not issued by CA %q", signer.Name)
	}
	order, err := orderOf(row)
	if err != nil {
		return ledger.Result{}, err
	}
	if key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(order.PublicKey) {
		return ledger.Result{}, errors.New("the certificate is for another key than the request's")
	}
	return g.check(ctx, signer, row, order, upstream.Result{State: upstream.Issued, Certificate: cert}), nil
}
