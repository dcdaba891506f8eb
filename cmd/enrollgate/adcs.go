package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/spf13/cobra"
)

const exportHelp = "The export is made on the CA:\n\n" +
	"  certutil -view -restrict \"Disposition>=20,Disposition<=21\" -out \"RequestID,Request.Disposition,RequesterName,CertificateTemplate,RawRequest,RawCertificate\" csv > export.csv\n\n"

func (a *app) caImportCommand() *cobra.Command {
	var ca, certificates string
	cmd := &cobra.Command{
		Use: "import-adcs EXPORT --ca NAME --certificates FILE", Short: "Read the database of a Microsoft CA into the ledger", Args: exactArgs("EXPORT"),
		Long: exportHelp + "Its certificates then count as this gateway's: clients renew by them, those of leavers are revoked, and escrow coverage knows them.\n" +
			"The accounts are looked up in the directory. The command may be repeated; what is there already is left alone.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if ca == "" || certificates == "" {
				return usage("name the CA with --ca, and with --certificates the file with its certificates, of all its keys, and those above")
			}
			chain, err := local.LoadCertificates(certificates)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				show := progress("certificates")
				done, err := g.ImportADCS(ctx, f, ca, chain, actor(), func(n int) { show(int64(n)) })
				if err != nil {
					return err
				}
				return a.print(done, func(w *tabwriter.Writer) { showImport(w, done) })
			})
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "name of the Microsoft CA")
	cmd.Flags().StringVar(&certificates, "certificates", "", "its certificates and those above, PEM")
	return cmd
}

func showImport(w *tabwriter.Writer, done *gateway.ADCSImport) {
	row(w, "Imported", done.Imported)
	row(w, "of these revoked", done.Revoked)
	row(w, "Known before", done.Known)
	row(w, "Rows without a certificate", done.Without)
	row(w, "By another CA, not imported", len(done.Foreign))
	for _, name := range done.Unknown {
		row(w, "not in the directory:", name)
	}
}

func (a *app) caShadowCommand() *cobra.Command {
	var ca string
	var all bool
	cmd := &cobra.Command{
		Use: "shadow EXPORT --ca NAME", Short: "Decide what a Microsoft CA has issued once more, and show where the gateway would differ", Args: exactArgs("EXPORT"),
		Long: exportHelp + "Each request is decided as if it came now, with the forest's templates and groups of today. Nothing is issued. Exit code 6: something differs.",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				name, err := caName(g, ca)
				if err != nil {
					return err
				}
				return a.shadow(ctx, g, f, name, all)
			})
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "the published CA that the requests would go to (default: the only one)")
	cmd.Flags().BoolVar(&all, "all", false, "also show where the gateway would do the same")
	return cmd
}

func (a *app) shadow(ctx context.Context, g *gateway.Gateway, f *os.File, ca string, all bool) error {
	s := a.stream("requests", "LINE", "REQUESTER", "TEMPLATE", "OUTCOME", "WHAT")
	counts := map[string]int{}
	without, err := g.ShadowADCS(ctx, f, ca, func(r gateway.Shadow) error {
		counts[r.Outcome]++
		if r.Outcome == gateway.ShadowSame && !all {
			return nil
		}
		what := []string{}
		if r.Reason != "" {
			what = append(what, r.Reason)
		}
		for _, l := range r.Lines {
			what = append(what, fmt.Sprintf("%s: decided now %q, issued then %q", l.Field, l.Decided, l.Returned))
		}
		return s.row(r, r.Line, r.Requester, r.Template, r.Outcome, strings.Join(what, "; "))
	})
	if err != nil {
		return errors.Join(err, s.flush())
	}
	counts["without a certificate"] = without
	if err := s.end("summary", counts, func(w *tabwriter.Writer) {
		row(w)
		row(w, fmt.Sprintf("%d the same, %d different, %d refused by the gateway, %d rows without a certificate",
			counts[gateway.ShadowSame], counts[gateway.ShadowDifferent], counts[gateway.ShadowRefused], without))
	}); err != nil {
		return err
	}
	if counts[gateway.ShadowDifferent]+counts[gateway.ShadowRefused] > 0 {
		return &exitError{exitAttention, nil}
	}
	return nil
}
