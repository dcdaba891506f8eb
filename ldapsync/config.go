package ldapsync

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// Ways to authenticate to a domain controller.
const (
	Simple = "simple" // a name and a password, inside TLS only
	GSSAPI = "gssapi" // Kerberos; encrypted by Kerberos itself on ldap:// without StartTLS
)

// Config says which directory to read, and as whom. The zero value of each field but Servers (or Domain) and Auth works.
type Config struct {
	// Servers are the domain controllers, tried in this order: "ldaps://dc1.corp.example", "ldap://dc2.corp.example:389".
	// Use host names: TLS and Kerberos both prove a name, not an address.
	Servers []string
	// Domain is the DNS name of the domain whose controllers are looked up in DNS where Servers is empty.
	Domain string
	// Site is the Active Directory site whose controllers are preferred among those in DNS; empty for the one that the
	// controllers say this machine is in.
	Site string
	// StateFile keeps what the newest snapshot was made from, for a start while no controller answers; empty for no file.
	// It holds no secrets, but who can write it decides what templates say: it has mode 0600, and its folder is to be the
	// gateway's own. Run writes it.
	StateFile string
	// StartTLS turns ldap:// connections into TLS before anything is said.
	StartTLS bool

	// CAs, and the PEM file CAFile, hold the roots that a controller's TLS certificate must chain to. With neither, the
	// system's roots count.
	CAs    *x509.CertPool
	CAFile string

	Auth Auth

	Timeout      time.Duration // of connecting, and of each request; default 10 s
	PageSize     uint32        // entries per page of a search; default 500
	Poll         time.Duration // how often to ask for changes; default 2 s
	FullRead     time.Duration // read everything at least this often; default 1 minute
	FailBack     time.Duration // how often to try better servers than the present one; default 1 minute
	SubjectTTL   time.Duration // how long an account is remembered; default 3 s, negative for not at all
	SubjectCache int           // how many accounts are remembered; default 10,000
}

// Auth says as whom to read.
type Auth struct {
	Method string // Simple or GSSAPI

	// Of Simple: User is a DN, "svc@corp.example" or `CORP\svc`. Password is used by both, see Keytab.
	User     string
	Password string

	// Of GSSAPI: with Principal and a Keytab file or Password as that account, else as the owner of the credential cache
	// file CCache. Krb5Conf is the path of krb5.conf; empty: $KRB5_CONFIG, else /etc/krb5.conf.
	Principal string
	Keytab    string
	CCache    string
	Krb5Conf  string
}

// String leaves the password out, so that a printed configuration gives nothing away.
func (a Auth) String() string {
	if a.Method == Simple {
		return "simple bind as " + a.User
	}
	if a.CCache != "" && a.Principal == "" {
		return "Kerberos from " + a.CCache
	}
	return "Kerberos as " + a.Principal
}

// GoString is String: %#v must not show the password either.
func (a Auth) GoString() string { return a.String() }

const (
	defaultTimeout      = 10 * time.Second
	defaultPageSize     = 500
	defaultPoll         = 2 * time.Second
	defaultFullRead     = time.Minute
	defaultFailBack     = time.Minute
	defaultSubjectTTL   = 3 * time.Second
	defaultSubjectCache = 10_000
)

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// complete fills defaults in, reads CAFile, and refuses what could not work or would send a password in the clear.
func (c Config) complete() (Config, error) {
	orDefault(&c.Timeout, defaultTimeout)
	orDefault(&c.PageSize, defaultPageSize)
	orDefault(&c.Poll, defaultPoll)
	orDefault(&c.FullRead, defaultFullRead)
	orDefault(&c.FailBack, defaultFailBack)
	orDefault(&c.SubjectTTL, defaultSubjectTTL)
	orDefault(&c.SubjectCache, defaultSubjectCache)
	if c.Timeout < 0 || c.Poll < 0 || c.FullRead < 0 || c.FailBack < 0 || c.SubjectCache < 0 {
		return c, errors.New("directory: a time or a size is negative")
	}
	if len(c.Servers) == 0 && c.Domain == "" {
		return c, errors.New("directory: no server and no domain given; name a domain controller, as ldaps://dc1.corp.example")
	}
	if c.Site != "" && len(c.Servers) > 0 {
		return c, errors.New("directory: a site says which controllers to take from DNS: give it with a domain, without servers")
	}
	for _, s := range c.Servers {
		if _, err := c.target(s); err != nil {
			return c, err
		}
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return c, fmt.Errorf("directory: CA file: %w", err)
		}
		if c.CAs == nil {
			c.CAs = x509.NewCertPool()
		} else {
			c.CAs = c.CAs.Clone()
		}
		if !c.CAs.AppendCertsFromPEM(pem) {
			return c, fmt.Errorf("directory: CA file %s: no certificate in PEM form", c.CAFile)
		}
	}
	return c, c.Auth.check()
}

func (a Auth) check() error {
	switch a.Method {
	case Simple:
		// A bind with a name and no password is an anonymous one that reports success (RFC 4513 5.1.2).
		if a.User == "" || a.Password == "" {
			return errors.New("directory: a simple bind needs a user and a password")
		}
	case GSSAPI:
		if a.CCache == "" && (a.Principal == "" || a.Keytab == "" && a.Password == "") {
			return errors.New("directory: gssapi needs a principal with a keytab or password, or a credential cache")
		}
	default:
		return fmt.Errorf("directory: unknown authentication method %q; use %s or %s", a.Method, Simple, GSSAPI)
	}
	return nil
}

// target is one controller and how to speak to it.
type target struct {
	url      string // as configured, for messages
	host     string // what TLS and Kerberos must prove
	address  string // host:port
	tls      bool   // from the first octet
	startTLS bool
}

func (t target) encrypted() bool { return t.tls || t.startTLS }

// target reads a server URL.
func (c Config) target(server string) (target, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return target{}, fmt.Errorf("directory: server %q: want ldaps://host, ldap://host or with :port", server)
	}
	t := target{url: server, host: strings.TrimSuffix(u.Hostname(), "."), startTLS: c.StartTLS}
	port := u.Port()
	switch strings.ToLower(u.Scheme) {
	case "ldap":
		orDefault(&port, "389")
	case "ldaps":
		t.tls = true
		orDefault(&port, "636")
	default:
		return target{}, fmt.Errorf("directory: server %q: unknown scheme %q; use ldaps or ldap", server, u.Scheme)
	}
	if t.tls && t.startTLS {
		t.startTLS = false // already encrypted; the setting is for the others
	}
	if c.Auth.Method == Simple && !t.encrypted() {
		return target{}, fmt.Errorf("directory: server %q: a simple bind would send the password in the clear; "+
			"use ldaps://, or starttls, or gssapi", server)
	}
	if c.Auth.Method == GSSAPI && net.ParseIP(t.host) != nil {
		return target{}, fmt.Errorf("directory: server %q: Kerberos needs the controller's host name, not its address", server)
	}
	t.address = net.JoinHostPort(t.host, port)
	return t, nil
}

func (c Config) tlsConfig(t target) *tls.Config {
	return &tls.Config{ServerName: t.host, RootCAs: c.CAs, MinVersion: tls.VersionTLS12}
}
