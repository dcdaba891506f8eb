// Package web is how drivers speak HTTP to a CA. It bounds what a CA can make the gateway wait for and read, follows no
// redirect, and tells what a failure leaves open: whether the CA may have issued.
package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Options configure a Client.
type Options struct {
	CA      string      // its name, for messages
	URL     string      // https://HOST[:PORT][/PATH]
	TLS     *tls.Config // whom to trust, and the client certificate; nil for the system's roots
	Timeout time.Duration
	// Header is sent with each request.
	Header http.Header
	// PlainHTTP lets URL be http://: for protocols whose messages are protected themselves.
	PlainHTTP bool
}

// Client speaks to one CA. It is safe for concurrent use.
type Client struct {
	o    Options
	base *url.URL
	http *http.Client
}

// MaxAnswer is how many octets of an answer are read.
const MaxAnswer = 4 << 20

// ErrTooLong is an answer with more than MaxAnswer octets.
var ErrTooLong = fmt.Errorf("the answer has more than %d octets", MaxAnswer)

// New checks the address. It does not connect.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.User != nil || u.Scheme != "https" && !(o.PlainHTTP && u.Scheme == "http") {
		return nil, fmt.Errorf("CA %q: the address %q is not https://HOST[:PORT][/PATH]", o.CA, o.URL)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	config := o.TLS.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	config.MinVersion = tls.VersionTLS12
	return &Client{o: o, base: u, http: &http.Client{
		Timeout:       o.Timeout,
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Request is what is sent.
type Request struct {
	Method string // POST where empty
	Path   string // after the client's address, with its query
	Type   string // of Body
	Accept string
	Body   []byte
	Header http.Header // beside the client's
}

// Answer is what came back, whatever its status.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// StatusError is an answer that is no success. What it means for an order only the driver knows, but for 429 and 503, which
// say that nothing was done: Do marks these with upstream.NotIssued.
type StatusError struct {
	Product    string
	Status     int
	Message    string
	RetryAfter time.Duration // 0 where the CA says nothing of it
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s answered %d: %s", e.Product, e.Status, e.Message)
}

// Status is the HTTP status of a StatusError; 0 of any other error.
func Status(err error) int {
	if e, ok := errors.AsType[*StatusError](err); ok {
		return e.Status
	}
	return 0
}

// Do sends a request. An error before the request was written is marked with upstream.NotIssued.
func (c *Client) Do(ctx context.Context, r Request) (*Answer, error) {
	if r.Method == "" {
		r.Method = http.MethodPost
	}
	var written atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { written.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, r.Method, c.base.String()+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return nil, upstream.NotIssued(err)
	}
	for _, h := range []http.Header{c.o.Header, r.Header} {
		for name, values := range h {
			req.Header[name] = values
		}
	}
	if r.Type != "" {
		req.Header.Set("Content-Type", r.Type)
	}
	if r.Accept != "" {
		req.Header.Set("Accept", r.Accept)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if !written.Load() {
			err = upstream.NotIssued(err)
		}
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, MaxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case len(body) > MaxAnswer:
		return nil, ErrTooLong
	}
	return &Answer{res.StatusCode, res.Header, body}, nil
}

// Fail makes the error of an answer that is no success. message is what the CA says, of which only what prints is kept; the status' own
// text where it is empty.
func (a *Answer) Fail(product, message string) error {
	if message == "" {
		message = http.StatusText(a.Status)
	}
	if message = dn.Clean(message); len(message) > 500 {
		message = strings.ToValidUTF8(message[:500], "") + "…"
	}
	e := &StatusError{Product: product, Status: a.Status, Message: message}
	if seconds, err := strconv.Atoi(a.Header.Get("Retry-After")); err == nil && seconds >= 0 {
		e.RetryAfter = time.Duration(min(seconds, 86400)) * time.Second
	}
	if a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable {
		return upstream.NotIssued(e)
	}
	return e
}

// OK tells whether the status is 200 to 299.
func (a *Answer) OK() bool { return a.Status/100 == 2 }

// JSON sends in, unless it is nil, and reads a successful answer into out, unless that is nil. describe finds the CA's words in
// the body of any other one.
func (c *Client) JSON(ctx context.Context, product string, r Request, in, out any, describe func(body []byte) string) error {
	r.Accept = "application/json"
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return upstream.NotIssued(err)
		}
		r.Body, r.Type = body, "application/json"
	}
	a, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	if !a.OK() {
		return a.Fail(product, describe(a.Body))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(a.Body, out); err != nil {
		return fmt.Errorf("the answer of %s: %w", product, err)
	}
	return nil
}
