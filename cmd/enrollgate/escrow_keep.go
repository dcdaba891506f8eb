package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/spf13/cobra"
)

// keyCommand is a command about one archived key that needs a reason.
func (a *app) keyCommand(use, short, long, done string, do func(ctx context.Context, e *escrow.Escrow, id int64, reason string) error) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: use + " ID", Short: short, Long: long, Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usage("%q is not the number of an archived key; see enrollgate escrow list", args[0])
			}
			if reason == "" {
				return usage("say why with --reason; it is kept in the audit log")
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				err := do(ctx, g.Escrow, id, reason)
				if errors.Is(err, escrow.ErrKept) {
					return &exitError{exitRefused, err}
				}
				if err != nil {
					return err
				}
				entry, err := g.Escrow.Get(ctx, id)
				if err != nil {
					return err
				}
				return a.print(entry, func(w *tabwriter.Writer) { row(w, fmt.Sprintf(done, id, entry.Owner)) })
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept in the audit log")
	return cmd
}

func (a *app) escrowDestroyCommand() *cobra.Command {
	return a.keyCommand("destroy", "Destroy an archived key for good",
		"Destroy overwrites what is sealed. The row stays in the list, with when, by whom and why, and a line in the audit log. A key on\n"+
			"hold, in a live recovery case, or to be kept by a rule under escrow.retention is not destroyed (exit code 3). Backups that were\n"+
			"made before still have the key: they have to go, too.",
		"destroyed key %d of %s; backups made before still have it", func(ctx context.Context, e *escrow.Escrow, id int64, reason string) error {
			return e.Destroy(ctx, id, actor(), reason)
		})
}

func (a *app) escrowHoldCommand() *cobra.Command {
	return a.keyCommand("hold", "Keep an archived key from being destroyed, by anybody, until it is released", "",
		"key %d of %s is on hold", func(ctx context.Context, e *escrow.Escrow, id int64, reason string) error {
			return e.Hold(ctx, id, actor(), reason)
		})
}

func (a *app) escrowReleaseCommand() *cobra.Command {
	return a.keyCommand("release", "End the hold of an archived key", "",
		"key %d of %s is not on hold any more", func(ctx context.Context, e *escrow.Escrow, id int64, reason string) error {
			return e.Release(ctx, id, actor(), reason)
		})
}

func (a *app) escrowRetentionCommand() *cobra.Command {
	var dry, run, confirm bool
	cmd := &cobra.Command{
		Use: "retention", Short: "Destroy the archived keys that were kept long enough", Args: exactArgs(),
		Long: "Retention destroys the keys whose last certificate ended longer ago than the rules under escrow.retention say; the service does the\n" +
			"same by itself. Where more are due than escrow.retention.max_per_run, nothing is destroyed (exit code 3) until --confirm says that\n" +
			"it is no mistake.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dry && !run && !confirm || dry && run || dry && confirm || run && confirm {
				return usage("say one of --dry-run, --run and --confirm")
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if len(g.Config.Escrow.Retention.Rules) == 0 {
					return errors.New("there are no rules under escrow.retention.rules: every key is kept for ever")
				}
				do := g.Retention().Check
				switch {
				case dry:
					do = g.Retention().Look
				case confirm:
					do = func(ctx context.Context) (*escrow.RetentionReport, error) { return g.Retention().Confirm(ctx, actor()) }
				}
				r, err := do(ctx)
				if err != nil {
					return err
				}
				err = a.print(r, func(w *tabwriter.Writer) { showRetention(w, r, dry) })
				if r.Held != "" && !dry && err == nil {
					err = &exitError{exitRefused, errors.New("nothing was destroyed: " + r.Held + "; if that is right, run enrollgate escrow retention --confirm")}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what is due")
	cmd.Flags().BoolVar(&run, "run", false, "destroy what is due, as the service does")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "destroy what is due, although more is than the configuration allows")
	return cmd
}

func showRetention(w *tabwriter.Writer, r *escrow.RetentionReport, dry bool) {
	row(w, fmt.Sprintf("%d keys are due, %d were destroyed", r.Due, r.Destroyed))
	if r.Held != "" {
		row(w, "HELD: "+r.Held)
	}
	row(w)
	row(w, "ID", "OWNER", "POLICY", "TEMPLATE", "ENDED", "DUE", "SUBJECT", "WHAT")
	for _, k := range r.Keys {
		what := "not destroyed"
		switch {
		case k.Destroyed:
			what = "destroyed"
		case k.Kept != "":
			what = k.Kept
		case r.Held != "":
			what = "held"
		case dry:
			what = "would be destroyed"
		}
		row(w, k.ID, k.Owner, k.Policy, k.Template, day(k.Ended), day(k.Due), k.Subject, what)
	}
}
