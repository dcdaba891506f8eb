// Package config reads the gateway's one configuration file: strict YAML, every value with a default that works, secrets
// only by reference to a file or an environment variable. Errors say line and column.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/lint"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/goccy/go-yaml"
)

// DefaultPath is where the file lies on an installed system.
const DefaultPath = "/etc/enrollgate/enrollgate.yaml"

// Config is the whole configuration. configs/enrollgate.yaml explains each value.
type Config struct {
	PublicName       string      `yaml:"public_name"`
	Data             string      `yaml:"data"`
	Database         Database    `yaml:"database"`
	Secret           Secret      `yaml:"secret"`
	Listen           Listen      `yaml:"listen"`
	TLS              TLS         `yaml:"tls"`
	Kerberos         Kerberos    `yaml:"kerberos"`
	Directory        Directory   `yaml:"directory"`
	Policy           Policy      `yaml:"policy"`
	CAs              []CA        `yaml:"cas"`
	Routes           []Route     `yaml:"routes"`
	Lint             Lint        `yaml:"lint"`
	AcceptRisk       []Risk      `yaml:"accept_risk"`
	EnrollmentAgents []AgentRule `yaml:"enrollment_agents"`
	// CertificateManagers are the accounts and groups that approve, deny, list and revoke over RPC, by certutil or the Certification
	// Authority console; they approve and deny nothing that they have asked for, or that is for them.
	CertificateManagers []string `yaml:"certificate_managers"`
	Escrow              Escrow   `yaml:"escrow"`
	Audit               Audit    `yaml:"audit"`
	Publish             Publish  `yaml:"publish"`
	Leavers             Leavers  `yaml:"leavers"`
	Log                 Log      `yaml:"log"`
}

// Secret is a value that does not stand in the file itself.
type Secret struct {
	File string `yaml:"file"`
	Env  string `yaml:"env"`
}

// Database is where requests, sealed keys and the audit log are kept: a file in Data where URL is empty.
type Database struct {
	URL      string `yaml:"url"` // of a PostgreSQL server
	Password Secret `yaml:"password"`
}

// Listen has the addresses of the listeners; "off" switches one off.
type Listen struct {
	HTTPS   string `yaml:"https"`
	HTTP    string `yaml:"http"`
	Metrics string `yaml:"metrics"`
	// Certificate is for renewals by those who have a client certificate of the gateway.
	Certificate string `yaml:"certificate"`
	// RPC is for clients that enroll as at AD CS, by MS-ICPR and DCOM; EPM is the endpoint mapper that tells them the port of RPC, with DCOM's
	// activation: without it there is no DCOM. Empty: port 135 where there is RPC.
	RPC string `yaml:"rpc"`
	EPM string `yaml:"epm"`
}

// TLS is the server certificate.
type TLS struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	MaxVersion  string `yaml:"max_version"`
}

// Kerberos is how callers are proven.
type Kerberos struct {
	Keytab            string        `yaml:"keytab"`
	ServicePrincipals []string      `yaml:"service_principals"`
	Realms            []string      `yaml:"realms"`
	MaxClockSkew      time.Duration `yaml:"max_clock_skew"`
	AllowRC4          bool          `yaml:"allow_rc4"`
	ChannelBinding    bool          `yaml:"require_channel_binding"` // refuse clients that do not bind their ticket to the TLS connection
	PasswordLogon     bool          `yaml:"password_logon"`          // also user name and password, checked with the KDC
}

// Policy is how the policy server presents itself.
type Policy struct {
	ID           string `yaml:"id"`
	FriendlyName string `yaml:"friendly_name"`
	UpdateHours  int    `yaml:"update_hours"`
}

// AgentRule lets accounts with an enrollment agent certificate enroll on behalf of others.
type AgentRule struct {
	Agents    []string `yaml:"agents"`    // accounts or groups
	Subjects  []string `yaml:"subjects"`  // accounts or groups whose members they may enroll
	Templates []string `yaml:"templates"` // by which templates
}

// Lint is about the rules that a certificate has to satisfy before it is signed.
type Lint struct {
	Accept []string `yaml:"accept"` // rules whose findings are warnings only
}

// Escrow is how archived keys travel.
type Escrow struct {
	ExchangeValidity time.Duration `yaml:"exchange_validity"`
	Grace            time.Duration `yaml:"grace"`
	// ExchangeToken is the PKCS#11 token (RFC 7512) that exchange keys are made in; empty: they are in the database, encrypted.
	ExchangeToken string `yaml:"exchange_token"`
	// Policies are tried in this order; a key that none is for is sealed to all agents, and any one of them recovers it.
	Policies  []RecoveryPolicy `yaml:"policies"`
	Agents    Agents           `yaml:"agents"`
	Retention Retention        `yaml:"retention"`
}

// Log is what is logged.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// defaults are the values of an empty file.
func defaults() *Config {
	host, _ := os.Hostname()
	return &Config{
		PublicName: host,
		Data:       "/var/lib/enrollgate",
		Listen:     Listen{HTTPS: ":443", HTTP: ":80", Metrics: "127.0.0.1:9464", Certificate: "off", RPC: "off"},
		TLS:        TLS{MaxVersion: "1.3"},
		Kerberos:   Kerberos{MaxClockSkew: 5 * time.Minute},
		Directory: Directory{Bind: Bind{Method: "gssapi"}, Krb5Conf: "/etc/krb5.conf", MaxAge: 24 * time.Hour,
			Poll: 2 * time.Second, FullRead: time.Minute, FailBack: time.Minute, Timeout: 10 * time.Second},
		Policy:  Policy{FriendlyName: "Certificate Enrollment Policy", UpdateHours: 8},
		Publish: defaultPublish(), Leavers: defaultLeavers(),
		Escrow: Escrow{ExchangeValidity: 7 * 24 * time.Hour, Grace: 14 * 24 * time.Hour, Agents: Agents{FromDirectory: FromDirectoryOff, WarnBefore: 60 * 24 * time.Hour},
			Retention: Retention{Every: 24 * time.Hour, MaxPerRun: 100}},
		Log: Log{Level: "info", Format: "json"},
	}
}

// Load reads the file, applies defaults and checks it. Relative paths in it are relative to its folder.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no configuration file %s: name one with --config or ENROLLGATE_CONFIG", path)
		}
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.resolve(filepath.Dir(path))
	if problems := c.Check(); len(problems) > 0 {
		return nil, fmt.Errorf("%s: %s", path, strings.Join(problems, "\n"+path+": "))
	}
	return c, nil
}

// Parse decodes a file. An unknown key is an error. goccy/go-yaml 1.19.2 panics on a list that is an empty tag (its issue
// 735), which is an error as any other.
func Parse(text []byte) (c *Config, err error) {
	if len(text) > 1<<20 {
		return nil, errors.New("the configuration has more than 1 MiB")
	}
	defer func() {
		if p := recover(); p != nil {
			c, err = nil, fmt.Errorf("the YAML decoder gave up on this text (%v): look for a tag (!) or an anchor (&) where a list belongs", p)
		}
	}()
	c = defaults()
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := d.Decode(c); err != nil && err.Error() != "EOF" {
		return nil, errors.New(yaml.FormatError(err, false, true))
	}
	if reflect.DeepEqual(*c, Config{}) { // the decoder empties what an empty file is decoded into
		c = defaults()
	}
	return c, nil
}

// resolve makes paths absolute.
func (c *Config) resolve(dir string) {
	dir, _ = filepath.Abs(dir)
	paths := []*string{&c.Data, &c.Secret.File, &c.Database.Password.File, &c.TLS.Certificate, &c.TLS.Key, &c.Kerberos.Keytab, &c.Directory.CAFile,
		&c.Directory.Bind.Keytab, &c.Directory.Bind.Password.File, &c.Directory.Krb5Conf, &c.Publish.Bind.Keytab, &c.Publish.Bind.Password.File}
	for i := range c.Directory.Domains {
		d := &c.Directory.Domains[i]
		if d.Bind.Method == "gssapi" && d.Bind.Keytab == "" && !d.Bind.Password.Set() {
			d.Bind.Keytab = cmp.Or(c.Directory.Bind.Keytab, c.Kerberos.Keytab)
		}
		paths = append(paths, &d.CAFile, &d.Bind.Keytab, &d.Bind.Password.File)
	}
	for i := range c.CAs {
		paths = append(paths, c.CAs[i].paths()...)
	}
	for i := range c.Audit.Witnesses {
		paths = append(paths, &c.Audit.Witnesses[i].CAFile)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) && !pkcs11.IsURI(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	if c.Directory.Bind.Keytab == "" {
		c.Directory.Bind.Keytab = c.Kerberos.Keytab
	}
	c.resolvePublish()
	if c.Listen.EPM == "" {
		c.Listen.EPM = ":135"
		if c.Listen.RPC == "off" {
			c.Listen.EPM = "off"
		}
	}
	if c.Secret.File == "" && c.Secret.Env == "" {
		c.Secret.File = filepath.Join(c.Data, "secret")
	}
}

// Check returns what is missing or contradictory, each with what to do. A configuration from Load has passed it.
func (c *Config) Check() []string {
	var out []string
	need := func(ok bool, format string, args ...any) {
		if !ok {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	need(strings.Contains(c.PublicName, "."), "public_name: %q is not a fully qualified name; clients and Kerberos need one, such as enroll.corp.example", c.PublicName)
	need(c.Kerberos.Keytab != "", "kerberos.keytab: missing; export the keys of the account that holds the SPN HTTP/%s", c.PublicName)
	need(c.TLS.Certificate != "" && c.TLS.Key != "" || c.Listen.HTTPS == "off", "tls.certificate and tls.key: missing; clients enroll over HTTPS only")
	need(c.TLS.MaxVersion == "1.2" || c.TLS.MaxVersion == "1.3", "tls.max_version: %q is neither 1.2 nor 1.3", c.TLS.MaxVersion)
	for name, address := range map[string]string{"rpc": c.Listen.RPC, "epm": cmp.Or(c.Listen.EPM, "off")} {
		_, port, err := net.SplitHostPort(address)
		need(address == "off" || err == nil && port != "", "listen.%s: %q is no address; name one such as \":49200\", or off", name, address)
	}
	need(c.Listen.EPM == "off" || c.Listen.EPM == "" || c.Listen.RPC != "off", "listen.epm: there is nothing to tell clients of while listen.rpc is off; switch it off, or listen.rpc on")
	need(c.Listen.RPC == "off" || c.Listen.RPC != c.Listen.EPM, "listen.rpc and listen.epm: both are %s; the endpoint mapper has a port of its own, 135", c.Listen.RPC)
	c.Database.check(need)
	c.Directory.check(need)
	c.Publish.check(need)
	c.Leavers.check(need)
	need(len(c.CAs) > 0, "cas: missing; name at least one CA as the directory publishes it")
	c.checkCAs(need)
	for i, rule := range c.EnrollmentAgents {
		need(len(rule.Agents) > 0 && len(rule.Subjects) > 0 && len(rule.Templates) > 0,
			"enrollment_agents[%d]: agents, subjects and templates are needed: who may enroll whom, by which templates", i)
	}
	for i, name := range c.CertificateManagers {
		need(strings.TrimSpace(name) != "", "certificate_managers[%d]: empty; name an account or a group, such as 'CORP\\Certificate Managers'", i)
	}
	c.Escrow.check(need)
	c.Audit.check(need)
	_, err := lint.New(c.Lint.Accept)
	need(err == nil, "lint.accept: %v", err)
	out = append(out, c.checkRisks()...)
	need(c.Log.Format == "json" || c.Log.Format == "text", "log.format: %q is neither json nor text", c.Log.Format)
	return out
}

// Set tells whether the secret is referenced at all.
func (s Secret) Set() bool { return s.File != "" || s.Env != "" }

// Read returns the secret: the file without a trailing line break, or the variable.
func (s Secret) Read() ([]byte, error) {
	if s.Env != "" {
		v, ok := os.LookupEnv(s.Env)
		if !ok || v == "" {
			return nil, fmt.Errorf("the environment variable %s is empty", s.Env)
		}
		return []byte(v), nil
	}
	info, err := os.Stat(s.File)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the secret file %s is open to others (mode %o): run chmod 600", s.File, info.Mode().Perm())
	}
	b, err := os.ReadFile(s.File)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if b = bytes.TrimRight(b, "\r\n"); len(b) == 0 {
		return nil, fmt.Errorf("the secret file %s is empty", s.File)
	}
	return b, nil
}
