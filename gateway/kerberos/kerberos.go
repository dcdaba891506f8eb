// Package kerberos turns Kerberos tokens into callers, on the server, and callers into tokens, on the client.
//
// A server makes an Acceptor with New from the keytab of its service account, and wraps its HTTP handler in
// Acceptor.Middleware; behind it, CallerFrom says who asks. A client makes a Client with NewClient and uses
// Client.Transport in its http.Client.
//
// The caller's identity and groups come from the privilege attribute certificate (PAC) in the ticket ([MS-PAC]), which
// the domain controller signed: no directory is asked. A ticket without a usable PAC is refused. Only Kerberos is
// spoken; NTLM is refused by name.
package kerberos

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// defaultSkew is the clock difference that Kerberos deployments tolerate (RFC 4120 3.1.3; the default in Windows too).
const defaultSkew = 5 * time.Minute

// defaultMaxToken is above the largest ticket that Windows makes: MaxTokenSize is 48,000 octets by default and may be
// set up to 65,535.
const defaultMaxToken = 64 << 10

// Options say which tickets an Acceptor takes. Only the key is necessary: Keytab or KeytabFile.
type Options struct {
	KeytabFile string         // read by New, and again when a ticket needs a key that it did not hold
	Keytab     *keytab.Keytab // used instead of KeytabFile

	// SPNs are the service principals that tickets may be for, like "HTTP/enroll.corp.example". Empty: any HTTP
	// principal in the keytab; where the keytab names only the account, any HTTP principal.
	SPNs   []string
	Realms []string // realms whose accounts are welcome; empty: all that the KDC issues tickets for

	AllowRC4     bool          // also RC4-HMAC; DES never
	MaxClockSkew time.Duration // 5 minutes if zero
	MaxToken     int           // octets of a token; 64 KiB if zero

	// ServerCertificates are those that the TLS listener serves. When set, the channel binding that a client puts in
	// its token must fit one of them (RFC 5929 tls-server-end-point), which stops relayed tokens. Leave it nil behind a
	// proxy that ends TLS.
	ServerCertificates func() []*x509.Certificate
	// RequireChannelBinding also refuses clients that send no channel binding.
	RequireChannelBinding bool

	Clock func() time.Time // time.Now if nil
	Log   logrus.FieldLogger
}

// Acceptor verifies tokens. It is safe for concurrent use.
type Acceptor struct {
	opts   Options
	keys   *keySource
	replay *replayCache
	rpc    bool // tickets for RPC, as ForRPC says
}

// New returns an Acceptor, or an error when the keytab cannot be read or holds no usable key.
func New(opts Options) (*Acceptor, error) {
	if opts.MaxClockSkew == 0 {
		opts.MaxClockSkew = defaultSkew
	}
	if opts.MaxToken == 0 {
		opts.MaxToken = defaultMaxToken
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if opts.Log == nil {
		opts.Log = discardLogger()
	}
	if opts.RequireChannelBinding && opts.ServerCertificates == nil {
		return nil, fmt.Errorf("kerberos: channel binding is required, but no server certificates are given")
	}
	keys, err := newKeySource(opts.KeytabFile, opts.Keytab)
	if err != nil {
		return nil, err
	}
	if !keys.hasUsable(opts.AllowRC4) {
		return nil, fmt.Errorf("%s: no AES key in the keytab; export it again with AES keys (or allow RC4)", keys.name())
	}
	return &Acceptor{
		opts: opts,
		keys: keys,
		// An authenticator is fresh from skew before to skew after the server's time: twice the skew covers it.
		replay: newReplayCache(2 * opts.MaxClockSkew),
	}, nil
}

// Accept verifies one token: a SPNEGO NegTokenInit with a Kerberos AP-REQ (RFC 4178, [MS-SPNG]), or a bare Kerberos
// GSS token (RFC 4121 4.1). It returns the caller, and the token to send back, which may be empty. Each token is good
// for one call. Errors are *hresult.Error; none of them is worth a retry with the same ticket.
func (a *Acceptor) Accept(ctx context.Context, token []byte) (templates.Caller, []byte, error) {
	ex, err := a.accept(ctx, token)
	if err != nil {
		return templates.Caller{}, nil, err
	}
	return ex.caller, ex.reply, nil
}

// accept does the work of Accept. The decoders of the Kerberos library index without checks in places; a token that
// makes one of them panic is a bad token, not the end of the server.
func (a *Acceptor) accept(ctx context.Context, token []byte) (ex *exchange, err error) {
	defer func() {
		if p := recover(); p != nil {
			ex, err = nil, hresult.Wrap(hresult.AccessDenied, fmt.Errorf("panic: %v", p),
				"the Kerberos token is malformed")
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, hresult.Wrap(hresult.ServerTooBusy, err, "the request ended before its ticket was verified")
	}
	if len(token) > a.opts.MaxToken {
		return nil, hresult.New(hresult.AccessDenied, "the Kerberos token has %d octets, at most %d are accepted", len(token), a.opts.MaxToken)
	}
	neg, err := parseToken(token)
	if err != nil {
		return nil, err
	}
	ex = &exchange{negotiation: neg, now: a.opts.Clock().UTC()}
	if err := a.verify(ex); err != nil {
		return ex, err
	}
	if err := ex.buildReply(); err != nil {
		return ex, hresult.Wrap(hresult.Unexpected, err, "the answer to the Kerberos token could not be made")
	}
	return ex, nil
}

// realmAllowed tells whether accounts of the realm are welcome.
func (a *Acceptor) realmAllowed(realm string) bool {
	for _, r := range a.opts.Realms {
		if strings.EqualFold(r, realm) {
			return true
		}
	}
	return len(a.opts.Realms) == 0
}

// expectedSPNs are the service principals that a ticket may name; empty means any HTTP principal.
func (a *Acceptor) expectedSPNs() []string {
	if len(a.opts.SPNs) > 0 {
		return a.opts.SPNs
	}
	return a.keys.httpPrincipals()
}

// spnAllowed compares without regard to case, as the directory does, and ignores the realm.
func (a *Acceptor) spnAllowed(spn string) bool {
	if a.rpc {
		return a.rpcAllowed(spn)
	}
	expected := a.expectedSPNs()
	for _, e := range expected {
		e, _, _ = strings.Cut(e, "@")
		if strings.EqualFold(e, spn) {
			return true
		}
	}
	return len(expected) == 0 && len(spn) > len("HTTP/") && strings.EqualFold(spn[:len("HTTP/")], "HTTP/")
}
