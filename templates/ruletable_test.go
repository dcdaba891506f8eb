package templates

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// The tests that the tables name exist.
func TestTheTablesNameTestsThatExist(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				tests[f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := append(AttributeRules(), ProcessingRules()...)
	for _, f := range AllFlags() {
		rules = append(rules, Rule{f.Name, f.Spec, f.Does, f.Test})
	}
	for _, r := range rules {
		if r.Name == "" || !strings.HasPrefix(r.Spec, "[MS-") || r.Does == "" || !tests[r.Test] {
			t.Errorf("%+v: a part is missing, or there is no such test", r)
		}
	}
}
