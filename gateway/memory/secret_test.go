package memory

import (
	"errors"
	"testing"
)

func TestSecretRunsAndPanicsAsIfItWereNotThere(t *testing.T) {
	cause := errors.New("cause")
	for name, run := range map[string]func(func()){"within": Secret, "outside": Outside, "outside within": func(f func()) { Secret(func() { Outside(f) }) },
		"twice within": func(f func()) { Secret(func() { Secret(f) }) }} {
		n := 0
		run(func() { n++ })
		if n != 1 {
			t.Errorf("%s: it ran %d times", name, n)
		}
		func() {
			defer func() {
				if p := recover(); p != cause {
					t.Errorf("%s: the panic is %v", name, p)
				}
			}()
			run(func() { panic(cause) })
		}()
	}
}
