package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// This file asks what only somebody who looks for faults wants to know.

// Controller is a domain controller, as it answers now.
type Controller struct {
	URL       string
	Host      string        // dnsHostName
	Domain    string        // DNS name
	Protected string        // how the connection is: "TLS" or "sealed by Kerberos"
	Ahead     time.Duration // of its clock before this machine's; to the second
}

// Controller asks the controller that the directory is connected to.
func (d *Directory) Controller(ctx context.Context) (c Controller, err error) {
	err = d.do(ctx, func(s *session) error {
		c = Controller{URL: s.target.url, Host: s.root.host, Domain: s.domain().DNS, Protected: "sealed by Kerberos"}
		if s.target.encrypted() {
			c.Protected = "TLS"
		}
		asked := time.Now()
		entries, err := s.search("", ldap.ScopeBaseObject, "(objectClass=*)", []string{"currentTime"})
		if err != nil {
			return err
		}
		if len(entries) != 1 {
			return fmt.Errorf("reading the root DSE: %d entries, want one", len(entries))
		}
		// [MS-ADTS] 3.1.1.3.2.4: a time in whole seconds, which has been cut off: half a second is between, on average.
		said, err := time.Parse("20060102150405.0Z", attributesOf(entries[0]).First("currentTime"))
		if err != nil {
			return fmt.Errorf("reading the root DSE: currentTime: %w", err)
		}
		middle := asked.Add(time.Since(asked) / 2)
		c.Ahead = said.Add(time.Second / 2).Sub(middle).Round(time.Second)
		return nil
	})
	return c, err
}

// Holder is an account with what a KDC needs for tickets to it.
type Holder struct {
	DN, Account string // sAMAccountName
	Domain      string // DNS name
	SPNs        []string
	KeyVersion  int  // msDS-KeyVersionNumber; 0 where it cannot be read
	Disabled    bool // userAccountControl ACCOUNTDISABLE
	// EncryptionTypes is msDS-SupportedEncryptionTypes ([MS-KILE] 2.2.7); 0 where it is missing.
	EncryptionTypes int
}

// Bits of Holder.EncryptionTypes.
const (
	EncryptionRC4    = 0x04
	EncryptionAES128 = 0x08
	EncryptionAES256 = 0x10
)

// Holders finds the accounts of the domain that have a service principal name.
func (d *Directory) Holders(ctx context.Context, spn string) ([]Holder, error) {
	return d.holders(ctx, "(servicePrincipalName="+ldap.EscapeFilter(spn)+")")
}

// Account finds an account of the domain by its sAMAccountName, with or without the $ of a computer.
func (d *Directory) Account(ctx context.Context, name string) ([]Holder, error) {
	name = ldap.EscapeFilter(strings.TrimSuffix(name, "$"))
	return d.holders(ctx, "(|(sAMAccountName="+name+")(sAMAccountName="+name+"$))")
}

func (d *Directory) holders(ctx context.Context, filter string) (out []Holder, err error) {
	attributes := []string{"sAMAccountName", "servicePrincipalName", "msDS-KeyVersionNumber", "msDS-SupportedEncryptionTypes", "userAccountControl"}
	err = d.do(ctx, func(s *session) error {
		out = nil
		entries, err := s.search(s.root.domainDN, ldap.ScopeWholeSubtree, filter, attributes)
		if err != nil {
			return err
		}
		for _, e := range entries {
			a := attributesOf(e)
			number := func(name string) int { n, _ := strconv.Atoi(a.First(name)); return n } // missing, or of no use
			out = append(out, Holder{DN: e.DN, Account: a.First("sAMAccountName"), Domain: s.domain().DNS, SPNs: a.Strings("servicePrincipalName"),
				KeyVersion: number("msDS-KeyVersionNumber"), EncryptionTypes: number("msDS-SupportedEncryptionTypes"),
				Disabled: number("userAccountControl")&accountDisabled != 0})
		}
		return nil
	})
	return out, err
}

// Holders finds the accounts of the whole forest that have a service principal name. Domains that cannot be asked are in the
// error; what the others say is there nevertheless.
func (f *Forest) Holders(ctx context.Context, spn string) (out []Holder, err error) {
	for i, d := range f.all() {
		if i > 0 && !f.hasDomain(d.config.Domain) {
			continue // a trusted forest has names of its own
		}
		found, failed := d.Holders(ctx, spn)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("domain %s: %w", d.config.Domain, failed))
		}
		out = append(out, found...)
	}
	return out, err
}

// hasDomain tells whether a domain is of the gateway's forest.
func (f *Forest) hasDomain(dns string) bool {
	s := f.Snapshot()
	if s == nil {
		return false
	}
	for _, domain := range s.Domains {
		if strings.EqualFold(domain.DNS, dns) {
			return true
		}
	}
	return false
}

// Has tells whether the account has a name, in any spelling.
func (h *Holder) Has(spn string) bool {
	return slices.ContainsFunc(h.SPNs, func(s string) bool { return strings.EqualFold(s, spn) })
}
