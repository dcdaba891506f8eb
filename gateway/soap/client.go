package soap

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Client sends messages to a policy or enrollment service. Authentication is the business of HTTP's transport
// (kerberos.Client.Transport). A fault of the server is a *hresult.Error with the server's code and text, inside a
// *RequestError where the fault names a request.
type Client struct {
	HTTP        *http.Client   // http.DefaultClient if nil
	Credentials *UsernameToken // sent with each message; nil where HTTP or TLS authenticates
}

// Bounds of what a client reads.
const (
	maxReply     = 256 << 20 // policies of large forests are tens of megabytes
	maxErrorText = 4 << 10
)

// GetPolicies asks the policy service at url. MessageID and Action of req are chosen by the client.
func (c *Client) GetPolicies(ctx context.Context, url string, req GetPoliciesRequest) (*Policies, error) {
	env, err := c.call(ctx, url, actionGetPolicies, actionGetPoliciesReply, req.encode)
	if err != nil {
		return nil, err
	}
	return decodePolicies(env.body)
}

// RequestToken sends an Issue or QueryTokenStatus request to the enrollment service at url.
func (c *Client) RequestToken(ctx context.Context, url string, req TokenRequest) (*TokenReply, error) {
	if req.Kind == KeyExchange {
		return nil, fmt.Errorf("a key exchange request is sent with KeyExchange")
	}
	env, err := c.call(ctx, url, req.Kind.action(), actionTokenReply, req.encode)
	if err != nil {
		return nil, err
	}
	t, err := decodeTokenReply(env.body)
	if err == nil && t.Pending {
		t.RetryAfter = env.retryAfter
	}
	return t, err
}

// KeyExchange gets the DER of the exchange certificate from the enrollment service at url.
func (c *Client) KeyExchange(ctx context.Context, url string) ([]byte, error) {
	env, err := c.call(ctx, url, actionKeyExchange, actionKeyExchangeReply, TokenRequest{Kind: KeyExchange}.encode)
	if err != nil {
		return nil, err
	}
	return decodeKeyExchange(env.body)
}

// call posts one message and opens the answer to it.
func (c *Client) call(ctx context.Context, url, action, replyAction string, body func(*writer)) (*envelope, error) {
	id := newMessageID()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(request(action, id, url, c.Credentials, body)))
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Content-Type", contentType)
	httpClient := c.HTTP
	if httpClient == nil {
		httpClient = http.DefaultClient
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, err // names method and URL already
	}
	defer resp.Body.Close()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/soap+xml" {
		return nil, plainError(resp)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, fmt.Errorf("%s: reading the reply: %w", url, err)
	}
	if len(raw) > maxReply {
		return nil, fmt.Errorf("%s: the reply has more than %d octets", url, maxReply)
	}
	env, err := parseEnvelope(raw, replyLimits)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		env.retryAfter = time.Duration(min(seconds, 86400)) * time.Second
	}
	switch {
	case env.body.is(nsSOAP, "Fault"):
		return nil, decodeFault(env.body)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: status %s with a reply that is no fault", url, resp.Status)
	case env.action != replyAction:
		return nil, fmt.Errorf("%s: the reply's action is %q, want %q", url, env.action, replyAction)
	case env.relatesTo != "" && env.relatesTo != id:
		return nil, fmt.Errorf("%s: the reply is to another message (%s)", url, env.relatesTo)
	}
	return env, nil
}

// plainError makes an error of an answer that is not SOAP: a refusal before the message was read, or a wrong address.
func plainError(resp *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
	if err != nil {
		return fmt.Errorf("%s: status %s; reading why: %w", resp.Request.URL.Redacted(), resp.Status, err)
	}
	text := resp.Status
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "text/plain" {
		if t := strings.TrimSpace(string(raw)); t != "" {
			text += ": " + t
		}
	}
	code := hresult.Unexpected
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		code = hresult.AccessDenied
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		code = hresult.ServerUnavailable
	case http.StatusTooManyRequests:
		code = hresult.ServerTooBusy
	}
	return hresult.New(code, "%s: %s", resp.Request.URL.Redacted(), text)
}

// newMessageID returns a random UUID (RFC 9562 5.4) as a URN.
func newMessageID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, says crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
