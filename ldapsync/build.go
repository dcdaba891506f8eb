package ldapsync

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// builder sorts directory objects into a snapshot.
type builder struct {
	snapshot *templates.Snapshot
}

// add takes one object. What cannot be understood is recorded and left out: one broken template must not stop the
// others, nor be served.
func (b *builder) add(dn string, a templates.Attributes) {
	if err := b.sort(dn, a); err != nil {
		b.snapshot.Unusable[dn] = err.Error()
	}
}

func (b *builder) sort(dn string, a templates.Attributes) error {
	for name := range a {
		if strings.Contains(name, ";") { // a part of the values, or values in one language: never all there is
			return fmt.Errorf("attribute %s: only a part of its values", name)
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
		return b.addService(dn, a)
	case hasClass(a, "msPKI-Enterprise-Oid"):
		return b.addOID(dn, a)
	case hasClass(a, "certificationAuthority"), hasClass(a, "container"):
		b.addPKI(dn, a)
		if strings.EqualFold(a.First("cn"), "NTAuthCertificates") {
			var err error
			b.snapshot.NTAuth, err = certificatesOf(a) // one that cannot be read does not take the others' place away
			return err
		}
	}
	return nil
}

func hasClass(a templates.Attributes, class string) bool {
	return slices.ContainsFunc(a.Strings("objectClass"), func(c string) bool { return strings.EqualFold(c, class) })
}

func (b *builder) addService(dn string, a templates.Attributes) error {
	certificates, err := certificatesOf(a)
	if err != nil {
		return err
	}
	s := &templates.EnrollmentService{DN: dn, Name: a.First("cn"), DisplayName: a.First("displayName"), DNSHostName: a.First("dNSHostName"),
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

// addPKI takes a container or a list of CAs. Only the risk rules look at it: where its descriptor cannot be read they say
// so, and nothing else depends on it.
func (b *builder) addPKI(dn string, a templates.Attributes) {
	certificates, _ := certificatesOf(a)
	b.snapshot.PKI = append(b.snapshot.PKI, templates.PKIObject{Name: a.First("cn"), DN: dn, Security: readableSecurity(a), Certificates: certificates})
}

// readableSecurity is the object's descriptor, nil where it is missing or malformed.
func readableSecurity(a templates.Attributes) *security.Descriptor {
	d, err := security.ParseDescriptor([]byte(a.First("nTSecurityDescriptor")))
	if err != nil {
		return nil
	}
	return d
}

// addOID takes a registered OID, or the container of all of them, whose own OID is the prefix of the forest's.
func (b *builder) addOID(dn string, a templates.Attributes) error {
	oid := a.First("msPKI-Cert-Template-OID")
	if strings.EqualFold(a.First("cn"), "OID") {
		b.snapshot.ForestOID = oid
		b.addPKI(dn, a)
		return nil
	}
	if oid == "" {
		return errors.New("attribute msPKI-Cert-Template-OID: missing")
	}
	o := templates.OIDObject{OID: oid, DisplayName: a.First("displayName"), GroupLink: a.First("msDS-OIDToGroupLink"),
		DN: dn, Security: readableSecurity(a)}
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
	slices.SortFunc(s.PKI, func(a, b templates.PKIObject) int { return strings.Compare(a.DN, b.DN) })
	slices.SortFunc(s.Services, func(a, b *templates.EnrollmentService) int { return strings.Compare(a.Name, b.Name) })
	s.Index()
}
