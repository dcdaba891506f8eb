package config

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Publish is how issued certificates get into the directory.
type Publish struct {
	Enabled      bool          `yaml:"enabled"`
	Bind         Bind          `yaml:"bind"`          // the account that writes; default: directory.bind
	CleanForeign bool          `yaml:"clean_foreign"` // also remove expired certificates that others issued
	Retry        time.Duration `yaml:"retry"`         // how long after a failure to try again; each time twice as long
	MaxRetry     time.Duration `yaml:"max_retry"`     // but never longer
	Sweep        time.Duration `yaml:"sweep"`         // how often to look at every account that has certificates; 0: never
}

// Leavers is what happens to the certificates of accounts that are disabled or deleted.
type Leavers struct {
	Enabled    bool          `yaml:"enabled"`
	Every      time.Duration `yaml:"every"`
	Grace      time.Duration `yaml:"grace"`
	MaxPerRun  int           `yaml:"max_per_run"` // more accounts at once are a mistake until an operator says otherwise
	MaxPercent int           `yaml:"max_percent"` // of all accounts with certificates, gone at a time
	Expired    bool          `yaml:"expired"`     // accountExpires makes a leaver, too
	Reason     string        `yaml:"reason"`      // CRLReason, by its name in RFC 5280 5.3.1
}

// crlReasons are the reasons that fit an account that is gone (RFC 5280 5.3.1). certificateHold is not among them: nothing
// here takes a certificate off hold.
func crlReasons() map[string]int {
	return map[string]int{"unspecified": 0, "affiliationChanged": 3, "cessationOfOperation": 5, "privilegeWithdrawn": 9}
}

// CRLReason is the number of Reason.
func (l Leavers) CRLReason() int { return crlReasons()[l.Reason] }

func defaultPublish() Publish {
	return Publish{Enabled: true, Retry: time.Minute, MaxRetry: 6 * time.Hour, Sweep: 24 * time.Hour}
}

func defaultLeavers() Leavers {
	return Leavers{Every: time.Hour, Grace: 7 * 24 * time.Hour, MaxPerRun: 20, MaxPercent: 10, Reason: "affiliationChanged"}
}

// resolvePublish fills in what the directory's own account says: the one that writes may differ in the name alone.
func (c *Config) resolvePublish() {
	b, own := &c.Publish.Bind, c.Directory.Bind
	switch {
	case *b == (Bind{}):
		*b = own
	case b.Method == "" && b.User != "":
		b.Method = "simple"
	case b.Method == "":
		b.Method = "gssapi"
	}
	if b.Method == "gssapi" && b.Keytab == "" && !b.Password.Set() {
		b.Keytab = own.Keytab
	}
}

func (p Publish) check(need func(ok bool, format string, args ...any)) {
	need(p.Sweep >= 0, "publish.sweep: %s is negative", p.Sweep)
	need(p.Retry > 0 && p.MaxRetry >= p.Retry, "publish.retry: %s and publish.max_retry: %s must be positive, and the second not smaller", p.Retry, p.MaxRetry)
	if p.Bind != (Bind{}) {
		checkBind("publish.bind", p.Bind, need)
	}
}

func (l Leavers) check(need func(ok bool, format string, args ...any)) {
	need(l.Every > 0 && l.Grace >= 0, "leavers: every (%s) must be positive and grace (%s) not negative", l.Every, l.Grace)
	need(l.MaxPerRun > 0 && l.MaxPercent > 0 && l.MaxPercent <= 100, "leavers: max_per_run (%d) must be positive and max_percent (%d) from 1 to 100", l.MaxPerRun, l.MaxPercent)
	_, known := crlReasons()[l.Reason]
	need(known, "leavers.reason: %q is not possible; there are: %s", l.Reason, strings.Join(slices.Sorted(maps.Keys(crlReasons())), ", "))
}

// checkBind returns what is missing for logging on to the directory.
func checkBind(name string, b Bind, need func(ok bool, format string, args ...any)) {
	switch b.Method {
	case "gssapi":
		need(b.Principal != "", "%s.principal: missing; name the account whose key is in the keytab", name)
	case "simple":
		need(b.User != "" && b.Password.Set(), "%s: user and password (file or env) are needed for a simple bind", name)
	default:
		need(false, "%s.method: %q is neither gssapi nor simple", name, b.Method)
	}
}
