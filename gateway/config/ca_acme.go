package config

import (
	"net/url"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/pkcs11"
)

// ACME is an ACME CA (RFC 8555).
type ACME struct {
	Directory  string        `yaml:"directory"`
	Root       string        `yaml:"root"`
	CAFile     string        `yaml:"ca_file"`
	Key        string        `yaml:"key"` // of the account: encrypted PKCS#8, or a PKCS#11 URI
	Passphrase Secret        `yaml:"passphrase"`
	Contact    []string      `yaml:"contact"`
	KeyID      string        `yaml:"key_id"`
	MACKey     Secret        `yaml:"mac_key"`
	Ignore     []string      `yaml:"ignore"`
	Timeout    time.Duration `yaml:"timeout"`
	Wait       time.Duration `yaml:"wait"`
}

func (c *ACME) paths() []*string {
	return []*string{&c.Root, &c.CAFile, &c.Key, &c.Passphrase.File, &c.MACKey.File}
}

func (c *ACME) check(path string, need func(bool, string, ...any)) {
	u, err := url.Parse(c.Directory)
	need(err == nil && u.Scheme == "https" && u.Host != "", "%s.directory: %q is not https://HOST[:PORT]/PATH", path, c.Directory)
	need(c.Root != "", "%s.root: missing; it is the root certificate of what the CA issues", path)
	need(c.Key != "", "%s.key: missing; it is the private key of the gateway's account there (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256)", path)
	need(c.Passphrase.Set() || pkcs11.IsURI(c.Key), "%s.passphrase: missing (file or env); the key is kept encrypted", path)
	need((c.KeyID != "") == c.MACKey.Set(), "%s: key_id and mac_key go together: the external account binding that the CA gives", path)
	for _, contact := range c.Contact {
		need(strings.HasPrefix(contact, "mailto:"), "%s.contact: %q is not mailto:ADDRESS", path, contact)
	}
	need(c.Timeout >= 0 && c.Wait >= 0, "%s: timeout or wait is negative", path)
}
