package hvca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// tokenLife is for how long a token is used; HVCA takes one for ten minutes.
const tokenLife = 9 * time.Minute

// session is a token to use. HVCA does not renew one: there is a login for each.
func (ca *CA) session(ctx context.Context) (string, error) {
	ca.login.Lock()
	defer ca.login.Unlock()
	ca.mu.Lock()
	token, since := ca.token, ca.since
	ca.mu.Unlock()
	if token != "" && ca.o.Now().Sub(since) < tokenLife {
		return token, nil
	}
	secret, err := ca.o.APISecret()
	if err != nil {
		return "", fmt.Errorf("the API secret: %w", err)
	}
	defer clear(secret)
	a, err := ca.send(ctx, http.MethodPost, "/login", map[string]string{"api_key": ca.o.APIKey, "api_secret": strings.TrimSpace(string(secret))}, "")
	if err != nil {
		return "", fmt.Errorf("log in: %w", err)
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(a.Body, &answer); err != nil {
		return "", fmt.Errorf("log in: the answer of %s: %w", product, err)
	}
	if answer.Token == "" || strings.ContainsFunc(answer.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("log in: the answer has no token")
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.token, ca.since = answer.Token, ca.o.Now()
	return answer.Token, nil
}

// call makes a request with the token, and once again with a new one where HVCA does not take it any more.
func (ca *CA) call(ctx context.Context, method, path string, in any) (*web.Answer, error) {
	for again := false; ; again = true {
		token, err := ca.session(ctx)
		if err != nil {
			return nil, upstream.NotIssued(err) // what path is for was not asked for
		}
		a, err := ca.send(ctx, method, path, in, token)
		if web.Status(err) != http.StatusUnauthorized || again {
			return a, err
		}
		ca.mu.Lock()
		if ca.token == token {
			ca.token = ""
		}
		ca.mu.Unlock()
	}
}

func (ca *CA) send(ctx context.Context, method, path string, in any, token string) (*web.Answer, error) {
	r := web.Request{Method: method, Path: path, Accept: "application/json", Header: http.Header{}}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return nil, upstream.NotIssued(err)
		}
		r.Body, r.Type = body, "application/json;charset=utf-8" // HVCA insists on the character set
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	a, err := ca.web.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	if !a.OK() {
		return nil, a.Fail(product, describe(a.Body))
	}
	return a, nil
}

// describe finds what HVCA says in an error.
func describe(body []byte) string {
	var e struct {
		Description string            `json:"description"`
		Errors      map[string]string `json:"errors"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	for _, k := range slices.Sorted(maps.Keys(e.Errors)) {
		e.Description += "; " + k + ": " + e.Errors[k]
	}
	return strings.TrimPrefix(e.Description, "; ")
}
