package kerberos

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

const (
	loginTime = 15 * time.Second // to hear from the KDC
	maxLogins = 16               // at once
)

// PasswordLogin proves user names and passwords with the KDC.
type PasswordLogin struct {
	acceptor *Acceptor
	config   string // krb5.conf
	spn      string
	slots    chan struct{}
}

// NewPasswordLogin returns a PasswordLogin for the service principal spn, whose key is in the keytab of opts. configFile is
// krb5.conf, as in ClientOptions.
func NewPasswordLogin(opts Options, spn, configFile string) (*PasswordLogin, error) {
	opts.ServerCertificates, opts.RequireChannelBinding = nil, false // the token does not travel
	acceptor, err := New(opts)
	if err != nil {
		return nil, err
	}
	return &PasswordLogin{acceptor: acceptor, config: configFile, spn: spn, slots: make(chan struct{}, maxLogins)}, nil
}

// Login logs on as principal, name@REALM, once, and opens the ticket for this service that comes of it: who else answers in
// place of the KDC cannot make one. Attempts count at the KDC as any others do, which locks accounts by the domain's policy.
// Errors are *hresult.Error; every refusal by the KDC is the same one, with the reason as its cause: who has no password is
// not told which accounts there are, and in which state.
func (l *PasswordLogin) Login(ctx context.Context, principal, password string) (templates.Caller, error) {
	select {
	case l.slots <- struct{}{}:
	default:
		return templates.Caller{}, hresult.New(hresult.ServerTooBusy, "too many log on at once; try again")
	}
	type result struct {
		token []byte
		err   error
	}
	done := make(chan result, 1)
	go func() { // the library knows no context
		defer func() { <-l.slots }()
		token, err := l.token(principal, password)
		done <- result{token, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return templates.Caller{}, loginError(r.err)
		}
		caller, _, err := l.acceptor.Accept(ctx, r.token)
		return caller, err
	case <-ctx.Done():
		return templates.Caller{}, ctx.Err()
	case <-time.After(loginTime):
		return templates.Caller{}, hresult.New(hresult.ServerUnavailable, "the KDC gives no answer; try again")
	}
}

var errNoPassword = errors.New("the password is empty")

func (l *PasswordLogin) token(principal, password string) ([]byte, error) {
	if password == "" {
		return nil, errNoPassword
	}
	c, err := NewClient(ClientOptions{Principal: principal, Password: password, ConfigFile: l.config})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Token(l.spn)
}

// WrongPassword is what is said about every name and password that the KDC does not take.
func WrongPassword(cause error) error {
	return hresult.Wrap(hresult.LogonFailure, cause, "user name or password is wrong, or the account may not log on: it is locked, disabled or expired")
}

// loginError reads the error names of RFC 4120 7.5.9, which the library gives as text only.
func loginError(err error) error {
	for _, refusal := range []string{"KDC_ERR_PREAUTH_FAILED", "KDC_ERR_C_PRINCIPAL_UNKNOWN", "KDC_ERR_CLIENT_REVOKED", "KDC_ERR_KEY_EXPIRED", "KDC_ERR_POLICY"} {
		if strings.Contains(err.Error(), refusal) {
			return WrongPassword(err)
		}
	}
	if errors.Is(err, errNoPassword) {
		return WrongPassword(err)
	}
	return hresult.Wrap(hresult.ServerUnavailable, err, "the password cannot be checked now; try again")
}
