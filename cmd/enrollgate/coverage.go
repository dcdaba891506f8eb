package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/escrow/verify"
	"github.com/spf13/cobra"
)

func (a *app) coverageCommand() *cobra.Command {
	var owner string
	var missing, directory bool
	cmd := &cobra.Command{Use: "coverage", Short: "Show of every valid encryption certificate whether its key is archived, and who can open it", Args: exactArgs(),
		Long: "Coverage looks at every certificate that was issued here, is neither over nor revoked, and encrypts: its key usage has key encipherment,\n" +
			"data encipherment or key agreement, and its purposes e-mail protection, EFS, document encryption or BitLocker, or any. A key is held;\n" +
			"missing: nobody has it but its owner; or closed: fewer designated agents than it takes can open it. PROVEN is when a drill has\n" +
			"opened it last. With --directory also the certificates of other CAs that are in userCertificate of the forest's accounts are looked\n" +
			"at; whether those were revoked is not asked. Exit code 6: a key is missing or closed.",
	}
	cmd.Flags().StringVar(&owner, "owner", "", "only certificates of this account, alice or alice@CORP.EXAMPLE")
	cmd.Flags().BoolVar(&missing, "missing", false, "show only certificates whose key is missing or closed")
	cmd.Flags().BoolVar(&directory, "directory", false, "also read userCertificate of all accounts")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		with := a.withGateway
		if directory {
			with = a.withDirectory
		}
		return with(cmd, func(ctx context.Context, g *gateway.Gateway) error {
			o := g.CoverageOptions(directory)
			o.Owner, o.Progress = owner, progress("certificates")
			return a.coverage(ctx, o, missing)
		})
	}
	return cmd
}

// coverage prints certificates as they are found, and then the counts. What a domain would not tell does not keep back the rest.
func (a *app) coverage(ctx context.Context, o coverage.Options, missing bool) error {
	s := a.stream("certificates", "OWNER", "TEMPLATE", "SERIAL NUMBER", "VALID UNTIL", "ISSUER", "KEY", "TAKES", "OPENED BY", "PROVEN")
	sum, err := coverage.Run(ctx, o, func(n coverage.Certificate) error {
		if missing && n.State == coverage.Held {
			return nil
		}
		template, takes, proven := n.Template, "-", "never"
		if n.Foreign {
			template = elsewhere
		}
		if n.State != coverage.Missing {
			takes = fmt.Sprintf("%d of %d", n.Required, len(n.Agents))
		}
		if !n.Proven.IsZero() {
			proven = day(n.Proven)
		}
		return s.row(n, n.Owner, template, n.Serial, day(n.NotAfter), n.Issuer, n.State, takes, cmp.Or(strings.Join(n.Agents, "; "), "-"), proven)
	})
	if sum == nil {
		return errors.Join(err, s.flush())
	}
	if err := errors.Join(err, s.end("summary", sum, func(w *tabwriter.Writer) { showCounts(w, sum) })); err != nil {
		return err
	}
	if sum.Attention() {
		return &exitError{exitAttention, nil}
	}
	return nil
}

// elsewhere stands for the template of certificates of other CAs.
const elsewhere = "(issued elsewhere)"

func showCounts(w *tabwriter.Writer, sum *coverage.Summary) {
	row(w)
	row(w, "TEMPLATE", "HELD", "MISSING", "CLOSED", "NEVER PROVEN")
	for _, c := range append(sum.Templates, sum.Total) {
		name := c.Template
		switch {
		case c == sum.Total:
			name = "all"
		case name == "":
			name = elsewhere
		}
		row(w, name, c.Held, c.Missing, c.Closed, c.Never)
	}
	if sum.Unreadable > 0 {
		row(w, fmt.Sprintf("%d values of userCertificate are no certificates", sum.Unreadable))
	}
}

func (a *app) verifyCommand() *cobra.Command {
	var id int64
	cmd := &cobra.Command{Use: "verify", Short: "Check every archived key against the audit log and its certificate, without opening it", Args: exactArgs(),
		Long: "Verify first checks the audit log, then that every record is what was archived: what is sealed has the hash that the log has, the key\n" +
			"is that of its certificate, owner, policy and agents are those of the log and of the sealed record, and nothing that the log has is\n" +
			"gone. Exit codes: 1 a record is bad, or not everything could be verified; 6 a record is good, and nobody can open it.",
	}
	cmd.Flags().Int64Var(&id, "id", 0, "only the record with this number; the audit log has no line of that")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if id < 0 || cmd.Flags().Changed("id") && id == 0 {
			return usage("%d is not the number of an archived key; see enrollgate escrow list", id)
		}
		return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
			o, err := g.VerifyOptions(actor())
			if err != nil {
				return err
			}
			o.Record, o.Progress = id, progress("records")
			return a.verify(ctx, o)
		})
	}
	return cmd
}

func (a *app) verify(ctx context.Context, o verify.Options) error {
	s := a.stream("findings", "RECORD", "OWNER", "LEVEL", "WHAT", "FIX")
	report, err := verify.Run(ctx, o, func(f verify.Finding) error { return s.row(f, f.Record, f.Owner, f.Level, f.What, f.Fix) })
	if err != nil {
		return errors.Join(err, s.flush())
	}
	if o.Record != 0 && report.Records == 0 {
		return fmt.Errorf("there is no archived key %d; see enrollgate escrow list", o.Record)
	}
	if err := s.end("summary", report, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("%d records: %d bad, %d that nobody can open, %d destroyed; %d were archived before the audit log had hashes; the log's %d lines are intact",
			report.Records, report.Bad, report.Attention, report.Destroyed, report.Unhashed, report.Lines))
	}); err != nil {
		return err
	}
	switch {
	case report.Bad > 0:
		return &exitError{exitFailed, nil}
	case report.Attention > 0:
		return &exitError{exitAttention, nil}
	}
	return nil
}

// progress says on stderr, every few seconds, how far something long is.
func progress(what string) func(n int64) {
	last := time.Now()
	return func(n int64) {
		if time.Since(last) > progressPeriod {
			last = time.Now()
			fmt.Fprintf(os.Stderr, "enrollgate: %d %s\n", n, what)
		}
	}
}

const progressPeriod = 3 * time.Second
