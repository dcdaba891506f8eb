package acme

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// aboutOrder are problems (RFC 8555 6.7) with what is asked for; any other is with who asks, or with the CA.
var aboutOrder = []string{"badCSR", "badPublicKey", "caa", "malformed", "rejectedIdentifier", "unsupportedIdentifier", "unauthorized", "compound"}

// Submit makes an order at the CA and finalizes it.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	names, err := ca.names(order)
	if err != nil {
		return upstream.Result{State: upstream.Refused, Reason: fmt.Sprintf("CA %q: %v", ca.o.Name, err)}, nil
	}
	if err := ca.register(ctx); err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(err))
	}
	o, refused, err := ca.ready(ctx, names)
	switch {
	case err != nil:
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(err)) // nothing is issued before finalize
	case refused != "":
		return upstream.Result{State: upstream.Refused, Reason: refused}, nil
	}
	r, err := ca.finalize(ctx, order, o)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return r, nil
}

// ready makes an order that can be finalized, or tells why the CA does not want to.
func (ca *CA) ready(ctx context.Context, names []string) (o *acme.Order, refused string, err error) {
	o, err = ca.client.AuthorizeOrder(ctx, acme.DomainIDs(names...))
	if err != nil {
		err = plain(err)
		if p, ok := errors.AsType[*problem](err); ok && p.status/100 == 4 && p.status != http.StatusTooManyRequests && slices.Contains(aboutOrder, p.kind) {
			return nil, p.Error(), nil
		}
		return nil, "", err
	}
	switch o.Status {
	case acme.StatusReady:
		return o, "", nil
	case acme.StatusPending:
	default:
		return nil, "", fmt.Errorf("the new order has status %q", clean(o.Status, 40))
	}
	var missing []string
	for _, address := range o.AuthzURLs {
		a, err := ca.client.GetAuthorization(ctx, address)
		if err != nil {
			return nil, "", plain(err)
		}
		if a.Status != acme.StatusValid {
			var kinds []string
			for _, c := range a.Challenges {
				kinds = append(kinds, clean(c.Type, 40))
			}
			missing = append(missing, fmt.Sprintf("%s (%s)", clean(a.Identifier.Value, 260), strings.Join(kinds, ", ")))
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Sprintf("CA %q wants a proof of control, which the gateway does not give, for %s: authorize these names for the gateway's account beforehand", ca.o.Name,
			strings.Join(missing, "; ")), nil
	}
	ctx, cancel := context.WithTimeout(ctx, ca.o.Wait)
	defer cancel()
	uri := o.URI
	if o, err = ca.client.WaitOrder(ctx, uri); err != nil {
		return nil, "", plain(err)
	}
	return o, "", nil
}

// attempts are how often an order is finalized that the CA says was not.
const attempts = 3

// finalize sends the request and waits for the certificate. From here on the order's address tells what has become of it.
func (ca *CA) finalize(ctx context.Context, order upstream.Order, o *acme.Order) (upstream.Result, error) {
	if o.URI == "" || o.FinalizeURL == "" {
		return upstream.Result{}, upstream.NotIssued(errors.New("the order has no address"))
	}
	uri := o.URI
	for range attempts {
		waiting, cancel := context.WithTimeout(ctx, ca.o.Wait)
		der, _, err := ca.client.CreateCertFromOrder(waiting, o, order.CSR, true)
		cancel()
		if err == nil {
			return ca.issued(order, uri, der)
		}
		err = plain(err)
		current, errStatus := ca.settled(ctx, uri)
		if errStatus != nil {
			return upstream.Result{State: upstream.Pending, Token: uri}, nil // its address is all that is known
		}
		r, done, errStatus := ca.status(ctx, order, uri, current)
		if done || errStatus != nil {
			return r, errStatus
		}
		// It is ready still: the CA has not taken the request, or not got it.
		if p, ok := errors.AsType[*problem](err); ok && p.status/100 == 4 {
			if slices.Contains(aboutOrder, p.kind) {
				return upstream.Result{State: upstream.Refused, Reason: p.Error()}, nil
			}
			return upstream.Result{}, upstream.NotIssued(p)
		}
		current.URI = uri
		o = current
	}
	return upstream.Result{State: upstream.Pending, Token: uri}, nil
}

// settled gives an order that is processed a moment, and returns it.
func (ca *CA) settled(ctx context.Context, uri string) (*acme.Order, error) {
	waiting, cancel := context.WithTimeout(ctx, ca.o.Wait)
	defer cancel()
	o, err := ca.client.WaitOrder(waiting, uri)
	if err != nil { // it is invalid, or processed still, or cannot be asked about
		return ca.client.GetOrder(ctx, uri)
	}
	return o, nil
}

// status makes a result of an order's status (RFC 8555 7.1.6). It is not done with one that is ready.
func (ca *CA) status(ctx context.Context, order upstream.Order, uri string, o *acme.Order) (upstream.Result, bool, error) {
	switch o.Status {
	case acme.StatusValid:
		der, err := ca.client.FetchCert(ctx, o.CertURL, true)
		if err != nil {
			return upstream.Result{State: upstream.Pending, Token: uri}, true, nil // it is there, and can be fetched later
		}
		r, err := ca.issued(order, uri, der)
		return r, true, err
	case acme.StatusProcessing:
		return upstream.Result{State: upstream.Pending, Token: uri}, true, nil
	case acme.StatusInvalid:
		reason := "the ACME order is invalid"
		if o.Error != nil {
			reason += ": " + plain(o.Error).Error()
		}
		return upstream.Result{State: upstream.Refused, Reason: reason}, true, nil
	case acme.StatusReady:
		return upstream.Result{}, false, nil
	}
	return upstream.Result{}, true, fmt.Errorf("the order has status %q", clean(o.Status, 40))
}

// Find asks an order's address. Without one nobody can tell.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	if token == "" {
		return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the gateway ended while CA %q was asked, and the address of the ACME order is lost. Look in the CA, or in certificate "+
			"transparency logs, for a certificate with this public key that was issued at that time: revoke it there, then let the client ask again", ca.o.Name)}, nil
	}
	fail := func(err error) (upstream.Result, error) {
		return upstream.Result{}, fmt.Errorf("CA %q: order %s: %w", ca.o.Name, clean(token, 200), plain(err))
	}
	if err := ca.register(ctx); err != nil {
		return fail(err)
	}
	o, err := ca.client.GetOrder(ctx, token)
	if err != nil {
		return fail(err)
	}
	r, done, err := ca.status(ctx, order, token, o)
	if err != nil {
		return fail(err)
	}
	if !done {
		o.URI = token
		if r, err = ca.finalize(ctx, order, o); err != nil {
			return fail(err)
		}
	}
	return r, nil
}

// issued checks the key and who has signed, and keeps the certificate. Names and extensions the gateway compares.
func (ca *CA) issued(order upstream.Order, uri string, der [][]byte) (upstream.Result, error) {
	var certs []*x509.Certificate
	for i, raw := range der {
		c, err := x509.ParseCertificate(raw)
		if err != nil {
			return upstream.Result{}, fmt.Errorf("certificate %d of the answer: %w", i+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return upstream.Result{}, errors.New("the answer has no certificate")
	}
	cert := certs[0]
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(order.PublicKey) {
		return upstream.Result{}, fmt.Errorf("the certificate %s is for another public key", cert.SerialNumber.Text(16))
	}
	if err := ca.chain.Verify(cert, certs[1:]); err != nil {
		return upstream.Result{}, fmt.Errorf("the certificate %s: %w", cert.SerialNumber.Text(16), err)
	}
	if ca.o.Dir != "" {
		if err := keep(ca.o.Dir, cert); err != nil {
			// It stays at the CA until there is room for it here.
			return upstream.Result{State: upstream.Pending, Token: uri, Reason: fmt.Sprintf("the certificate %s cannot be kept for its revocation: %v", cert.SerialNumber.Text(16), err)}, nil
		}
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

func file(dir string, serial *big.Int) string { return filepath.Join(dir, serial.Text(16)+".crt") }

// keep writes a certificate where Revoke finds it.
func keep(dir string, cert *x509.Certificate) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return err
	}
	_, err = temporary.Write(cert.Raw)
	if err := errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), file(dir, cert.SerialNumber))
}

// Revoke revokes a certificate that this driver was given (RFC 8555 7.6).
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	if reason < 0 || reason > 10 || reason == 7 {
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	}
	fail := func(err error) error {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, serial.Text(16), err)
	}
	if ca.o.Dir == "" {
		return fail(errors.New("ACME needs the certificate itself, and this gateway keeps none: revoke it at the CA"))
	}
	der, err := os.ReadFile(file(ca.o.Dir, serial))
	if err != nil {
		return fail(fmt.Errorf("ACME needs the certificate itself, which this instance was not given: revoke it at the one that was, or at the CA: %w", err))
	}
	if err := ca.register(ctx); err != nil {
		return fail(err)
	}
	err = plain(ca.client.RevokeCert(ctx, nil, der, acme.CRLReasonCode(reason)))
	if p, ok := errors.AsType[*problem](err); ok && p.kind == "alreadyRevoked" {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// countNames tells how many alternative names there are, of whatever kind.
func countNames(san []byte) (int, error) {
	if san == nil {
		return 0, nil
	}
	s := cryptobyte.String(san)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return 0, errors.New("the alternative names are malformed")
	}
	n := 0
	for ; !list.Empty(); n++ {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&name, &tag) {
			return 0, errors.New("the alternative names are malformed")
		}
	}
	return n, nil
}
