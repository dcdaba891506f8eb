package config

import (
	"net/url"
	"time"

	"github.com/enrollgate/enrollgate/gateway/pkcs11"
)

// SCEP is a CA that speaks the Simple Certificate Enrolment Protocol (RFC 8894).
type SCEP struct {
	URL         string        `yaml:"url"`
	Root        string        `yaml:"root"`
	Issuing     string        `yaml:"issuing"`
	Responders  string        `yaml:"responders"`
	CAFile      string        `yaml:"ca_file"`
	Certificate string        `yaml:"certificate"`
	Key         string        `yaml:"key"` // encrypted PKCS#8, or a PKCS#11 URI
	Passphrase  Secret        `yaml:"passphrase"`
	Ignore      []string      `yaml:"ignore"`
	Timeout     time.Duration `yaml:"timeout"`
}

func (c *SCEP) paths() []*string {
	return []*string{&c.Root, &c.Issuing, &c.Responders, &c.CAFile, &c.Certificate, &c.Key, &c.Passphrase.File}
}

func (c *SCEP) check(path string, need func(bool, string, ...any)) {
	u, err := url.Parse(c.URL)
	need(err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.RawQuery == "", "%s.url: %q is not https://HOST[:PORT]/PATH, or http://, without a query", path, c.URL)
	need(c.Root != "", "%s.root: missing; it is the root certificate of what the CA issues", path)
	need(c.Certificate != "" && c.Key != "", "%s: certificate and key are needed: those of the gateway as registration authority, RSA", path)
	need(c.Passphrase.Set() || pkcs11.IsURI(c.Key), "%s.passphrase: missing (file or env); the key is kept encrypted", path)
	need(c.Timeout >= 0, "%s.timeout: %s is negative", path, c.Timeout)
}
