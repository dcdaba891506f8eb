package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

const accountDisabled = 2 // userAccountControl ([MS-ADTS] 2.2.16)

func subjectAttributes() []string {
	return []string{"objectClass", "cn", "sAMAccountName", "mail", "userPrincipalName", "dNSHostName", "servicePrincipalName",
		"objectGUID", "objectSid", "userAccountControl", "userCertificate"}
}

// Subject looks an account up by its SID. The answer may be as old as Config.SubjectTTL. It is shared: do not change
// what it points to. An account that does not exist is an *hresult.Error with NoSuchUser; where the directory
// cannot be asked, or the account not be understood, it is one with ServerUnavailable.
//
// Unlike templates, accounts are neither saved nor kept for longer than that while no controller answers: an account that
// was disabled a minute ago must not get a certificate because the network is down.
func (d *Directory) Subject(ctx context.Context, sid security.SID) (templates.Subject, error) {
	if s, ok := d.subjects.get(sid, time.Now()); ok {
		return s, nil
	}
	result := d.flights.DoChan("sid "+string(sid), func() (any, error) {
		// The reading serves all who wait; the one who came first may go away. Each request has its own time limit.
		s, err := d.find(context.WithoutCancel(ctx), string(sid), bySID(sid))
		if err == nil {
			d.subjects.put(sid, s, time.Now())
		}
		return s, err
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return templates.Subject{}, r.Err
		}
		return r.Val.(templates.Subject), nil
	case <-ctx.Done():
		return templates.Subject{}, ctx.Err()
	}
}

// SubjectByName looks an account up by what an administrator calls it: alice, WS1$, alice@corp.example, CORP\alice, a
// SID or a distinguished name. Groups holds the SIDs that the account's Kerberos ticket would bring: tokenGroups and
// the well-known ones. Nothing is cached. Errors are those of Subject.
func (d *Directory) SubjectByName(ctx context.Context, name string) (templates.Subject, error) {
	return d.find(ctx, name, byName(name), withGroups)
}

// lookup finds the entry of one account: none is a nil entry.
type lookup func(s *session) (*ldap.Entry, error)

// completion adds to a subject.
type completion func(s *session, subject *templates.Subject) error

// find runs a lookup, a second time where the connection turns out to be gone.
func (d *Directory) find(ctx context.Context, name string, find lookup, complete ...completion) (templates.Subject, error) {
	subject, err := d.findOnce(ctx, find, complete)
	if err != nil && errors.Is(err, errConnection) && ctx.Err() == nil {
		subject, err = d.findOnce(ctx, find, complete)
	}
	if _, ok := errors.AsType[*hresult.Error](err); ok || err == nil {
		return subject, err
	}
	return templates.Subject{}, hresult.Wrap(hresult.ServerUnavailable, err, "account %q cannot be read from the directory", name)
}

func (d *Directory) findOnce(ctx context.Context, find lookup, complete []completion) (templates.Subject, error) {
	s, err := d.connected(ctx)
	if err != nil {
		return templates.Subject{}, err
	}
	entry, err := find(s)
	if err != nil {
		d.drop(s, err)
		return templates.Subject{}, err
	}
	subject, err := s.subject(entry)
	for _, step := range complete {
		if err == nil {
			err = step(s, &subject)
		}
	}
	d.drop(s, err)
	return subject, err
}

// bySID finds an account by objectSid.
func bySID(sid security.SID) lookup {
	return func(s *session) (*ldap.Entry, error) {
		b := sid.Bytes()
		if b == nil {
			return nil, hresult.New(hresult.NoSuchUser, "%q is not a security identifier", sid)
		}
		entry, err := s.one("(objectSid=" + ldap.EscapeFilter(string(b)) + ")")
		if err == nil && entry == nil {
			return nil, hresult.New(hresult.NoSuchUser, "no account has the SID %s in the domain of %s", sid, s.root.host)
		}
		return entry, err
	}
}

// byName finds an account by one of its names.
func byName(name string) lookup {
	return func(s *session) (*ldap.Entry, error) {
		entry, err := s.named(name)
		if err == nil && entry == nil {
			return nil, hresult.New(hresult.NoSuchUser, "there is no account %q in the domain of %s", name, s.root.host).
				WithFix(`write alice, alice@corp.example, CORP\alice or a distinguished name; a computer's account ends in $, as WS1$`)
		}
		return entry, err
	}
}

func (s *session) named(name string) (*ldap.Entry, error) {
	if domain, account, ok := strings.Cut(name, `\`); ok && !strings.Contains(domain, "=") {
		if d := s.domain(); !strings.EqualFold(domain, d.NetBIOS) && !strings.EqualFold(domain, d.DNS) {
			return nil, nil
		}
		return s.account(account)
	}
	if sid, err := security.ParseSIDText(name); err == nil {
		return bySID(sid)(s)
	}
	if _, err := ldap.ParseDN(name); err == nil && strings.Contains(name, "=") {
		return s.at(name)
	}
	i := strings.LastIndex(name, "@")
	if i < 0 {
		return s.account(name)
	}
	// An explicit userPrincipalName wins over the implicit sAMAccountName@domain ([MS-ADTS] 5.1.1.1.1).
	entry, err := s.one("(userPrincipalName=" + ldap.EscapeFilter(name) + ")")
	if entry == nil && err == nil && strings.EqualFold(name[i+1:], s.domain().DNS) {
		return s.account(name[:i])
	}
	return entry, err
}

func (s *session) account(name string) (*ldap.Entry, error) {
	return s.one("(sAMAccountName=" + ldap.EscapeFilter(name) + ")")
}

// one finds the account that matches; more than one is an error.
func (s *session) one(filter string) (*ldap.Entry, error) {
	entries, err := s.search(s.root.domainDN, ldap.ScopeWholeSubtree, "(&(objectClass=user)"+filter+")", subjectAttributes())
	switch {
	case err != nil:
		return nil, err
	case len(entries) > 1:
		return nil, hresult.New(hresult.NoSuchUser, "%d accounts share one name: %q and %q", len(entries), entries[0].DN, entries[1].DN).
			WithFix("give each its own, or name the account by its DN")
	case len(entries) == 0:
		return nil, nil
	}
	return entries[0], nil
}

// at reads the account with a DN.
func (s *session) at(dn string) (*ldap.Entry, error) {
	entries, err := s.search(dn, ldap.ScopeBaseObject, "(objectClass=user)", subjectAttributes())
	if r, ok := errors.AsType[*referralError](err); ok {
		return nil, hresult.New(hresult.NoSuchUser, "%q is not in the domain of %s, but at %s", dn, s.root.host, strings.Join(r.urls, " or "))
	}
	if ldap.IsErrorAnyOf(err, ldap.LDAPResultNoSuchObject, ldap.LDAPResultReferral, ldap.LDAPResultInvalidDNSyntax) {
		return nil, nil
	}
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	return entries[0], nil
}

// domain is the controller's own domain.
func (s *session) domain() templates.Domain {
	for _, d := range s.domains {
		if strings.EqualFold(d.DN, s.root.domainDN) {
			return d
		}
	}
	return templates.Domain{DN: s.root.domainDN}
}

// subject turns an entry into a subject.
func (s *session) subject(e *ldap.Entry) (templates.Subject, error) {
	a := attributesOf(e)
	u := templates.Subject{DN: e.DN, Domain: s.domain(), CN: a.First("cn"), SAMAccount: a.First("sAMAccountName"), Mail: a.First("mail"),
		UPN: a.First("userPrincipalName"), DNSHostName: a.First("dNSHostName"), SPNs: a.Strings("servicePrincipalName"),
		Machine: hasClass(a, "computer"), Certs: a["usercertificate"]}
	var err error
	if u.RDNs, err = parseDN(e.DN); err != nil {
		return u, fmt.Errorf("account %q: %w", e.DN, err)
	}
	if u.SID, err = security.ParseSID([]byte(a.First("objectSid"))); err != nil {
		return u, fmt.Errorf("account %q: objectSid: %w", e.DN, err)
	}
	guid := []byte(a.First("objectGUID"))
	if len(guid) != len(u.GUID) {
		return u, fmt.Errorf("account %q: objectGUID of %d octets, want %d", e.DN, len(guid), len(u.GUID))
	}
	u.GUID = security.GUID(guid)
	// Without the flags nobody can say that the account is enabled.
	control, err := strconv.ParseInt(a.First("userAccountControl"), 10, 64)
	if err != nil {
		return u, fmt.Errorf("account %q: userAccountControl: %w", e.DN, err)
	}
	u.Disabled = control&accountDisabled != 0
	u.UPNExplicit = u.UPN != ""
	if !u.UPNExplicit && u.SAMAccount != "" && u.Domain.DNS != "" {
		u.UPN = u.SAMAccount + "@" + u.Domain.DNS
	}
	return u, nil
}

// parseDN splits a distinguished name (RFC 4514) into its parts, unescaped, in the order written.
func parseDN(dn string) ([][]templates.RDN, error) {
	parsed, err := ldap.ParseDN(dn)
	if err != nil {
		return nil, fmt.Errorf("distinguished name: %w", err)
	}
	out := make([][]templates.RDN, len(parsed.RDNs))
	for i, r := range parsed.RDNs {
		for _, a := range r.Attributes {
			out[i] = append(out[i], templates.RDN{Type: a.Type, Value: a.Value})
		}
	}
	return out, nil
}

// withGroups adds the groups that a Kerberos ticket would list: tokenGroups, which holds nested membership and which
// only a search of the object itself returns ([MS-ADTS] 3.1.1.4.5.19), without the groups that are local to domain
// controllers (S-1-5-32-…), but with the well-known SIDs that every authenticated caller of the gateway gets.
func withGroups(s *session, u *templates.Subject) error {
	entries, err := s.search(u.DN, ldap.ScopeBaseObject, "(objectClass=*)", []string{"tokenGroups"})
	if err != nil {
		return err
	}
	if len(entries) != 1 {
		return fmt.Errorf("account %q: reading its groups: %d entries, want one", u.DN, len(entries))
	}
	groups := security.NewToken(security.Everyone, security.AuthenticatedUsers, security.Network,
		security.ThisOrganization, security.BuiltinUsers)
	for _, b := range attributesOf(entries[0])["tokengroups"] {
		sid, err := security.ParseSID(b)
		if err != nil {
			return fmt.Errorf("account %q: tokenGroups: %w", u.DN, err)
		}
		if !strings.HasPrefix(string(sid), "S-1-5-32-") {
			groups[sid] = struct{}{}
		}
	}
	u.Groups = groups.Sorted()
	return nil
}
