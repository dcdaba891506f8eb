package templates

import (
	"crypto/x509"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Attributes are the attributes of one directory object, as octets, in the order that the server gave. Keys are
// attribute descriptions in lower case.
type Attributes map[string][][]byte

// First returns the first value of an attribute as text, or "".
func (a Attributes) First(name string) string {
	if v := a[strings.ToLower(name)]; len(v) > 0 {
		return string(v[0])
	}
	return ""
}

// Strings returns all values of an attribute as text.
func (a Attributes) Strings(name string) []string {
	values := a[strings.ToLower(name)]
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// Snapshot is what the forest's configuration said at one moment. It is immutable: readers share it without locks.
type Snapshot struct {
	Taken      time.Time // when a controller last confirmed all of this, within half a minute
	Controller string    // DNS host name of the domain controller that answered
	USN        int64     // highestCommittedUSN of that controller before the read
	ForestRoot string    // DNS name of the forest's root domain, "corp.example"
	ConfigDN   string    // distinguished name of the configuration naming context
	ForestOID  string    // OID prefix of the forest's template OIDs; may be empty

	Templates []*Template          // sorted by name
	Services  []*EnrollmentService // pKIEnrollmentService objects, sorted by name
	OIDs      map[string]OIDObject // registered OIDs, by dotted OID
	NTAuth    []*x509.Certificate  // CAs whose certificates the forest accepts for logon
	Domains   []Domain             // domains of the forest
	PKI       []PKIObject          // containers and trust lists below CN=Public Key Services, sorted by DN

	// Unusable lists objects that could not be understood, with the reason. A template in it is never served.
	Unusable map[string]string

	index *index
}

// Domain is one domain of the forest (crossRef objects).
type Domain struct {
	DN      string // "DC=corp,DC=example"
	DNS     string // "corp.example"
	NetBIOS string // "CORP"
}

// OIDObject is an msPKI-Enterprise-Oid object ([MS-CRTD] 2.29 ff.; flags 1 template, 2 issuance policy, 3 application policy).
type OIDObject struct {
	OID         string
	DisplayName string
	Flags       int
	GroupLink   string // msDS-OIDToGroupLink: DN of a group, for issuance policies
	DN          string
	Security    *security.Descriptor // nil where it cannot be read
}

// PKIObject is an object that says which CAs are trusted or what CAs can do: the containers of templates, OIDs and
// services, NTAuthCertificates, and trusted roots ([MS-WCCE] 2.2.2.11).
type PKIObject struct {
	Name         string // cn
	DN           string
	Security     *security.Descriptor // nil where it cannot be read
	Certificates []*x509.Certificate  // those that can be read
}

// EnrollmentService is a CA as the forest publishes it ([MS-WCCE] 2.2.2.11.2).
type EnrollmentService struct {
	DN           string
	Name         string // cn
	DisplayName  string
	DNSHostName  string
	Templates    []string // names (cn) of the templates that this CA offers
	Certificates []*x509.Certificate
	Security     *security.Descriptor

	index *index
}

// Offers tells whether the CA offers the template with this name.
func (s *EnrollmentService) Offers(name string) bool {
	if s.index.isOf(first(s.Templates), len(s.Templates)) {
		_, ok := s.index.byName[strings.ToLower(name)]
		return ok
	}
	for _, t := range s.Templates {
		if strings.EqualFold(t, name) {
			return true
		}
	}
	return false
}

// Index makes look-ups by name and OID fast. Call it before the snapshot is shared; a copy with other templates falls back to
// searching.
func (s *Snapshot) Index() {
	s.index = newIndex(first(s.Templates), len(s.Templates))
	for _, t := range s.Templates {
		s.index.byName[strings.ToLower(t.Name)] = t
		if t.OID != "" {
			s.index.byOID[t.OID] = t
		}
	}
	for _, e := range s.Services {
		e.index = newIndex(first(e.Templates), len(e.Templates))
		for _, name := range e.Templates {
			e.index.byName[strings.ToLower(name)] = nil
		}
	}
}

// index finds the elements of one slice, of which it knows the place: a copy of what it is in may have another.
type index struct {
	of     any
	length int
	byName map[string]*Template // in lower case
	byOID  map[string]*Template
}

func newIndex(of any, length int) *index {
	return &index{of: of, length: length, byName: map[string]*Template{}, byOID: map[string]*Template{}}
}

func (x *index) isOf(of any, length int) bool { return x != nil && x.of == of && x.length == length }

// first is the address of a slice's first element; nil where it is empty.
func first[T any](s []T) *T {
	if len(s) == 0 {
		return nil
	}
	return &s[0]
}

// TemplateByName finds a template by its cn, ignoring case as the directory does.
func (s *Snapshot) TemplateByName(name string) *Template {
	if s.index.isOf(first(s.Templates), len(s.Templates)) {
		return s.index.byName[strings.ToLower(name)]
	}
	for _, t := range s.Templates {
		if strings.EqualFold(t.Name, name) {
			return t
		}
	}
	return nil
}

// TemplateByOID finds a template by its msPKI-Cert-Template-OID.
func (s *Snapshot) TemplateByOID(oid string) *Template {
	if s.index.isOf(first(s.Templates), len(s.Templates)) {
		return s.index.byOID[oid]
	}
	for _, t := range s.Templates {
		if t.OID == oid {
			return t
		}
	}
	return nil
}

// Service finds an enrollment service by name, ignoring case.
func (s *Snapshot) Service(name string) *EnrollmentService {
	for _, e := range s.Services {
		if strings.EqualFold(e.Name, name) {
			return e
		}
	}
	return nil
}

// Subject is what the directory says about the account that a certificate is for.
type Subject struct {
	DN          string  // string form, RFC 4514
	RDNs        [][]RDN // parsed DN in string order, the leaf first; more than one entry only in a multi-valued RDN
	Domain      Domain  // the account's domain
	CN          string
	SAMAccount  string
	Mail        string
	UPN         string // userPrincipalName; where absent, the implicit sAMAccountName@domain
	UPNExplicit bool   // whether userPrincipalName is set
	DNSHostName string
	SPNs        []string
	GUID        security.GUID
	SID         security.SID
	Groups      []security.SID // tokenGroups; filled where no ticket lists them (explain)
	Machine     bool           // objectClass computer
	Disabled    bool           // userAccountControl ACCOUNTDISABLE
	Certs       [][]byte       // userCertificate
}

// RDN is one attribute type and value of a distinguished name, unescaped.
type RDN = dn.RDN

// Caller is who asks, as proven by Kerberos.
type Caller struct {
	Principal string         // "alice@CORP.EXAMPLE" as in the ticket
	Realm     string         // the client's realm
	SID       security.SID   // the account, from the PAC
	Groups    []security.SID // from the PAC, plus the well-known ones
	Machine   bool           // a computer account

	token security.Token // SID and Groups; nil where WithToken was not called
}

// Token is the caller's whole access token.
func (c Caller) Token() security.Token {
	if c.token != nil {
		return c.token
	}
	return newToken(c.SID, c.Groups)
}

// WithToken returns the caller with its token made ahead of decisions: one of a thousand groups takes longer to make than
// all that is decided with it. SID and Groups must not change afterwards.
func (c Caller) WithToken() Caller {
	c.token = newToken(c.SID, c.Groups)
	return c
}

func newToken(sid security.SID, groups []security.SID) security.Token {
	t := security.NewToken(groups...)
	t[sid] = struct{}{}
	return t
}
