package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/templates"
)

// endsSoon is how long before its end a certificate needs attention.
const endsSoon = 30 * 24 * time.Hour

// names asks DNS for the gateway, and for the domain controllers as clients look for them ([MS-ADTS] 6.3.2.3).
func names(ctx context.Context, p *patient) ([]Finding, error) {
	var out []Finding
	addresses, err := net.DefaultResolver.LookupHost(ctx, p.cfg.PublicName)
	if err != nil {
		out = append(out, bad(p.cfg.PublicName, "add an A or AAAA record for the name to the domain's DNS zone", "clients cannot find the gateway: %v", err))
	} else {
		out = append(out, well(p.cfg.PublicName, "%s", strings.Join(addresses, ", ")))
	}
	out = append(out, dcomFindings(ctx, p.cfg)...)
	domain := p.cfg.Directory.Domain
	if domain == "" && p.forestErr == nil {
		if c, err := p.forest.Controller(ctx); err == nil {
			domain = c.Domain
		}
	}
	if domain == "" {
		return out, notMade{"SRV records: the domain is not known; set directory.domain, or see the check of the directory"}
	}
	for _, service := range []string{"_ldap._tcp.dc._msdcs.", "_kerberos._tcp."} {
		_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", service+domain)
		switch {
		case err != nil && len(p.cfg.Directory.Servers) > 0 && ctx.Err() == nil:
			out = append(out, bad(service+domain, "let this machine ask the domain's DNS servers (resolv.conf)", "%v; directory.servers is used instead, but Kerberos may not find its servers", err))
		case err != nil:
			out = append(out, bad(service+domain, "let this machine ask the domain's DNS servers (resolv.conf)", "%v", err))
		default:
			var hosts []string
			for _, r := range records {
				hosts = append(hosts, fmt.Sprintf("%s:%d", strings.TrimSuffix(r.Target, "."), r.Port))
			}
			out = append(out, well(service+domain, "%s", strings.Join(hosts, ", ")))
		}
	}
	return out, nil
}

// door is a port that clients use.
type door struct{ port, what string }

// doors are those that the configuration opens.
func doors(cfg *config.Config) []door {
	var out []door
	add := func(address, port, what string) {
		if address != "off" && address != "" {
			out = append(out, door{port, what})
		}
	}
	add(cfg.Listen.HTTPS, "443", "enrollment over HTTPS")
	add(cfg.Listen.HTTP, "80", "revocation lists and CA certificates")
	if _, port, err := net.SplitHostPort(cfg.Listen.Certificate); err == nil {
		add(cfg.Listen.Certificate, port, "renewal with a client certificate")
	}
	if _, port, err := net.SplitHostPort(cfg.Listen.RPC); err == nil && port != "0" {
		add(cfg.Listen.RPC, port, "enrollment over RPC")
	}
	add(cfg.Listen.EPM, "135", "the endpoint mapper for enrollment over RPC")
	return out
}

// ports connects to the public name, as clients do, from here.
func ports(ctx context.Context, p *patient) ([]Finding, error) {
	list := doors(p.cfg)
	out := make([]Finding, len(list))
	done := make(chan struct{})
	for i, d := range list {
		go func() {
			defer func() { done <- struct{}{} }()
			address := net.JoinHostPort(p.cfg.PublicName, d.port)
			conn, err := (&net.Dialer{Timeout: p.timeout * 3 / 4}).DialContext(ctx, "tcp", address)
			var unresolved *net.DNSError
			switch {
			case err == nil:
				conn.Close()
				out[i] = well(address, "open, as seen from this machine: %s", d.what)
			case errors.As(err, &unresolved):
				out[i] = unknown(address, "the name has no address")
			case errors.Is(err, syscall.ECONNREFUSED):
				out[i] = bad(address, "start the gateway; if it runs, see where the name points and what listens there", "nobody listens there (%s)", d.what)
			default:
				out[i] = bad(address, "open TCP port "+d.port+" in the firewalls between clients and this machine", "no connection (%s): %v", d.what, err)
			}
		}()
	}
	for range list {
		<-done
	}
	return out, nil
}

// certificate looks at the TLS certificate as clients do: the name, the time, the purpose, and whom they trust.
func certificate(_ context.Context, p *patient) ([]Finding, error) {
	path := p.cfg.TLS.Certificate
	if p.cfg.Listen.HTTPS == "off" {
		return nil, notMade{"listen.https is off"}
	}
	pair, err := tls.LoadX509KeyPair(path, p.cfg.TLS.Key)
	if err != nil {
		return []Finding{bad(path, "put a certificate and its key where tls.certificate and tls.key say", "%v", err)}, nil
	}
	var chain []*x509.Certificate
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return []Finding{bad(path, "put certificates in PEM form into the file", "%v", err)}, nil
		}
		chain = append(chain, c)
	}
	out := judge(path, p.cfg.PublicName, chain[0], time.Now())
	s, err := p.snapshot()
	if err != nil {
		s = &templates.Snapshot{}
	}
	return append(out, trust(path, chain, s, err)), nil
}

// judge looks at the certificate alone.
func judge(path, name string, c *x509.Certificate, now time.Time) (out []Finding) {
	if err := c.VerifyHostname(name); err != nil {
		out = append(out, bad(path, "get a certificate with the DNS name "+name, "clients refuse it: %v", err))
	}
	end := c.NotAfter.UTC().Format(time.DateOnly)
	switch {
	case now.After(c.NotAfter):
		out = append(out, bad(path, "renew it; the gateway takes the new file without a restart", "it ended on %s", end))
	case now.Before(c.NotBefore):
		out = append(out, bad(path, "correct this machine's clock, or wait", "it begins on %s", c.NotBefore.UTC().Format(time.RFC3339)))
	case c.NotAfter.Sub(now) < endsSoon:
		out = append(out, bad(path, "renew it; the gateway takes the new file without a restart", "it ends on %s", end))
	}
	if len(out) == 0 {
		out = append(out, well(path, "good for %s until %s", name, end))
	}
	return out
}

// trust verifies the chain with the system's roots, and with those that the forest gives to its members.
func trust(path string, chain []*x509.Certificate, s *templates.Snapshot, unread error) Finding {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	for _, o := range s.PKI {
		where := strings.ToLower(o.DN)
		for _, c := range o.Certificates {
			switch {
			case strings.Contains(where, ",cn=certification authorities,"):
				roots.AddCert(c)
			case strings.Contains(where, ",cn=aia,"):
				between.AddCert(c)
			}
		}
	}
	purpose := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	_, forest := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: purpose})
	if forest == nil {
		return well(path, "members of the domain trust it")
	}
	_, system := chain[0].Verify(x509.VerifyOptions{Intermediates: between, KeyUsages: purpose})
	switch {
	case system == nil:
		return well(path, "this machine's roots trust it")
	case unread != nil:
		return unknown(path, "this machine's roots do not trust it (%v), and whether the forest's do is not known", system)
	}
	return bad(path, "put the intermediate certificates into the file behind it, and its root into the forest: certutil -dspublish -f ROOT RootCA",
		"neither the forest's roots nor this machine's trust it: %v", forest)
}
