package cases

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"

	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/sirupsen/logrus"
)

// Prefix is the path that Handler serves.
const Prefix = "/recovery/"

// note is the body of deny and withdraw.
type note struct {
	Reason string `json:"reason"`
}

// shown is the answer to show.
type shown struct {
	Case *Case          `json:"case"`
	File *recovery.File `json:"file,omitempty"` // for approvers, while the case is live
}

// failure is the body of an error.
type failure struct {
	Error string       `json:"error"`
	Code  hresult.Code `json:"code"`
	Fix   string       `json:"fix,omitempty"`
}

type handler struct {
	cases *Cases
	log   logrus.FieldLogger
}

// Handler serves the cases under Prefix, JSON in and out:
//
//	GET  keys?owner=ACCOUNT     archived keys of a person, for managers
//	GET  cases, cases/ID        for managers and approvers
//	POST cases                  a Statement: opens a case
//	POST cases/ID/approve       an Approval
//	POST cases/ID/deny, withdraw    {"reason": …}
//	POST cases/ID/fetch         {}
//	POST cases/ID/report        [{"agent": …, "cause": …}]: bad shares, after fetch
//
// It expects the caller in the request's context (kerberos.Middleware). What a browser sends for a page of another origin is
// refused: browsers add Kerberos tickets by themselves.
func Handler(c *Cases, log logrus.FieldLogger) http.Handler {
	h := &handler{c, log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Prefix+"keys", answer(h, func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		return c.Keys(ctx, who, r.URL.Query().Get("owner"))
	}))
	mux.HandleFunc("GET "+Prefix+"cases", answer(h, func(ctx context.Context, who templates.Caller, _ *http.Request) (any, error) {
		return c.List(ctx, who)
	}))
	mux.HandleFunc("GET "+Prefix+"cases/{id}", answer(h, func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		k, f, err := c.Show(ctx, who, id(r))
		return shown{k, f}, err
	}))
	mux.HandleFunc("POST "+Prefix+"cases", answer(h, with(func(ctx context.Context, who templates.Caller, _ int64, s recovery.Statement) (any, error) {
		return c.Open(ctx, who, s)
	})))
	mux.HandleFunc("POST "+Prefix+"cases/{id}/approve", answer(h, with(func(ctx context.Context, who templates.Caller, id int64, a recovery.Approval) (any, error) {
		return c.Approve(ctx, who, id, a)
	})))
	mux.HandleFunc("POST "+Prefix+"cases/{id}/deny", answer(h, with(func(ctx context.Context, who templates.Caller, id int64, n note) (any, error) {
		return c.Deny(ctx, who, id, n.Reason)
	})))
	mux.HandleFunc("POST "+Prefix+"cases/{id}/withdraw", answer(h, with(func(ctx context.Context, who templates.Caller, id int64, n note) (any, error) {
		return c.Withdraw(ctx, who, id, n.Reason)
	})))
	mux.HandleFunc("POST "+Prefix+"cases/{id}/fetch", answer(h, with(func(ctx context.Context, who templates.Caller, id int64, _ struct{}) (any, error) {
		return c.Fetch(ctx, who, id)
	})))
	mux.HandleFunc("POST "+Prefix+"cases/{id}/report", answer(h, with(func(ctx context.Context, who templates.Caller, id int64, bad []Bad) (any, error) {
		return struct{}{}, c.Report(ctx, who, id, bad)
	})))
	return http.NewCrossOriginProtection().Handler(mux)
}

// id is the number of the case in the path; 0, which no case has, where it is none.
func id(r *http.Request) int64 {
	n, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

type call func(ctx context.Context, who templates.Caller, r *http.Request) (any, error)

// with reads the body as JSON first.
func with[T any](do func(ctx context.Context, who templates.Caller, id int64, body T) (any, error)) call {
	return func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		var body T
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			return nil, hresult.New(hresult.InvalidArg, "the content type must be application/json")
		}
		if err := recovery.Decode(r.Body, recovery.MaxApproval, &body); err != nil {
			return nil, hresult.New(hresult.InvalidArg, "the message cannot be read: %v", err)
		}
		return do(ctx, who, id(r), body)
	}
}

// answer requires a caller and writes what do returns.
func answer(h *handler, do call) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller, ok := kerberos.CallerFrom(r.Context())
		if !ok {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			h.write(w, http.StatusUnauthorized, failure{Error: "Kerberos authentication (HTTP Negotiate) is needed", Code: hresult.AccessDenied})
			return
		}
		result, err := do(r.Context(), caller, r)
		if err == nil {
			h.write(w, http.StatusOK, result)
			return
		}
		e := hresult.From(err)
		log := h.log.WithFields(logrus.Fields{"caller": caller.Principal, "path": r.URL.Path, "code": e.Code.String()})
		if _, expected := errors.AsType[*hresult.Error](err); expected {
			log.Warn("recovery refused: " + e.Text)
		} else {
			log.WithError(err).Error("recovery failed")
		}
		h.write(w, status(e.Code), failure{e.Text, e.Code, e.Fix})
	}
}

func status(code hresult.Code) int {
	switch code {
	case hresult.AccessDenied:
		return http.StatusForbidden
	case hresult.NoRequest:
		return http.StatusNotFound
	case hresult.BadRequestStatus, hresult.NoValidKRA:
		return http.StatusConflict
	case hresult.InvalidArg, hresult.NoSuchUser, hresult.AccountDisabled:
		return http.StatusBadRequest
	case hresult.ServerUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (h *handler) write(w http.ResponseWriter, status int, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		h.log.WithError(err).Error("recovery: the answer cannot be encoded")
		status, text = http.StatusInternalServerError, []byte(`{"error": "internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, string(text)) // the client may be gone: nothing to do about it
}
