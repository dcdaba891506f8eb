package cmp

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"golang.org/x/crypto/cryptobyte"
)

func raw(der []byte) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) { b.AddBytes(der) }
}

// settle makes a result of an answer to cr, p10cr or pollReq.
func (ca *CA) settle(ctx context.Context, t *transaction, m *message, proven bool) (upstream.Result, error) {
	t.nonce = m.senderNonce
	switch m.body {
	case bodyError:
		info, err := parseError(m.content)
		if err != nil {
			return upstream.Result{}, err
		}
		return outcome(&statusError{info, bodyError}, proven)
	case bodyPollRep:
		reqID, _, err := parsePollResponse(m.content)
		if err != nil {
			return upstream.Result{}, err
		}
		if !ca.answers(t, reqID) {
			return upstream.Result{}, fmt.Errorf("pollRep is about request %d, not %d", reqID, t.reqID)
		}
		return upstream.Result{State: upstream.Pending, Token: t.token()}, nil
	case bodyCP:
		r, err := parseResponse(m.content)
		if err != nil {
			return upstream.Result{}, err
		}
		if !ca.answers(t, r.reqID) {
			return upstream.Result{}, fmt.Errorf("cp is about request %d, not %d", r.reqID, t.reqID)
		}
		return ca.granted(ctx, t, m, r)
	}
	return upstream.Result{}, fmt.Errorf("the CA answered %q, which is no answer to a request for a certificate", bodyNames[m.body])
}

// answers tells whether a number is that of our request, and keeps it: p10cr has none of its own, and CAs answer it with -1 or 0.
func (ca *CA) answers(t *transaction, reqID int64) bool {
	ok := reqID == t.reqID || ca.o.PKCS10 && (reqID == 0 || reqID == -1)
	if ok {
		t.reqID = reqID
	}
	return ok
}

// granted looks at cp: whether there is a certificate, and whether it is ours.
func (ca *CA) granted(ctx context.Context, t *transaction, m *message, r *response) (upstream.Result, error) {
	switch r.status.status {
	case statusAccepted, statusGranted:
	case statusWaiting:
		return upstream.Result{State: upstream.Pending, Token: t.token()}, nil
	default:
		return outcome(&statusError{r.status, bodyCP}, true)
	}
	cert := r.certificate
	if cert == nil {
		return upstream.Result{}, errors.New("the CA accepts the request and sends no certificate")
	}
	err := ca.ours(t, cert, append(r.others, m.extra...))
	if m.implicit && ca.o.ImplicitConfirm {
		if err != nil {
			return upstream.Result{}, fmt.Errorf("certificate %s: %w", cert.SerialNumber.Text(16), err)
		}
		return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
	}
	refuse := ""
	if err != nil {
		refuse = "the certificate is not what was asked for"
	}
	if confirmed := ca.confirm(ctx, t, cert, refuse); confirmed != nil {
		err = errors.Join(err, fmt.Errorf("it could not be confirmed: %w", confirmed))
	}
	if err != nil {
		return upstream.Result{}, fmt.Errorf("certificate %s: %w", cert.SerialNumber.Text(16), err)
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

// ours checks the key and who has signed. Names and extensions the gateway compares.
func (ca *CA) ours(t *transaction, cert *x509.Certificate, others []*x509.Certificate) error {
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(t.order.PublicKey) {
		return errors.New("its public key is not that of the request")
	}
	return ca.chain.Verify(cert, others)
}

// attempts are how often a confirmation is sent: without it the CA revokes what it has issued.
const attempts = 3

// confirm takes or refuses a certificate (RFC 9810 5.3.18).
func (ca *CA) confirm(ctx context.Context, t *transaction, cert *x509.Certificate, refuse string) error {
	hash, err := hashOf(cert)
	if err != nil {
		return err
	}
	out := outgoing{transaction: t.id, recipNonce: t.nonce, body: bodyCertConf, content: confirmation(hash, t.reqID, refuse)}
	var m *message
	var proven bool
	for range attempts {
		if m, proven, err = ca.exchange(ctx, out); err == nil || ctx.Err() != nil {
			break
		}
	}
	switch {
	case err != nil:
		return err
	case m.body == bodyPKIConf:
		return nil
	case m.body != bodyError:
		return fmt.Errorf("the CA answered %q", bodyNames[m.body])
	}
	info, err := parseError(m.content)
	if err != nil {
		return err
	}
	if proven && info.fail&failConfirmed != 0 && refuse == "" {
		return nil // an earlier attempt has reached it
	}
	return &statusError{info, bodyError}
}

// hashOf is the hash in certConf: with the algorithm of the certificate's own signature.
func hashOf(cert *x509.Certificate) ([]byte, error) {
	hash := map[x509.SignatureAlgorithm]crypto.Hash{
		x509.SHA1WithRSA: crypto.SHA1, x509.ECDSAWithSHA1: crypto.SHA1,
		x509.SHA256WithRSA: crypto.SHA256, x509.SHA256WithRSAPSS: crypto.SHA256, x509.ECDSAWithSHA256: crypto.SHA256,
		x509.SHA384WithRSA: crypto.SHA384, x509.SHA384WithRSAPSS: crypto.SHA384, x509.ECDSAWithSHA384: crypto.SHA384,
		x509.SHA512WithRSA: crypto.SHA512, x509.SHA512WithRSAPSS: crypto.SHA512, x509.ECDSAWithSHA512: crypto.SHA512,
	}[cert.SignatureAlgorithm]
	if hash == 0 {
		return nil, fmt.Errorf("the certificate is signed with %s, for which RFC 4210 has no hash to confirm it with", cert.SignatureAlgorithm)
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum(nil), nil
}

// Revoke asks the CA to revoke a certificate (rr). One that is revoked already is no error.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	if reason < 0 || reason > 10 || reason == 7 {
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	}
	if ca.o.NoRevocation {
		return fmt.Errorf("CA %q takes no revocation requests by CMP: revoke %s there", ca.o.Name, serial.Text(16))
	}
	if err := ca.revoke(ctx, serial, reason); err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, serial.Text(16), err)
	}
	return nil
}

func (ca *CA) revoke(ctx context.Context, serial *big.Int, reason int) error {
	issuing, err := ca.chain.Get(ctx)
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	rand.Read(id)
	m, proven, err := ca.exchange(ctx, outgoing{transaction: id, body: bodyRR, content: revocation(issuing[0].RawSubject, serial, reason)})
	if err != nil {
		return err
	}
	var info statusInfo
	switch m.body {
	case bodyRP:
		info, err = parseRevocation(m.content)
	case bodyError:
		info, err = parseError(m.content)
	default:
		return fmt.Errorf("the CA answered %q", bodyNames[m.body])
	}
	if err != nil {
		return err
	}
	done := info.status == statusAccepted || info.status == statusGranted || info.status == statusWarning || info.status == statusNotification
	if m.body == bodyRP && done || proven && info.fail&failRevoked != 0 {
		return nil
	}
	return &statusError{info, m.body}
}
