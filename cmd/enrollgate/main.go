// Command enrollgate is the certificate enrollment gateway and everything an administrator needs around it.
//
// Each command prints a table for people, or JSON with --output json. Exit codes: 0 done, 1 failed, 2 wrong usage,
// 3 refused (a request that policy denies, a recovery that is not allowed, a danger that lint finds and nobody has accepted),
// 4 pending, 5 changes (that a plan found), 6 something needs attention (escrow agents health, coverage,
// verify, rewrap and drill; doctor).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/spf13/cobra"
)

// Exit codes, beside 0 for success.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitRefused   = 3
	exitPending   = 4
	exitChanges   = 5
	exitAttention = 6
)

// exitError carries an exit code; a nil cause means that everything was printed already.
type exitError struct {
	code  int
	cause error
}

func (e *exitError) Error() string {
	if e.cause == nil {
		return ""
	}
	return e.cause.Error()
}

func (e *exitError) Unwrap() error { return e.cause }

func main() {
	if err := memory.ForbidCoreDumps(); err != nil { // each command may have a key in its memory
		fmt.Fprintln(os.Stderr, "enrollgate: "+err.Error())
		os.Exit(exitFailed)
	}
	_ = memory.Lock() // where it may be; serve says where it may not
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "enrollgate: "+text)
	}
	return code
}

// app is what the commands share.
type app struct {
	configPath string
	output     string
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:           "enrollgate",
		Short:         "Active Directory certificate auto-enrollment gateway with key archival",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return usage("--output must be table or json, not %q", a.output)
			}
			return nil
		},
	}
	root.PersistentFlags().StringVarP(&a.configPath, "config", "c", "", "configuration file (default $ENROLLGATE_CONFIG or /etc/enrollgate/enrollgate.yaml)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "output format: table or json")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	root.AddCommand(a.serveCommand(), a.demoCommand(), a.inspectCommand(), a.templatesCommand(), a.explainCommand(), a.requestsCommand(),
		a.escrowCommand(), a.recoveryCommand(), a.caCommand(), a.publishCommand(), a.leaversCommand(), a.enrollCommand(), a.initCommand(), a.doctorCommand(), a.auditCommand(), a.backupCommand(), a.restoreCommand(), a.configCommand(), a.healthCommand(), a.versionCommand())
	return root
}

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exactArgs demands positional arguments by name.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usage("usage: %s", cmd.UseLine())
		}
		return nil
	}
}
