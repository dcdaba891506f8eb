package ldapsync

import (
	"context"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates/security"
)

// namesAtOnce is how many SIDs one search asks for: controllers limit the size of a filter.
const namesAtOnce = 50

// wellKnownSIDs are those that wellKnown has names for.
func wellKnownSIDs() []security.SID {
	return []security.SID{security.Everyone, "S-1-3-0", security.OwnerRights, security.Network, "S-1-5-7", "S-1-5-9", "S-1-5-10",
		security.AuthenticatedUsers, security.ThisOrganization, "S-1-5-18", "S-1-18-1"}
}

// wellKnown are SIDs that no object of the domain has ([MS-DTYP] 2.4.2.4).
func wellKnown(sid security.SID) string {
	switch sid {
	case security.Everyone:
		return "Everyone"
	case "S-1-3-0":
		return "CREATOR OWNER"
	case security.OwnerRights:
		return "OWNER RIGHTS"
	case security.Network:
		return `NT AUTHORITY\NETWORK`
	case "S-1-5-7":
		return `NT AUTHORITY\ANONYMOUS LOGON`
	case "S-1-5-9":
		return `NT AUTHORITY\ENTERPRISE DOMAIN CONTROLLERS`
	case "S-1-5-10":
		return `NT AUTHORITY\SELF`
	case security.AuthenticatedUsers:
		return `NT AUTHORITY\Authenticated Users`
	case security.ThisOrganization:
		return `NT AUTHORITY\This Organization`
	case "S-1-5-18":
		return `NT AUTHORITY\SYSTEM`
	case "S-1-18-1":
		return "Authentication authority asserted identity"
	}
	return ""
}

// NamesOf finds names for SIDs, `CORP\Domain Users`, to show to people. A SID whose name is not known, because it is
// of another domain, was deleted, or the directory does not answer, is not in the result.
func (d *Directory) NamesOf(ctx context.Context, sids []security.SID) map[security.SID]string {
	names := map[security.SID]string{}
	var unknown []security.SID
	for _, sid := range sids {
		if name := wellKnown(sid); name != "" {
			names[sid] = name
		} else if sid.Bytes() != nil && !slices.Contains(unknown, sid) {
			unknown = append(unknown, sid)
		}
	}
	if len(unknown) == 0 {
		return names
	}
	s, err := d.connected(ctx)
	for chunk := range slices.Chunk(unknown, namesAtOnce) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = s.names(chunk, names)
		}
	}
	if err != nil {
		d.log.WithError(err).Debug("cannot find the names of SIDs")
		if s != nil {
			d.drop(s, err)
		}
	}
	return names
}

// names adds the names of SIDs of the controller's domain.
func (s *session) names(sids []security.SID, names map[security.SID]string) error {
	var filter strings.Builder
	for _, sid := range sids {
		filter.WriteString("(objectSid=" + ldap.EscapeFilter(string(sid.Bytes())) + ")")
	}
	entries, err := s.search(s.root.domainDN, ldap.ScopeWholeSubtree, "(&(!(objectClass=foreignSecurityPrincipal))(|"+filter.String()+"))",
		[]string{"objectSid", "sAMAccountName", "cn"})
	if err != nil {
		return err
	}
	for _, e := range entries {
		a := attributesOf(e)
		sid, err := security.ParseSID([]byte(a.First("objectSid")))
		if err != nil {
			continue // only a name for people is lost
		}
		name := a.First("sAMAccountName")
		orDefault(&name, a.First("cn"))
		domain := s.domain().NetBIOS
		if strings.HasPrefix(string(sid), "S-1-5-32-") {
			domain = "BUILTIN"
		}
		names[sid] = domain + `\` + name
	}
	return nil
}
