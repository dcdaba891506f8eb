// Package native is what a forest has to hold so that Windows finds a CA by itself, through the enrollment policy that
// every domain member has: Active Directory ([MS-WCCE] 2.2.2.11, [MS-CRTD]).
//
// NewPlan compares the objects of a forest with CAs as they are to be published, and lists the operations that are missing.
// A second plan, after these, is empty. Nothing is taken away that somebody else put there: values are added to those that
// are there, and only what tells one thing (a host name, the flags) is replaced. Removal is the way back.
//
// The package does no input or output: values in, values out.
package native

import (
	"bytes"
	"crypto/x509"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/security"
)

// CA is a CA as it is to be published.
type CA struct {
	Name      string // cn of its objects
	Published bool   // false for one that only routes lead to: its certificates are trusted, and nothing else is written

	Host         string              // dNSHostName
	Certificates []*x509.Certificate // that clients check exchange certificates against; the newest first
	Templates    []string            // to be offered beside those that are already
	Enroll       []security.SID      // who may use the CA at all
	Servers      []string            // values of msPKI-Enrollment-Servers
	CRL          []byte              // base revocation list; nil for none

	Roots         []*x509.Certificate // into CN=Certification Authorities
	Intermediates []*x509.Certificate // into CN=AIA
	Logon         []*x509.Certificate // into CN=NTAuthCertificates
}

// Forest is what the directory says at one moment.
type Forest struct {
	ConfigDN  string            // of the configuration naming context
	Objects   []manifest.Object // below CN=Public Key Services, but for templates and OIDs; with nTSecurityDescriptor
	Templates []manifest.Object
	// HasServers says that the schema has msPKI-Enrollment-Servers, which came with Windows Server 2008 R2.
	HasServers bool
	Names      map[security.SID]string // of those whom CA.Enroll names
}

// Plan is what has to be done, in this order, and what is in place.
type Plan struct {
	manifest.Plan
	Objects []Standing `json:"objects"`
}

// Standing is an object that a CA needs.
type Standing struct {
	Kind   string `json:"kind"`
	Object string `json:"object"`
	State  string `json:"state"` // in place, to be added, to be changed, or to be removed
}

// The states of an object.
const (
	InPlace = "in place"
	Adds    = "to be added"
	Changes = "to be changed"
	Removes = "to be removed"
)

// Kinds of objects, as manifest.Difference has them.
const (
	KindService   = "ca"
	KindContainer = "container"
	KindRoot      = "root"
	KindAIA       = "aia"
	KindNTAuth    = "ntauth"
	KindCDP       = "cdp"
)

// The containers and the one object below CN=Public Key Services ([MS-WCCE] 2.2.2.11).
const (
	servicesRDN = "CN=Enrollment Services"
	rootsRDN    = "CN=Certification Authorities"
	aiaRDN      = "CN=AIA"
	cdpRDN      = "CN=CDP"
	ntAuthRDN   = "CN=NTAuthCertificates"
)

// Flags of an enrollment service ([MS-WCCE] 2.2.2.11.2): it knows its callers by their logon, and uses the forest's templates.
const (
	flagNTAuthentication = 0x2
	flagAdvanced         = 0x8
)

// Attributes, as Attributes has them: in lower case.
const (
	attrClass       = "objectclass"
	attrCertificate = "cacertificate"
	attrARL         = "authorityrevocationlist"
	attrCRL         = "certificaterevocationlist"
	attrHost        = "dnshostname"
	attrDisplay     = "displayname"
	attrSubject     = "cacertificatedn"
	attrTemplates   = "certificatetemplates"
	attrFlags       = "flags"
	attrServers     = "mspki-enrollment-servers"
	attrDescriptor  = "ntsecuritydescriptor"
)

// spelled are attributes as the schema spells them.
func spelled(name string) string {
	for _, s := range []string{"objectClass", "cACertificate", "authorityRevocationList", "certificateRevocationList", "dNSHostName", "displayName",
		"cACertificateDN", "certificateTemplates", "msPKI-Enrollment-Servers", "nTSecurityDescriptor"} {
		if strings.EqualFold(s, name) {
			return s
		}
	}
	return name
}

// nothing is how Windows stores "no value" where the schema demands one.
var nothing = []byte{0}

func isNothing(value []byte) bool { return bytes.Equal(value, nothing) }

// Base is the distinguished name of CN=Public Key Services.
func (f *Forest) Base() string { return "CN=Public Key Services,CN=Services," + f.ConfigDN }

// object finds an object by its distinguished name; nil where there is none.
func (f *Forest) object(dn string) *manifest.Object {
	for i := range f.Objects {
		if strings.EqualFold(f.Objects[i].DN, dn) {
			return &f.Objects[i]
		}
	}
	return nil
}

// in lists the objects directly below a container.
func (f *Forest) in(container string) (out []*manifest.Object) {
	for i := range f.Objects {
		if o := &f.Objects[i]; strings.EqualFold(parent(o.DN), container) {
			out = append(out, o)
		}
	}
	return out
}

// service finds an enrollment service by its name.
func (f *Forest) service(name string) *manifest.Object {
	for _, o := range f.in(servicesRDN + "," + f.Base()) {
		if strings.EqualFold(o.Name(), name) {
			return o
		}
	}
	return nil
}

// parent cuts the first part of a distinguished name off.
func parent(dn string) string {
	for i := 0; i < len(dn); i++ {
		switch dn[i] {
		case '\\':
			i++
		case ',':
			return dn[i+1:]
		}
	}
	return ""
}

func values[T ~string | ~[]byte](list ...T) [][]byte {
	out := make([][]byte, len(list))
	for i, v := range list {
		out[i] = []byte(v)
	}
	return out
}

func raw(certs []*x509.Certificate) [][]byte {
	out := make([][]byte, len(certs))
	for i, c := range certs {
		out[i] = c.Raw
	}
	return out
}

// revocationListStands tells whether the list in the directory may stay: the same CA's, of the same revocations, and less
// than half of its life is over. Each signing has another number and signature, so octets say nothing.
func revocationListStands(old, new []byte, now time.Time) bool {
	if bytes.Equal(old, new) {
		return true
	}
	a, err := x509.ParseRevocationList(old)
	if err != nil {
		return false
	}
	b, err := x509.ParseRevocationList(new)
	if err != nil || !bytes.Equal(a.RawIssuer, b.RawIssuer) || !bytes.Equal(a.AuthorityKeyId, b.AuthorityKeyId) || len(a.RevokedCertificateEntries) != len(b.RevokedCertificateEntries) {
		return false
	}
	revoked := map[string]bool{}
	for _, e := range a.RevokedCertificateEntries {
		revoked[e.SerialNumber.String()] = true
	}
	for _, e := range b.RevokedCertificateEntries {
		if !revoked[e.SerialNumber.String()] {
			return false
		}
	}
	return a.NextUpdate.Sub(now) > a.NextUpdate.Sub(a.ThisUpdate)/2
}

// RevocationListServes tells whether the directory's list of a CA is good for a while, or is not wanted: there is none.
func RevocationListServes(f *Forest, ca *CA, now time.Time) bool {
	o := f.object("CN=" + dn.Escape(ca.Name) + "," + hostRDN(ca) + "," + cdpRDN + "," + f.Base())
	if o == nil || len(o.Attributes[attrCRL]) == 0 {
		return true
	}
	list, err := x509.ParseRevocationList(o.Attributes[attrCRL][0])
	return err == nil && len(ca.Certificates) > 0 && list.CheckSignatureFrom(ca.Certificates[0]) == nil && now.Before(list.NextUpdate)
}
