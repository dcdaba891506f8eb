package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Forest is every domain whose accounts may enroll. The first Directory is of the gateway's own domain, and reads what its
// forest shares: templates, CAs and OIDs. An account is read from a controller of its own domain, which alone has all of its
// attributes: a domain that was configured, with credentials of its own where it is trusted only, or one of the same forest,
// which is found in DNS. It is safe for concurrent use.
type Forest struct {
	*Directory

	mu     sync.Mutex   // guards others
	others []*Directory // in the order configured, then as found
	source *Forest      // whose snapshot tells the domains, where this one reads none
}

// Follow takes what the forest's domains are from another Forest, which reads snapshots. Call it before anything else.
func (f *Forest) Follow(other *Forest) { f.source = other }

// identity is what a controller says about its domain. It never changes.
type identity struct {
	templates.Domain
	sid security.SID
}

// NewForest is New for the gateway's own domain and others. Each of these needs Domain.
func NewForest(own Config, others []Config, log logrus.FieldLogger) (*Forest, error) {
	d, err := New(own, log)
	if err != nil {
		return nil, err
	}
	f := &Forest{Directory: d}
	for _, c := range others {
		if c.Domain == "" {
			return nil, errors.New("directory: another domain has no name; give domain: part.example")
		}
		if err := f.addLocked(c); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// addLocked adds a domain. It asks nothing of a controller.
func (f *Forest) addLocked(c Config) error {
	d, err := New(c, f.log.WithField("domain", c.Domain))
	if err != nil {
		return fmt.Errorf("domain %s: %w", c.Domain, err)
	}
	d.accountsOnly, d.resolver, d.dial = true, f.resolver, f.dial
	f.others = append(f.others, d)
	return nil
}

// Run keeps the snapshot current, as Directory.Run does, and the connections to the other domains good, until ctx ends.
func (f *Forest) Run(ctx context.Context) {
	go func() {
		tick := time.NewTicker(f.config.FailBack)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				for _, d := range f.all()[1:] {
					d.failBack(ctx)
				}
			}
		}
	}()
	f.Directory.Run(ctx)
	f.Close()
}

// Close ends all connections. The last snapshot stays.
func (f *Forest) Close() {
	for _, d := range f.all() {
		d.Close()
	}
}

// all lists the domains, the gateway's own first. Those of its forest that nobody has configured are added as the snapshot
// knows them: they are reached with the same credentials, and found in DNS.
func (f *Forest) all() []*Directory {
	f.mu.Lock()
	defer f.mu.Unlock()
	snapshot := f.Snapshot()
	if f.source != nil {
		snapshot = f.source.Snapshot()
	}
	if s := snapshot; s != nil {
		for _, domain := range s.Domains {
			known := func(d *Directory) bool { return strings.EqualFold(d.config.Domain, domain.DNS) }
			if own, ok := f.ownDomain(s, domain); !ok || own || slices.ContainsFunc(f.others, known) {
				continue
			}
			c := f.config
			c.Servers, c.Site, c.StateFile, c.Domain = nil, "", "", domain.DNS
			if err := f.addLocked(c); err != nil {
				f.log.WithError(err).Warn("a domain of the forest cannot be used")
			}
		}
	}
	return append([]*Directory{f.Directory}, f.others...)
}

// ownDomain tells whether a domain of the snapshot is the gateway's own; ok is false while nobody can know.
func (f *Forest) ownDomain(s *templates.Snapshot, domain templates.Domain) (own, ok bool) {
	if len(s.Domains) == 1 || f.config.Domain != "" {
		return len(s.Domains) == 1 || strings.EqualFold(domain.DNS, f.config.Domain), true
	}
	if id := f.Directory.identity.Load(); id != nil {
		return strings.EqualFold(id.DN, domain.DN), true
	}
	return false, false
}

// whoami asks the controller, once, which domain it is of.
func (d *Directory) whoami(ctx context.Context) (*identity, error) {
	if id := d.identity.Load(); id != nil {
		return id, nil
	}
	s, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	sid, err := s.domainSID()
	d.drop(s, err)
	if err != nil {
		return nil, err
	}
	id := &identity{Domain: s.domain(), sid: sid}
	d.identity.Store(id)
	return id, nil
}

// home finds the domain that is meant: the first of which is says so. Where none does and one cannot be asked, nobody knows.
func (f *Forest) home(ctx context.Context, what string, is func(*identity) bool) (*Directory, error) {
	var unknown error
	for _, d := range f.all() {
		id, err := d.whoami(ctx)
		switch {
		case err != nil:
			unknown = errors.Join(unknown, err)
		case is(id):
			return d, nil
		}
	}
	if unknown != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, unknown, "whose account %s is cannot be found out now; try again", what)
	}
	return nil, hresult.New(hresult.NoSuchUser, "%s is of a domain that this gateway does not read", what).
		WithFix("name the domain, with an account that may read it, under directory.domains in the configuration")
}

// homeOf is the domain of a SID. Others than those of accounts, S-1-5-32-544 and the like, are looked for in the own one.
func (f *Forest) homeOf(ctx context.Context, sid security.SID) (*Directory, error) {
	domain, ok := sid.Domain()
	if !ok {
		return f.Directory, nil
	}
	return f.home(ctx, string(sid), func(id *identity) bool { return id.sid == domain })
}

// Subject looks an account up by its SID, in its own domain. Errors are those of Directory.Subject.
func (f *Forest) Subject(ctx context.Context, sid security.SID) (templates.Subject, error) {
	d, err := f.homeOf(ctx, sid)
	if err != nil {
		return templates.Subject{}, err
	}
	return d.Subject(ctx, sid)
}

// SubjectByName looks an account up by what an administrator calls it, as Directory.SubjectByName does, in the domain that
// the name tells: CORP\alice, alice@corp.example, a distinguished name or a SID; alice alone is of the own domain. Groups are
// those that a ticket for the gateway would bring: of the account's domain the global and universal ones, and of the gateway's
// own also the domain local ones.
func (f *Forest) SubjectByName(ctx context.Context, name string) (templates.Subject, error) {
	d, err := f.named(ctx, name)
	if err != nil {
		return templates.Subject{}, err
	}
	s, err := d.SubjectByName(ctx, name)
	if err == nil && d != f.Directory {
		err = f.groupsHere(ctx, d, &s)
	}
	if _, ok := errors.AsType[*hresult.Error](err); !ok && err != nil {
		err = hresult.Wrap(hresult.ServerUnavailable, err, "the groups of %q cannot be read from the directory", name)
	}
	return s, err
}

// named is the domain that a name tells.
func (f *Forest) named(ctx context.Context, name string) (*Directory, error) {
	if sid, err := security.ParseSIDText(name); err == nil {
		return f.homeOf(ctx, sid)
	}
	if domain, _, ok := strings.Cut(name, `\`); ok && !strings.Contains(domain, "=") {
		return f.home(ctx, fmt.Sprintf("%q", name), func(id *identity) bool {
			return strings.EqualFold(id.NetBIOS, domain) || strings.EqualFold(id.DNS, domain)
		})
	}
	if strings.Contains(name, "=") {
		return f.home(ctx, fmt.Sprintf("%q", name), func(id *identity) bool {
			i := strings.Index(strings.ToUpper(name), "DC=")
			return i >= 0 && strings.EqualFold(name[i:], id.DN)
		})
	}
	if i := strings.LastIndex(name, "@"); i >= 0 {
		return f.ofPrincipal(ctx, name, name[i+1:])
	}
	return f.Directory, nil
}

// ofPrincipal finds the domain of alice@suffix. A user principal name may have any suffix of the forest, so that the domain of
// that name is only the first one to ask.
func (f *Forest) ofPrincipal(ctx context.Context, name, suffix string) (*Directory, error) {
	all := f.all()
	slices.SortStableFunc(all, func(a, b *Directory) int { return rank(ctx, a, suffix) - rank(ctx, b, suffix) })
	var unknown error
	for _, d := range all {
		_, err := d.find(ctx, name, byName(name))
		switch {
		case err == nil:
			return d, nil
		case hresult.From(err).Code != hresult.NoSuchUser:
			unknown = errors.Join(unknown, err)
		}
	}
	if unknown != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, unknown, "account %q cannot be found now; try again", name)
	}
	return f.Directory, nil // which says that there is none
}

// rank is 0 for the domain with a name, 1 for others.
func rank(ctx context.Context, d *Directory, dns string) int {
	if id, err := d.whoami(ctx); err == nil && strings.EqualFold(id.DNS, dns) {
		return 0
	}
	return 1
}

// groupsHere turns the groups that an account has in its own domain into those that count in the gateway's: without its
// domain's domain local groups, and with those of the gateway's that any of the others is a member of ([MS-PAC] 4.1.2.2).
func (f *Forest) groupsHere(ctx context.Context, home *Directory, u *templates.Subject) error {
	local, err := home.groupSIDs(ctx, u.Groups, func(sid security.SID) string { return "(objectSid=" + ldap.EscapeFilter(string(sid.Bytes())) + ")" })
	if err != nil {
		return err
	}
	u.Groups = slices.DeleteFunc(u.Groups, func(g security.SID) bool { return slices.Contains(local, g) })
	const inChain = "1.2.840.113556.1.4.1941" // LDAP_MATCHING_RULE_IN_CHAIN: also as a member of a member
	here, err := f.groupSIDs(ctx, append([]security.SID{u.SID}, u.Groups...), func(sid security.SID) string {
		return "(member:" + inChain + ":=<SID=" + ldap.EscapeFilter(string(sid)) + ">)"
	})
	if err != nil {
		return err
	}
	token := security.NewToken(append(u.Groups, here...)...)
	u.Groups = token.Sorted()
	return nil
}

// groupSIDs finds domain local groups that match the filter for any of the SIDs of accounts.
func (d *Directory) groupSIDs(ctx context.Context, sids []security.SID, filter func(security.SID) string) ([]security.SID, error) {
	s, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	sids = slices.DeleteFunc(slices.Clone(sids), func(sid security.SID) bool { _, ok := sid.Domain(); return !ok })
	var out []security.SID
	for chunk := range slices.Chunk(sids, namesAtOnce) {
		var any strings.Builder
		for _, sid := range chunk {
			any.WriteString(filter(sid))
		}
		const domainLocal = "(groupType:1.2.840.113556.1.4.803:=2147483652)" // GROUP_TYPE_RESOURCE_GROUP, security enabled
		entries, err := s.search(s.root.domainDN, ldap.ScopeWholeSubtree, "(&(objectClass=group)"+domainLocal+"(|"+any.String()+"))", []string{"objectSid"})
		if err != nil {
			d.drop(s, err)
			return nil, err
		}
		for _, e := range entries {
			if sid, err := security.ParseSID([]byte(attributesOf(e).First("objectSid"))); err == nil {
				out = append(out, sid)
			}
		}
	}
	return out, nil
}

// Accounts looks accounts up by their SIDs, each in its own domain, as Directory.Accounts does. Those of domains that are not read,
// or cannot be asked, are unknown. An error means that the own domain could not be asked.
func (f *Forest) Accounts(ctx context.Context, sids []security.SID) (map[security.SID]Account, error) {
	return f.inTheirDomains(ctx, sids, (*Directory).Accounts)
}

// AccountsWithCertificates is Accounts with the values of userCertificate.
func (f *Forest) AccountsWithCertificates(ctx context.Context, sids []security.SID) (map[security.SID]Account, error) {
	return f.inTheirDomains(ctx, sids, (*Directory).AccountsWithCertificates)
}

func (f *Forest) inTheirDomains(ctx context.Context, sids []security.SID,
	ask func(*Directory, context.Context, []security.SID) (map[security.SID]Account, error)) (map[security.SID]Account, error) {
	out, err := ask(f.Directory, ctx, sids) // which answers unknown for those of other domains
	if err != nil {
		return nil, err
	}
	for _, d := range f.all()[1:] {
		id, err := d.whoami(ctx)
		if err != nil {
			continue
		}
		its := slices.DeleteFunc(slices.Clone(sids), func(sid security.SID) bool { domain, _ := sid.Domain(); return domain != id.sid })
		if len(its) == 0 {
			continue
		}
		found, err := ask(d, ctx, its)
		if err != nil {
			f.log.WithError(err).WithField("domain", id.DNS).Warn("accounts cannot be read")
			continue
		}
		maps.Copy(out, found)
	}
	return out, nil
}

// ChangeCertificates writes userCertificate of an account in its own domain, as Directory.ChangeCertificates does.
func (f *Forest) ChangeCertificates(ctx context.Context, sid security.SID, add, remove [][]byte) error {
	d, err := f.homeOf(ctx, sid)
	if err != nil {
		return err
	}
	return d.ChangeCertificates(ctx, sid, add, remove)
}

// Reconnect gives all connections up: the next ones are made with new tickets.
func (f *Forest) Reconnect() {
	for _, d := range f.all() {
		d.Reconnect()
	}
}

// NamesOf finds names for SIDs, as Directory.NamesOf does, each in its own domain.
func (f *Forest) NamesOf(ctx context.Context, sids []security.SID) map[security.SID]string {
	names := f.Directory.NamesOf(ctx, sids)
	rest := slices.DeleteFunc(slices.Clone(sids), func(sid security.SID) bool { return names[sid] != "" })
	for _, d := range f.all()[1:] {
		if len(rest) == 0 {
			break
		}
		id, err := d.whoami(ctx)
		if err != nil {
			continue // only names for people are lost
		}
		its := slices.DeleteFunc(slices.Clone(rest), func(sid security.SID) bool { domain, _ := sid.Domain(); return domain != id.sid })
		if len(its) == 0 {
			continue
		}
		for sid, name := range d.NamesOf(ctx, its) {
			names[sid] = name
		}
	}
	return names
}

// SIDOf finds the SID of an account or group by its name, as Directory.SIDOf does, in the domain that the name tells.
func (f *Forest) SIDOf(ctx context.Context, name string) (security.SID, error) {
	domain, _, ok := strings.Cut(name, `\`)
	if !ok || strings.EqualFold(domain, "BUILTIN") || strings.EqualFold(domain, "NT AUTHORITY") {
		return f.Directory.SIDOf(ctx, name)
	}
	d, err := f.named(ctx, name)
	if err != nil {
		return "", err
	}
	return d.SIDOf(ctx, name)
}

// SIDsOf is SIDOf for several. Its errors are *hresult.Error with ServerUnavailable: a rule about an account that cannot be
// found decides nothing.
func (f *Forest) SIDsOf(ctx context.Context, names []string) ([]security.SID, error) {
	var out []security.SID
	for _, name := range names {
		sid, err := f.SIDOf(ctx, name)
		if err != nil {
			return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the account or group %q cannot be found", name)
		}
		out = append(out, sid)
	}
	return out, nil
}
