// Package awspca issues through AWS Private CA, over its API.
//
// Subject, extensions and validity travel beside the client's PKCS#10 request (ApiPassthrough, with the template
// BlankEndEntityCertificate_APIPassthrough/V1): names that the request says are not used. But by its API reference AWS rejects a request
// with neither subject nor alternative names, and one with an empty subject and alternative names that are not critical, whatever travels
// beside; and this is what Windows sends for every template that takes names from the directory. Check refuses such a request, so that
// nothing is archived for it. Who has seen that their AWS takes it sets EmptyRequests.
//
// AWS makes an order that it sees twice within five minutes one certificate, by a token; Submit asks again by itself where an answer is
// lost, and so does Find as long as this process knows that it is within that time. After that nobody can tell: the API has no list of
// certificates; the audit report of the CA and CloudTrail have one.
//
// All this is written from the published reference of the API; it was not tried on AWS.
package awspca

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/schemas"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/smithy-go/transport/http/protocol/awsjson"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
)

// Options configure the driver.
type Options struct {
	Name             string              // of the CA, for messages
	ARN              string              // arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID
	Roots            []*x509.Certificate // all that the CA issues must chain to one of them
	SigningAlgorithm string              // one of the API's names; default SHA256WITHRSA
	Credentials      aws.CredentialsProvider
	Endpoint         string            // https://HOST, for a VPC endpoint; "" for the region's
	Transport        http.RoundTripper // how to reach it; nil for the default
	EmptyRequests    bool              // send requests without names, which the API reference says are rejected

	ChainFile string        // keeps the CA's chain for when it cannot be asked; "" keeps it in memory only
	Timeout   time.Duration // of one HTTP request; default 15 s
	Wait      time.Duration // how long to wait for a certificate before the order is pending; default 5 s
	Now       func() time.Time
}

// CA is a CA of AWS Private CA. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o        Options
	client   *acmpca.Client
	chain    *chain.Keeper
	template string

	mu    sync.Mutex // guards first
	first map[string]time.Time
}

const templateName = "template/BlankEndEntityCertificate_APIPassthrough/V1"

// New checks the options. It does not connect.
func New(o Options) (*CA, error) {
	parts := strings.SplitN(o.ARN, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "acm-pca" || parts[3] == "" || !strings.HasPrefix(parts[5], "certificate-authority/") {
		return nil, fmt.Errorf("CA %q: %q is not arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID", o.Name, o.ARN)
	}
	if o.Endpoint != "" {
		if u, err := url.Parse(o.Endpoint); err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("CA %q: the endpoint %q is not https://HOST", o.Name, o.Endpoint)
		}
	}
	if o.SigningAlgorithm == "" {
		o.SigningAlgorithm = string(types.SigningAlgorithmSha256withrsa)
	}
	if !slices.Contains(types.SigningAlgorithm("").Values(), types.SigningAlgorithm(o.SigningAlgorithm)) {
		return nil, fmt.Errorf("CA %q: %q is none of the signing algorithms %v", o.Name, o.SigningAlgorithm, types.SigningAlgorithm("").Values())
	}
	if o.Credentials == nil {
		return nil, fmt.Errorf("CA %q: no credentials", o.Name)
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	if o.Wait == 0 {
		o.Wait = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	ca := &CA{o: o, template: "arn:" + parts[1] + ":acm-pca:::" + templateName, first: map[string]time.Time{}}
	options := acmpca.Options{Region: parts[3], Credentials: o.Credentials, Retryer: aws.NopRetryer{}, HTTPClient: &http.Client{
		Timeout: o.Timeout, Transport: web.Bounded(o.Transport, 1<<20), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	if o.Endpoint != "" {
		options.BaseEndpoint = aws.String(o.Endpoint)
	}
	ca.client = acmpca.New(options, func(o *acmpca.Options) { o.Protocol = awsjson.New11(schemas.ACMPrivateCA) }) // as the API's reference says it
	var err error
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tell that decisions travel beside the request, and that AWS knows an order again for five minutes only.
func (ca *CA) Traits() upstream.Traits {
	return upstream.Traits{Product: "AWS Private CA", Names: upstream.NamesBeside, Repetition: upstream.RepeatBlind}
}

// Check refuses what AWS rejects: see the package comment.
func (ca *CA) Check(order upstream.Order) error {
	if err := ca.check(order); err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return nil
}

func (ca *CA) check(order upstream.Order) error {
	csr, err := wcce.ParseCSR(order.CSR)
	if err != nil {
		return err
	}
	if err := csr.Verify(true); err != nil {
		return err
	}
	if csr.NullSignature {
		return errors.New("AWS needs a request that is signed with its own key; this one has a hash in place of the signature")
	}
	switch csr.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return fmt.Errorf("AWS does not take keys of type %T", csr.PublicKey)
	}
	named := len(csr.RawSubject) > 2
	i := slices.IndexFunc(csr.Extensions, func(e wcce.Extension) bool { return e.OID == wcce.OIDSAN })
	if !named && (i < 0 || !csr.Extensions[i].Critical) && !ca.o.EmptyRequests {
		return errors.New("AWS rejects a request with neither a subject nor critical alternative names, even where they travel beside it; this one is such, as Windows sends it where names come from the " +
			"directory. Let the enrollee supply a subject, which is not used, or set empty_requests if your AWS takes it")
	}
	if named && len(order.Profile.Subject) <= 2 {
		return errors.New("AWS takes the subject of the request where none is decided, and the request has one")
	}
	if i >= 0 && !slices.ContainsFunc(order.Profile.Extensions, func(e templates.Extension) bool { return e.OID == wcce.OIDSAN }) {
		return errors.New("AWS takes the alternative names of the request where none are decided, and the request has some")
	}
	_, err = passthrough(order.Profile)
	return err
}

// token is what AWS knows an order again by: at most 36 characters.
func (ca *CA) token(order upstream.Order) (string, error) {
	profile, err := json.Marshal(order.Profile)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte("enrollgate AWS"), []byte(ca.o.ARN), []byte(order.ID), profile, order.CSR} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":"))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

func (ca *CA) input(order upstream.Order) (*acmpca.IssueCertificateInput, error) {
	beside, err := passthrough(order.Profile)
	if err != nil {
		return nil, err
	}
	token, err := ca.token(order)
	if err != nil {
		return nil, err
	}
	at := func(t time.Time) *types.Validity {
		return &types.Validity{Type: types.ValidityPeriodTypeAbsolute, Value: aws.Int64(t.Unix())}
	}
	return &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: aws.String(ca.o.ARN), Csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: order.CSR}),
		SigningAlgorithm: types.SigningAlgorithm(ca.o.SigningAlgorithm), TemplateArn: aws.String(ca.template), ApiPassthrough: beside, IdempotencyToken: aws.String(token),
		Validity: at(order.Profile.NotAfter), ValidityNotBefore: at(order.Profile.NotBefore),
	}, nil
}

// Chain returns the CA's certificate and those above it.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	out, err := ca.client.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: aws.String(ca.o.ARN)})
	if err != nil {
		return nil, plain(err)
	}
	return parse(aws.ToString(out.Certificate) + "\n" + aws.ToString(out.CertificateChain))
}

// parse reads certificates in PEM form.
func parse(text string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" || len(out) == 20 {
			return nil, errors.New("AWS answered with something else than certificates, or too many")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("AWS answered without a certificate")
	}
	return out, nil
}
