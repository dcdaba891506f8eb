// Package vectors gives tests the requests and replies recorded from real Windows clients. They lie beside the
// checkout, in ../shared/vectors, and are never copied into it.
package vectors

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Dir returns the folder with the recordings. Where it is absent the test is skipped, unless the environment variable
// CI is set: there the recordings must be present.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		candidate := filepath.Join(dir, "..", "shared", "vectors")
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			if _, err := os.Stat(candidate); err == nil {
				return candidate
			}
			if os.Getenv("CI") != "" {
				t.Fatalf("the recorded requests are missing: %s", candidate)
			}
			t.Skipf("the recorded requests are not beside this checkout: %s", candidate)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("not inside the module")
		}
		dir = parent
	}
}

// Read returns one recording, "ejbca/user-enroll-1.cmc.der".
func Read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(Dir(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Requests returns the recorded requests by name: every PKCS#10, CMC and PKCS#7 request.
func Requests(t testing.TB) map[string][]byte {
	t.Helper()
	dir := Dir(t)
	out := map[string][]byte{}
	for _, pattern := range []string{"*/*.p10.der", "*/*.cmc.der", "ms-wstep/4.1.1.1-tok0.der", "ms-wstep/4.1.5.1-tok0.der"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no recording matches %s: %v", pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimPrefix(f, dir+string(filepath.Separator))] = b
		}
	}
	return out
}
