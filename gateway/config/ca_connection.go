package config

import (
	"net/url"
	"time"
)

// Connection is how a CA is reached over HTTPS, and what is trusted of it.
type Connection struct {
	URL  string `yaml:"url"`
	Root string `yaml:"root"` // file: all that the CA issues must chain to one of these certificates
	// CAFile has the roots of its TLS certificate; empty: the system's.
	CAFile string `yaml:"ca_file"`
	// Certificate and Key are for CAs that want a TLS client certificate. They are read again for each connection.
	Certificate string        `yaml:"certificate"`
	Key         string        `yaml:"key"`
	Timeout     time.Duration `yaml:"timeout"`
}

func (c *Connection) paths() []*string { return []*string{&c.Root, &c.CAFile, &c.Certificate, &c.Key} }

func (c *Connection) check(path string, need func(bool, string, ...any)) {
	u, err := url.Parse(c.URL)
	need(err == nil && u.Scheme == "https" && u.Host != "" && u.RawQuery == "" && u.User == nil, "%s.url: %q is not https://HOST[:PORT][/PATH]", path, c.URL)
	need(c.Root != "", "%s.root: missing; it is the file with the root certificate of the CA, to which all that it issues must chain", path)
	need((c.Certificate == "") == (c.Key == ""), "%s: certificate and key go together: the TLS client certificate", path)
	need(c.Timeout >= 0, "%s.timeout: %s is negative", path, c.Timeout)
}
