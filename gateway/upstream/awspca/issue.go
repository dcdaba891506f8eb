package awspca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/smithy-go"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// window is for how long a repeated order is safe. AWS says five minutes; this leaves one for the way.
const window = 4 * time.Minute

// attempts are how often an answer is asked for again within the window.
const attempts = 3

// Submit asks for the certificate. Within the window the same order is the same certificate.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	return ca.submit(ctx, order, false)
}

// submit sends an order. lost is whether it may have reached AWS before: then nothing but a certificate is certain.
func (ca *CA) submit(ctx context.Context, order upstream.Order, lost bool) (upstream.Result, error) {
	in, err := ca.input(order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(err))
	}
	begin := ca.o.Now()
	ca.remember(aws.ToString(in.IdempotencyToken), begin)
	for i := range attempts {
		var out *acmpca.IssueCertificateOutput
		written := &atomic.Bool{}
		out, err = ca.client.IssueCertificate(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { written.Store(true) }}), in)
		if err == nil {
			if !ca.owns(aws.ToString(out.CertificateArn)) {
				return upstream.Result{}, fmt.Errorf("CA %q: AWS answered with a certificate ARN of another CA", ca.o.Name)
			}
			return ca.fetch(ctx, order, aws.ToString(out.CertificateArn))
		}
		verdict := judge(err, written.Load())
		if verdict == refused && !lost {
			return upstream.Result{State: upstream.Refused, Reason: plain(err).Error()}, nil
		}
		lost = lost || verdict == unknown
		if verdict == nothingDone && !lost {
			return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(plain(err)))
		}
		if ctx.Err() != nil || ca.o.Now().Sub(begin) > window || !sleep(ctx, time.Duration(i+1)*200*time.Millisecond) {
			break
		}
	}
	return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, plain(err))
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// remember keeps when an order was first sent, for as long as that matters.
func (ca *CA) remember(token string, now time.Time) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for t, at := range ca.first {
		if now.Sub(at) > window {
			delete(ca.first, t)
		}
	}
	if _, ok := ca.first[token]; !ok {
		ca.first[token] = now
	}
}

// owns tells whether an ARN is of a certificate of this CA.
func (ca *CA) owns(arn string) bool {
	return strings.HasPrefix(arn, ca.o.ARN+"/certificate/") && len(arn) <= 200 && !strings.ContainsFunc(arn, func(r rune) bool { return r <= ' ' || r > '~' })
}

// fetch waits a moment for a certificate that was ordered.
func (ca *CA) fetch(ctx context.Context, order upstream.Order, arn string) (upstream.Result, error) {
	pending := upstream.Result{State: upstream.Pending, Token: arn}
	for begin := ca.o.Now(); ; {
		out, err := ca.client.GetCertificate(ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: aws.String(ca.o.ARN), CertificateArn: aws.String(arn)})
		if err == nil {
			r, err := ca.issued(order, aws.ToString(out.Certificate)+"\n"+aws.ToString(out.CertificateChain))
			if err != nil {
				return upstream.Result{}, fmt.Errorf("CA %q: %s: %w", ca.o.Name, arn, err)
			}
			return r, nil
		}
		if _, ok := errors.AsType[*types.RequestFailedException](err); ok {
			return upstream.Result{State: upstream.Refused, Reason: plain(err).Error()}, nil
		}
		if _, ok := errors.AsType[*types.RequestInProgressException](err); !ok && ca.o.Now().Sub(begin) > ca.o.Wait {
			return pending, nil // it is ordered; its ARN leads to it when AWS can be asked again
		}
		if ca.o.Now().Sub(begin) > ca.o.Wait || !sleep(ctx, 200*time.Millisecond) {
			return pending, nil
		}
	}
}

// issued checks the key and who has signed. Names and extensions the gateway compares.
func (ca *CA) issued(order upstream.Order, text string) (upstream.Result, error) {
	certs, err := parse(text)
	if err != nil {
		return upstream.Result{}, err
	}
	cert := certs[0]
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(order.PublicKey) {
		return upstream.Result{}, fmt.Errorf("the certificate %s is for another public key", cert.SerialNumber.Text(16))
	}
	if err := ca.chain.Verify(cert, certs[1:]); err != nil {
		return upstream.Result{}, fmt.Errorf("the certificate %s: %w", cert.SerialNumber.Text(16), err)
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

// Find asks for an order by its ARN; without one it repeats the order, as long as that is known to be safe.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	if token != "" {
		if !ca.owns(token) {
			return upstream.Result{}, fmt.Errorf("CA %q: the token is no ARN of a certificate of this CA", ca.o.Name)
		}
		return ca.fetch(ctx, order, token)
	}
	id, err := ca.token(order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	ca.mu.Lock()
	first, known := ca.first[id]
	ca.mu.Unlock()
	if known && ca.o.Now().Sub(first) < window {
		return ca.submit(ctx, order, true)
	}
	return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the answer of CA %q was lost, and AWS knows an order again for five minutes only. Look in CloudTrail for IssueCertificate with the "+
		"idempotency token %s, or in the CA's audit report for a certificate of that time: revoke it, then let the client ask again", ca.o.Name, id)}, nil
}

type verdict int

const (
	unknown     verdict = iota
	nothingDone         // AWS has issued nothing and will not
	refused             // for good
)

// The API's errors, and those of all of AWS, by what they say about an order.
var (
	aboutOrder = []string{"MalformedCSRException", "InvalidArgsException", "ValidationException", "InvalidRequestException"}
	aboutUs    = []string{"AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException", "MissingAuthenticationTokenException",
		"IncompleteSignature", "OptInRequired", "NotAuthorized", "InvalidArnException", "InvalidStateException", "LimitExceededException", "ResourceNotFoundException",
		"ThrottlingException", "Throttling", "RequestExpired", "SignatureDoesNotMatch", "InvalidClientTokenId"}
)

// judge tells what a failed IssueCertificate leaves open.
func judge(err error, written bool) verdict {
	if !written {
		return nothingDone
	}
	status := 0
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		status = e.HTTPStatusCode()
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		return nothingDone
	}
	if e, ok := errors.AsType[smithy.APIError](err); ok && status/100 == 4 {
		switch {
		case slices.Contains(aboutOrder, e.ErrorCode()):
			return refused
		case slices.Contains(aboutUs, e.ErrorCode()):
			return nothingDone
		}
	}
	return unknown
}

// plain takes AWS' words out of an error of the library, without control characters.
func plain(err error) error {
	text := ""
	if e, ok := errors.AsType[smithy.APIError](err); ok && e.ErrorCode() != "" {
		text = "AWS answered " + e.ErrorCode() + ": " + e.ErrorMessage()
	} else if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	} else {
		text = err.Error()
	}
	if r := []rune(dn.Clean(text)); len(r) > 400 {
		return errors.New(string(r[:400]) + "…")
	}
	return errors.New(dn.Clean(text))
}

// reasons are the API's names for CRLReason (RFC 5280 5.3.1); it has none for certificateHold and removeFromCRL.
var reasons = map[int]types.RevocationReason{
	0: types.RevocationReasonUnspecified, 1: types.RevocationReasonKeyCompromise, 2: types.RevocationReasonCertificateAuthorityCompromise,
	3: types.RevocationReasonAffiliationChanged, 4: types.RevocationReasonSuperseded, 5: types.RevocationReasonCessationOfOperation,
	9: types.RevocationReasonPrivilegeWithdrawn, 10: types.RevocationReasonAACompromise,
}

// Revoke revokes a certificate. One that is revoked already is no error.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	name, ok := reasons[reason]
	if !ok {
		return fmt.Errorf("CA %q: AWS does not revoke for reason %d; it knows 0 to 5, 9 and 10", ca.o.Name, reason)
	}
	var octets []string
	for _, b := range serial.Bytes() {
		octets = append(octets, fmt.Sprintf("%02x", b))
	}
	_, err := ca.client.RevokeCertificate(ctx, &acmpca.RevokeCertificateInput{CertificateAuthorityArn: aws.String(ca.o.ARN), CertificateSerial: aws.String(strings.Join(octets, ":")),
		RevocationReason: name})
	if _, ok := errors.AsType[*types.RequestAlreadyProcessedException](err); ok {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, serial.Text(16), plain(err))
	}
	return nil
}
