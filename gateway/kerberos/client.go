package kerberos

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/spnego"
)

// ClientOptions say as whom a Client acts: with Principal and a KeytabFile or Password as that account, else as the
// owner of the credential cache.
type ClientOptions struct {
	Principal  string // "alice@CORP.EXAMPLE"; without a realm, in the default realm of krb5.conf
	KeytabFile string
	Password   string
	CCache     string // path, or FILE:path; empty: $KRB5CCNAME, else /tmp/krb5cc_<uid>
	ConfigFile string // empty: $KRB5_CONFIG, else /etc/krb5.conf
}

// Client gets tickets for services. It is safe for concurrent use. Close it when done.
type Client struct {
	krb *client.Client
}

// NewClient returns a client. With a keytab or password it logs on at once, so that a wrong one is an error here.
func NewClient(opts ClientOptions) (*Client, error) {
	conf, err := loadConfig(opts.ConfigFile)
	if err != nil {
		return nil, err
	}
	if opts.KeytabFile == "" && opts.Password == "" {
		return fromCCache(opts.CCache, conf)
	}
	name, realm, found := cutLast(opts.Principal, "@")
	if !found {
		realm = conf.LibDefaults.DefaultRealm
	}
	if name == "" || realm == "" {
		return nil, fmt.Errorf("kerberos client: principal %q: need a name and a realm", opts.Principal)
	}
	// Active Directory does not pre-negotiate FAST the way the library does.
	settings := client.DisablePAFXFAST(true)
	c := &Client{}
	if opts.KeytabFile != "" {
		kt, err := loadKeytab(opts.KeytabFile)
		if err != nil {
			return nil, err
		}
		c.krb = client.NewWithKeytab(name, realm, kt, conf, settings)
	} else {
		c.krb = client.NewWithPassword(name, realm, opts.Password, conf, settings)
	}
	if err := c.krb.Login(); err != nil {
		return nil, fmt.Errorf("kerberos client: logging on %s@%s: %w", name, realm, err)
	}
	return c, nil
}

func loadConfig(path string) (*config.Config, error) {
	if path == "" {
		path = os.Getenv("KRB5_CONFIG")
	}
	if path == "" {
		path = "/etc/krb5.conf"
	}
	conf, err := config.Load(path)
	if err != nil {
		return nil, fmt.Errorf("kerberos client: %s: %w", path, err)
	}
	return conf, nil
}

// fromCCache opens a credential cache in a file, which is the only kind that can be read without the system's library.
func fromCCache(path string, conf *config.Config) (c *Client, err error) {
	if path == "" {
		path = os.Getenv("KRB5CCNAME")
	}
	if path == "" {
		path = fmt.Sprintf("/tmp/krb5cc_%d", os.Getuid())
	}
	kind, file, found := strings.Cut(path, ":")
	switch {
	case !found:
		file = path
	case kind != "FILE":
		return nil, fmt.Errorf("credential cache %s: only FILE caches can be read; run kinit with KRB5CCNAME=FILE:<path>", path)
	}
	defer func() { // the library indexes a damaged file without checks
		if recover() != nil {
			c, err = nil, fmt.Errorf("credential cache %s: damaged; run kinit again", file)
		}
	}()
	cache, err := credentials.LoadCCache(file)
	if err != nil {
		return nil, fmt.Errorf("credential cache %s: %w; run kinit", file, err)
	}
	krb, err := client.NewFromCCache(cache, conf, client.DisablePAFXFAST(true))
	if err != nil {
		return nil, fmt.Errorf("credential cache %s: %w; run kinit", file, err)
	}
	return &Client{krb: krb}, nil
}

// Principal is the account that the client acts as.
func (c *Client) Principal() string {
	return c.krb.Credentials.CName().PrincipalNameString() + "@" + c.krb.Credentials.Domain()
}

// Close forgets keys and tickets.
func (c *Client) Close() { c.krb.Destroy() }

// Token returns a fresh SPNEGO token for a service principal such as "HTTP/enroll.corp.example". It is good for one
// use.
func (c *Client) Token(spn string) ([]byte, error) {
	tkt, key, err := c.krb.GetServiceTicket(spn)
	if err != nil {
		return nil, fmt.Errorf("getting a ticket for %s: %w", spn, err)
	}
	init, err := spnego.NewNegTokenInitKRB5(c.krb, tkt, key)
	if err != nil {
		return nil, fmt.Errorf("making a token for %s: %w", spn, err)
	}
	token := spnego.SPNEGOToken{Init: true, NegTokenInit: init}
	b, err := token.Marshal()
	if err != nil {
		return nil, fmt.Errorf("making a token for %s: %w", spn, err)
	}
	return b, nil
}

// Transport returns a round tripper that gives each https request a token for HTTP/<host in the URL>, without waiting
// to be asked. Plain http is refused: what the token protects would travel in the clear. base is
// http.DefaultTransport if nil.
func (c *Client) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return &transport{client: c, base: base}
}

type transport struct {
	client *Client
	base   http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	err := fmt.Errorf("%s: Kerberos tokens are only sent over https", r.URL.Redacted())
	var token []byte
	if r.URL.Scheme == "https" {
		token, err = t.client.Token("HTTP/" + strings.TrimSuffix(r.URL.Hostname(), "."))
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // the contract of RoundTripper; the first error counts
		}
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Negotiate "+base64.StdEncoding.EncodeToString(token))
	return t.base.RoundTrip(r)
}

// cutLast splits around the last separator: account names may hold an @ of their own.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
