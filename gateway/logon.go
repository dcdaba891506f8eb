package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Transports of submissions, as the ledger names them.
const (
	transportKerberos    = "wstep"
	transportCertificate = "wstep-certificate"
	transportPassword    = "wstep-password"
	transportRPC         = "rpc"
)

// certificateHandler serves those who prove who they are by a client certificate of this gateway.
func (g *Gateway) certificateHandler() http.Handler {
	services := soap.NewHandler(backend{g, transportCertificate}, soap.Options{Way: soap.Certificate, Log: g.Log})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			services.ServeHTTP(w, r)
			return
		}
		caller, proof, err := g.certificateCaller(r.Context(), r.TLS)
		if err != nil {
			e := hresult.From(err)
			g.Log.WithError(e).WithField("remote", r.RemoteAddr).Warn("client certificate refused")
			http.Error(w, e.ClientText(), http.StatusForbidden)
			return
		}
		ctx := context.WithValue(r.Context(), clientCertificateKey{}, &proof)
		services.ServeHTTP(w, r.WithContext(kerberos.WithCaller(ctx, caller)))
	})
}

type clientCertificateKey struct{}

// clientCertificate is what the caller of a request is known by; nil where it is not a certificate.
func clientCertificate(ctx context.Context) *templates.Proof {
	proof, _ := ctx.Value(clientCertificateKey{}).(*templates.Proof)
	return proof
}

// certificateCaller is the account that the client's certificate was issued to, with the groups that it has now. What the
// certificate says is not looked at: the ledger knows whose it is.
func (g *Gateway) certificateCaller(ctx context.Context, state *tls.ConnectionState) (caller templates.Caller, proof templates.Proof, err error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return caller, proof, hresult.New(hresult.AccessDenied, "a client certificate is needed")
	}
	cert := state.PeerCertificates[0]
	if proof, err = g.proof(ctx, cert); err != nil {
		return caller, proof, err
	}
	switch {
	case proof.Distrust != nil:
		return caller, proof, hresult.New(hresult.AccessDenied, "the client certificate %X proves nothing: %v", cert.SerialNumber, proof.Distrust).
			WithFix("enroll anew, by Kerberos or user name and password")
	case !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny):
		return caller, proof, hresult.New(hresult.AccessDenied, "the client certificate %X is not for client authentication", cert.SerialNumber).
			WithFix("add Client Authentication to the application policies of the template")
	}
	subject, err := g.Directory.SubjectByName(ctx, string(proof.Owner))
	if err != nil {
		return caller, proof, err
	}
	if subject.Disabled {
		return caller, proof, hresult.New(hresult.AccountDisabled, "the account %s is disabled", subject.SAMAccount)
	}
	realm := strings.ToUpper(subject.Domain.DNS)
	caller = templates.Caller{Principal: subject.SAMAccount + "@" + realm, Realm: realm, SID: subject.SID, Groups: subject.Groups, Machine: subject.Machine}
	return caller, proof, nil
}

// newPasswordHandler serves those who send user name and password in the message.
func (g *Gateway) newPasswordHandler(cert *certificateFile) (http.Handler, error) {
	logon, err := kerberos.NewPasswordLogin(g.acceptorOptions(cert), "HTTP/"+g.Config.PublicName, g.Config.Directory.Krb5Conf)
	if err != nil {
		return nil, err
	}
	brake := &brake{now: g.now, failures: map[string]*attempts{}}
	login := func(ctx context.Context, remote, user, password string) (templates.Caller, error) {
		host, _, err := net.SplitHostPort(remote)
		if err != nil {
			host = remote
		}
		if err := brake.check(host); err != nil {
			return templates.Caller{}, err
		}
		began := time.Now()
		caller, err := g.passwordCaller(ctx, logon, user, password)
		if err != nil {
			brake.failed(host)
			// Refusals take as long as each other: how far one came is nobody's business.
			select {
			case <-time.After(time.Until(began.Add(refusalTime))):
			case <-ctx.Done():
			}
			g.Log.WithError(errors.Join(err, errors.Unwrap(err))).WithField("remote", remote).WithField("user", user).Warn("user name and password refused")
		}
		return caller, err
	}
	return soap.NewHandler(backend{g, transportPassword}, soap.Options{Way: soap.Password, Login: login, Log: g.Log}), nil
}

// passwordCaller finds the account's own name and realm, alice, CORP\alice or alice@corp.example, and logs it on.
func (g *Gateway) passwordCaller(ctx context.Context, logon *kerberos.PasswordLogin, user, password string) (templates.Caller, error) {
	subject, err := g.Directory.SubjectByName(ctx, user)
	switch {
	case err != nil && hresult.From(err).Code == hresult.NoSuchUser:
		return templates.Caller{}, kerberos.WrongPassword(err)
	case err != nil:
		return templates.Caller{}, err
	}
	return logon.Login(ctx, subject.SAMAccount+"@"+strings.ToUpper(subject.Domain.DNS), password)
}

// brake slows down who fails often: who guesses passwords of many accounts from one address (of one account the domain's
// lockout policy does), or an account that tries what it may not.
type brake struct {
	now      func() time.Time
	mu       sync.Mutex // guards failures
	failures map[string]*attempts
}

type attempts struct {
	count int
	since time.Time
}

// refusalTime is how long a refused logon takes, more than a KDC needs.
const refusalTime = time.Second

const (
	brakeAfter  = 20 // failures of one
	brakeWindow = time.Minute
	brakeMemory = 10_000 // of how many
)

func (b *brake) check(who string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.failures[who]; a != nil && a.count >= brakeAfter && b.now().Sub(a.since) < brakeWindow {
		return hresult.New(hresult.ServerTooBusy, "%d attempts of %s have failed; wait a minute", a.count, who)
	}
	return nil
}

func (b *brake) failed(who string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	a := b.failures[who]
	if a == nil || now.Sub(a.since) >= brakeWindow {
		if len(b.failures) >= brakeMemory {
			clear(b.failures)
		}
		a = &attempts{since: now}
		b.failures[who] = a
	}
	a.count++
}

// uris are the addresses of a CA's enrollment services, by the ways in that are open, the preferred one first
// ([MS-XCEP] 3.1.4.1.3.7).
func (g *Gateway) uris(ca string) []soap.CAURI {
	out := []soap.CAURI{{ClientAuthentication: soap.AuthKerberos, URI: enrollURL(g.Config.PublicName, soap.Kerberos, ca)}}
	if host := g.certificateHost(); host != "" {
		out = append(out, soap.CAURI{ClientAuthentication: soap.AuthCertificate, RenewalOnly: true, URI: enrollURL(host, soap.Certificate, ca)})
	}
	if g.Config.Kerberos.PasswordLogon {
		out = append(out, soap.CAURI{ClientAuthentication: soap.AuthPassword, URI: enrollURL(g.Config.PublicName, soap.Password, ca)})
	}
	for i := range out {
		priority := uint32(i + 1)
		out[i].Priority = &priority
	}
	return out
}

// certificateHost is the public name with the port of the listener for client certificates; empty where there is none.
func (g *Gateway) certificateHost() string {
	_, port, err := net.SplitHostPort(g.Config.Listen.Certificate)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(g.Config.PublicName, port)
}

// certificateTLS asks every client for a certificate; which one is good for what, the handler says, with the reason.
func (g *Gateway) certificateTLS(cert *certificateFile) *tls.Config {
	c := g.tlsConfig(cert)
	c.ClientAuth = tls.RequireAnyClientCert
	return c
}
