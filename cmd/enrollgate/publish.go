package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/leavers"
	"github.com/enrollgate/enrollgate/gateway/publish"
	"github.com/spf13/cobra"
)

func (a *app) publishCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "publish", Short: "Write issued certificates to the directory now, and remove what is over", Args: exactArgs(),
		Long: "Publish looks at every account, and every CA's object in the KRA container, that has certificates of this gateway or should have,\n" +
			"adds what its template wants there and removes what has expired, was revoked or was superseded. The service does the same by\n" +
			"itself, as it becomes necessary; this command does not wait for the next attempt. Exit code 1: something could not be written.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if g.Publisher == nil {
					return errors.New("publishing is switched off: publish.enabled is false")
				}
				reports, err := g.Publisher.Pass(ctx, dry)
				err = errors.Join(a.print(reports, func(w *tabwriter.Writer) { showPublications(w, reports, dry) }), err)
				for _, r := range reports {
					if r.Error != "" && err == nil {
						err = &exitError{code: exitFailed}
					}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be added and removed")
	return cmd
}

func showPublications(w *tabwriter.Writer, reports []publish.Report, dry bool) {
	row(w, "OBJECT", "CHANGE", "TEMPLATE", "SERIAL", "VALID UNTIL", "WHY")
	for _, r := range reports {
		name := cmp.Or(r.DN, fmt.Sprintf("%s %s", r.Place, r.Name))
		add, remove := "added", "removed"
		switch {
		case dry:
			add, remove = "would add", "would remove"
		case r.Error != "":
			add, remove = "not added", "not removed"
		}
		for _, i := range r.Add {
			row(w, name, add, i.Template, i.Serial, day(i.NotAfter), i.Why)
		}
		for _, i := range r.Remove {
			row(w, name, remove, cmp.Or(i.Template, "-"), i.Serial, day(i.NotAfter), i.Why)
		}
		if r.Error != "" {
			row(w, name, "FAILED", "-", "-", "-", r.Error)
		}
		if r.Next != nil {
			row(w, name, "waits", "-", "-", "-", fmt.Sprintf("failed %d times, is tried again at %s: %s", r.Attempts, day(*r.Next), r.LastError))
		}
		if r.Fix != "" {
			row(w, "", "fix", "", "", "", r.Fix)
		}
	}
}

func (a *app) leaversCommand() *cobra.Command {
	var dry, confirm bool
	cmd := &cobra.Command{
		Use: "leavers", Short: "Revoke the certificates of accounts that were disabled or deleted", Args: exactArgs(),
		Long: "Leavers asks the directory about every account with valid certificates, and revokes those of accounts that have been disabled or\n" +
			"deleted for longer than leavers.grace; archived keys stay recoverable. The service does the same by itself. Where more accounts are\n" +
			"gone than leavers.max_per_run or leavers.max_percent allow, nothing is revoked (exit code 3) until --confirm says that it is no mistake.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dry && confirm {
				return usage("--dry-run and --confirm exclude each other")
			}
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if !dry && !g.Config.Leavers.Enabled {
					return errors.New("leavers.enabled is false: nothing is revoked; look with --dry-run, then switch it on in the configuration")
				}
				r, err := findLeavers(ctx, leavers.New(g.LeaverOptions()), dry, confirm)
				if err != nil {
					return err
				}
				err = a.print(r, func(w *tabwriter.Writer) { showLeavers(w, r, dry) })
				if r.Held != "" && !dry && err == nil {
					err = &exitError{exitRefused, errors.New("nothing was revoked: " + r.Held + "; if that is right, run enrollgate leavers --confirm")}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show who is gone, since when, and what would be revoked when")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "revoke although more accounts are gone than the configuration allows")
	return cmd
}

func findLeavers(ctx context.Context, c *leavers.Checker, dry, confirm bool) (*leavers.Report, error) {
	switch {
	case dry:
		return c.Look(ctx)
	case confirm:
		return c.Confirm(ctx, actor())
	}
	return c.Check(ctx)
}

func showLeavers(w *tabwriter.Writer, r *leavers.Report, dry bool) {
	row(w, fmt.Sprintf("%d accounts with valid certificates: %d gone, %d of them due, %d unknown", r.Known, r.Gone, r.Due, r.Unknown))
	if r.Held != "" {
		row(w, "HELD: "+r.Held)
	}
	row(w)
	row(w, "ACCOUNT", "STATE", "SINCE", "DUE", "REQUEST", "TEMPLATE", "SERIAL", "WHAT")
	for _, v := range r.Leavers {
		for _, c := range v.Certificates {
			row(w, v.Account, v.State, day(v.Since), day(v.Due), c.Request, c.Template, c.Serial, fate(r, v, c, dry))
		}
		if v.Error != "" {
			row(w, v.Account, "FAILED", "", "", "", "", "", v.Error)
		}
	}
}

// fate is what happens to a leaver's certificate.
func fate(r *leavers.Report, v leavers.Leaver, c leavers.Certificate, dry bool) string {
	switch {
	case c.Revoked:
		return "revoked"
	case c.Keep != "":
		return "kept: " + c.Keep
	case !v.IsDue:
		return "waits"
	case r.Held != "":
		return "held"
	case dry:
		return "would be revoked"
	}
	return "not revoked"
}
