package cases

import (
	"context"
	"net/http"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/templates"
)

// note is the body of deny and withdraw.
type note struct {
	Reason string `json:"reason"`
}

// shown is the answer to show.
type shown struct {
	Case *Case          `json:"case"`
	File *recovery.File `json:"file,omitempty"` // for approvers, while the case is live
}

// Handler serves the cases under people.Prefix, JSON in and out:
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
	s := &people.Server{Log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+people.Prefix+"keys", s.Answer(func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		return c.Keys(ctx, who, r.URL.Query().Get("owner"))
	}))
	mux.HandleFunc("GET "+people.Prefix+"cases", s.Answer(func(ctx context.Context, who templates.Caller, _ *http.Request) (any, error) {
		return c.List(ctx, who)
	}))
	mux.HandleFunc("GET "+people.Prefix+"cases/{id}", s.Answer(func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		k, f, err := c.Show(ctx, who, people.ID(r, "id"))
		return shown{k, f}, err
	}))
	mux.HandleFunc("POST "+people.Prefix+"cases", s.Answer(step(func(ctx context.Context, who templates.Caller, _ int64, s recovery.Statement) (any, error) {
		return c.Open(ctx, who, s)
	})))
	mux.HandleFunc("POST "+people.Prefix+"cases/{id}/approve", s.Answer(step(func(ctx context.Context, who templates.Caller, id int64, a recovery.Approval) (any, error) {
		return c.Approve(ctx, who, id, a)
	})))
	mux.HandleFunc("POST "+people.Prefix+"cases/{id}/deny", s.Answer(step(func(ctx context.Context, who templates.Caller, id int64, n note) (any, error) {
		return c.Deny(ctx, who, id, n.Reason)
	})))
	mux.HandleFunc("POST "+people.Prefix+"cases/{id}/withdraw", s.Answer(step(func(ctx context.Context, who templates.Caller, id int64, n note) (any, error) {
		return c.Withdraw(ctx, who, id, n.Reason)
	})))
	mux.HandleFunc("POST "+people.Prefix+"cases/{id}/fetch", s.Answer(step(func(ctx context.Context, who templates.Caller, id int64, _ struct{}) (any, error) {
		return c.Fetch(ctx, who, id)
	})))
	mux.HandleFunc("POST "+people.Prefix+"cases/{id}/report", s.Answer(step(func(ctx context.Context, who templates.Caller, id int64, bad []Bad) (any, error) {
		return struct{}{}, c.Report(ctx, who, id, bad)
	})))
	return http.NewCrossOriginProtection().Handler(mux)
}

// step reads a body about the case in the path.
func step[T any](do func(ctx context.Context, who templates.Caller, id int64, body T) (any, error)) people.Call {
	return people.Body(recovery.MaxApproval, func(ctx context.Context, who templates.Caller, r *http.Request, body T) (any, error) {
		return do(ctx, who, people.ID(r, "id"), body)
	})
}
