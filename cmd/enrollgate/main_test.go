package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/enrollgate/enrollgate/test/vectors"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"enrollgate": func() { os.Exit(run(os.Args[1:])) }})
}

// The scripts in testdata are what an administrator types, and what comes back. None needs a network.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(e *testscript.Env) error {
		e.Setenv("ENROLLGATE_CONFIG", filepath.Join(e.WorkDir, "enrollgate.yaml"))
		return nil
	}})
}

func TestInspectOfRecordedRequests(t *testing.T) {
	dir := vectors.Dir(t)
	testscript.Run(t, testscript.Params{Dir: "testdata/recorded", Setup: func(e *testscript.Env) error {
		e.Setenv("VECTORS", dir)
		return nil
	}})
}
