package config

import (
	"fmt"
	"net/url"
	"time"
)

// Directory is how domain controllers are reached.
type Directory struct {
	Servers  []string      `yaml:"servers"`
	Domain   string        `yaml:"domain"`
	Site     string        `yaml:"site"`
	StartTLS bool          `yaml:"starttls"`
	CAFile   string        `yaml:"ca_file"`
	Bind     Bind          `yaml:"bind"`
	Krb5Conf string        `yaml:"krb5_conf"`
	MaxAge   time.Duration `yaml:"max_age"`
	Poll     time.Duration `yaml:"poll"`
	FullRead time.Duration `yaml:"full_read"`
	FailBack time.Duration `yaml:"fail_back"`
	Timeout  time.Duration `yaml:"timeout"`
	Domains  []Domain      `yaml:"domains"` // others whose accounts may enroll
}

// Domain is a domain beside the gateway's own: one that is trusted, or one of the same forest that needs other settings.
type Domain struct {
	Domain   string   `yaml:"domain"`
	Servers  []string `yaml:"servers"`
	StartTLS bool     `yaml:"starttls"`
	CAFile   string   `yaml:"ca_file"`
	Bind     Bind     `yaml:"bind"`
}

// Bind is the account that reads the directory.
type Bind struct {
	Method    string `yaml:"method"` // gssapi or simple
	Principal string `yaml:"principal"`
	Keytab    string `yaml:"keytab"`
	User      string `yaml:"user"`
	Password  Secret `yaml:"password"`
}

// needs reports a mistake where ok is false.
type needs func(ok bool, format string, args ...any)

func (d *Directory) check(need needs) {
	need(len(d.Servers) > 0 || d.Domain != "", "directory: servers or domain is missing; name the domain controllers, such as ldap://dc1.corp.example, or the domain whose controllers are in DNS")
	need(d.Site == "" || len(d.Servers) == 0, "directory.site: has no effect beside servers; give it with domain alone")
	need(min(d.MaxAge, d.Poll, d.FullRead, d.FailBack, d.Timeout) >= 0, "directory: a time is negative")
	need(d.MaxAge == 0 || d.MaxAge >= 2*time.Minute, "directory.max_age: %s is less than two minutes; what is confirmed all the time may be half a minute old", d.MaxAge)
	d.Bind.check(need, "directory", d.Servers, d.StartTLS)
	for i, other := range d.Domains {
		place := fmt.Sprintf("directory.domains[%d]", i)
		need(other.Domain != "", "%s.domain: missing; it is the DNS name of the domain", place)
		if other.Bind.Method != "" {
			d.Domains[i].Bind.check(need, place, other.Servers, other.StartTLS)
		}
	}
}

// check looks at an account and how it is sent to servers.
func (b *Bind) check(need needs, place string, servers []string, startTLS bool) {
	for _, s := range servers {
		u, err := url.Parse(s)
		need(err == nil && (u.Scheme == "ldap" || u.Scheme == "ldaps") && u.Host != "", "%s.servers: %q is not ldap://HOST or ldaps://HOST", place, s)
		if err == nil && u.Scheme == "ldap" && !startTLS {
			need(b.Method == "gssapi", "%s.servers: a simple bind over %s would send the password in the clear; use ldaps:// or starttls", place, s)
		}
	}
	checkBind(place+".bind", *b, need)
}
