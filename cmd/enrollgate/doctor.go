package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway/doctor"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{Use: "doctor", Short: "Look for what keeps clients from enrolling: directory, Kerberos, DNS, firewall, certificates, database", Args: exactArgs(),
		Long: "Doctor looks at everything an enrollment needs, and says of each fault what to do. Run it on the gateway, as its account.\n" +
			"Exit code 0: all is well; 6: something needs attention. What could not be found out is marked unknown, with the reason.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return usage("--timeout must be more than 0")
			}
			r := doctor.Examine(cmd.Context(), doctor.Options{Path: a.path(), Timeout: timeout})
			if err := a.print(r, func(w *tabwriter.Writer) { showReport(w, r) }); err != nil {
				return err
			}
			if r.Attention > 0 {
				return &exitError{code: exitAttention}
			}
			return nil
		}}
	cmd.Flags().DurationVar(&timeout, "timeout", doctor.DefaultTimeout, "how long each check may take")
	return cmd
}

func showReport(w *tabwriter.Writer, r *doctor.Report) {
	row(w, "OUTCOME", "CHECK", "SUBJECT", "REASON")
	for _, f := range r.Findings {
		row(w, f.Outcome, f.Check, f.Subject, dn.Clean(strings.ReplaceAll(f.Reason, "\n", "; ")))
		if f.Fix != "" {
			row(w, "", "", "", "→ "+dn.Clean(f.Fix))
		}
	}
	fmt.Fprintf(w, "\n%d need attention, %d could not be found out, of %d\n", r.Attention, r.Unknown, len(r.Findings))
}
