package vault

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/names"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// request is what can travel beside a PKCS#10 request to /sign/:role.
type request struct {
	commonName, serialNumber string
	userIDs                  []string
	dns, emails              []string
	uris                     []string
	ips                      []string
	others                   [][2]string // OID and text
}

// hostname is what Vault takes as a DNS name. Anything else it leaves out without a word.
var hostname = regexp.MustCompile(`^(\*\.)?([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.?$`)

// The attributes of a subject: those that a request can have, and those that a role can have.
const (
	oidCommonName   = "2.5.4.3"
	oidSerialNumber = "2.5.4.5"
	oidUserID       = "0.9.2342.19200300.100.1.1"
	oidPolicies     = "2.5.29.32"
)

var byRole = []string{"2.5.4.6", "2.5.4.10", "2.5.4.11", "2.5.4.7", "2.5.4.8", "2.5.4.9", "2.5.4.17"} // C, O, OU, L, ST, street, postalCode

// beside puts the decided names into words of Vault, and refuses what has none.
func beside(order upstream.Order, t upstream.Tolerance) (*request, error) {
	r := &request{}
	attributes, err := names.Subject(order.Profile.Subject)
	if err != nil {
		return nil, err
	}
	for _, a := range attributes {
		switch {
		case a.OID == oidCommonName && r.commonName == "" && a.Text != "":
			r.commonName = a.Text
		case a.OID == oidSerialNumber && r.serialNumber == "" && a.Text != "":
			r.serialNumber = a.Text
		case a.OID == oidUserID:
			r.userIDs = append(r.userIDs, a.Text)
		case !slices.Contains(byRole, a.OID):
			return nil, fmt.Errorf("the subject %q has an attribute (%s) that is not one of a role, or is there twice; a role signs one common name and what it has itself", order.Profile.SubjectText, a.OID)
		}
	}
	for _, e := range order.Profile.Extensions {
		switch {
		case e.OID == wcce.OIDKeyUsage || e.OID == wcce.OIDEKU || e.OID == oidPolicies: // the role's: mold.byRole compares
		case e.OID == wcce.OIDSAN:
			if err := r.alternative(e.Value); err != nil {
				return nil, err
			}
		case !slices.Contains(t.Missing, e.OID):
			return nil, fmt.Errorf("a role does not sign the extension %s; where certificates may be without it, say so in the configuration (tolerate.missing)", e.OID)
		}
	}
	return r, nil
}

func (r *request) alternative(der []byte) error {
	list, err := names.Alternative(der)
	if err != nil {
		return err
	}
	for _, n := range list {
		switch n.Kind {
		case names.DNS:
			if !hostname.MatchString(n.Text) {
				return fmt.Errorf("the DNS name %q is none for Vault, which leaves it out", n.Text)
			}
			r.dns = append(r.dns, n.Text)
		case names.Email:
			if strings.Count(n.Text, "@") != 1 || strings.Contains(n.Text, ",") {
				return fmt.Errorf("the mail address %q is none for Vault", n.Text)
			}
			r.emails = append(r.emails, n.Text)
		case names.URI:
			if u, err := url.Parse(n.Text); err != nil || u.String() != n.Text {
				return fmt.Errorf("the URI %q is written differently by Vault", n.Text)
			}
			r.uris = append(r.uris, n.Text)
		case names.IP:
			r.ips = append(r.ips, n.Text)
		case names.Other:
			if n.Text == "" || strings.TrimSpace(n.Text) != n.Text {
				return fmt.Errorf("the other name of kind %s is not text (UTF8String), and Vault takes no others", n.OID)
			}
			r.others = append(r.others, [2]string{n.OID, n.Text})
		default:
			return errors.New("an alternative name of a kind that Vault does not take")
		}
	}
	return nil
}

// fields are the parameters of /sign/:role.
func (r *request) fields() map[string]any {
	others := []string{}
	for _, o := range r.others {
		others = append(others, o[0]+";UTF8:"+o[1])
	}
	list := func(s []string) []string { return append([]string{}, s...) } // never null
	return map[string]any{
		"common_name": r.commonName, "serial_number": r.serialNumber, "user_ids": list(r.userIDs), "exclude_cn_from_sans": true,
		"alt_names": strings.Join(slices.Concat(r.dns, r.emails), ","), "uri_sans": list(r.uris), "ip_sans": list(r.ips), "other_sans": others,
	}
}

// addresses are ips as crypto/x509 has them.
func (r *request) addresses() (out []net.IP) {
	for _, ip := range r.ips {
		out = append(out, net.ParseIP(ip))
	}
	return out
}

// locations are uris as crypto/x509 has them.
func (r *request) locations() (out []*url.URL) {
	for _, text := range r.uris {
		if u, err := url.Parse(text); err == nil {
			out = append(out, u)
		}
	}
	return out
}
