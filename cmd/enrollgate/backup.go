package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/backup"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/spf13/cobra"
)

func (a *app) backupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "backup", Short: "Copy the database into a file while the gateway goes on, and check such a file"}
	cmd.AddCommand(&cobra.Command{
		Use: "create FILE", Short: "Write a backup of the whole database to a new file", Args: exactArgs("FILE"),
		Long: "Create writes one state of the database, in which everything is that was acknowledged before it began, whatever the kind of\n" +
			"database. Sealed keys stay sealed. The keys that lie beside the database are not in it: the secret and what else is in the data\n" +
			"folder, and those of CAs; keep them elsewhere.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if _, err := g.Checkpoint(ctx); err != nil { // the backup says whose log it has
					return err
				}
				m, err := backup.Create(ctx, g.DB, args[0], time.Now())
				if err != nil {
					return err
				}
				return a.print(m, func(w *tabwriter.Writer) {
					showManifest(w, m)
					row(w, "written to "+args[0])
				})
			})
		},
	}, &cobra.Command{
		Use: "verify FILE", Short: "Prove that a backup can be restored and that nothing in it was changed", Args: exactArgs("FILE"),
		Long: "Verify restores the backup into a database beside it, which it removes again, and proves what restore proves.",
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := backup.Verify(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(m, func(w *tabwriter.Writer) {
				showManifest(w, m)
				row(w, "every row has come out as it went in, and the audit log is intact")
			})
		},
	})
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Fill an empty database from a backup", Args: exactArgs("FILE"),
		Long: "Restore fills the configured database, which must be empty, and proves before anything becomes durable that every row is there,\n" +
			"octet for octet, and that the audit log has the root that it had. Put the secret and the keys of the data folder back before.",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, err := config.Load(a.path())
			if err != nil {
				return err
			}
			db, err := gateway.OpenDatabase(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.Close()) }()
			m, err := backup.Restore(cmd.Context(), db, args[0], actor(), time.Now())
			if err != nil {
				return err
			}
			return a.print(m, func(w *tabwriter.Writer) {
				showManifest(w, m)
				row(w, "restored: every row is there, octet for octet, and the audit log is intact")
				row(w)
				row(w, fmt.Sprintf("What happened after %s is not in it. Who keeps a receipt or a checkpoint from later sees that:", m.Audit.Time.Format(time.RFC3339)))
				row(w, "  enrollgate audit verify --receipt LINE:HASH --checkpoint FILE")
				row(w, "Keys that were archived or destroyed, and certificates that were issued or revoked, since then: look at the CA and at the exported log.")
			})
		},
	}
}

func showManifest(w *tabwriter.Writer, m *backup.Manifest) {
	row(w, "BACKUP OF", m.Created.Local().Format(time.RFC3339))
	row(w, "SCHEMA", m.Schema)
	for _, name := range slices.Sorted(maps.Keys(m.Tables)) {
		row(w, name, fmt.Sprintf("%d rows", m.Tables[name].Rows))
	}
	row(w, "AUDIT LOG", fmt.Sprintf("%d lines, root %s", m.Audit.Lines, base64.StdEncoding.EncodeToString(m.Audit.Root[:])))
	if m.Audit.Lines > 0 {
		row(w, "RECEIPT", fmt.Sprintf("%d:%s", m.Audit.Last.Seq, m.Audit.Last.Hash))
	}
	row(w, "SHA-256", m.SHA256)
}
