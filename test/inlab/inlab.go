// Package inlab says which tests need the lab's domain controller.
package inlab

import (
	"os"
	"testing"
)

// Need skips a test outside of the lab. In CI, where the lab must be running, it fails instead.
func Need(t testing.TB) {
	t.Helper()
	switch {
	case os.Getenv("LAB_DC") != "":
	case os.Getenv("CI") != "":
		t.Fatal("the lab's domain controller is not running: this must not be skipped here")
	default:
		t.Skip("needs the lab's domain controller: run make test, or test/lab/lab.sh ns go test ./...")
	}
}

// NeedForeign skips a test where the lab has no second forest. In CI it fails instead.
func NeedForeign(t testing.TB) {
	t.Helper()
	Need(t)
	switch {
	case os.Getenv("LAB_PART_REALM") != "":
	case os.Getenv("CI") != "":
		t.Fatal("the lab has no second forest: this must not be skipped here")
	default:
		t.Skip("needs the lab's second forest: run make test, or LAB_FOREIGN=yes test/lab/lab.sh ns go test …")
	}
}

// Missing skips a test that lacks something which test/deps.sh installs, but fails it in CI.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("missing: %s; run test/deps.sh as root", what)
	}
	t.Skipf("needs %s: run test/deps.sh as root", what)
}
