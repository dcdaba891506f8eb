package cases

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// maxAnswer is the size up to which an answer is read.
const maxAnswer = 16 << 20

// Client talks to a gateway's Handler. Its errors are *hresult.Error where the gateway has refused.
type Client struct {
	HTTP      *http.Client // authenticates by itself
	URL       string       // https://enroll.corp.example
	Principal string       // as whom
}

// Keys lists archived keys of a person.
func (c *Client) Keys(ctx context.Context, owner string) (keys []Key, err error) {
	return keys, c.call(ctx, http.MethodGet, "keys?owner="+url.QueryEscape(owner), nil, &keys)
}

// List returns the cases that the caller may see.
func (c *Client) List(ctx context.Context) (list []*Case, err error) {
	return list, c.call(ctx, http.MethodGet, "cases", nil, &list)
}

// Show returns a case, for an approver with the file to approve; it is nil for others and when the case has ended.
func (c *Client) Show(ctx context.Context, id int64) (*Case, *recovery.File, error) {
	var out shown
	err := c.call(ctx, http.MethodGet, fmt.Sprintf("cases/%d", id), nil, &out)
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
	if err := c.call(ctx, http.MethodPost, fmt.Sprintf("cases/%d/fetch", id), struct{}{}, d); err != nil {
		return nil, err
	}
	return d, nil
}

// Report says which shares of a fetched case were bad.
func (c *Client) Report(ctx context.Context, id int64, bad []Bad) error {
	return c.call(ctx, http.MethodPost, fmt.Sprintf("cases/%d/report", id), bad, &struct{}{})
}

func (c *Client) step(ctx context.Context, path string, body any) (*Done, error) {
	d := &Done{}
	if err := c.call(ctx, http.MethodPost, path, body, d); err != nil {
		return nil, err
	}
	return d, nil
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
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
