// Package proxy stands between a driver and a CA that a test runs: it keeps what was sent, and can lose, delay and spoil answers.
package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// Trouble is what happens to an answer.
type Trouble int

// The troubles.
const (
	None    Trouble = iota
	Lost            // the CA has worked, and the connection breaks
	Garbage         // 200 with something that no CA says
	Endless         // an answer that never ends
	Silence         // no answer until the client gives up
	Busy            // 503, and the CA is not asked
	Broken          // 500, after the CA has worked
)

// Proxy passes HTTP requests on. Its address is http:// or, with a certificate, https://.
type Proxy struct {
	URL string

	mu      sync.Mutex
	sent    bytes.Buffer
	answers [][]byte
	trouble Trouble
	times   int
	only    func(*http.Request) bool
}

// Start listens before target. certificate is what it serves TLS with; nil: it does not. transport reaches the target; nil for plain HTTP.
func Start(t testing.TB, target string, certificate *tls.Config, transport http.RoundTripper) *Proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{}
	pass := httputil.NewSingleHostReverseProxy(u)
	pass.Transport, pass.ErrorLog = transport, log.New(io.Discard, "", 0)
	pass.ModifyResponse = p.keep
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(pass, w, r) }))
	s.Config.ErrorLog = pass.ErrorLog
	if certificate != nil {
		s.TLS = certificate
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	p.URL = s.URL
	return p
}

// Make lets trouble happen to the next answers, as many as times, to requests that only wants; nil: to all.
func (p *Proxy) Make(trouble Trouble, times int, only func(*http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble, p.times, p.only = trouble, times, only
}

// Everything is what clients have sent up to now.
func (p *Proxy) Everything() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.sent.Bytes())
}

// Answers are the bodies of what the CA has answered, also where that was lost on the way.
func (p *Proxy) Answers() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.answers)
}

func (p *Proxy) keep(res *http.Response) error {
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers = append(p.answers, body)
	return nil
}

// next is the trouble for a request.
func (p *Proxy) next(r *http.Request) Trouble {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.times == 0 || p.only != nil && !p.only(r) {
		return None
	}
	p.times--
	return p.trouble
}

func (p *Proxy) serve(pass http.Handler, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	p.mu.Lock()
	p.sent.WriteString(r.Method + " " + r.URL.RequestURI() + "\r\n")
	_ = r.Header.Write(&p.sent)
	p.sent.WriteString("\r\n")
	p.sent.Write(body)
	p.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	trouble := p.next(r)
	switch trouble {
	case None:
		pass.ServeHTTP(w, r)
	case Busy:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "busy", http.StatusServiceUnavailable)
	case Garbage:
		_, _ = w.Write([]byte("{\"\x00not\": what a CA says"))
	case Silence:
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // returning would be an answer, an empty one
	case Endless:
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	case Lost, Broken:
		// The CA finishes what it was asked for, even if the client has gone.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 30*time.Second)
		defer cancel()
		pass.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
		if trouble == Broken {
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		panic(http.ErrAbortHandler)
	}
}
