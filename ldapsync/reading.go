package ldapsync

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
)

// object is one directory object as a controller sent it.
type object struct {
	dn         string
	attributes templates.Attributes
}

// reading is everything that a snapshot is made of, as octets. A reading comes from a controller or from the saved file,
// and build is the one way from it to a snapshot.
type reading struct {
	controller string // DNS host name
	invocation string // invocationId of the controller's database; empty where it cannot be read
	usn        int64  // highestCommittedUSN before the read
	configDN   string
	forestDN   string
	taken      time.Time
	domains    []object // crossRef objects
	objects    []object // below CN=Public Key Services, sorted by DN
}

// readAll reads the forest's certificate configuration as of now.
func (s *session) readAll(ctx context.Context) (*reading, error) {
	r := &reading{taken: time.Now()}
	// Everything committed up to this USN is in what follows, and perhaps more.
	root, err := s.readRoot()
	if err != nil {
		return nil, err
	}
	r.controller, r.usn, r.configDN, r.forestDN = root.host, root.usn, root.configDN, root.forestDN
	if r.invocation, err = s.readInvocation(root); err != nil {
		return nil, err
	}
	if r.domains, err = s.readDomains(root.configDN); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := s.search(pkiBase(root.configDN), ldap.ScopeWholeSubtree, pkiFilter, pkiAttributes(),
		&ldap.ControlMicrosoftSDFlags{Criticality: true, ControlValue: allButSACL})
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return nil, fmt.Errorf("the forest has no certificate templates, or the account may not read them: %w", err)
	}
	if err != nil {
		return nil, err
	}
	r.objects = objectsOf(entries)
	return r, nil
}

// objectsOf sorts: controllers answer in no particular order.
func objectsOf(entries []*ldap.Entry) []object {
	out := make([]object, len(entries))
	for i, e := range entries {
		out[i] = object{e.DN, attributesOf(e)}
	}
	slices.SortFunc(out, func(a, b object) int { return strings.Compare(a.dn, b.dn) })
	return out
}

// same tells whether a snapshot of both would hold the same. uSNChanged does not count: it is each controller's own.
func (r *reading) same(o *reading) bool {
	equal := func(a, b object) bool { return a.dn == b.dn && sameAttributes(a.attributes, b.attributes) }
	return r.configDN == o.configDN && r.forestDN == o.forestDN &&
		slices.EqualFunc(r.domains, o.domains, equal) && slices.EqualFunc(r.objects, o.objects, equal)
}

func sameAttributes(a, b templates.Attributes) bool {
	const own = "usnchanged"
	without := func(m templates.Attributes) int {
		if _, ok := m[own]; ok {
			return len(m) - 1
		}
		return len(m)
	}
	if without(a) != without(b) {
		return false
	}
	for name, values := range a {
		if other, ok := b[name]; name != own && (!ok || !slices.EqualFunc(values, other, bytes.Equal)) {
			return false
		}
	}
	return true
}

// versions maps the DN of each object that a snapshot is made of to its uSNChanged. Unlike a highest USN, it shows
// deletions too.
type versions map[string]string

func (v versions) equal(w versions) bool { return maps.Equal(v, w) }

func (r *reading) versions() versions {
	v := make(versions, len(r.objects))
	for _, o := range r.objects {
		v[o.dn] = o.attributes.First("uSNChanged")
	}
	return v
}

// build makes the snapshot.
func (r *reading) build() *templates.Snapshot {
	domains := domainsOf(r.domains)
	b := &builder{snapshot: &templates.Snapshot{Taken: r.taken, Controller: r.controller, USN: r.usn, ConfigDN: r.configDN,
		Domains: domains, OIDs: map[string]templates.OIDObject{}, Unusable: map[string]string{}}}
	for _, d := range domains {
		if strings.EqualFold(d.DN, r.forestDN) {
			b.snapshot.ForestRoot = d.DNS
		}
	}
	for _, o := range r.objects {
		b.add(o.dn, o.attributes)
	}
	b.finish()
	return b.snapshot
}

// refreshed is a snapshot with the same contents, confirmed by another reading: it shares everything that is large, so
// that who keeps something for a snapshot's contents can compare Templates and Services by identity.
func (r *reading) refreshed(s *templates.Snapshot) *templates.Snapshot {
	c := *s
	c.Taken, c.Controller, c.USN = r.taken, r.controller, r.usn
	return &c
}

// domainsOf lists the forest's domains from their crossRef objects.
func domainsOf(objects []object) []templates.Domain {
	var domains []templates.Domain
	for _, o := range objects {
		a := o.attributes
		domains = append(domains, templates.Domain{DN: a.First("nCName"), DNS: strings.ToLower(a.First("dnsRoot")), NetBIOS: a.First("nETBIOSName")})
	}
	slices.SortFunc(domains, func(a, b templates.Domain) int { return strings.Compare(a.DNS, b.DNS) })
	return domains
}
