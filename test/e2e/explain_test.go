package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
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

// What explain says of each account and template is what becomes of a good request by that account for that template.
func TestExplainAgreesWithEveryRequest(t *testing.T) {
	w := world.Start(t)
	agent := mustEnroll(t, client.Options{PolicyURL: "https://" + world.Env("LAB_GATEWAY") + soap.Kerberos.CEPPath, HTTP: w.Client(t, "helpdesk").HTTP, Template: "LabEnrollmentAgent"})
	rsaKey, ecKey := testpki.RSA(t, 2048), mustECKey(t)
	count := map[templates.Outcome]int{}
	for _, account := range []string{"alice", "bob", "carol", "erin", "helpdesk", "kra1", "WS1$"} {
		c := w.Client(t, account)
		explained, err := w.ExplainAll(t.Context(), account, "")
		if err != nil {
			t.Fatal(err)
		}
		exchange := c.Exchange(t)
		for _, e := range explained {
			tmpl := w.Directory.Snapshot().TemplateByName(e.Template)
			o := wcce.RequestOptions{Key: rsaKey, Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString(e.Template)},
				{OID: "1.2.3.4.5", Value: []byte{5, 0}}}}
			if strings.HasPrefix(tmpl.AsymmetricAlg, "EC") {
				o.Key = ecKey
			}
			if tmpl.Archives() {
				o.Exchange = exchange
			}
			if tmpl.EnrolleeSuppliesSubject() {
				if o.Subject, err = client.SubjectDER("CN=www.lab.test"); err != nil {
					t.Fatal(err)
				}
			}
			if tmpl.RASignatures > 0 {
				o.Signers = []wcce.RequestSigner{{Certificate: agent.Certificate, Key: agent.Key}}
			}
			der, err := wcce.NewRequest(o)
			if err != nil {
				t.Fatal(err)
			}
			reply, err := c.Submit(t, der)
			served := templates.Allow
			switch {
			case err != nil:
				served = templates.Deny
			case reply.Pending:
				served = templates.Pend
			}
			count[served]++
			if served != e.Outcome || served == templates.Deny && hresult.From(err).Code != hresult.From(e.Err()).Code {
				t.Errorf("%s, %s: explained %s (%v), served %s (%v)", account, e.Template, e.Outcome, e.Err(), served, err)
			}
		}
	}
	t.Logf("%v", count)
	if count[templates.Allow] == 0 || count[templates.Pend] == 0 || count[templates.Deny] == 0 {
		t.Errorf("not every outcome: %v", count)
	}
}

func mustECKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
