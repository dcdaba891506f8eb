package sarif

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/templates/risk"
	foreign "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Another implementation knows every field, and the standard's own schema finds nothing wrong.
func TestTheReportIsValid(t *testing.T) {
	findings := []risk.Finding{
		{Rule: "ESC1", Severity: risk.Error, Kind: risk.KindTemplate, Object: "T", DN: "CN=T", Who: []risk.Principal{{SID: "S-1-5-11"}}, How: "They do.", Fix: "undo",
			Accepted: &risk.Acceptance{Object: "T", Rule: "ESC1", By: "Jane", Until: time.Date(2027, 4, 1, 0, 0, 0, 0, time.UTC), Reason: "needed"}},
		{Rule: "ESC8", Severity: risk.Note, Kind: risk.KindGateway, Object: "listen.https", How: "Somehow.", Fix: "nothing"},
	}
	standard := schema(t)
	for name, findings := range map[string][]risk.Finding{"two findings": findings, "none": nil} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Write(&b, "v1", findings); err != nil {
				t.Fatal(err)
			}
			document, err := jsonschema.UnmarshalJSON(bytes.NewReader(b.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			if err := standard.Validate(document); err != nil {
				t.Error(err)
			}
			report := &foreign.Report{}
			d := json.NewDecoder(&b)
			d.DisallowUnknownFields()
			if err := d.Decode(report); err != nil {
				t.Fatal(err)
			}
			results := report.Runs[0].Results
			if len(report.Runs) != 1 || len(results) != len(findings) || len(report.Runs[0].Tool.Driver.Rules) != len(risk.Rules()) {
				t.Fatalf("%d results", len(results))
			}
			for i, r := range results {
				rule := report.Runs[0].Tool.Driver.Rules[r.RuleIndex]
				if r.Level != string(findings[i].Severity) || *r.RuleID != findings[i].Rule || *rule.ID != findings[i].Rule || (len(r.Suppressions) > 0) != (findings[i].Accepted != nil) {
					t.Errorf("result %d: %+v", i, r)
				}
			}
		})
	}
}

// schema is the standard's JSON schema, which the other implementation has as a constant.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif").Output()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "schema.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	ast.Inspect(file, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && text == "" {
			text, err = strconv.Unquote(l.Value)
		}
		return err == nil
	})
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(Schema, document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(Schema)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
