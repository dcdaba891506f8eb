package soap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

const defaultMaxBody = 1 << 20

const contentType = "application/soap+xml; charset=utf-8"

// Options of NewHandler. The zero value is usable.
type Options struct {
	Way     Way   // Kerberos if zero
	Login   Login // proves the credentials in the messages, for Password
	MaxBody int64 // octets of a request; 1 MiB if zero
	// ActivityID names an exchange in the reply and in the log, so that a client's trace can be found. May be nil.
	ActivityID func() string
	Log        logrus.FieldLogger
}

type handler struct {
	backend Backend
	opts    Options
}

// NewHandler serves the policy service and the enrollment services of all CAs. It expects the caller in the request's
// context (kerberos.CallerFrom), or for Password credentials in the message; requests without one are refused, but for GET
// and HEAD, which are answered with 200.
func NewHandler(backend Backend, opts Options) http.Handler {
	if opts.Way == (Way{}) {
		opts.Way = Kerberos
	}
	if opts.MaxBody == 0 {
		opts.MaxBody = defaultMaxBody
	}
	if opts.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		opts.Log = l
	}
	return &handler{backend: backend, opts: opts}
}

// exchange is one message and what is known about it.
type exchange struct {
	r      *http.Request
	caller templates.Caller
	policy bool   // for the policy service
	ca     string // for the enrollment service of this CA
	reply  reply
	retry  time.Duration // RetryAfter of the answer
}

// ServeHTTP routes by path and method, before anything is read.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{r: r}
	var ok bool
	if x.policy = strings.EqualFold(r.URL.Path, h.opts.Way.CEPPath); !x.policy {
		if x.ca, ok = h.opts.Way.ca(r.URL.Path); !ok {
			http.Error(w, "no enrollment service here; the policy service is "+h.opts.Way.CEPPath, http.StatusNotFound)
			return
		}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead: // Windows and load balancers probe so
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "Certificate enrollment service. Requests are SOAP messages, sent by POST.")
		return
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "requests are SOAP messages, sent by POST", http.StatusMethodNotAllowed)
		return
	}
	if x.caller, ok = kerberos.CallerFrom(r.Context()); !ok && h.opts.Login == nil {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		http.Error(w, "Kerberos authentication (HTTP Negotiate) is needed.", http.StatusUnauthorized)
		return
	}
	if err := checkContentType(r.Header.Get("Content-Type")); err != nil {
		http.Error(w, err.Error(), http.StatusUnsupportedMediaType)
		return
	}
	if h.opts.ActivityID != nil {
		x.reply.activityID = h.opts.ActivityID()
	}
	h.answer(w, x)
}

func checkContentType(value string) error {
	kind, params, err := mime.ParseMediaType(value)
	if err != nil || kind != "application/soap+xml" {
		return fmt.Errorf("the content type must be application/soap+xml (SOAP 1.2), not %q", value)
	}
	if cs := params["charset"]; cs != "" && !strings.EqualFold(cs, "utf-8") {
		return fmt.Errorf("the charset must be utf-8, not %q", cs)
	}
	return nil
}

// answer reads, dispatches and replies, with a fault where any of that fails.
func (h *handler) answer(w http.ResponseWriter, x *exchange) {
	status := http.StatusOK
	body, err := h.dispatch(w, x)
	if err != nil {
		status, body = encodeFault(err, x.reply)
		h.logFault(x, err)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if x.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(x.retry.Seconds()+0.999)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone; what was decided is in the ledger
}

func (h *handler) logFault(x *exchange, err error) {
	e := hresult.From(err)
	log := h.opts.Log.WithFields(logrus.Fields{
		"caller": x.caller.Principal, "remote": x.r.RemoteAddr, "path": x.r.URL.Path,
		"message": x.reply.relatesTo, "code": e.Code.String(), "fix": e.Fix,
	})
	if x.reply.activityID != "" {
		log = log.WithField("activity", x.reply.activityID)
	}
	if e.Cause != nil {
		log = log.WithError(e.Cause)
	}
	level := logrus.WarnLevel
	if q, ok := errors.AsType[*RequestError](err); ok { // the gateway has logged the refusal of a recorded request
		log, level = log.WithField("request", q.RequestID), logrus.DebugLevel
	}
	log.Log(level, "answered with a fault: "+e.Text)
}

// dispatch opens the message and calls the backend. A panic of the backend is an error of this request alone.
func (h *handler) dispatch(w http.ResponseWriter, x *exchange) (body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			h.opts.Log.WithFields(logrus.Fields{"caller": x.caller.Principal, "path": x.r.URL.Path, "stack": string(debug.Stack())}).
				Errorf("panic while handling a request: %v", p)
			body, err = nil, hresult.Wrap(hresult.Unexpected, fmt.Errorf("panic: %v", p), "internal error; the gateway's log has the details")
		}
	}()
	raw, err := io.ReadAll(http.MaxBytesReader(w, x.r.Body, h.opts.MaxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, hresult.Wrap(hresult.InvalidMessageFormat, err, "the message has more than %d octets", h.opts.MaxBody)
		}
		return nil, hresult.Wrap(hresult.InvalidMessageFormat, err, "the message could not be read")
	}
	env, err := parseEnvelope(raw, requestLimits)
	if env != nil {
		x.reply.relatesTo = env.messageID
	}
	if err == nil {
		err = h.login(x, env)
	}
	if err != nil {
		return nil, err
	}
	if x.policy {
		return h.policies(x.r.Context(), x, env)
	}
	return h.token(x.r.Context(), x, env)
}

// login proves the credentials in the message, where callers prove who they are so.
func (h *handler) login(x *exchange, env *envelope) (err error) {
	switch {
	case h.opts.Login == nil && env.credentials != nil:
		return &soapFault{code: "MustUnderstand", err: hresult.New(hresult.NotSupported, "the message carries credentials (WS-Security), but this endpoint authenticates otherwise").
			WithFix("enter the policy server with Windows integrated authentication, or its address for user name and password")}
	case h.opts.Login == nil:
		return nil
	case env.credentials == nil:
		return hresult.New(hresult.AccessDenied, "the message has no user name and password (WS-Security UsernameToken)")
	}
	x.caller, err = h.opts.Login(x.r.Context(), x.r.RemoteAddr, env.credentials.User, env.credentials.Password)
	return err
}

func (h *handler) policies(ctx context.Context, x *exchange, env *envelope) ([]byte, error) {
	req, err := parseGetPolicies(env)
	if err != nil {
		return nil, err
	}
	p, err := h.backend.Policies(ctx, x.caller, req)
	if err != nil {
		return nil, err
	}
	return x.reply.message(actionGetPoliciesReply, func(w *writer) { w.Write(p.Encode()) }), nil
}

func (h *handler) token(ctx context.Context, x *exchange, env *envelope) ([]byte, error) {
	req, err := parseTokenRequest(env)
	if err != nil {
		return nil, err
	}
	req.CA = x.ca
	var t *TokenReply
	switch req.Kind {
	case KeyExchange:
		der, err := h.backend.ExchangeCertificate(ctx, x.caller, x.ca)
		if err != nil {
			return nil, err
		}
		return x.reply.message(actionKeyExchangeReply, func(w *writer) { encodeKeyExchange(w, der) }), nil
	case QueryTokenStatus:
		t, err = h.backend.Poll(ctx, x.caller, req)
	default:
		t, err = h.backend.Enroll(ctx, x.caller, req)
	}
	if err != nil {
		return nil, err
	}
	if t.Pending {
		x.retry = t.RetryAfter
	}
	if t.Pending && t.Reference == "" {
		own := *t
		own.Reference = "https://" + x.r.Host + x.r.URL.EscapedPath()
		t = &own
	}
	return x.reply.message(actionTokenReply, t.encode), nil
}
