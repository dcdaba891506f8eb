package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// oneAccount is a directory with one account and one group.
type oneAccount struct{ subject templates.Subject }

const agentsGroup security.SID = "S-1-5-21-1-2-3-500"

func (o oneAccount) Snapshot() *templates.Snapshot { return nil }
func (o oneAccount) Subject(context.Context, security.SID) (templates.Subject, error) {
	return o.subject, nil
}
func (o oneAccount) SubjectByName(context.Context, string) (templates.Subject, error) {
	return o.subject, nil
}
func (o oneAccount) SIDsOf(context.Context, []string) ([]security.SID, error) {
	return []security.SID{agentsGroup}, nil
}

// A role needs the group in the ticket and, now, in the directory, and a ticket of the account's own realm: who runs a trusted
// domain can write any SID into one.
func TestARoleIsNotTakenFromATicketAlone(t *testing.T) {
	const kra security.SID = "S-1-5-21-1-2-3-1001"
	account := templates.Subject{SID: kra, SAMAccount: "kra1", Groups: []security.SID{agentsGroup}, Domain: templates.Domain{DNS: "lab.test"}}
	ticket := templates.Caller{Principal: "kra1@LAB.TEST", Realm: "LAB.TEST", SID: kra, Groups: []security.SID{agentsGroup}}
	for name, c := range map[string]struct {
		change func(*templates.Subject, *templates.Caller)
		member bool
		code   hresult.Code
	}{
		"a member":                        {func(*templates.Subject, *templates.Caller) {}, true, 0},
		"not in the ticket":               {func(_ *templates.Subject, c *templates.Caller) { c.Groups = nil }, false, 0},
		"not in the directory any more":   {func(s *templates.Subject, _ *templates.Caller) { s.Groups = nil }, false, 0},
		"disabled":                        {func(s *templates.Subject, _ *templates.Caller) { s.Disabled = true }, false, hresult.AccountDisabled},
		"a ticket of another realm":       {func(_ *templates.Subject, c *templates.Caller) { c.Realm = "PART.TEST" }, false, hresult.AccessDenied},
		"a ticket that names no realm":    {func(_ *templates.Subject, c *templates.Caller) { c.Realm = "" }, false, hresult.AccessDenied},
		"an account of an unknown domain": {func(s *templates.Subject, _ *templates.Caller) { s.Domain.DNS = "" }, false, hresult.AccessDenied},
	} {
		subject, caller := account, ticket
		c.change(&subject, &caller)
		g := &Gateway{Directory: oneAccount{subject}, now: time.Now}
		member, err := g.isStillOneOf(t.Context(), caller, []string{"Agents"})
		if member != c.member || (err != nil) != (c.code != 0) || err != nil && hresult.From(err).Code != c.code {
			t.Errorf("%s: %t, %v", name, member, err)
		}
	}
}
