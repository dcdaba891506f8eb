package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/world"
	"github.com/go-ldap/ldap/v3"
)

// The mail attribute of an account can be anything. The certificate is not signed, its key not archived, and explain says
// the same.
func TestACertificateThatBreaksARuleIsNotSigned(t *testing.T) {
	conn := world.Admin(t)
	erin, err := conn.Search(ldap.NewSearchRequest(world.Env("LAB_BASE_DN"), ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 1, 0, false, "(sAMAccountName=erin)", []string{"mail"}, nil))
	if err != nil || len(erin.Entries) != 1 {
		t.Fatalf("%v %v", erin, err)
	}
	dn := erin.Entries[0].DN
	set := func(mail string) {
		m := ldap.NewModifyRequest(dn, nil)
		m.Replace("mail", []string{mail})
		if err := conn.Modify(m); err != nil {
			t.Fatal(err)
		}
	}
	set("Erin Eastman <erin@lab.test>")
	t.Cleanup(func() { set(erin.Entries[0].GetAttributeValue("mail")) })

	const rule = "e_ext_san_rfc822_format_invalid"
	w := world.Start(t)
	client := w.Client(t, "erin")
	der, _ := world.Request(t, "LabUserSMIME", client.Exchange(t))
	_, err = client.Submit(t, der)
	wantFault(t, err, hresult.BadRequestStatus, rule)
	if entries, err := w.Escrow.List(background, "", 1); err != nil || len(entries) != 0 {
		t.Errorf("%d archived keys, %v", len(entries), err)
	}
	e, err := w.Explain(background, "erin", "LabUserSMIME", "")
	if err != nil || e.Outcome != templates.Deny || !slices.ContainsFunc(e.Checks, func(c templates.Check) bool { return !c.Pass && strings.Contains(c.Reason, rule) && c.Fix != "" }) {
		t.Errorf("%+v, %v", e, err)
	}

	t.Run("unless the rule is accepted", func(t *testing.T) {
		w := world.StartChanged(t, "", func(c *config.Config) { c.Listen.HTTPS, c.Listen.HTTP, c.Lint.Accept = "off", "off", []string{rule} })
		e, err := w.Explain(background, "erin", "LabUserSMIME", "")
		if err != nil || e.Outcome != templates.Allow || !slices.ContainsFunc(e.Checks, func(c templates.Check) bool { return c.Pass && strings.Contains(c.Reason, rule) }) {
			t.Errorf("%+v, %v", e, err)
		}
	})
}

func TestNoRuleRefusesTheLabsTemplates(t *testing.T) {
	w := world.Start(t)
	linted := 0
	for _, template := range w.Directory.Snapshot().Templates {
		for _, principal := range []string{"alice", "erin", "helpdesk", "WS1$"} {
			e, err := w.Explain(background, principal, template.Name, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range e.Checks {
				if c.Name != "lint" {
					continue
				}
				linted++
				if t.Logf("%s, %s: %s", template.Name, principal, c.Reason); !c.Pass {
					t.Errorf("%s, %s: %s", template.Name, principal, c.Reason)
				}
			}
		}
	}
	if linted < 5 {
		t.Errorf("%d certificates linted", linted)
	}
}
