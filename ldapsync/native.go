package ldapsync

import (
	"context"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/native"
	"github.com/enrollgate/enrollgate/templates/security"
)

// NativeForest reads what package native compares CAs with; names are asked for those who are to enroll.
func (d *Directory) NativeForest(ctx context.Context, enroll []security.SID) (*native.Forest, error) {
	var f *native.Forest
	err := d.do(ctx, func(s *session) (err error) {
		f, err = s.nativeForest()
		return err
	})
	if err != nil {
		return nil, err
	}
	f.Names = d.NamesOf(ctx, enroll)
	return f, nil
}

func (s *session) nativeForest() (*native.Forest, error) {
	entries, err := s.search(pkiBase(s.root.configDN), ldap.ScopeWholeSubtree,
		"(|(objectClass=pKICertificateTemplate)(objectClass=pKIEnrollmentService)(objectClass=certificationAuthority)(objectClass=cRLDistributionPoint)(objectClass=container))",
		everything(), sdFlags(allButSACL))
	if err != nil {
		return nil, err
	}
	f := &native.Forest{ConfigDN: s.root.configDN}
	for _, o := range objectsOf(entries) {
		list := &f.Objects
		if hasClass(o.attributes, "pKICertificateTemplate") {
			list = &f.Templates
		}
		*list = append(*list, manifest.Object{DN: o.dn, Attributes: o.attributes})
	}
	entries, err = s.search("CN=Schema,"+s.root.configDN, ldap.ScopeSingleLevel, "(lDAPDisplayName=msPKI-Enrollment-Servers)", []string{"cn"})
	f.HasServers = len(entries) == 1
	return f, err
}
