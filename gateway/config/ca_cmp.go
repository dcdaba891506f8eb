package config

import (
	"net/url"
	"time"

	"github.com/enrollgate/enrollgate/gateway/pkcs11"
)

// CMP is a CA that speaks the Certificate Management Protocol (RFC 9810).
type CMP struct {
	URL             string        `yaml:"url"`
	Root            string        `yaml:"root"`
	Issuing         string        `yaml:"issuing"`    // the CA's certificate and those up to the root
	Responders      string        `yaml:"responders"` // certificates of who may sign answers
	CAFile          string        `yaml:"ca_file"`    // of the TLS server
	Certificate     string        `yaml:"certificate"`
	Key             string        `yaml:"key"` // encrypted PKCS#8, or a PKCS#11 URI
	Passphrase      Secret        `yaml:"passphrase"`
	Secret          Secret        `yaml:"secret"`
	Reference       string        `yaml:"reference"`
	PBMAC1          bool          `yaml:"pbmac1"`
	PKCS10          bool          `yaml:"pkcs10"`
	Ignore          []string      `yaml:"ignore"`
	ImplicitConfirm bool          `yaml:"implicit_confirm"`
	NoRevocation    bool          `yaml:"no_revocation"`
	Timeout         time.Duration `yaml:"timeout"`
}

func (c *CMP) paths() []*string {
	return []*string{&c.Root, &c.Issuing, &c.Responders, &c.CAFile, &c.Certificate, &c.Key, &c.Passphrase.File, &c.Secret.File}
}

func (c *CMP) check(path string, need func(bool, string, ...any)) {
	u, err := url.Parse(c.URL)
	need(err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "", "%s.url: %q is not https://HOST[:PORT]/PATH, or http://", path, c.URL)
	need(c.Root != "", "%s.root: missing; it is the root certificate of what the CA issues", path)
	need((c.Certificate != "" || c.Key != "") != c.Secret.Set(), "%s: either certificate and key, or secret is needed: how messages to the CA are protected", path)
	if c.Certificate != "" || c.Key != "" {
		need(c.Certificate != "" && c.Key != "", "%s: certificate and key go together: those of the registration authority", path)
		need(c.Passphrase.Set() || pkcs11.IsURI(c.Key), "%s.passphrase: missing (file or env); the key is kept encrypted", path)
	}
	need(!c.PBMAC1 || c.Secret.Set(), "%s.pbmac1: it is for messages that a secret protects", path)
	need(len(c.Ignore) == 0 || c.PKCS10, "%s.ignore: it is for pkcs10 only", path)
	need(c.Timeout >= 0, "%s.timeout: %s is negative", path, c.Timeout)
}
