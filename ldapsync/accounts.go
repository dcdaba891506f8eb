package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// AccountState is what became of an account.
type AccountState string

// The states. Unknown is no answer: nothing may be concluded from it.
const (
	AccountUnknown  AccountState = "unknown"
	AccountEnabled  AccountState = "enabled"
	AccountDisabled AccountState = "disabled" // userAccountControl ACCOUNTDISABLE ([MS-ADTS] 2.2.16)
	AccountExpired  AccountState = "expired"  // accountExpires has passed
	AccountDeleted  AccountState = "deleted"  // its domain answers, and has nobody with the SID, or a tombstone
)

// Account is what is known of an account, found by its SID.
type Account struct {
	State        AccountState
	Why          string // of unknown and deleted ones, for people
	DN           string
	Name         string   // sAMAccountName
	Certificates [][]byte // userCertificate, where it was asked for
}

// attrUserCertificate is what Accounts reads only for those who want it.
const attrUserCertificate = "userCertificate"

// do runs f on a session, a second time where the connection turns out to be gone: f must be safe to repeat.
func (d *Directory) do(ctx context.Context, f func(s *session) error) error {
	for again := true; ; again = false {
		s, err := d.connected(ctx)
		if err != nil {
			return err
		}
		err = f(s)
		d.drop(s, err)
		if err == nil || !again || !errors.Is(err, errConnection) || ctx.Err() != nil {
			return err
		}
	}
}

// Accounts looks accounts up by their SIDs, with one search for many. Every SID has an answer; those of domains that the
// controller does not have are unknown. An error means that the directory could not be asked: nothing is known of any.
func (d *Directory) Accounts(ctx context.Context, sids []security.SID) (map[security.SID]Account, error) {
	return d.accounts(ctx, sids, nil)
}

// AccountsWithCertificates is Accounts with the values of userCertificate.
func (d *Directory) AccountsWithCertificates(ctx context.Context, sids []security.SID) (map[security.SID]Account, error) {
	return d.accounts(ctx, sids, []string{attrUserCertificate})
}

func (d *Directory) accounts(ctx context.Context, sids []security.SID, more []string) (map[security.SID]Account, error) {
	out := make(map[security.SID]Account, len(sids))
	for chunk := range slices.Chunk(sids, namesAtOnce) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := d.do(ctx, func(s *session) error { return s.accounts(chunk, more, out) }); err != nil {
			return nil, fmt.Errorf("accounts cannot be read from the directory: %w", err)
		}
	}
	return out, nil
}

// accounts answers for each SID. Deleted objects are seen only by those who may ([MS-ADTS] 3.1.1.3.4.1.14); to others a
// deleted account is one that is not there.
func (s *session) accounts(sids []security.SID, more []string, out map[security.SID]Account) error {
	domain, err := s.domainSID()
	if err != nil {
		return err
	}
	var filter strings.Builder
	for _, sid := range sids {
		if of, ok := sid.Domain(); ok && of == domain {
			b := sid.Bytes()
			filter.WriteString("(objectSid=" + ldap.EscapeFilter(string(b)) + ")")
			out[sid] = Account{State: AccountDeleted, Why: "nobody has the SID in the domain of " + s.root.host}
		} else {
			out[sid] = Account{State: AccountUnknown, Why: "it is not of the domain of " + s.root.host}
		}
	}
	if filter.Len() == 0 {
		return nil
	}
	attributes := append([]string{"objectSid", "sAMAccountName", "userAccountControl", "accountExpires", "isDeleted"}, more...)
	entries, err := s.search(s.root.domainDN, ldap.ScopeWholeSubtree, "(|"+filter.String()+")", attributes, ldap.NewControlMicrosoftShowDeleted())
	if err != nil {
		return err
	}
	for _, e := range entries {
		a := attributesOf(e)
		sid, err := security.ParseSID([]byte(a.First("objectSid")))
		if err != nil {
			return fmt.Errorf("object %q: objectSid: %w", e.DN, err)
		}
		out[sid] = accountOf(e.DN, a, time.Now())
	}
	return nil
}

// domainSID is that of the controller's domain. Whoever cannot read it cannot say who is not in the domain.
func (s *session) domainSID() (security.SID, error) {
	entries, err := s.search(s.root.domainDN, ldap.ScopeBaseObject, "(objectClass=*)", []string{"objectSid"})
	if err != nil {
		return "", err
	}
	if len(entries) != 1 {
		return "", fmt.Errorf("domain %q: %d entries, want one", s.root.domainDN, len(entries))
	}
	sid, err := security.ParseSID([]byte(attributesOf(entries[0]).First("objectSid")))
	if err != nil {
		return "", fmt.Errorf("domain %q: objectSid: %w", s.root.domainDN, err)
	}
	return sid, nil
}

func accountOf(dn string, a templates.Attributes, now time.Time) Account {
	account := Account{State: AccountEnabled, DN: dn, Name: a.First("sAMAccountName"), Certificates: a[strings.ToLower(attrUserCertificate)]}
	if strings.EqualFold(a.First("isDeleted"), "TRUE") {
		account.State, account.Why = AccountDeleted, "its tombstone is "+strings.ReplaceAll(dn, "\n", `\0A`)
		return account
	}
	control, err := strconv.ParseInt(a.First("userAccountControl"), 10, 64)
	switch {
	case err != nil:
		account.State, account.Why = AccountUnknown, "userAccountControl cannot be read"
	case control&accountDisabled != 0:
		account.State = AccountDisabled
	case expired(a.First("accountExpires"), now):
		account.State = AccountExpired
	}
	return account
}

// expired reads accountExpires, a FILETIME; 0 and the greatest value mean never ([MS-ADA1] 2.2).
func expired(value string, now time.Time) bool {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n <= 0 || n == math.MaxInt64 {
		return false
	}
	const toUnix = 11_644_473_600 // seconds from 1601 to 1970
	return now.After(time.Unix(n/1e7-toUnix, n%1e7*100))
}
