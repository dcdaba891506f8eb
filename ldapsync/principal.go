package ldapsync

import (
	"context"
	"fmt"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates/security"
)

// SIDOf finds the SID of an account or group, by what NamesOf calls it: `CORP\Domain Users`, `BUILTIN\Administrators`,
// "NT AUTHORITY\Authenticated Users" or the name alone. A SID stands for itself, whether anybody has it or not.
func (d *Directory) SIDOf(ctx context.Context, name string) (security.SID, error) {
	if sid, err := security.ParseSIDText(name); err == nil {
		return sid, nil
	}
	for _, sid := range wellKnownSIDs() {
		if strings.EqualFold(wellKnown(sid), name) {
			return sid, nil
		}
	}
	s, err := d.connected(ctx)
	if err != nil {
		return "", err
	}
	sid, err := s.principal(name)
	d.drop(s, err)
	return sid, err
}

// principal finds an account or group of the controller's domain.
func (s *session) principal(name string) (security.SID, error) {
	domain, account, ok := strings.Cut(name, `\`)
	own := s.domain()
	if !ok {
		domain, account = own.NetBIOS, name
	}
	builtin := strings.EqualFold(domain, "BUILTIN")
	if account == "" || !builtin && !strings.EqualFold(domain, own.NetBIOS) && !strings.EqualFold(domain, own.DNS) {
		return "", fmt.Errorf("%q is not a name in the domain %s: write %s\\NAME, or the SID of somebody in another domain", name, own.NetBIOS, own.NetBIOS)
	}
	account = ldap.EscapeFilter(account)
	entries, err := s.search(s.root.domainDN, ldap.ScopeWholeSubtree,
		"(&(objectSid=*)(|(sAMAccountName="+account+")(&(!(sAMAccountName=*))(cn="+account+"))))", []string{"objectSid"})
	if err != nil {
		return "", err
	}
	var found []security.SID
	for _, e := range entries {
		sid, err := security.ParseSID([]byte(attributesOf(e).First("objectSid")))
		if err == nil && strings.HasPrefix(string(sid), "S-1-5-32-") == builtin {
			found = append(found, sid)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no account or group %q in the domain of %s", name, s.root.host)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d accounts are called %q: write the SID", len(found), name)
}
