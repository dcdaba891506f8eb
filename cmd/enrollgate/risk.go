package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/templates/risk"
	"github.com/enrollgate/enrollgate/templates/risk/sarif"
	"github.com/spf13/cobra"
)

func (a *app) lintCommand() *cobra.Command {
	var rules, accepted bool
	var file string
	cmd := &cobra.Command{
		Use: "lint", Short: "Find dangerous templates, permissions, agents and CA objects (ESC1 to ESC17)", Args: exactArgs(),
		Long: "Lint looks for settings and rights by which somebody who is no administrator becomes somebody else, and says who, how, and what\n" +
			"closes it. A template with an error is not served, unless accept_risk in the configuration names it, the rule, a person and a day.\n" +
			"Exit code 3: there is an error that nobody has accepted.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rules {
				return a.print(risk.Rules(), func(w *tabwriter.Writer) { showRules(w) })
			}
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				found, err := g.Risks(ctx, a.path())
				if err != nil {
					return err
				}
				shown := found
				if accepted {
					shown = slices.DeleteFunc(slices.Clone(found), func(f risk.Finding) bool { return f.Accepted == nil })
				}
				if err := a.printRisks(shown, file); err != nil {
					return err
				}
				if n := count(found).errors; n > 0 {
					return &exitError{code: exitRefused, cause: fmt.Errorf("%d errors that nobody has accepted", n)}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&rules, "rules", false, "list the rules: what each looks at, or why it is closed, and the test that proves it")
	cmd.Flags().BoolVar(&accepted, "accepted", false, "show only what somebody has accepted, by whom and until when")
	cmd.Flags().StringVar(&file, "sarif", "", "also write the findings to this file as SARIF 2.1.0; - for standard output, and nothing else there")
	return cmd
}

func (a *app) printRisks(found []risk.Finding, file string) (err error) {
	if file == "-" {
		return sarif.Write(os.Stdout, version(), found)
	}
	if file != "" {
		f, err := os.Create(file)
		if err != nil {
			return fmt.Errorf("write SARIF: %w", err)
		}
		if err := errors.Join(sarif.Write(f, version(), found), f.Close()); err != nil {
			return fmt.Errorf("write SARIF: %w", err)
		}
	}
	if found == nil {
		found = []risk.Finding{}
	}
	if a.output == "json" {
		return a.print(found, nil)
	}
	showRisks(os.Stdout, found)
	return nil
}

// tally counts findings that nobody has accepted, and those that somebody has.
type tally struct{ errors, warnings, notes, accepted int }

func count(found []risk.Finding) (n tally) {
	for i := range found {
		switch f := &found[i]; {
		case f.Accepted != nil:
			n.accepted++
		case f.Severity == risk.Error:
			n.errors++
		case f.Severity == risk.Warning:
			n.warnings++
		default:
			n.notes++
		}
	}
	return n
}

// showRisks prints findings by object, the worst first, in lines that a terminal can show.
func showRisks(w io.Writer, found []risk.Finding) {
	type key struct {
		kind   risk.Kind
		object string
	}
	groups := map[key][]*risk.Finding{}
	var order []key
	for i := range found {
		k := key{found[i].Kind, found[i].Object}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], &found[i])
	}
	for _, k := range order {
		served := ""
		if slices.ContainsFunc(groups[k], (*risk.Finding).Blocks) {
			served = "  (not served)"
		}
		fmt.Fprintf(w, "%s %s%s\n", k.kind, k.object, served)
		for _, f := range groups[k] {
			fmt.Fprintf(w, "  %-7s  %s  %s\n", level(f), f.Rule, risk.Title(f.Rule))
			if len(f.Who) > 0 {
				line(w, "who", risk.People(f.Who))
			}
			line(w, "how", f.How)
			line(w, "fix", f.Fix)
			if a := f.Accepted; a != nil {
				line(w, "", strings.TrimSuffix(fmt.Sprintf("accepted by %s until %s: %s", a.By, a.LastDay(), a.Reason), ": "))
			}
		}
		fmt.Fprintln(w)
	}
	n := count(found)
	fmt.Fprintf(w, "%d errors, %d warnings, %d notes; %d accepted\n", n.errors, n.warnings, n.notes, n.accepted)
}

func level(f *risk.Finding) string {
	if f.Accepted != nil {
		return "ok"
	}
	return strings.ToUpper(string(f.Severity))
}

// lineWidth is how long a line of text gets.
const lineWidth = 108

// line prints a labelled text, broken at spaces.
func line(w io.Writer, label, text string) {
	column := 0
	fmt.Fprintf(w, "    %-6s", label)
	for i, word := range strings.Fields(text) {
		if column += len(word) + 1; i > 0 && column > lineWidth {
			fmt.Fprintf(w, "\n          ")
			column = len(word) + 1
		} else if i > 0 {
			fmt.Fprint(w, " ")
		}
		fmt.Fprint(w, word)
	}
	fmt.Fprintln(w)
}

func showRules(w io.Writer) {
	for _, r := range risk.Rules() {
		fmt.Fprintf(w, "%s  %s: %s\n", r.Name, r.Title, r.Status)
		for _, part := range [][2]string{{"looks", r.Looks}, {"level", r.Level}, {"test", r.Proof}, {"spec", r.Spec}} {
			if part[1] != "" {
				line(w, part[0], part[1])
			}
		}
	}
}
