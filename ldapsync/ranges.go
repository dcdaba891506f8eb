package ldapsync

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// maxValues is how many values of one attribute are read; a directory with more has another purpose.
const maxValues = 1 << 20

// splitRange reads an attribute description such as "member;range=0-1499" or "member;range=1500-*": last is -1 for
// the latter, which has the last values ([MS-ADTS] 3.1.1.3.1.3.3). ok is false where there is no range.
func splitRange(description string) (name string, first, last int, ok bool, err error) {
	name, option, ok := strings.Cut(description, ";")
	low, high, dash := strings.Cut(strings.TrimPrefix(strings.ToLower(option), "range="), "-")
	if !ok || !strings.HasPrefix(strings.ToLower(option), "range=") {
		return description, 0, 0, false, nil
	}
	first, err = strconv.Atoi(low)
	last = -1
	if err == nil && high != "*" {
		last, err = strconv.Atoi(high)
	}
	if err != nil || !dash || first < 0 || last != -1 && last < first {
		return name, 0, 0, true, fmt.Errorf("attribute %s: not a range of values", description)
	}
	return name, first, last, true, nil
}

// completeRanges fetches the rest of each attribute of which the server gave only the first values, so that the entry
// has all of them under the plain name. An object that changes meanwhile may come out as a mixture; its uSNChanged is
// the one from before, so the next comparison of versions reads it again.
func (s *session) completeRanges(e *ldap.Entry) error {
	whole := e.Attributes[:0:0]
	for _, a := range e.Attributes {
		name, first, last, ranged, err := splitRange(a.Name)
		if err != nil {
			return err
		}
		if !ranged {
			// Beside the range the server may send the plain name without values.
			if len(a.ByteValues) > 0 || !hasRange(e, a.Name) {
				whole = append(whole, a)
			}
			continue
		}
		if first != 0 {
			return fmt.Errorf("attribute %s: does not begin at the first value", a.Name)
		}
		values := a.ByteValues
		for last >= 0 {
			if len(values) != last+1 || len(values) > maxValues {
				return fmt.Errorf("attribute %s: %d values up to number %d", name, len(values), last)
			}
			var more [][]byte
			if more, last, err = s.readRange(e.DN, name, len(values)); err != nil {
				return err
			}
			values = append(values, more...)
		}
		whole = append(whole, &ldap.EntryAttribute{Name: name, ByteValues: values})
	}
	e.Attributes = whole
	return nil
}

func hasRange(e *ldap.Entry, name string) bool {
	for _, a := range e.Attributes {
		if n, _, _, ranged, _ := splitRange(a.Name); ranged && strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// readRange reads the values of one attribute from number first on; last is the number of the last one in the answer,
// or -1 if there are no more.
func (s *session) readRange(dn, name string, first int) (values [][]byte, last int, err error) {
	request := ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)",
		[]string{fmt.Sprintf("%s;range=%d-*", name, first)}, nil)
	result, err := s.ldap.Search(request)
	if err != nil {
		return nil, 0, fmt.Errorf("attribute %s: reading more values: %w", name, withReferral(markLost(err)))
	}
	for _, e := range result.Entries {
		for _, a := range e.Attributes {
			n, from, to, ranged, err := splitRange(a.Name)
			if err == nil && ranged && strings.EqualFold(n, name) && from == first && len(a.ByteValues) > 0 {
				return a.ByteValues, to, nil
			}
		}
	}
	return nil, 0, fmt.Errorf("attribute %s: no values from number %d on: it has changed meanwhile", name, first)
}

// referralError is an answer that names other servers in place of a result (RFC 4511 4.1.10).
type referralError struct {
	cause error
	urls  []string
}

// Error names the servers: an administrator can see which domain is meant.
func (e *referralError) Error() string {
	return fmt.Sprintf("%v: it is at %s, which is not asked", e.cause, strings.Join(e.urls, " or "))
}

// Unwrap returns the LDAP error.
func (e *referralError) Unwrap() error { return e.cause }

// withReferral adds the servers that a referral names to its error.
func withReferral(err error) error {
	e, ok := errors.AsType[*ldap.Error](err)
	if !ok || e.ResultCode != ldap.LDAPResultReferral || e.Packet == nil || len(e.Packet.Children) < 2 {
		return err
	}
	r := &referralError{cause: err}
	for _, c := range e.Packet.Children[1].Children {
		if c.Tag != 3 || len(c.Children) == 0 { // referral [3] SEQUENCE OF URI
			continue
		}
		for _, u := range c.Children {
			r.urls = append(r.urls, strconv.QuoteToGraphic(u.Data.String()))
		}
	}
	if len(r.urls) == 0 {
		return err
	}
	return r
}
