package config

import (
	"net/url"
	"strings"
	"time"
)

// AWSPCA is a CA of AWS Private CA.
type AWSPCA struct {
	ARN              string        `yaml:"arn"`
	Root             string        `yaml:"root"`
	SigningAlgorithm string        `yaml:"signing_algorithm"`
	Endpoint         string        `yaml:"endpoint"`
	CAFile           string        `yaml:"ca_file"`
	AccessKeyID      string        `yaml:"access_key_id"`
	SecretAccessKey  Secret        `yaml:"secret_access_key"`
	EmptyRequests    bool          `yaml:"empty_requests"`
	Timeout          time.Duration `yaml:"timeout"`
	Wait             time.Duration `yaml:"wait"`
}

func (c *AWSPCA) paths() []*string { return []*string{&c.Root, &c.CAFile, &c.SecretAccessKey.File} }

func (c *AWSPCA) check(path string, need func(bool, string, ...any)) {
	need(strings.HasPrefix(c.ARN, "arn:") && strings.Contains(c.ARN, ":certificate-authority/"), "%s.arn: %q is not arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID", path, c.ARN)
	need(c.Root != "", "%s.root: missing; it is the root certificate of what the CA issues", path)
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		need(err == nil && u.Scheme == "https" && u.Host != "", "%s.endpoint: %q is not https://HOST", path, c.Endpoint)
	}
	need((c.AccessKeyID != "") == c.SecretAccessKey.Set(), "%s: access_key_id and secret_access_key go together; without them the machine's role or AWS's own files and variables are used", path)
	need(c.Timeout >= 0 && c.Wait >= 0, "%s: timeout or wait is negative", path)
}
