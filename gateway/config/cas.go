package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/upstream"
)

// CA is one certification authority, by the name under which the directory publishes it.
type CA struct {
	Name   string `yaml:"name"`
	Driver string `yaml:"driver"` // local (default), or another of drivers
	// Published is false for a CA that the directory does not publish: only routes lead to it.
	Published *bool    `yaml:"published"`
	Identity  string   `yaml:"identity"` // ca, own or upstream; see EnrollmentIdentity
	Limits    Limits   `yaml:"limits"`
	Tolerate  Tolerate `yaml:"tolerate"`

	Local  LocalCA `yaml:"local"`
	StepCA StepCA  `yaml:"step_ca"`
	Vault  Vault   `yaml:"vault"`
	EST    EST     `yaml:"est"`
	CMP    CMP     `yaml:"cmp"`
	EJBCA  EJBCA   `yaml:"ejbca"`
	HVCA   HVCA    `yaml:"hvca"`
	ADCS   ADCS    `yaml:"adcs"`
	SCEP   SCEP    `yaml:"scep"`
	ACME   ACME    `yaml:"acme"`
	AWSPCA AWSPCA  `yaml:"aws_pca"`
}

// driver is a block of the configuration for one kind of CA.
type driver interface {
	// check says what is wrong with the block at path.
	check(path string, need func(bool, string, ...any))
	// paths are the file names in it.
	paths() []*string
}

// drivers are the blocks, by the name of the driver that they are for.
func (c *CA) drivers() map[string]driver {
	return map[string]driver{"local": &c.Local, "step-ca": &c.StepCA, "vault": &c.Vault, "est": &c.EST, "cmp": &c.CMP, "ejbca": &c.EJBCA, "hvca": &c.HVCA, "adcs": &c.ADCS,
		"scep": &c.SCEP, "acme": &c.ACME, "aws-pca": &c.AWSPCA}
}

// DriverName is Driver with its default.
func (c CA) DriverName() string { return cmp.Or(c.Driver, "local") }

// IsPublished is Published with its default.
func (c CA) IsPublished() bool { return c.Published == nil || *c.Published }

// paths are all file names.
func (c *CA) paths() (out []*string) {
	for _, d := range c.drivers() {
		out = append(out, d.paths()...)
	}
	return out
}

// Limits are how much a CA is asked; values of 0 are defaults, which package limit has.
type Limits struct {
	Rate       float64       `yaml:"rate"` // orders a second
	Burst      int           `yaml:"burst"`
	Concurrent int           `yaml:"concurrent"`
	Timeout    time.Duration `yaml:"timeout"`
	Queue      time.Duration `yaml:"queue"`
	Failures   int           `yaml:"failures"`
	Pause      time.Duration `yaml:"pause"`
}

// Tolerate are extensions, by OID, in which a CA may follow its own profile; see upstream.Tolerance.
type Tolerate struct {
	Missing []string `yaml:"missing"`
	Added   []string `yaml:"added"`
	Changed []string `yaml:"changed"`
}

// Route says which CA signs instead of the one that the client addressed. The first one that matches counts; what a route does
// not name, it is for all of.
type Route struct {
	CAs       []string      `yaml:"cas"` // that clients address
	Templates []string      `yaml:"templates"`
	Groups    []string      `yaml:"groups"`  // whom the certificate is for is a member of one of them
	Domains   []string      `yaml:"domains"` // DNS names
	Sites     []string      `yaml:"sites"`   // that the gateway's domain controller is in
	To        []Destination `yaml:"to"`
	Failover  []string      `yaml:"failover"` // in this order, where none of To takes the order
}

// Destination is a CA with its share of the orders.
type Destination struct {
	CA     string `yaml:"ca"`
	Weight int    `yaml:"weight"` // 0: 1
}

// The enrollment identities: whose key signs exchange certificates and responses.
const (
	IdentityCA       = "ca"       // the CA's own, which only the embedded CA can
	IdentityOwn      = "own"      // a small CA of the gateway's
	IdentityUpstream = "upstream" // certificates that the CA issues to the gateway
)

// EnrollmentIdentity is Identity with its default: ca for the embedded CA, own for a foreign one.
func (c CA) EnrollmentIdentity() string {
	switch {
	case c.Identity != "":
		return c.Identity
	case c.DriverName() == "local":
		return IdentityCA
	}
	return IdentityOwn
}

// StepCA is a step-ca server.
type StepCA struct {
	URL         string        `yaml:"url"`
	Root        string        `yaml:"root"`
	Provisioner string        `yaml:"provisioner"`
	Key         string        `yaml:"key"`
	Password    Secret        `yaml:"password"`
	Timeout     time.Duration `yaml:"timeout"`
}

// LocalCA is the embedded CA.
type LocalCA struct {
	Certificate string        `yaml:"certificate"`
	Key         string        `yaml:"key"`
	Passphrase  Secret        `yaml:"passphrase"`
	CRLValidity time.Duration `yaml:"crl_validity"`
}

func (c *Config) checkCAs(need func(bool, string, ...any)) {
	need(len(c.CAs) > 0, "cas: missing; name at least one CA as the directory publishes it")
	seen, published := map[string]bool{}, false
	for i := range c.CAs {
		ca, path := &c.CAs[i], fmt.Sprintf("cas[%d]", i)
		need(ca.Name != "", "%s.name: missing; it is the name of the pKIEnrollmentService object", path)
		need(!seen[strings.ToLower(ca.Name)], "%s.name: %q occurs twice", path, ca.Name)
		seen[strings.ToLower(ca.Name)], published = true, published || ca.IsPublished()
		ca.check(path, need)
	}
	need(len(c.CAs) == 0 || published, "cas: none is published; clients find none")
	for i, r := range c.Routes {
		need(len(r.To) > 0, "routes[%d].to: missing; name the CAs that sign", i)
		need(len(r.Sites) == 0 || len(c.Directory.Servers) == 0, "routes[%d].sites: the site is known where domain controllers are found in DNS: leave directory.servers empty", i)
		for _, name := range slices.Concat(r.CAs, r.Failover) {
			need(seen[strings.ToLower(name)], "routes[%d]: CA %q is not in cas", i, name)
		}
		for j, d := range r.To {
			need(seen[strings.ToLower(d.CA)], "routes[%d].to[%d].ca: %q is not in cas", i, j, d.CA)
			need(d.Weight >= 0, "routes[%d].to[%d].weight: %d is negative", i, j, d.Weight)
		}
	}
}

// check says what is wrong with one CA.
func (c *CA) check(path string, need func(bool, string, ...any)) {
	identity := c.EnrollmentIdentity()
	if c.DriverName() == "local" {
		need(identity == IdentityCA, "%s.identity: %q is for a foreign CA; the embedded CA signs for itself (ca)", path, c.Identity)
	} else {
		need(identity == IdentityOwn || identity == IdentityUpstream, "%s.identity: %q is not possible with a foreign CA, whose key the gateway does not hold; there are: own, upstream", path, c.Identity)
	}
	all := c.drivers()
	if d, ok := all[c.DriverName()]; ok {
		d.check(path+"."+strings.ReplaceAll(c.DriverName(), "-", "_"), need)
	} else {
		need(false, "%s.driver: %q is unknown; there are: %s", path, c.Driver, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	l := c.Limits
	need(l.Rate >= 0 && l.Burst >= 0 && l.Concurrent >= 0 && l.Timeout >= 0 && l.Queue >= 0 && l.Failures >= 0 && l.Pause >= 0, "%s.limits: a value is negative", path)
	need(l.Timeout <= maxCall && l.Queue <= maxQueue, "%s.limits: timeout is at most %s, and queue %s", path, maxCall, maxQueue)
	if err := upstream.Tolerance(c.Tolerate).Check(); err != nil {
		need(false, "%s.tolerate: %v", path, err)
	}
}

// Longer than this nobody waits for a CA: a request is another gateway's to take over after ledger.ClaimTime.
const (
	maxCall  = 30 * time.Second
	maxQueue = 10 * time.Second
)

func (l *LocalCA) paths() []*string { return []*string{&l.Certificate, &l.Key, &l.Passphrase.File} }

func (l *LocalCA) check(path string, need func(bool, string, ...any)) {
	need(l.Certificate != "" && l.Key != "", "%s: certificate and key are needed", path)
	need(l.Passphrase.Set() || pkcs11.IsURI(l.Key), "%s.passphrase: missing (file or env); the CA key is kept encrypted", path)
}

func (s *StepCA) paths() []*string { return []*string{&s.Root, &s.Key, &s.Password.File} }

func (s *StepCA) check(path string, need func(bool, string, ...any)) {
	u, err := url.Parse(s.URL)
	need(err == nil && u.Scheme == "https" && u.Host != "", "%s.url: %q is not https://HOST[:PORT]", path, s.URL)
	need(s.Root != "", "%s.root: missing; it is step-ca's root certificate (step ca root root.pem)", path)
	need(s.Provisioner != "" && s.Key != "", "%s: provisioner and key are needed: the name of a JWK provisioner and its encrypted key", path)
	need(s.Password.Set(), "%s.password: missing (file or env); it decrypts the provisioner's key", path)
	need(s.Timeout >= 0, "%s.timeout: %s is negative", path, s.Timeout)
}
