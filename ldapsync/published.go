package ldapsync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// Published calls yield with userCertificate of every account of the domain that has any, page by page: account is
// sAMAccountName@DOMAIN, as its Kerberos principal, and values are DER, whoever wrote them. An error of yield ends it.
func (d *Directory) Published(ctx context.Context, yield func(account string, values [][]byte) error) error {
	id, err := d.whoami(ctx)
	if err != nil {
		return err
	}
	realm, begun := strings.ToUpper(id.DNS), false
	return d.do(ctx, func(s *session) error {
		err := s.pages(s.root.domainDN, ldap.ScopeWholeSubtree, "(&(sAMAccountName=*)("+attrUserCertificate+"=*))", []string{"sAMAccountName", attrUserCertificate}, nil, func(entries []*ldap.Entry) error {
			for _, e := range entries {
				begun = true
				a := attributesOf(e)
				if err := yield(a.First("sAMAccountName")+"@"+realm, a[strings.ToLower(attrUserCertificate)]); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
		if begun && errors.Is(err, errConnection) {
			return fmt.Errorf("the connection broke in the middle; try again: %v", err) // nothing is read twice
		}
		return err
	})
}

// Published is Directory.Published of every domain. Domains that cannot be read are in the error; the others are read.
func (f *Forest) Published(ctx context.Context, yield func(account string, values [][]byte) error) error {
	var failed, stop error
	for _, d := range f.all() {
		err := d.Published(ctx, func(account string, values [][]byte) error {
			stop = yield(account, values)
			return stop
		})
		if stop != nil {
			return stop
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("certificates of the accounts of %s cannot be read: %w", cmp.Or(d.config.Domain, "the gateway's domain"), err))
		}
	}
	return failed
}
