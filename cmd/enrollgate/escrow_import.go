package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
)

func (a *app) escrowImportCommand() *cobra.Command {
	var owner, template string
	var password passwordFlags
	cmd := &cobra.Command{
		Use: "import FILE.p12", Short: "Archive a key that a user has already, from PKCS#12", Args: exactArgs("FILE.p12"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if owner == "" {
				return usage("say whose key it is with --owner")
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				key, cert, _, err := readPKCS12(args[0], &password)
				if err != nil {
					return err
				}
				id, err := g.Escrow.Import(ctx, key, cert, g.ImportOwner(ctx, owner, template), actor())
				if err != nil {
					return err
				}
				return a.print(map[string]any{"record": id, "owner": owner, "subject": dn.Show(cert.RawSubject)}, func(w *tabwriter.Writer) {
					row(w, fmt.Sprintf("archived the key of %s as number %d", dn.Show(cert.RawSubject), id))
				})
			})
		},
	}
	cmd.Flags().StringVar(&owner, "owner", "", "account that the key belongs to, alice@CORP.EXAMPLE")
	cmd.Flags().StringVar(&template, "template", "", "template by which the recovery policy is chosen, as if the key was enrolled now")
	password.add(cmd, "password", "password of the file")
	return cmd
}

// importBlobFlags are the flags of escrow import-blob.
type importBlobFlags struct {
	ca, owner, template string
	designate           bool
}

func (a *app) escrowImportBlobCommand() *cobra.Command {
	f := &importBlobFlags{}
	cmd := &cobra.Command{
		Use: "import-blob FILE...", Short: "Take over keys that AD CS has archived, from files that certutil -getkey wrote", Args: cobra.MinimumNArgs(1),
		Long: "On the old CA server, certutil -getkey SERIAL FILE writes an archived key, closed. Import-blob takes such files over as they\n" +
			"are: the same recovery agents open them here. A file that cannot be taken over is named, and the others go on.",
	}
	flags := cmd.Flags()
	flags.StringVar(&f.ca, "ca", "", "certificate of the old CA server, which has signed the files")
	flags.StringVar(&f.owner, "owner", "", "account that the keys belong to (default: the user principal name in each certificate)")
	flags.StringVar(&f.template, "template", "", "template by which the recovery policy is chosen, as if the keys were enrolled now")
	flags.BoolVar(&f.designate, "designate", false, "designate the agents that the files are sealed to, also those whose certificate has expired")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.ca == "" {
			return usage("name the certificate of the old CA server with --ca")
		}
		cas, err := local.LoadCertificates(f.ca)
		if err != nil {
			return err
		}
		return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error { return a.importBlobs(ctx, g, args, cas[0], f) })
	}
	return cmd
}

type importedBlob struct {
	File   string `json:"file"`
	Record int64  `json:"record,omitempty"`
	Owner  string `json:"owner,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (a *app) importBlobs(ctx context.Context, g *gateway.Gateway, files []string, ca *x509.Certificate, f *importBlobFlags) error {
	var rows []importedBlob
	failed := 0
	for i, file := range files {
		r := importedBlob{File: file}
		err := importBlob(ctx, g, ca, f, &r)
		if err != nil {
			r.Error = err.Error()
			failed++
		}
		rows = append(rows, r)
		if (i+1)%100 == 0 {
			fmt.Fprintf(os.Stderr, "%d of %d files\n", i+1, len(files))
		}
	}
	if err := a.print(rows, func(w *tabwriter.Writer) {
		row(w, "FILE", "RECORD", "OWNER", "ERROR")
		for _, r := range rows {
			row(w, r.File, r.Record, r.Owner, r.Error)
		}
	}); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d files were not taken over", failed, len(files))
	}
	return nil
}

func importBlob(ctx context.Context, g *gateway.Gateway, ca *x509.Certificate, f *importBlobFlags, r *importedBlob) error {
	text, err := os.ReadFile(r.File)
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(text); block != nil {
		text = block.Bytes
	}
	blob, _, err := wcce.ParseRecoveryBlob(text)
	if err != nil {
		return err
	}
	if r.Owner = f.owner; r.Owner == "" {
		r.Owner = templates.UserPrincipalName(blob.Certificate)
	}
	if r.Owner == "" {
		return fmt.Errorf("the certificate of %s has no user principal name: say whose key it is with --owner", dn.Show(blob.Certificate.RawSubject))
	}
	o := escrow.BlobImport{CA: ca, Owner: g.ImportOwner(ctx, r.Owner, f.template), Designate: f.designate}
	r.Record, err = g.Escrow.ImportBlob(ctx, text, o, actor())
	return err
}

func (a *app) escrowExportCommand() *cobra.Command {
	var format, out, reason, serial, owner string
	cmd := &cobra.Command{
		Use: "export [ID]", Short: "Write an archived key, closed, in Windows's format", Args: cobra.MaximumNArgs(1),
		Long: "Export writes what certutil -getkey of AD CS writes. A recovery agent opens it on a Windows machine with certutil\n" +
			"-recoverkey FILE user.p12. It is in the audit log.",
	}
	flags := cmd.Flags()
	flags.StringVar(&format, "format", "recovery-blob", "recovery-blob: as certutil -getkey")
	flags.StringVar(&out, "out", "user.p7", "file to write")
	flags.StringVar(&reason, "reason", "", "why; kept in the audit log")
	flags.StringVar(&serial, "serial", "", "serial number of the certificate, hexadecimal")
	flags.StringVar(&owner, "owner", "", "account whose newest key to export, alice or alice@CORP.EXAMPLE")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format != "recovery-blob" {
			return usage("the format %q is not known, recovery-blob is", format)
		}
		if reason == "" {
			return usage("--reason is needed")
		}
		return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
			entry, err := findEntry(ctx, g, args, serial, owner)
			if err != nil {
				return err
			}
			ca, err := g.BlobSigner(ctx, entry.CA())
			if err != nil {
				return err
			}
			der, err := g.Escrow.ExportBlob(ctx, entry, ca, actor(), reason)
			if err != nil {
				return err
			}
			if err := writeSecret(out, der); err != nil {
				return err
			}
			return a.print(map[string]any{"record": entry.ID, "owner": entry.Owner, "file": out}, func(w *tabwriter.Writer) {
				row(w, fmt.Sprintf("archived key %d of %s written to %s, closed; an agent opens it: certutil -recoverkey %s user.p12", entry.ID, entry.Owner, out, out))
			})
		})
	}
	return cmd
}
