package cases

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
)

// Client talks to a gateway's Handler. Its errors are *hresult.Error where the gateway has refused.
type Client struct{ people.Client }

// Keys lists archived keys of a person.
func (c *Client) Keys(ctx context.Context, owner string) (keys []Key, err error) {
	return keys, c.Call(ctx, http.MethodGet, "keys?owner="+url.QueryEscape(owner), nil, &keys)
}

// List returns the cases that the caller may see.
func (c *Client) List(ctx context.Context) (*Listed, error) {
	list := &Listed{}
	if err := c.Call(ctx, http.MethodGet, "cases", nil, list); err != nil {
		return nil, err
	}
	return list, nil
}

// Show returns a case, for an approver with the file to approve; it is nil for others and when the case has ended.
func (c *Client) Show(ctx context.Context, id int64) (*Case, *recovery.File, error) {
	var out shown
	err := c.Call(ctx, http.MethodGet, fmt.Sprintf("cases/%d", id), nil, &out)
	return out.Case, out.File, err
}

// Open opens a case.
func (c *Client) Open(ctx context.Context, s recovery.Statement) (*Done, error) {
	return c.step(ctx, "cases", s)
}

// Approve sends an approval.
func (c *Client) Approve(ctx context.Context, a *recovery.Approval) (*Done, error) {
	return c.step(ctx, fmt.Sprintf("cases/%d/approve", a.Case), a)
}

// Deny ends a case as an approver.
func (c *Client) Deny(ctx context.Context, id int64, reason string) (*Done, error) {
	return c.step(ctx, fmt.Sprintf("cases/%d/deny", id), note{reason})
}

// Withdraw ends a case as a manager.
func (c *Client) Withdraw(ctx context.Context, id int64, reason string) (*Done, error) {
	return c.step(ctx, fmt.Sprintf("cases/%d/withdraw", id), note{reason})
}

// Fetch takes what an approved case delivers. It works once.
func (c *Client) Fetch(ctx context.Context, id int64) (*Delivery, error) {
	d := &Delivery{}
	if err := c.Call(ctx, http.MethodPost, fmt.Sprintf("cases/%d/fetch", id), struct{}{}, d); err != nil {
		return nil, err
	}
	return d, nil
}

// Report says which shares of a fetched case were bad.
func (c *Client) Report(ctx context.Context, id int64, bad []Bad) error {
	return c.Call(ctx, http.MethodPost, fmt.Sprintf("cases/%d/report", id), bad, &struct{}{})
}

func (c *Client) step(ctx context.Context, path string, body any) (*Done, error) {
	d := &Done{}
	if err := c.Call(ctx, http.MethodPost, path, body, d); err != nil {
		return nil, err
	}
	return d, nil
}
