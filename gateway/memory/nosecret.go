//go:build !goexperiment.runtimesecret

package memory

// Erases tells whether Secret erases what it leaves: whether the program was built with GOEXPERIMENT=runtimesecret.
const Erases = false

// Secret runs f; this build erases nothing that f leaves in registers and on stacks.
func Secret(f func()) { f() }

// Outside runs f.
func Outside(f func()) { f() }
