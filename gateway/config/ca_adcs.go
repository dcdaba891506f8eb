package config

import (
	"strings"
	"time"
)

// ADCS is Microsoft's Active Directory Certificate Services.
type ADCS struct {
	Server           string        `yaml:"server"`
	Port             int           `yaml:"port"`
	Authority        string        `yaml:"authority"`
	Root             string        `yaml:"root"`
	Issuing          string        `yaml:"issuing"`
	Template         string        `yaml:"template"`
	Ignore           []string      `yaml:"ignore"`
	Principal        string        `yaml:"principal"`
	Keytab           string        `yaml:"keytab"`
	ServicePrincipal string        `yaml:"service_principal"`
	Timeout          time.Duration `yaml:"timeout"`
}

func (c *ADCS) paths() []*string { return []*string{&c.Root, &c.Issuing, &c.Keytab} }

func (c *ADCS) check(path string, need func(bool, string, ...any)) {
	need(strings.Contains(c.Server, ".") && !strings.ContainsAny(c.Server, ":/"), "%s.server: %q is not the fully qualified name of the CA's machine, which Kerberos needs", path, c.Server)
	need(c.Port >= 0 && c.Port < 65536, "%s.port: %d is no port", path, c.Port)
	need(c.Authority != "", "%s.authority: missing; it is the common name of the CA (certutil -getconfig on its machine, after the backslash)", path)
	need(c.Root != "", "%s.root: missing; it is the root certificate of what the CA issues", path)
	need(strings.Contains(c.Principal, "@") && c.Keytab != "", "%s: principal (NAME@REALM) and keytab are needed: the account that may enroll there", path)
	need(c.Timeout >= 0, "%s.timeout: %s is negative", path, c.Timeout)
}
