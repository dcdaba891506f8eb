package ldapsync

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// rootDSE is what a controller says about itself ([MS-ADTS] 3.1.1.3.2).
type rootDSE struct {
	host     string // dnsHostName
	configDN string // configurationNamingContext
	forestDN string // rootDomainNamingContext
	domainDN string // defaultNamingContext: the controller's own domain
	usn      int64  // highestCommittedUSN
}

// allButSACL makes nTSecurityDescriptor come with owner, group and DACL; without the control an account that is no
// administrator does not get the attribute at all ([MS-ADTS] 3.1.1.3.4.1.11).
const allButSACL = 7

// What is read, below CN=Public Key Services,CN=Services of the configuration naming context.
const (
	pkiFilter = "(|(objectClass=pKICertificateTemplate)(objectClass=pKIEnrollmentService)(objectClass=msPKI-Enterprise-Oid)" +
		"(&(objectClass=certificationAuthority)(cn=NTAuthCertificates)))"
	domainFilter = "(&(objectClass=crossRef)(systemFlags:1.2.840.113556.1.4.803:=2))" // FLAG_CR_NTDS_DOMAIN
)

func pkiAttributes() []string {
	return []string{"objectClass", "cn", "displayName", "uSNChanged", "nTSecurityDescriptor", "flags",
		// templates, [MS-CRTD] 2
		"revision", "pKIDefaultKeySpec", "pKIKeyUsage", "pKIMaxIssuingDepth", "pKICriticalExtensions", "pKIExpirationPeriod",
		"pKIOverlapPeriod", "pKIExtendedKeyUsage", "pKIDefaultCSPs", "msPKI-RA-Signature", "msPKI-Enrollment-Flag",
		"msPKI-Private-Key-Flag", "msPKI-Certificate-Name-Flag", "msPKI-Minimal-Key-Size", "msPKI-Template-Schema-Version",
		"msPKI-Template-Minor-Revision", "msPKI-Cert-Template-OID", "msPKI-Supersede-Templates", "msPKI-RA-Policies",
		"msPKI-RA-Application-Policies", "msPKI-Certificate-Policy", "msPKI-Certificate-Application-Policy",
		// enrollment services and NTAuthCertificates, [MS-WCCE] 2.2.2.11
		"dNSHostName", "certificateTemplates", "cACertificate",
		// OIDs
		"msDS-OIDToGroupLink"}
}

// search runs one search in pages.
func (s *session) search(base string, scope int, filter string, attributes []string, controls ...ldap.Control) ([]*ldap.Entry, error) {
	request := ldap.NewSearchRequest(base, scope, ldap.NeverDerefAliases, 0, 0, false, filter, attributes, controls)
	result, err := s.ldap.SearchWithPaging(request, s.page)
	if err != nil {
		return nil, fmt.Errorf("searching %q for %s: %w", base, filter, markLost(err))
	}
	return result.Entries, nil
}

// errConnection marks a failure that every further request on the session would meet too.
var errConnection = errors.New("connection lost")

// markLost tells answers from failures of the connection: those are the library's own codes, from 200 on, and errors
// without a code.
func markLost(err error) error {
	if e, ok := errors.AsType[*ldap.Error](err); ok && e.ResultCode < ldap.ErrorNetwork &&
		e.ResultCode != ldap.LDAPResultUnavailable && e.ResultCode != ldap.LDAPResultBusy {
		return err
	}
	return fmt.Errorf("%w: %w", errConnection, err)
}

// readRoot reads the root DSE.
func (s *session) readRoot() (rootDSE, error) {
	request := ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)",
		[]string{"dnsHostName", "configurationNamingContext", "rootDomainNamingContext", "defaultNamingContext", "highestCommittedUSN"}, nil)
	result, err := s.ldap.Search(request)
	if err != nil {
		return rootDSE{}, fmt.Errorf("reading the root DSE: %w", markLost(err))
	}
	if len(result.Entries) != 1 {
		return rootDSE{}, fmt.Errorf("reading the root DSE: %d entries, want one", len(result.Entries))
	}
	a := attributesOf(result.Entries[0])
	r := rootDSE{host: a.First("dnsHostName"), configDN: a.First("configurationNamingContext"),
		forestDN: a.First("rootDomainNamingContext"), domainDN: a.First("defaultNamingContext")}
	if r.configDN == "" || r.forestDN == "" || r.domainDN == "" {
		return rootDSE{}, errors.New("reading the root DSE: no naming contexts: not an Active Directory domain controller")
	}
	if r.usn, err = strconv.ParseInt(a.First("highestCommittedUSN"), 10, 64); err != nil {
		return rootDSE{}, fmt.Errorf("reading the root DSE: highestCommittedUSN: %w", err)
	}
	return r, nil
}

// readDomains lists the forest's domains from their crossRef objects ([MS-ADTS] 6.1.1.2.1.1).
func (s *session) readDomains() ([]templates.Domain, error) {
	entries, err := s.search("CN=Partitions,"+s.root.configDN, ldap.ScopeSingleLevel, domainFilter,
		[]string{"nCName", "dnsRoot", "nETBIOSName"})
	if err != nil {
		return nil, err
	}
	var domains []templates.Domain
	for _, e := range entries {
		a := attributesOf(e)
		domains = append(domains, templates.Domain{DN: a.First("nCName"), DNS: strings.ToLower(a.First("dnsRoot")), NetBIOS: a.First("nETBIOSName")})
	}
	slices.SortFunc(domains, func(a, b templates.Domain) int { return strings.Compare(a.DNS, b.DNS) })
	return domains, nil
}

// attributesOf copies an entry's attributes, with names in lower case.
func attributesOf(e *ldap.Entry) templates.Attributes {
	a := make(templates.Attributes, len(e.Attributes))
	for _, attribute := range e.Attributes {
		a[strings.ToLower(attribute.Name)] = attribute.ByteValues
	}
	return a
}

func pkiBase(configDN string) string { return "CN=Public Key Services,CN=Services," + configDN }

// versions maps the DN of each object that a snapshot is made of to its uSNChanged. Unlike a highest USN, it shows
// deletions too.
type versions map[string]string

// readVersions is a cheap way to see whether a snapshot would still be the same.
func (s *session) readVersions() (versions, error) {
	entries, err := s.search(pkiBase(s.root.configDN), ldap.ScopeWholeSubtree, pkiFilter, []string{"uSNChanged"})
	if err != nil {
		return nil, err
	}
	v := make(versions, len(entries))
	for _, e := range entries {
		v[e.DN] = attributesOf(e).First("uSNChanged")
	}
	return v, nil
}

func (v versions) equal(w versions) bool { return maps.Equal(v, w) }

// readSnapshot reads the forest's certificate configuration as of now.
func (s *session) readSnapshot(ctx context.Context) (*templates.Snapshot, versions, error) {
	taken := time.Now()
	// Everything committed up to this USN is in what follows, and perhaps more.
	root, err := s.readRoot()
	if err != nil {
		return nil, nil, err
	}
	domains, err := s.readDomains()
	if err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	entries, err := s.search(pkiBase(root.configDN), ldap.ScopeWholeSubtree, pkiFilter, pkiAttributes(),
		&ldap.ControlMicrosoftSDFlags{Criticality: true, ControlValue: allButSACL})
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return nil, nil, fmt.Errorf("the forest has no certificate templates, or the account may not read them: %w", err)
	}
	if err != nil {
		return nil, nil, err
	}
	b := &builder{snapshot: &templates.Snapshot{Taken: taken, Controller: root.host, USN: root.usn, ConfigDN: root.configDN,
		Domains: domains, OIDs: map[string]templates.OIDObject{}, Unusable: map[string]string{}}, versions: make(versions, len(entries))}
	for _, d := range domains {
		if strings.EqualFold(d.DN, root.forestDN) {
			b.snapshot.ForestRoot = d.DNS
		}
	}
	for _, e := range entries {
		b.add(e.DN, attributesOf(e))
	}
	b.finish()
	return b.snapshot, b.versions, nil
}

// builder sorts directory objects into a snapshot.
type builder struct {
	snapshot *templates.Snapshot
	versions versions
}

// add takes one object. What cannot be understood is recorded and left out: one broken template must not stop the
// others, nor be served.
func (b *builder) add(dn string, a templates.Attributes) {
	b.versions[dn] = a.First("uSNChanged")
	if err := b.sort(dn, a); err != nil {
		b.snapshot.Unusable[dn] = err.Error()
	}
}

func (b *builder) sort(dn string, a templates.Attributes) error {
	for name := range a {
		if strings.Contains(name, ";range=") { // [MS-ADTS] 3.1.1.3.1.3.3
			return fmt.Errorf("attribute %s: more values than the server returns at once", name)
		}
	}
	switch {
	case hasClass(a, "pKICertificateTemplate"):
		t, err := templates.Parse(dn, a)
		if err != nil {
			return err
		}
		b.snapshot.Templates = append(b.snapshot.Templates, t)
	case hasClass(a, "pKIEnrollmentService"):
		return b.addService(a)
	case hasClass(a, "msPKI-Enterprise-Oid"):
		return b.addOID(a)
	case hasClass(a, "certificationAuthority"):
		var err error
		b.snapshot.NTAuth, err = certificatesOf(a) // one that cannot be read does not take the others' place away
		return err
	}
	return nil
}

func hasClass(a templates.Attributes, class string) bool {
	return slices.ContainsFunc(a.Strings("objectClass"), func(c string) bool { return strings.EqualFold(c, class) })
}

func (b *builder) addService(a templates.Attributes) error {
	certificates, err := certificatesOf(a)
	if err != nil {
		return err
	}
	s := &templates.EnrollmentService{Name: a.First("cn"), DisplayName: a.First("displayName"), DNSHostName: a.First("dNSHostName"),
		Templates: a.Strings("certificateTemplates"), Certificates: certificates}
	descriptor := a.First("nTSecurityDescriptor")
	if descriptor == "" {
		return errors.New("attribute nTSecurityDescriptor: missing: the account that reads the directory may not see it")
	}
	if s.Security, err = security.ParseDescriptor([]byte(descriptor)); err != nil {
		return fmt.Errorf("attribute nTSecurityDescriptor: %w", err)
	}
	b.snapshot.Services = append(b.snapshot.Services, s)
	return nil
}

// addOID takes a registered OID, or the container of all of them, whose own OID is the prefix of the forest's.
func (b *builder) addOID(a templates.Attributes) error {
	oid := a.First("msPKI-Cert-Template-OID")
	if strings.EqualFold(a.First("cn"), "OID") {
		b.snapshot.ForestOID = oid
		return nil
	}
	if oid == "" {
		return errors.New("attribute msPKI-Cert-Template-OID: missing")
	}
	o := templates.OIDObject{OID: oid, DisplayName: a.First("displayName"), GroupLink: a.First("msDS-OIDToGroupLink")}
	if f := a.First("flags"); f != "" {
		var err error
		if o.Flags, err = strconv.Atoi(f); err != nil {
			return fmt.Errorf("attribute flags: %q is not a number", f)
		}
	}
	b.snapshot.OIDs[oid] = o
	return nil
}

// certificatesOf reads cACertificate: all that can be read, and the first error. Windows may leave a single octet there in place of "none" ([MS-WCCE] 2.2.2.11.2).
func certificatesOf(a templates.Attributes) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	var first error
	for i, der := range a["cacertificate"] {
		if len(der) <= 1 {
			continue
		}
		c, err := x509.ParseCertificate(der)
		switch {
		case err == nil:
			out = append(out, c)
		case first == nil:
			first = fmt.Errorf("attribute cACertificate, value %d: %w", i+1, err)
		}
	}
	return out, first
}

// finish sorts, and withdraws templates whose name or OID is not theirs alone: a request could mean either.
func (b *builder) finish() {
	s := b.snapshot
	count := map[string]int{}
	for _, t := range s.Templates {
		count["n"+strings.ToLower(t.Name)]++
		if t.OID != "" {
			count["o"+t.OID]++
		}
	}
	s.Templates = slices.DeleteFunc(s.Templates, func(t *templates.Template) bool {
		reason := ""
		switch {
		case count["n"+strings.ToLower(t.Name)] > 1:
			reason = fmt.Sprintf("another template has the name %q too", t.Name)
		case count["o"+t.OID] > 1:
			reason = fmt.Sprintf("another template has the OID %s too; give one of them a new OID", t.OID)
		default:
			return false
		}
		s.Unusable[t.DN] = reason
		return true
	})
	slices.SortFunc(s.Templates, func(a, b *templates.Template) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Services, func(a, b *templates.EnrollmentService) int { return strings.Compare(a.Name, b.Name) })
}
