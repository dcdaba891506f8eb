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
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/spf13/cobra"
)

func (a *app) templatesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "templates", Short: "Look at the forest's certificate templates"}
	list := &cobra.Command{
		Use: "list", Short: "List all templates, which CA offers them and whether they are served", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDirectory(cmd, func(_ context.Context, g *gateway.Gateway) error {
				rows := templateRows(g)
				return a.print(rows, func(w *tabwriter.Writer) {
					row(w, "NAME", "SCHEMA", "VERSION", "VALIDITY", "KEY ARCHIVAL", "APPROVAL", "OFFERED BY", "SERVED")
					for _, t := range rows {
						row(w, t.Name, t.Schema, t.Version, t.Validity, yesNo(t.Archives), yesNo(t.Approval), strings.Join(t.OfferedBy, ", "), t.served())
					}
				})
			})
		},
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show one template: flags, names, extensions, rights", Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				s := g.Directory.Snapshot()
				t := s.TemplateByName(args[0])
				if t == nil {
					return fmt.Errorf("the forest has no template %q", args[0])
				}
				rights, unserved := rightsOf(ctx, g, t), g.Unserved(s, t)
				return a.print(map[string]any{"template": t, "flags": t.Flags(), "rights": rights, "not_served": unserved},
					func(w *tabwriter.Writer) { showTemplate(w, t, rights, unserved) })
			})
		},
	}
	flags := &cobra.Command{
		Use: "flags", Short: "List every flag and attribute that a template can have, and every rule of a CA, and what is done here", Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			flags, attributes, rules := templates.AllFlags(), templates.AttributeRules(), templates.ProcessingRules()
			return a.print(map[string]any{"flags": flags, "attributes": attributes, "rules": rules}, func(w *tabwriter.Writer) {
				row(w, "ATTRIBUTE", "BIT", "FLAG", "EFFECT", "WHAT IT DOES HERE", "SPECIFICATION", "TEST")
				for _, f := range flags {
					row(w, f.Attribute, fmt.Sprintf("0x%08X", f.Bit), f.Name, f.Effect, f.Does, f.Spec, f.Test)
				}
				ruleTable(w, "OTHER ATTRIBUTE", attributes)
				ruleTable(w, "RULE OF A CA", rules)
			})
		},
	}
	cmd.AddCommand(list, show, flags, a.lintCommand())
	cmd.AddCommand(a.gitopsCommands()...)
	return cmd
}

// ruleTable draws a table of its own: its columns have nothing to do with those of the one above.
func ruleTable(w *tabwriter.Writer, title string, rules []templates.Rule) {
	w.Flush()
	row(w)
	row(w, title, "WHAT IS DONE HERE", "SPECIFICATION", "TEST")
	for _, r := range rules {
		row(w, r.Name, r.Does, r.Spec, r.Test)
	}
}

type templateRow struct {
	Name        string   `json:"name"`
	DisplayName string   `json:"display_name,omitempty"`
	OID         string   `json:"oid,omitempty"`
	Schema      int      `json:"schema,omitempty"`
	Version     string   `json:"version,omitempty"`
	Validity    string   `json:"validity,omitempty"`
	Archives    bool     `json:"archives"`
	Approval    bool     `json:"approval"`
	OfferedBy   []string `json:"offered_by"`
	NotServed   []string `json:"not_served,omitempty"` // why
}

func (r templateRow) served() string {
	switch {
	case len(r.NotServed) > 0:
		return "no: " + strings.Join(r.NotServed, "; ")
	case len(r.OfferedBy) == 0:
		return "no: no CA offers it"
	}
	return "yes"
}

func templateRows(g *gateway.Gateway) []templateRow {
	s := g.Directory.Snapshot()
	rows := []templateRow{}
	for _, t := range s.Templates {
		r := templateRow{Name: t.Name, DisplayName: t.DisplayName, OID: t.OID, Schema: t.Schema, Version: fmt.Sprintf("%d.%d", t.Major, t.Minor),
			Validity: days(t.Validity), Archives: t.Archives(), Approval: t.EnrollmentFlags&templates.EnrollPendAllRequests != 0,
			NotServed: g.Unserved(s, t), OfferedBy: []string{}}
		for _, e := range s.Services {
			if e.Offers(t.Name) {
				r.OfferedBy = append(r.OfferedBy, e.Name)
			}
		}
		rows = append(rows, r)
	}
	for name, reason := range s.Unusable {
		rows = append(rows, templateRow{Name: name, NotServed: []string{reason}, OfferedBy: []string{}})
	}
	slices.SortFunc(rows, func(x, y templateRow) int { return strings.Compare(x.Name, y.Name) })
	return rows
}

func days(d time.Duration) string { return fmt.Sprintf("%d days", int(d.Hours()/24)) }

// right is what one account or group may do with a template.
type right struct {
	SID        security.SID `json:"sid"`
	Name       string       `json:"name,omitempty"`
	Enroll     bool         `json:"enroll"`
	AutoEnroll bool         `json:"auto_enroll"`
}

// rightsOf lists who has Enroll or AutoEnroll by an entry of its own.
func rightsOf(ctx context.Context, g *gateway.Gateway, t *templates.Template) []right {
	var sids []security.SID
	for i := range t.Security.DACL {
		if sid := t.Security.DACL[i].SID; sid != "" && !slices.Contains(sids, sid) {
			sids = append(sids, sid)
		}
	}
	names := g.Forest.NamesOf(ctx, sids)
	out := []right{}
	for _, sid := range sids {
		token := security.NewToken(sid)
		r := right{SID: sid, Name: names[sid], Enroll: t.Security.ControlAccess(token, security.RightEnroll).Granted,
			AutoEnroll: t.Security.ControlAccess(token, security.RightAutoEnroll).Granted}
		if r.Enroll || r.AutoEnroll {
			out = append(out, r)
		}
	}
	return out
}

func showTemplate(w *tabwriter.Writer, t *templates.Template, rights []right, unserved []string) {
	row(w, "Name", t.Name)
	row(w, "Display name", t.DisplayName)
	row(w, "OID", t.OID)
	row(w, "Schema version", t.Schema)
	row(w, "Version", fmt.Sprintf("%d.%d", t.Major, t.Minor))
	row(w, "Validity", days(t.Validity))
	row(w, "Renewal", days(t.Overlap)+" before the end")
	row(w, "Purposes", strings.Join(t.Policies(), ", "))
	row(w, "Issuance policies", strings.Join(t.IssuancePolicies, ", "))
	row(w, "Minimum key size", t.MinKeySize)
	row(w, "Signatures of others", strings.TrimSpace(fmt.Sprintf("%d %s", t.RASignatures, strings.Join(slices.Concat(t.RAAppPolicies, t.RAPolicies), ", "))))
	row(w, "Supersedes", strings.Join(t.Supersedes, ", "))
	row(w, "Providers", strings.Join(t.Providers, ", "))
	for _, f := range t.Flags() {
		row(w, f.Attribute, f.Value+"  "+f.Meaning)
	}
	if len(unserved) > 0 {
		row(w, "Not served", strings.Join(unserved, "; "))
	}
	row(w)
	row(w, "WHO", "ENROLL", "AUTOENROLL", "SID")
	for _, r := range rights {
		row(w, r.Name, yesNo(r.Enroll), yesNo(r.AutoEnroll), r.SID)
	}
}

func printChecks(w *tabwriter.Writer, checks []templates.Check) {
	row(w, "", "CHECK", "REASON")
	for _, c := range checks {
		mark := "ok"
		if !c.Pass {
			mark = "NO"
		}
		row(w, mark, c.Name, c.Reason)
		if c.Fix != "" && !c.Pass {
			row(w, "", "", "→ "+c.Fix)
		}
	}
}
