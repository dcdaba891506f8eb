package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/risk"
	"github.com/enrollgate/enrollgate/test/world"
)

// accepting serves with a risk of LabVulnESC9 accepted until a day.
func accepting(t *testing.T, until time.Time) *world.World {
	t.Helper()
	return world.StartChanged(t, "", func(c *config.Config) {
		c.AcceptRisk = []config.Risk{{Template: "LabVulnESC9", Rule: "ESC9", By: "Jane Doe", Until: until.Format(time.DateOnly), Reason: "old clients"}}
	})
}

func TestADangerousTemplateIsServedOnlyWhileItsRiskIsAccepted(t *testing.T) {
	const template = "LabVulnESC9"
	refused := func(t *testing.T, w *world.World) {
		t.Helper()
		alice := w.Client(t, "alice")
		if alice.Policy(t, template) != nil {
			t.Error("the policy offers it")
		}
		der, _ := world.Request(t, template, nil)
		_, err := alice.Submit(t, der)
		wantFault(t, err, hresult.NotSupported, "ESC9")
		e, err := w.Explain(background, "alice", template, "")
		if err != nil || e.Outcome != templates.Deny || !slices.ContainsFunc(e.Checks, func(c templates.Check) bool {
			return !c.Pass && c.Name == "risk" && strings.Contains(c.Reason, "ESC9") && strings.Contains(c.Fix, "NO_SECURITY_EXTENSION") && strings.Contains(c.Fix, "accept_risk")
		}) {
			t.Errorf("%+v, %v", e, err)
		}
		s := w.Directory.Snapshot()
		if no := w.Unserved(s, s.TemplateByName(template)); len(no) != 1 || !strings.Contains(no[0], "ESC9") {
			t.Errorf("not served because of %v", no)
		}
	}
	t.Run("nobody has", func(t *testing.T) { refused(t, world.Start(t)) })
	t.Run("somebody has, until tomorrow", func(t *testing.T) {
		w := accepting(t, time.Now().UTC().AddDate(0, 0, 1))
		alice := w.Client(t, "alice")
		if alice.Policy(t, template) == nil {
			t.Error("the policy does not offer it")
		}
		der, _ := world.Request(t, template, nil)
		if reply, err := alice.Submit(t, der); err != nil || len(reply.Certificate) == 0 {
			t.Errorf("%+v, %v", reply, err)
		}
		if alice.Policy(t, "LabVulnESC2") != nil {
			t.Error("another dangerous template is offered too")
		}
		wantAdvice(t, w, "ends with")
		found, err := w.Risks(background, "")
		if err != nil || !slices.ContainsFunc(found, func(f risk.Finding) bool {
			return f.Object == template && f.Accepted != nil && f.Accepted.By == "Jane Doe" && f.Accepted.Reason == "old clients"
		}) {
			t.Errorf("%+v, %v", found, err)
		}
	})
	t.Run("somebody had, until yesterday", func(t *testing.T) {
		w := accepting(t, time.Now().UTC().AddDate(0, 0, -1))
		refused(t, w)
		wantAdvice(t, w, "counts no more")
	})
}

func wantAdvice(t *testing.T, w *world.World, want string) {
	t.Helper()
	if advice := w.Advice(); !slices.ContainsFunc(advice, func(a string) bool {
		return strings.Contains(a, "accept_risk") && strings.Contains(a, "Jane Doe") && strings.Contains(a, want)
	}) {
		t.Errorf("advice %q, want %q", advice, want)
	}
}

// All that lint has to say of the lab.
func TestLintOfTheLabsForest(t *testing.T) {
	w := world.StartChanged(t, "", func(c *config.Config) { c.Listen.HTTPS, c.Listen.HTTP = "off", "off" })
	found, err := w.Risks(background, "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"LabVulnESC1 ESC1": `error LAB\Domain Users`, "LabVulnESC2 ESC2": `error LAB\Domain Users`, "LabVulnESC3 ESC3": `error LAB\Domain Users`,
		"LabVulnESC4 ESC4": `error LAB\Certificate Managers`, "LabVulnESC9 ESC9": `error LAB\Domain Users`, "LabVulnESC13 ESC13": `error LAB\Domain Users`,
		"LabVulnESC15 ESC15": `note LAB\Contractors`, "LabVulnESC15 ESC17": `warning LAB\Contractors`,
		"LabEnrollmentAgent ESC3": `warning LAB\Certificate Managers`, "LabOnBehalf ESC3": `note LAB\Domain Users, LAB\Certificate Managers`, "listen.https ESC8": "note ",
		"KRA ESC5": `warning LAB\svc-enroll`, // the gateway itself, which publishes there
	}
	got := map[string]string{}
	for _, f := range found {
		got[f.Object+" "+f.Rule] = string(f.Severity) + " " + risk.People(f.Who)
		if f.How == "" || f.Fix == "" || f.Spec == "" {
			t.Errorf("incomplete: %+v", f)
		}
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
		delete(got, k)
	}
	for k, v := range got {
		t.Errorf("more than the lab has: %s: %s", k, v)
	}
}

// What an administrator and a pipeline see.
func TestLintPrintsAndItsExitCodeSaysThatSomethingIsDangerous(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	file := filepath.Join(t.TempDir(), "lint.sarif")
	out, err := p.Command("templates", "lint", "--sarif", file).Output()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 3 || !strings.Contains(string(exit.Stderr), "6 errors that nobody has accepted") {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
	for _, want := range []string{"template LabVulnESC1  (not served)", "ERROR    ESC1", `LAB\Domain Users`, "clear ENROLLEE_SUPPLIES_SUBJECT (0x00000001)", "6 errors, 3 warnings, 3 notes; 0 accepted"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `"version": "2.1.0"`) || !strings.Contains(string(text), "LabVulnESC13") {
		t.Errorf("SARIF: %v\n%s", err, text)
	}
	if out, err := p.Command("templates", "list").CombinedOutput(); err != nil || !regexp.MustCompile(`LabVulnESC9 .* no: dangerous \(ESC9\)`).Match(out) {
		t.Errorf("list: %v\n%s", err, out)
	}
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, rule := range []string{"1", "2", "3", "4", "9", "13"} {
		if i == 0 {
			config = append(config, "accept_risk:\n"...)
		}
		config = fmt.Appendf(config, "  - {template: LabVulnESC%s, rule: ESC%s, by: Jane Doe, until: 2099-12-31}\n", rule, rule)
	}
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Command("templates", "lint").CombinedOutput(); err != nil || !strings.Contains(string(out), "accepted by Jane Doe until 2099-12-31") || !strings.Contains(string(out), "0 errors, 3 warnings, 3 notes; 6 accepted") {
		t.Errorf("all accepted: %v\n%s", err, out)
	}
	if out, err := p.Command("templates", "lint", "--accepted").CombinedOutput(); err != nil || !strings.Contains(string(out), "0 errors, 0 warnings, 0 notes; 6 accepted") {
		t.Errorf("accepted only: %v\n%s", err, out)
	}
	if out, err := p.Command("templates", "list").CombinedOutput(); err != nil || !regexp.MustCompile(`LabVulnESC9 .* yes`).Match(out) {
		t.Errorf("list of all accepted: %v\n%s", err, out)
	}
}

// Names in the attributes beside a request (the SAN attribute of EDITF_ATTRIBUTESUBJECTALTNAME2) choose nothing.
func TestNamesBesideARequestAreIgnored(t *testing.T) {
	w := world.Start(t)
	der, _ := world.Request(t, "LabUserAuth", nil)
	subject, err := w.Forest.SubjectByName(background, "alice")
	if err != nil {
		t.Fatal(err)
	}
	reply, err := w.Enroll(background, gateway.Submission{CA: world.CAName, Transport: "test", Request: der,
		Caller:     templates.Caller{Principal: "alice@LAB.TEST", SID: subject.SID, Groups: subject.Groups},
		Attributes: []wcce.NameValue{{Name: "SAN", Value: "upn=Administrator@lab.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range reply.Certificate.Extensions {
		if strings.Contains(string(e.Value), "dministrator") {
			t.Errorf("extension %s: %q", e.Id, e.Value)
		}
	}
}
