//go:build goexperiment.runtimesecret

package memory

import (
	"runtime"
	"runtime/secret"

	"golang.org/x/sys/unix"
)

// Erases tells whether Secret erases what it leaves: whether the program was built with GOEXPERIMENT=runtimesecret.
const Erases = true

// Secret runs f, which has secrets in its hands: what f leaves in registers and on stacks is erased before Secret returns, also where a
// signal or the scheduler has interrupted it, and what it has allocated as soon as the garbage collector finds it unused. Goroutines that
// f starts are not covered, nor may f call C: that is what Outside is for.
func Secret(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	secret.Do(f)
	// A signal that came meanwhile has left registers on the thread's signal stack, where the runtime lets them lie until the next
	// garbage collection. Another one overwrites them: that with which the runtime preempts, and which means nothing here.
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGURG)
}

// Outside runs f where C may be called, also from within Secret, whose erasing of registers takes the arguments of such calls with it.
func Outside(f func()) {
	if !secret.Enabled() {
		f()
		return
	}
	done := make(chan any)
	go func() {
		defer func() { done <- recover() }()
		f()
	}()
	if p := <-done; p != nil {
		panic(p)
	}
}
