package ldapsync

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
)

// rootDSE is what a controller says about itself ([MS-ADTS] 3.1.1.3.2).
type rootDSE struct {
	host     string // dnsHostName
	configDN string // configurationNamingContext
	forestDN string // rootDomainNamingContext
	domainDN string // defaultNamingContext: the controller's own domain
	service  string // dsServiceName: DN of the controller's NTDS Settings
	notifies bool   // whether it can tell about changes by itself
	usn      int64  // highestCommittedUSN
}

// allButSACL makes nTSecurityDescriptor come with owner, group and DACL; without the control an account that is no
// administrator does not get the attribute at all ([MS-ADTS] 3.1.1.3.4.1.11).
const allButSACL = 7

// What is read, below CN=Public Key Services,CN=Services of the configuration naming context.
const (
	pkiFilter = "(|(objectClass=pKICertificateTemplate)(objectClass=pKIEnrollmentService)(objectClass=msPKI-Enterprise-Oid)" +
		"(objectClass=certificationAuthority)(objectClass=container))"
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

// search runs one search in pages, and completes attributes of which the server gave only a part. References to other
// servers (of child domains, say) are not followed: what is asked for here is in the controller's own partitions, and an
// answer from elsewhere would come over a connection that nobody authenticated.
func (s *session) search(base string, scope int, filter string, attributes []string, controls ...ldap.Control) ([]*ldap.Entry, error) {
	var out []*ldap.Entry
	err := s.pages(base, scope, filter, attributes, controls, func(entries []*ldap.Entry) error {
		out = append(out, entries...)
		return nil
	})
	return out, err
}

// pages is search without keeping the pages: do is called with each. An error of do ends it.
func (s *session) pages(base string, scope int, filter string, attributes []string, controls []ldap.Control, do func([]*ldap.Entry) error) error {
	paging := ldap.NewControlPaging(s.page)
	request := ldap.NewSearchRequest(base, scope, ldap.NeverDerefAliases, 0, 0, false, filter, attributes, append(slices.Clone(controls), paging))
	for {
		result, err := s.ldap.Search(request)
		if err != nil {
			return fmt.Errorf("searching %q for %s: %w", base, filter, withReferral(markLost(err)))
		}
		for _, e := range result.Entries {
			if err := s.completeRanges(e); err != nil {
				return fmt.Errorf("object %q: %w", e.DN, err)
			}
		}
		if err := do(result.Entries); err != nil {
			return err
		}
		answer, ok := ldap.FindControl(result.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if !ok || len(answer.Cookie) == 0 {
			return nil
		}
		paging.SetCookie(answer.Cookie)
	}
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

// readRoot reads the root DSE. A controller that does not answer this within seconds is no use to anybody who waits for
// a certificate: that is a lost connection, long before Config.Timeout.
func (s *session) readRoot() (rootDSE, error) {
	request := ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)",
		[]string{"dnsHostName", "configurationNamingContext", "rootDomainNamingContext", "defaultNamingContext", "highestCommittedUSN",
			"dsServiceName", "supportedControl"}, nil)
	ctx, cancel := context.WithTimeout(context.Background(), s.patience)
	defer cancel()
	var entries []*ldap.Entry
	answer := s.ldap.SearchAsync(ctx, request, 1)
	for answer.Next() {
		if e := answer.Entry(); e != nil {
			entries = append(entries, e)
		}
	}
	err := answer.Err()
	switch {
	case err == nil && len(entries) == 0 && s.ldap.IsClosing():
		err = errors.New("closed")
	case err == nil && ctx.Err() != nil:
		err = fmt.Errorf("no answer within %v", s.patience)
	}
	if err != nil {
		return rootDSE{}, fmt.Errorf("reading the root DSE: %w", markLost(err))
	}
	if len(entries) != 1 {
		return rootDSE{}, fmt.Errorf("reading the root DSE: %d entries, want one", len(entries))
	}
	return rootOf(attributesOf(entries[0]))
}

func rootOf(a templates.Attributes) (rootDSE, error) {
	r := rootDSE{host: a.First("dnsHostName"), configDN: a.First("configurationNamingContext"),
		forestDN: a.First("rootDomainNamingContext"), domainDN: a.First("defaultNamingContext"), service: a.First("dsServiceName"),
		notifies: slices.Contains(a.Strings("supportedControl"), ldap.ControlTypeMicrosoftNotification)}
	if r.configDN == "" || r.forestDN == "" || r.domainDN == "" {
		return rootDSE{}, errors.New("reading the root DSE: no naming contexts: not an Active Directory domain controller")
	}
	var err error
	if r.usn, err = strconv.ParseInt(a.First("highestCommittedUSN"), 10, 64); err != nil {
		return rootDSE{}, fmt.Errorf("reading the root DSE: highestCommittedUSN: %w", err)
	}
	return r, nil
}

// readInvocation reads the invocationId of the controller's database ([MS-ADTS] 3.1.1.1.9), in hexadecimal. Where the
// account may not see it, it is "": then a database that was put back to an earlier state goes unnoticed.
func (s *session) readInvocation(root rootDSE) (string, error) {
	if root.service == "" {
		return "", nil
	}
	entries, err := s.search(root.service, ldap.ScopeBaseObject, "(objectClass=*)", []string{"invocationId"})
	if ldap.IsErrorAnyOf(err, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInsufficientAccessRights) || err == nil && len(entries) != 1 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return hex.EncodeToString([]byte(attributesOf(entries[0]).First("invocationId"))), nil
}

// readDomains reads the crossRef objects of the forest's domains ([MS-ADTS] 6.1.1.2.1.1).
func (s *session) readDomains(configDN string) ([]object, error) {
	entries, err := s.search("CN=Partitions,"+configDN, ldap.ScopeSingleLevel, domainFilter, []string{"nCName", "dnsRoot", "nETBIOSName"})
	if err != nil {
		return nil, err
	}
	return objectsOf(entries), nil
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
