package ldapsync

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

const askSite = time.Hour // a machine rarely moves

// resolver looks SRV records up; net.DefaultResolver does.
type resolver interface {
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, records []*net.SRV, err error)
}

// discover finds the domain's controllers in DNS ([MS-ADTS] 6.3.6): those of the site first, then the others, which
// take over where the site has none that works. Where DNS does not answer, which may well be because it runs on the
// controllers, the ones found last are tried.
func (d *Directory) discover(ctx context.Context) ([]candidate, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	domain := "dc._msdcs." + d.config.Domain
	all, err := d.lookup(ctx, domain)
	var local []candidate
	if site := d.site(ctx, all); site != "" {
		var err error
		if local, err = d.lookup(ctx, site+"._sites."+domain); err != nil {
			d.log.WithError(err).WithField("site", site).Warn("the site has no domain controllers in DNS; others are used")
		}
	}
	found := ranked(local, all)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(found) > 0:
		d.found = found
	case len(d.found) == 0:
		return nil, fmt.Errorf("directory: looking for domain controllers of %s in DNS: %w", d.config.Domain, err)
	}
	return slices.Clone(d.found), nil
}

// Site is the Active Directory site whose controllers are preferred: the configured one, or the one that they say this machine is in;
// "" while that is not known, and where controllers are not looked for in DNS.
func (d *Directory) Site() string {
	if d.config.Site != "" {
		return d.config.Site
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ownSite
}

// site is the configured site, else the one that controllers say this machine is in.
func (d *Directory) site(ctx context.Context, controllers []candidate) string {
	if d.config.Site != "" {
		return d.config.Site
	}
	d.mu.Lock()
	site, again := d.ownSite, time.Since(d.pinged) >= askSite
	if again {
		d.pinged = time.Now()
	}
	d.mu.Unlock()
	if !again || len(controllers) == 0 {
		return site
	}
	var hosts []string
	for _, c := range controllers {
		if t, err := d.config.target(c.url); err == nil {
			hosts = append(hosts, t.host)
		}
	}
	found, err := d.siteOf(ctx, hosts)
	if err != nil {
		d.log.WithError(err).Debug("no domain controller says which site this machine is in; none is preferred")
		return site
	}
	d.log.WithField("site", found).Info("this machine's site is known")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ownSite = found
	return found
}

// lookup reads SRV records, in the order of priority and weight; rank is the priority.
func (d *Directory) lookup(ctx context.Context, name string) ([]candidate, error) {
	_, records, err := d.resolver.LookupSRV(ctx, "ldap", "tcp", name)
	var out []candidate
	for _, r := range records {
		out = append(out, candidate{d.config.urlOf(r), int(r.Priority)})
	}
	return out, err
}

// ranked puts the site's servers before all others, and turns priorities into ranks from 0 on. Servers of one rank are
// as good as each other: there is no going back from one to another.
func ranked(local, all []candidate) []candidate {
	var out []candidate
	rank := -1
	for _, list := range [][]candidate{local, all} {
		before := -1 // priority of the last one
		for _, c := range list {
			if slices.ContainsFunc(out, func(o candidate) bool { return o.url == c.url }) {
				continue
			}
			if c.rank != before {
				rank++
			}
			before = c.rank
			out = append(out, candidate{c.url, rank})
		}
	}
	return out
}

// urlOf is how to reach a server that DNS names.
func (c Config) urlOf(r *net.SRV) string {
	host := strings.ToLower(strings.TrimSuffix(r.Target, "."))
	if c.Auth.Method == Simple && !c.StartTLS {
		return "ldaps://" + host
	}
	return "ldap://" + net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
}
