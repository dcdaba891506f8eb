package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// session is what the driver proves itself to Vault with: a token that is given to it, or one from an AppRole login. It is renewed when
// half of its time is over and it is needed; a token that nothing needs for longer than it lives ends, which a login makes good.
type session struct {
	web *web.Client
	o   Options

	mu      sync.Mutex // held while logging in
	token   string
	given   string    // the token that was read, where there is no login
	renewAt time.Time // zero: never
	ends    time.Time // zero: never
}

// get returns a token to use.
func (s *session) get(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.AppRole == nil {
		if err := s.readGiven(ctx); err != nil {
			return "", err
		}
	}
	now := s.o.Now()
	ended := !s.ends.IsZero() && !now.Before(s.ends)
	if s.token != "" && !ended && !s.renewAt.IsZero() && !now.Before(s.renewAt) {
		ended = s.renew(ctx) != nil
	}
	if s.o.AppRole != nil && (s.token == "" || ended) {
		if err := s.login(ctx); err != nil {
			return "", err
		}
	}
	return s.token, nil
}

// drop forgets a token that Vault has refused, and tells whether another one may be had.
func (s *session) drop(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == token {
		s.token, s.given = "", ""
	}
	if s.o.AppRole != nil {
		return true
	}
	text, err := s.o.Token()
	return err == nil && strings.TrimSpace(string(text)) != token // an agent has written a new one
}

// readGiven takes the configured token, and asks for how long it lives when it has changed.
func (s *session) readGiven(ctx context.Context) error {
	text, err := s.o.Token()
	if err != nil {
		return fmt.Errorf("the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	switch {
	case token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("the token is empty, or has characters that no token has")
	case token == s.given:
		return nil
	}
	s.token, s.given, s.renewAt, s.ends = token, token, time.Time{}, time.Time{}
	var answer struct {
		Data struct {
			TTL       int64 `json:"ttl"`
			Renewable bool  `json:"renewable"`
		} `json:"data"`
	}
	// A policy may forbid to look; the token is used as it is then.
	if err := s.ask(ctx, http.MethodGet, "/v1/auth/token/lookup-self", nil, &answer); err == nil && answer.Data.Renewable {
		s.lives(answer.Data.TTL)
	}
	return nil
}

// lives sets when to renew.
func (s *session) lives(seconds int64) {
	s.renewAt, s.ends = time.Time{}, time.Time{}
	if seconds <= 0 || seconds > 1<<31 {
		return
	}
	life := time.Duration(seconds) * time.Second
	s.renewAt, s.ends = s.o.Now().Add(life/2), s.o.Now().Add(life)
}

// authAnswer is the part of an answer that has a token.
type authAnswer struct {
	Auth struct {
		Token     string `json:"client_token"`
		Lease     int64  `json:"lease_duration"`
		Renewable bool   `json:"renewable"`
	} `json:"auth"`
}

func (s *session) renew(ctx context.Context) error {
	var answer authAnswer
	err := s.ask(ctx, http.MethodPost, "/v1/auth/token/renew-self", map[string]any{}, &answer)
	if err == nil && answer.Auth.Lease <= 0 {
		err = errors.New("the token was not renewed")
	}
	if err == nil && s.o.Now().Add(time.Duration(answer.Auth.Lease)*time.Second).Before(s.ends) {
		err = errors.New("the token has come to the end of its life") // its max_ttl is near
	}
	if err != nil {
		s.renewAt = s.o.Now().Add(time.Minute)
		return err
	}
	s.lives(answer.Auth.Lease)
	return nil
}

func (s *session) login(ctx context.Context) error {
	secret, err := s.o.AppRole.SecretID()
	if err != nil {
		return fmt.Errorf("the secret ID: %w", err)
	}
	defer clear(secret)
	mount := strings.Trim(s.o.AppRole.Mount, "/")
	if mount == "" {
		mount = "approle"
	}
	s.token = ""
	var answer authAnswer
	err = s.ask(ctx, http.MethodPost, "/v1/auth/"+mount+"/login", map[string]any{"role_id": s.o.AppRole.RoleID, "secret_id": strings.TrimSpace(string(secret))}, &answer)
	if err != nil {
		return fmt.Errorf("log in with the AppRole: %w", err)
	}
	if answer.Auth.Token == "" || strings.ContainsFunc(answer.Auth.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("log in with the AppRole: the answer has no token")
	}
	s.token = answer.Auth.Token
	s.lives(answer.Auth.Lease)
	if !answer.Auth.Renewable {
		s.renewAt = time.Time{}
	}
	return nil
}

func (s *session) ask(ctx context.Context, method, path string, in, out any) error {
	header := http.Header{}
	if s.token != "" {
		header.Set("X-Vault-Token", s.token)
	}
	return s.web.JSON(ctx, product, web.Request{Method: method, Path: path, Header: header}, in, out, describe)
}
