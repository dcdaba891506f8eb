package people

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Prefix is the path under which people are served.
const Prefix = "/recovery/"

// failure is the body of an error.
type failure struct {
	Error string       `json:"error"`
	Code  hresult.Code `json:"code"`
	Fix   string       `json:"fix,omitempty"`
}

// Server answers people. It expects the caller in the request's context (kerberos.Middleware).
type Server struct{ Log logrus.FieldLogger }

// Call answers one request. What it returns is sent as JSON.
type Call func(ctx context.Context, who templates.Caller, r *http.Request) (any, error)

// ID is a number in the path; 0, which nothing has, where it is none.
func ID(r *http.Request, name string) int64 {
	n, err := strconv.ParseInt(r.PathValue(name), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Body reads the body as JSON, of at most limit octets, before do.
func Body[T any](limit int64, do func(ctx context.Context, who templates.Caller, r *http.Request, body T) (any, error)) Call {
	return func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		var body T
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			return nil, hresult.New(hresult.InvalidArg, "the content type must be application/json")
		}
		if err := recovery.Decode(r.Body, limit, &body); err != nil {
			return nil, hresult.New(hresult.InvalidArg, "the message cannot be read: %v", err)
		}
		return do(ctx, who, r, body)
	}
}

// Answer requires a caller and writes what do returns.
func (s *Server) Answer(do Call) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller, ok := kerberos.CallerFrom(r.Context())
		if !ok {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			s.write(w, http.StatusUnauthorized, failure{Error: "Kerberos authentication (HTTP Negotiate) is needed", Code: hresult.AccessDenied})
			return
		}
		result, err := do(r.Context(), caller, r)
		if err == nil {
			s.write(w, http.StatusOK, result)
			return
		}
		e := hresult.From(err)
		log := s.Log.WithFields(logrus.Fields{"caller": caller.Principal, "path": r.URL.Path, "code": e.Code.String()})
		if _, expected := errors.AsType[*hresult.Error](err); expected {
			log.WithError(err).Warn("recovery refused: " + e.Text)
		} else {
			log.WithError(err).Error("recovery failed")
		}
		s.write(w, status(e.Code), failure{e.Text, e.Code, e.Fix})
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

func (s *Server) write(w http.ResponseWriter, status int, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		s.Log.WithError(err).Error("recovery: the answer cannot be encoded")
		status, text = http.StatusInternalServerError, []byte(`{"error": "internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, string(text)) // the client may be gone: nothing to do about it
}

// maxAnswer is the size up to which an answer is read.
const maxAnswer = 64 << 20

// Client talks to a gateway. Its errors are *hresult.Error where the gateway has refused.
type Client struct {
	HTTP      *http.Client // authenticates by itself
	URL       string       // https://enroll.corp.example
	Principal string       // as whom
}

// Call sends body, where it is not nil, and reads the answer into into.
func (c *Client) Call(ctx context.Context, method, path string, body, into any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, c.URL+Prefix+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.HTTP.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		if err := recovery.Decode(resp.Body, maxAnswer, into); err != nil {
			return fmt.Errorf("the gateway's answer cannot be read: %w", err)
		}
		return nil
	}
	var f failure
	if err := recovery.Decode(resp.Body, maxAnswer, &f); err != nil || f.Code == 0 {
		return fmt.Errorf("%s answers %s", c.URL, resp.Status)
	}
	return &hresult.Error{Code: f.Code, Text: f.Error, Fix: f.Fix}
}
