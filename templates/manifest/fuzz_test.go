package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What Parse accepts can be planned or is refused with a place; nothing makes it panic.
func FuzzParse(f *testing.F) {
	paths, _ := filepath.Glob("testdata/*.yaml")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("template: X\n" + minimal))
	for _, text := range []string{"", "a", "? a\n: b", "template: &a x\n", "template: |\n  x\n", "template: !!str x\nattributes: {a: {b: c}}\n", "acl: [[a]]", "---\n---\n", "{}", "a: {? b}"} {
		f.Add([]byte(text))
	}
	forest := recorded(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := Parse("x.yaml", text, forest.sids)
		if err == nil {
			_, err = NewPlan(forest, all, noFresh)
		}
		if e, ok := errors.AsType[*Error](err); ok && (e.Line < 1 || e.Column < 1) {
			t.Errorf("%v has no place", err)
		}
	})
}
