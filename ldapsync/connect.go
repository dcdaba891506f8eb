package ldapsync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/keytab"

	"github.com/enrollgate/enrollgate/templates"
)

// dialFunc opens a TCP connection; tests put a proxy in between.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// session is an authenticated connection to one controller, and what that controller said about itself. It is safe for
// concurrent use: requests are multiplexed.
type session struct {
	ldap     *ldap.Conn
	target   target
	rank     int // how much others are preferred: 0 is the best server
	root     rootDSE
	domains  []templates.Domain
	page     uint32
	patience time.Duration // for an answer that costs the controller nothing
}

// maxPatience bounds connecting to a controller, and reading its root DSE: where one does not answer, another may.
const maxPatience = 3 * time.Second

func (s *session) close() { _ = s.ldap.Close() }

// connect opens an authenticated session. Its errors are *ConnectError.
func (c Config) connect(ctx context.Context, dial dialFunc, t target) (*session, error) {
	conn, err := c.bind(ctx, dial, t)
	if err != nil {
		return nil, c.connectError(t, err)
	}
	s := &session{ldap: conn, target: t, page: c.PageSize, patience: min(c.Timeout, maxPatience)}
	if err = s.begin(); err != nil {
		s.close()
		return nil, c.connectError(t, err)
	}
	return s, nil
}

// begin asks the controller who it is.
func (s *session) begin() (err error) {
	if s.root, err = s.readRoot(); err != nil {
		return err
	}
	domains, err := s.readDomains(s.root.configDN)
	s.domains = domainsOf(domains)
	return err
}

// bind connects and authenticates.
func (c Config) bind(ctx context.Context, dial dialFunc, t target) (*ldap.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	// The LDAP library knows no contexts, so the connection itself has the deadline until the session stands.
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		_ = raw.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	conn, err := c.authenticate(ctx, raw, t)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

func (c Config) authenticate(ctx context.Context, raw net.Conn, t target) (*ldap.Conn, error) {
	if t.startTLS {
		if err := startTLS(raw); err != nil {
			return nil, err
		}
	}
	var gss gssClient
	stream := net.Conn(nil)
	if t.encrypted() {
		secure := tls.Client(raw, c.tlsConfig(t))
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		stream = &deadlineConn{Conn: secure, timeout: c.Timeout}
		gss.binding = channelBinding(secure.ConnectionState().PeerCertificates[0])
	} else {
		gss.conn = &saslConn{Conn: raw, timeout: c.Timeout}
		stream = gss.conn
	}
	conn := ldap.NewConn(stream, t.encrypted())
	conn.SetTimeout(c.Timeout)
	conn.Start()
	if c.Auth.Method == Simple {
		return conn, conn.Bind(c.Auth.User, c.Auth.Password)
	}
	krb, err := c.Auth.kerberos()
	if err != nil {
		return conn, err
	}
	defer krb.Destroy()
	gss.krb = krb
	if err := conn.GSSAPIBind(&gss, "ldap/"+strings.ToLower(t.host), ""); err != nil {
		return conn, err
	}
	// The library takes "success" at any step for success: it is one only after the last.
	if !gss.agreed || gss.conn != nil && !gss.conn.sealed() {
		return conn, errors.New("kerberos: the server ended the authentication early")
	}
	return conn, nil
}

// deadlineConn bounds each write, so that a dead peer cannot hold the one goroutine that writes.
type deadlineConn struct {
	net.Conn
	timeout time.Duration
}

// Write implements net.Conn.
func (c *deadlineConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// startTLS asks for TLS (RFC 4511 4.14). It is done before the LDAP library sees the connection: so it has the same
// deadline and the same errors as ldaps, and nothing sent along with the answer can be taken for something said inside.
func startTLS(conn net.Conn) error {
	const oid = "1.3.6.1.4.1.1466.20037"
	request := append([]byte{0x30, byte(7 + len(oid)), 0x02, 0x01, 0x01, 0x77, byte(2 + len(oid)), 0x80, byte(len(oid))}, oid...)
	if _, err := conn.Write(request); err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	response := make([]byte, 0, 512)
	for size := 0; size == 0 || len(response) < size; {
		var octet [1]byte // one by one: what follows the response belongs to TLS
		if _, err := io.ReadFull(conn, octet[:]); err != nil {
			return fmt.Errorf("starttls: %w", err)
		}
		response = append(response, octet[0])
		var err error
		if size, err = berSize(response); err != nil {
			return fmt.Errorf("starttls: %w", err)
		}
		if size > cap(response) {
			return fmt.Errorf("starttls: response of %d octets", size)
		}
	}
	packet, err := ber.DecodePacketErr(response)
	if err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	if err := ldap.GetLDAPError(packet); err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	return nil
}

// kerberos logs on.
func (a Auth) kerberos() (c *client.Client, err error) {
	path := a.Krb5Conf
	orDefault(&path, os.Getenv("KRB5_CONFIG"))
	orDefault(&path, "/etc/krb5.conf")
	conf, err := config.Load(path)
	if err != nil {
		return nil, fmt.Errorf("kerberos: %s: %w", path, err)
	}
	if a.Principal == "" {
		return fromCCache(strings.TrimPrefix(a.CCache, "FILE:"), conf)
	}
	name, realm := a.Principal, conf.LibDefaults.DefaultRealm
	if i := strings.LastIndex(name, "@"); i >= 0 {
		name, realm = name[:i], name[i+1:]
	}
	if name == "" || realm == "" {
		return nil, fmt.Errorf("kerberos: principal %q: need a name and a realm, or default_realm in %s", a.Principal, path)
	}
	settings := client.DisablePAFXFAST(true) // Active Directory does not pre-negotiate FAST the way the library does
	if a.Keytab != "" {
		keys, err := keytab.Load(a.Keytab)
		if err != nil {
			return nil, fmt.Errorf("kerberos: keytab %s: %w", a.Keytab, err)
		}
		c = client.NewWithKeytab(name, realm, keys, conf, settings)
	} else {
		c = client.NewWithPassword(name, realm, a.Password, conf, settings)
	}
	if err := c.Login(); err != nil {
		return nil, fmt.Errorf("kerberos: logging on %s@%s: %w", name, realm, err)
	}
	return c, nil
}

func fromCCache(path string, conf *config.Config) (c *client.Client, err error) {
	defer func() { // the library indexes a damaged file without checks
		if recover() != nil {
			c, err = nil, fmt.Errorf("kerberos: credential cache %s: damaged; run kinit again", path)
		}
	}()
	cache, err := credentials.LoadCCache(path)
	if err != nil {
		return nil, fmt.Errorf("kerberos: credential cache %s: %w; run kinit", path, err)
	}
	if c, err = client.NewFromCCache(cache, conf, client.DisablePAFXFAST(true)); err != nil {
		return nil, fmt.Errorf("kerberos: credential cache %s: %w; run kinit", path, err)
	}
	return c, nil
}
