package kerberos

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

type callerKey struct{}

// CallerFrom returns the authenticated caller of a request.
func CallerFrom(ctx context.Context) (templates.Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(templates.Caller)
	return c, ok
}

// WithCaller returns a context that carries the caller. Other ways to authenticate, and tests, use it.
func WithCaller(ctx context.Context, caller templates.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// Middleware authenticates each request by HTTP Negotiate (RFC 4559) before next sees it. GET and HEAD without
// credentials pass unauthenticated: clients and load balancers probe the service paths so, and next decides what they
// may see (CallerFrom tells). All else without a good token is answered with 401, and a text that says why.
func (a *Acceptor) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		values := r.Header.Values("Authorization")
		probe := r.Method == http.MethodGet || r.Method == http.MethodHead
		switch {
		case len(values) == 0 && probe:
			next.ServeHTTP(w, r)
			return
		case len(values) == 0:
			challenge(w, "Negotiate", "Kerberos authentication (HTTP Negotiate) is needed.")
			return
		}
		token, err := a.headerToken(values)
		if err != nil {
			a.refuse(w, r, nil, err)
			return
		}
		ex, err := a.accept(r.Context(), token)
		if err != nil {
			a.refuse(w, r, ex, err)
			return
		}
		if len(ex.reply) > 0 {
			w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(ex.reply))
		}
		next.ServeHTTP(w, r.WithContext(WithCaller(r.Context(), ex.caller)))
	})
}

// headerToken takes the token out of the Authorization header.
func (a *Acceptor) headerToken(values []string) ([]byte, error) {
	scheme, encoded, _ := strings.Cut(values[0], " ")
	if len(values) > 1 || !strings.EqualFold(scheme, "Negotiate") {
		if strings.EqualFold(scheme, "NTLM") {
			return nil, refuseNTLM()
		}
		return nil, hresult.New(hresult.AccessDenied, "the authentication scheme must be Negotiate, once, not %q", scheme).WithFix(fixKerberos)
	}
	encoded = strings.TrimSpace(encoded)
	if base64.StdEncoding.DecodedLen(len(encoded)) > a.opts.MaxToken+2 {
		return nil, hresult.New(hresult.AccessDenied, "the Kerberos token has more than %d octets", a.opts.MaxToken)
	}
	token, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, hresult.Wrap(hresult.AccessDenied, err, "the Negotiate token is not base64")
	}
	return token, nil
}

// refuse answers 401 with the reason and logs it. A Kerberos token is answered with a SPNEGO reject, so that clients
// do not try again for ever with the same ticket; a bare "Negotiate" invites a client that sent something else.
func (a *Acceptor) refuse(w http.ResponseWriter, r *http.Request, ex *exchange, err error) {
	e := hresult.From(err)
	fields := logrus.Fields{"remote": r.RemoteAddr, "path": r.URL.Path, "code": e.Code.String(), "fix": e.Fix}
	header := "Negotiate"
	if ex != nil {
		// The names are only for the log: until the ticket is open, they are what the client claims.
		fields["service"] = ex.req.Ticket.SName.PrincipalNameString()
		if c := ex.req.Ticket.DecryptedEncPart; len(c.CName.NameString) > 0 {
			fields["client"] = c.CName.PrincipalNameString() + "@" + c.CRealm
		}
		if token, err := negTokenResp(reject, nil, nil); err == nil && ex.spnego {
			header += " " + base64.StdEncoding.EncodeToString(token)
		}
	}
	log := a.opts.Log.WithFields(fields)
	if cause := errors.Unwrap(e); cause != nil {
		log = log.WithError(cause)
	}
	log.Warn("authentication refused: " + e.Text)
	challenge(w, header, e.ClientText())
}

func challenge(w http.ResponseWriter, header, text string) {
	w.Header().Set("WWW-Authenticate", header)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = fmt.Fprintln(w, text) // the client may be gone: nothing to do about it
}

func discardLogger() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}
