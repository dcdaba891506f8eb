package batch

import (
	"context"
	"fmt"
	"net/http"

	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/sirupsen/logrus"
)

// Path is what comes after people.Prefix.
const Path = "batches"

// note is the body of cancel and restore.
type note struct {
	Reason string `json:"reason"`
}

// Handler serves batches under people.Prefix, JSON in and out:
//
//	GET  batches, batches/ID            for managers and approvers
//	GET  batches/policies               their policies, with the agents that keys may be sealed to
//	POST batches                        a Selection: the gateway chooses records and answers with a Draft
//	POST batches/ID/order               an Order
//	POST batches/ID/take                a BatchStatement, of the worker
//	GET  batches/ID/pages/N             records, for approvers
//	POST batches/ID/consent             Parts
//	POST batches/ID/results             a Report, of the worker
//	POST batches/ID/cancel              {"reason": …}
//	POST batches/records/RECORD/restore {"reason": …}: puts back what an unproven rewrap has replaced
//
// It expects the caller in the request's context (kerberos.Middleware), and refuses what a browser sends for another origin's page.
func Handler(b *Batches, log logrus.FieldLogger) http.Handler {
	s := &people.Server{Log: log}
	const root = people.Prefix + Path
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+root, s.Answer(func(ctx context.Context, who templates.Caller, _ *http.Request) (any, error) { return b.List(ctx, who) }))
	mux.HandleFunc("GET "+root+"/policies", s.Answer(func(ctx context.Context, who templates.Caller, _ *http.Request) (any, error) {
		return b.Policies(ctx, who)
	}))
	mux.HandleFunc("GET "+root+"/{id}", s.Answer(func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		return b.Show(ctx, who, people.ID(r, "id"))
	}))
	mux.HandleFunc("GET "+root+"/{id}/pages/{page}", s.Answer(func(ctx context.Context, who templates.Caller, r *http.Request) (any, error) {
		n := people.ID(r, "page")
		if n < 0 || n > recovery.MaxRecords {
			return nil, hresult.New(hresult.InvalidArg, "there is no page %d", n)
		}
		return b.Page(ctx, who, people.ID(r, "id"), int(n))
	}))
	mux.HandleFunc("POST "+root, s.Answer(people.Body(recovery.MaxOrder, func(ctx context.Context, who templates.Caller, _ *http.Request, n Selection) (any, error) {
		return b.Draft(ctx, who, n)
	})))
	step(mux, s, "order", recovery.MaxOrder, b.Order)
	step(mux, s, "take", recovery.MaxOrder, b.Take)
	step(mux, s, "consent", recovery.MaxPage, b.Consent)
	step(mux, s, "results", recovery.MaxPage, b.Results)
	step(mux, s, "cancel", recovery.MaxApproval, func(ctx context.Context, who templates.Caller, id int64, n note) (*Finished, error) {
		return b.Cancel(ctx, who, id, n.Reason)
	})
	mux.HandleFunc("POST "+root+"/records/{record}/restore", s.Answer(people.Body(recovery.MaxApproval, func(ctx context.Context, who templates.Caller, r *http.Request, n note) (any, error) {
		return struct{}{}, b.Restore(ctx, who, people.ID(r, "record"), n.Reason)
	})))
	return http.NewCrossOriginProtection().Handler(mux)
}

// step serves one step of a batch.
func step[T any](mux *http.ServeMux, s *people.Server, name string, limit int64, do func(ctx context.Context, who templates.Caller, id int64, body T) (*Finished, error)) {
	mux.HandleFunc("POST "+people.Prefix+Path+"/{id}/"+name, s.Answer(people.Body(limit, func(ctx context.Context, who templates.Caller, r *http.Request, body T) (any, error) {
		return do(ctx, who, people.ID(r, "id"), body)
	})))
}

// Client talks to a gateway's Handler. Its errors are *hresult.Error where the gateway has refused.
type Client struct{ people.Client }

// get reads something.
func get[T any](ctx context.Context, c *Client, path string) (out T, err error) {
	return out, c.Call(ctx, http.MethodGet, Path+path, nil, &out)
}

// post does something.
func post[T any](ctx context.Context, c *Client, path string, body any) (out T, err error) {
	return out, c.Call(ctx, http.MethodPost, Path+path, body, &out)
}

// List returns the batches of the caller's policies.
func (c *Client) List(ctx context.Context) ([]*Batch, error) { return get[[]*Batch](ctx, c, "") }

// Policies returns the caller's policies.
func (c *Client) Policies(ctx context.Context) ([]PolicyInfo, error) {
	return get[[]PolicyInfo](ctx, c, "/policies")
}

// Show returns one batch.
func (c *Client) Show(ctx context.Context, id int64) (*Shown, error) {
	return get[*Shown](ctx, c, fmt.Sprintf("/%d", id))
}

// Page returns some of a batch's records.
func (c *Client) Page(ctx context.Context, id int64, page int) (*recovery.Page, error) {
	return get[*recovery.Page](ctx, c, fmt.Sprintf("/%d/pages/%d", id, page))
}

// Draft lets the gateway choose records.
func (c *Client) Draft(ctx context.Context, s Selection) (*Draft, error) {
	return post[*Draft](ctx, c, "", s)
}

// Order orders a drafted batch.
func (c *Client) Order(ctx context.Context, id int64, o *recovery.Order) (*Finished, error) {
	return post[*Finished](ctx, c, fmt.Sprintf("/%d/order", id), o)
}

// Take takes an ordered batch as its worker.
func (c *Client) Take(ctx context.Context, id int64, s *recovery.BatchStatement) (*Finished, error) {
	return post[*Finished](ctx, c, fmt.Sprintf("/%d/take", id), s)
}

// Consent sends an agent's parts of a page.
func (c *Client) Consent(ctx context.Context, p *recovery.Parts) (*Finished, error) {
	return post[*Finished](ctx, c, fmt.Sprintf("/%d/consent", p.Batch), p)
}

// Results sends what the worker has made of records.
func (c *Client) Results(ctx context.Context, id int64, r *Report) (*Finished, error) {
	return post[*Finished](ctx, c, fmt.Sprintf("/%d/results", id), r)
}

// Cancel ends a batch.
func (c *Client) Cancel(ctx context.Context, id int64, reason string) (*Finished, error) {
	return post[*Finished](ctx, c, fmt.Sprintf("/%d/cancel", id), note{reason})
}

// Restore puts back what an unproven rewrap has replaced.
func (c *Client) Restore(ctx context.Context, record int64, reason string) error {
	_, err := post[struct{}](ctx, c, fmt.Sprintf("/records/%d/restore", record), note{reason})
	return err
}
