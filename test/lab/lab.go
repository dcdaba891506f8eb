// Package lab carries the scripts of the test lab, a real Samba Active Directory domain controller, so that the demo works
// from the one binary. README.md beside it says what the lab holds.
package lab

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

//go:embed lab.sh *.py
var scripts embed.FS

// Unpack writes the scripts into an existing folder and returns the path of lab.sh.
func Unpack(dir string) (string, error) {
	entries, err := scripts.ReadDir(".")
	if err != nil {
		return "", err
	}
	var errs error
	for _, e := range entries {
		text, err := scripts.ReadFile(e.Name())
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, e.Name()), text, 0o755)
		}
		errs = errors.Join(errs, err)
	}
	if errs != nil {
		return "", fmt.Errorf("unpack the lab: %w", errs)
	}
	return filepath.Join(dir, "lab.sh"), nil
}
