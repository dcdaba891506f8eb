package main

import (
	"github.com/enrollgate/enrollgate/test/demo"
	"github.com/spf13/cobra"
)

func (a *app) demoCommand() *cobra.Command {
	var o demo.Options
	var inside bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Show the whole job in a throw-away Samba Active Directory", Args: exactArgs(),
		Long: "The demo starts a Samba AD domain controller and a gateway in private namespaces, enrolls, archives, recovers, and\n" +
			"cleans up. It needs the Debian packages that test/lab/lab.sh deps installs (as root it installs them itself).",
		RunE: func(cmd *cobra.Command, _ []string) error {
			do := demo.Run
			if inside {
				do = demo.Inside
			}
			return exit(do(cmd.Context(), o))
		},
	}
	cmd.Flags().BoolVar(&o.Shell, "shell", false, "open a shell in the live environment after the steps")
	cmd.Flags().StringVar(&o.Command, "run", "", "run this command in it after the steps; only its output is on standard output")
	cmd.Flags().BoolVar(&inside, "inside", false, "")
	if err := cmd.Flags().MarkHidden("inside"); err != nil {
		panic(err)
	}
	return cmd
}

// exit turns the exit code of a command that was run into this program's.
func exit(code int, err error) error {
	if err == nil && code != 0 {
		return &exitError{code: code}
	}
	return err
}
