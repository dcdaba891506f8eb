package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/world"
)

func TestExplainSaysWhatServingDoes(t *testing.T) {
	w := world.Start(t)
	for _, c := range []struct {
		principal, template string
		outcome             templates.Outcome
		check               string // that fails
		auto                bool
	}{
		{"alice", "LabUserSMIME", templates.Allow, "", true},
		{"alice@lab.test", "LabUserSMIME", templates.Allow, "", true},
		{`LAB\erin`, "LabUserSMIME", templates.Allow, "", true},
		{"bob", "LabUserSMIME", templates.Deny, "enroll-right", false},
		{"carol", "LabUserSMIME", templates.Deny, "subject", false},
		{"dave", "LabUserSMIME", templates.Deny, "account", false},
		{"WS1$", "LabMachine", templates.Allow, "", true},
		{"WS1$", "LabUserAuth", templates.Deny, "account", false},
		{"helpdesk", "LabWebServer", templates.Pend, "", false},
		{"alice", "LabVulnESC1", templates.Deny, "risk", false},
		{"alice", "LabOnBehalf", templates.Allow, "", false},
		{"alice", "User", templates.Deny, "offered", false},
		{"alice", "Nonsense", templates.Deny, "template", false},
	} {
		t.Run(c.principal+" "+c.template, func(t *testing.T) {
			e, err := w.Explain(background, c.principal, c.template, "")
			if err != nil {
				t.Fatal(err)
			}
			failed := slices.IndexFunc(e.Checks, func(k templates.Check) bool { return !k.Pass })
			if e.Outcome != c.outcome || e.AutoEnrollment.Enrolls != c.auto || (failed >= 0) != (c.check != "") {
				t.Errorf("outcome %s, autoenrolls %t (%q): %+v", e.Outcome, e.AutoEnrollment.Enrolls, e.AutoEnrollment.Skips, e.Checks)
			}
			if failed >= 0 && (e.Checks[failed].Name != c.check || e.Checks[failed].Reason == "") {
				t.Errorf("first failed check %+v, want %q", e.Checks[failed], c.check)
			}
			text, err := json.Marshal(e)
			if err != nil || !strings.Contains(string(text), `"outcome":"`+string(c.outcome)+`"`) || !strings.Contains(string(text), `"pass":`) {
				t.Errorf("JSON: %s, %v", text, err)
			}
		})
	}
	if _, err := w.Explain(background, "nobody", "LabUserAuth", ""); err == nil {
		t.Error("an account that does not exist was explained")
	}
	if err := w.Escrow.RemoveAgent(background, escrow.Fingerprint(w.Agent), "test"); err != nil {
		t.Fatal(err)
	}
	e, err := w.Explain(background, "alice", "LabUserSMIME", "")
	if err != nil || e.Outcome != templates.Deny || !slices.ContainsFunc(e.Checks, func(k templates.Check) bool {
		return !k.Pass && k.Name == "archival" && strings.Contains(k.Reason, "recovery agent") && k.Fix != ""
	}) {
		t.Errorf("without an agent: %+v, %v", e, err)
	}
}
