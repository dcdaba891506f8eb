package escrow_test

import (
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

func TestTheFirstPolicyThatIsForAKeyCounts(t *testing.T) {
	e, err := escrow.New(background, escrow.Options{DB: testpki.DB(t), Secret: []byte("x"), Now: time.Now, Policies: []escrow.Policy{
		{Name: "board", Templates: []string{"Mail"}, Groups: []string{"Board"}, Required: 3},
		{Name: "mail", Templates: []string{"mail"}, Required: 2}, {Name: "board-rest", Groups: []string{"Board"}, Required: 2},
	}})
	if err != nil {
		t.Fatal(err)
	}
	in := func(groups ...string) func([]string) (bool, error) {
		return func(names []string) (bool, error) {
			return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(groups, n) }), nil
		}
	}
	for _, c := range []struct {
		template string
		in       func([]string) (bool, error)
		want     string
	}{
		{"Mail", in("Board"), "board"}, {"MAIL", in(), "mail"}, {"Disk", in("Board"), "board-rest"}, {"", in("Board"), "board-rest"},
		{"Disk", in("Staff"), escrow.DefaultPolicy},
	} {
		p, err := e.PolicyFor(escrow.Owner{Name: "alice", Template: c.template, MemberOf: c.in})
		if err != nil || p.Name != c.want {
			t.Errorf("template %q: %+v, %v, want %s", c.template, p, err, c.want)
		}
	}
	// Who cannot be told to be outside of a group is not sealed by a weaker policy.
	down := errors.New("no domain controller answers")
	for _, unknown := range []func([]string) (bool, error){nil, func([]string) (bool, error) { return false, down }} {
		if p, err := e.PolicyFor(escrow.Owner{Name: "alice", Template: "Mail", MemberOf: unknown}); err == nil {
			t.Errorf("without groups: %+v", p)
		}
	}
	if _, err := e.Policy("gone"); err == nil {
		t.Error("a policy that is not configured was found")
	}
}

func TestAPolicySealsToItsOwnAgentsWhileThereAreEnough(t *testing.T) {
	v := newVault(t)
	_, one := testpki.Agent(t, "one", v.now.Add(-time.Hour), v.now.Add(time.Hour))
	_, two := testpki.Agent(t, "two", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	_, three := testpki.Agent(t, "three", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	_, stranger := testpki.Agent(t, "stranger", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	policy := escrow.Policy{Name: "mail", Agents: []string{"one", "CN=two", escrow.Fingerprint(three)}, Required: 2, Minimum: 2}
	e, err := escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: func() time.Time { return v.now }, Policies: []escrow.Policy{policy}})
	if err != nil {
		t.Fatal(err)
	}
	v.Escrow = e
	if err := e.AddAgent(background, stranger, "test"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, e.ReadyFor(&policy), hresult.NoValidKRA)
	for _, cert := range []*x509.Certificate{one, two, three} {
		if err := e.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
	}
	entry := v.archive(t, request(t, v.exchange(t)))
	if entry.Format != escrow.FormatShared || entry.Policy != "mail" || entry.Required != 2 || len(entry.Recipients) != 3 || slices.Contains(entry.Recipients, escrow.Fingerprint(stranger)) {
		t.Errorf("%+v", entry)
	}
	v.now = v.now.Add(2 * time.Hour) // one has expired
	if err := e.ReadyFor(&policy); err != nil {
		t.Error(err)
	}
	if err := e.RemoveAgent(background, escrow.Fingerprint(two), "test"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, e.ReadyFor(&policy), hresult.NoValidKRA)
	if err := e.Ready(); err != nil {
		t.Errorf("other policies: %v", err)
	}
}
