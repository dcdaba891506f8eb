package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/spf13/cobra"
)

func (a *app) explainCommand() *cobra.Command {
	var template, ca string
	var all bool
	cmd := &cobra.Command{
		Use: "explain PRINCIPAL --template T | --all", Short: "Tell what would happen if an account enrolled now, and why", Args: exactArgs("PRINCIPAL"),
		Long: "Explain decides for an account as the gateway would, without enrolling: every check with its outcome, the reason and the fix,\n" +
			"the certificate that would be issued, and whether the client would ask for it by itself. With --all it does so for every\n" +
			"template of the forest. PRINCIPAL is alice, alice@corp.example, CORP\\alice, WS1$ or a distinguished name.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (template == "") != all {
				return usage("name the template with --template, or ask for every one with --all")
			}
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if all {
					list, err := g.ExplainAll(ctx, args[0], ca)
					if err != nil {
						return err
					}
					return a.print(list, func(w *tabwriter.Writer) { showExplanations(w, list) })
				}
				e, err := g.Explain(ctx, args[0], template, ca)
				if err != nil {
					return err
				}
				return a.print(e, func(w *tabwriter.Writer) { showExplanation(w, e) })
			})
		},
	}
	cmd.Flags().StringVarP(&template, "template", "t", "", "name of the template")
	cmd.Flags().BoolVar(&all, "all", false, "explain every template of the forest")
	cmd.Flags().StringVar(&ca, "ca", "", "name of the CA (default: the one that offers the template)")
	return cmd
}

func showExplanations(w *tabwriter.Writer, list []*gateway.Explanation) {
	row(w, "TEMPLATE", "OUTCOME", "CA", "AUTOENROLLMENT", "WHY NOT")
	for _, e := range list {
		why := ""
		if i := slices.IndexFunc(e.Checks, func(c templates.Check) bool { return !c.Pass }); i >= 0 {
			why = e.Checks[i].Reason
		} else if len(e.AutoEnrollment.Skips) > 0 {
			why = "autoenrollment: " + e.AutoEnrollment.Skips[0]
		}
		row(w, e.Template, strings.ToUpper(string(e.Outcome)), e.CA, yesNo(e.AutoEnrollment.Enrolls), why)
	}
}

func showExplanation(w *tabwriter.Writer, e *gateway.Explanation) {
	row(w, "Account", e.DN)
	row(w, "Template", e.Template)
	row(w, "CA", strings.Join(append([]string{e.CA}, e.OtherCAs...), ", or "))
	if len(e.Signers) > 1 || e.Signers[0].CA != e.CA {
		row(w, "Signed by", signers(e.Signers))
	}
	row(w, "Outcome", strings.ToUpper(string(e.Outcome)))
	if p := e.Profile; e.Outcome != templates.Deny {
		row(w, "Subject", p.SubjectText)
		row(w, "Alternative names", strings.Join(p.SANs, ", "))
		row(w, "Purposes", strings.Join(p.EKUs, ", "))
		row(w, "Key usage", strings.Join(p.KeyUsage, ", "))
		row(w, "Valid until", p.NotAfter.Format(time.RFC3339))
		row(w, "Key archived", yesNo(e.Archive))
		row(w, "Published", yesNo(p.PublishToDS || p.PublishToKRA))
	}
	row(w, "Autoenrollment", yesNo(e.AutoEnrollment.Enrolls))
	for _, reason := range e.AutoEnrollment.Skips {
		row(w, "", "skipped: "+reason)
	}
	for _, note := range e.AutoEnrollment.Notes {
		row(w, "", note)
	}
	row(w)
	printChecks(w, e.Checks)
}

// signers tells who signs, and how often.
func signers(list []gateway.Share) string {
	var first, then []string
	for _, s := range list {
		if s.Percent == 0 {
			then = append(then, s.CA)
		} else {
			first = append(first, fmt.Sprintf("%s (%d%%)", s.CA, s.Percent))
		}
	}
	text := strings.Join(first, " or ")
	if len(then) > 0 {
		text += "; where none takes the order: " + strings.Join(then, ", then ")
	}
	return text
}
