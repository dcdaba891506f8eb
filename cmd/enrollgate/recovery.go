package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
)

func (a *app) recoveryCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "recovery", Short: "Recover an archived key with several people's consent, from any machine with a Kerberos ticket",
		Long: "A manager opens a case for a key; recovery agents approve it, each with the own key and on the own machine, whenever they have\n" +
			"time; the manager fetches the key once, as PKCS#12. The gateway sees neither the key nor a share of it. Exit code 3 means refused."}
	cmd.AddCommand(a.recoveryKeysCommand(), a.recoveryOpenCommand(), a.recoveryListCommand(), a.recoveryShowCommand(), a.recoveryApproveCommand(),
		a.endCaseCommand("deny", "End a case as an agent", (*cases.Client).Deny), a.recoveryFetchCommand(),
		a.endCaseCommand("withdraw", "End a case as a manager", (*cases.Client).Withdraw))
	return cmd
}

// withCases runs do with a client of the gateway's cases. What the gateway refuses ends with its exit code.
func (a *app) withCases(cmd *cobra.Command, f *gatewayFlags, do func(ctx context.Context, c *cases.Client) error) error {
	return a.withPeople(cmd, f, func(ctx context.Context, c people.Client) error { return do(ctx, &cases.Client{Client: c}) })
}

func (a *app) withPeople(cmd *cobra.Command, f *gatewayFlags, do func(ctx context.Context, c people.Client) error) error {
	base, err := a.gatewayURL(f.url)
	if err != nil {
		return err
	}
	http, krb, err := f.connect()
	if err != nil {
		return err
	}
	defer krb.Close()
	err = do(cmd.Context(), people.Client{HTTP: http, URL: base, Principal: krb.Principal()})
	if refusal, ok := errors.AsType[*hresult.Error](err); ok {
		return &exitError{exitRefused, fmt.Errorf("%s (%s)", refusal.ClientText(), refusal.Code)}
	}
	return err
}

func (a *app) recoveryKeysCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{Use: "keys ACCOUNT", Short: "List the archived keys of a person, newest first", Args: exactArgs("ACCOUNT")}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.withCases(cmd, &f, func(ctx context.Context, c *cases.Client) error {
			keys, err := c.Keys(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(keys, func(w *tabwriter.Writer) {
				row(w, "KEY", "ARCHIVED", "OWNER", "SERIAL NUMBER", "POLICY", "AGENTS NEEDED", "SUBJECT")
				for _, k := range keys {
					row(w, k.Record, day(k.Archived), k.Owner, k.Serial, k.Policy, fmt.Sprintf("%d of %d", k.Required, k.Recipients), k.Subject)
				}
			})
		})
	}
	f.add(cmd)
	return cmd
}

func (a *app) recoveryListCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{Use: "list", Short: "List cases, newest first", Args: exactArgs()}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withCases(cmd, &f, func(ctx context.Context, c *cases.Client) error {
			listed, err := c.List(ctx)
			if err != nil {
				return err
			}
			for name, why := range listed.Unusable {
				fmt.Fprintf(os.Stderr, "enrollgate: cases of the recovery policy %q are not shown: %s\n", name, why)
			}
			list := listed.Cases
			return a.print(list, func(w *tabwriter.Writer) {
				row(w, "CASE", "STATE", "APPROVALS", "OPENED", "BY", "KEY OF", "FOR", "EXPIRES", "REASON")
				for _, k := range list {
					s := &k.Statement
					row(w, k.ID, k.State, fmt.Sprintf("%d of %d", len(k.Approvals), k.Required), day(k.Created), k.OpenedBy, s.Owner, s.Recipient, day(k.Expires), s.Reason)
				}
			})
		})
	}
	f.add(cmd)
	return cmd
}

func (a *app) recoveryShowCommand() *cobra.Command {
	var f gatewayFlags
	var out string
	cmd := &cobra.Command{Use: "show CASE...", Short: "Show cases; write what an agent needs to approve them on a machine without a network", Args: cobra.MinimumNArgs(1)}
	cmd.Flags().StringVar(&out, "out", "", "file to write for recovery approve FILE")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ids, err := caseIDs(args)
		if err != nil {
			return err
		}
		return a.withCases(cmd, &f, func(ctx context.Context, c *cases.Client) error {
			list, files, err := showCases(ctx, c, ids, out != "")
			if err != nil {
				return err
			}
			if out != "" {
				if err := writeJSON(out, files); err != nil {
					return err
				}
			}
			return a.print(oneOrAll(list), func(w *tabwriter.Writer) {
				for _, k := range list {
					showCase(w, k)
				}
			})
		})
	}
	f.add(cmd)
	return cmd
}

// showCases gets cases, and where approve is set what is needed to approve them, which then must be there for each.
func showCases(ctx context.Context, c *cases.Client, ids []int64, approve bool) (list []*cases.Case, files *recovery.Files, err error) {
	files = &recovery.Files{}
	for _, id := range ids {
		k, file, err := c.Show(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, k)
		if !approve {
			continue
		}
		if file == nil || file.Case != id {
			return nil, nil, &exitError{exitRefused, fmt.Errorf("case %d is %s, or you are no approver of its policy: there is nothing to approve", id, k.State)}
		}
		files.Cases = append(files.Cases, *file)
	}
	return list, files, nil
}

// oneOrAll is the one element of a list, or the list: programs that ask about one thing get one.
func oneOrAll[T any](list []T) any {
	if len(list) == 1 {
		return list[0]
	}
	return list
}

func showCase(w io.Writer, k *cases.Case) {
	s := &k.Statement
	row(w, "Case", k.ID)
	row(w, "State", k.State)
	row(w, "Archived key", fmt.Sprintf("%d of %s", s.Record, s.Owner))
	row(w, "For", s.Recipient)
	row(w, "Reason", s.Reason)
	row(w, "Opened by", k.OpenedBy+", "+day(k.Created))
	row(w, "Expires", day(k.Expires))
	row(w, "Policy", fmt.Sprintf("%s: %d agents", k.Policy, k.Required))
	if k.Note != "" {
		row(w, "Ended because", k.Note)
	}
	for _, p := range k.Approvals {
		row(w, "Approved by", fmt.Sprintf("%s, %s, with the share of %s", p.Approver, day(p.Created), p.Agent))
	}
}

// endCaseCommand is deny or withdraw.
func (a *app) endCaseCommand(verb, short string, do func(c *cases.Client, ctx context.Context, id int64, reason string) (*cases.Done, error)) *cobra.Command {
	var f gatewayFlags
	var reason string
	cmd := &cobra.Command{Use: verb + " CASE --reason TEXT", Short: short, Args: exactArgs("CASE")}
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept in the audit log")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := caseID(args[0])
		if err != nil {
			return err
		}
		if reason == "" {
			return usage("--reason is needed")
		}
		return a.withCases(cmd, &f, func(ctx context.Context, c *cases.Client) error {
			done, err := do(c, ctx, id, reason)
			if err != nil {
				return err
			}
			return a.printSteps(done)
		})
	}
	f.add(cmd)
	return cmd
}

func (a *app) printSteps(all ...*cases.Done) error {
	return a.print(oneOrAll(all), func(w *tabwriter.Writer) {
		for _, done := range all {
			k := done.Case
			row(w, fmt.Sprintf("case %d is %s, with %d of %d approvals", k.ID, k.State, len(k.Approvals), k.Required))
			row(w, "Receipt", receiptText(done.Receipt))
		}
	})
}

func caseIDs(args []string) (ids []int64, err error) {
	for _, text := range args {
		id, err := caseID(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, id) {
			return nil, usage("case %d occurs twice", id)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func caseID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 {
		return 0, usage("%q is not the number of a case; see enrollgate recovery list", text)
	}
	return id, nil
}

// readJSON reads a file that another step has written.
func readJSON(path string, into any) error { return readJSONUpTo(path, recovery.MaxFile, into) }

func readJSONUpTo(path string, limit int64, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := recovery.Decode(f, limit, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON writes a new file that is to be passed on.
func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return writeNew(path, text, 0o644)
}

// subjectOf shows the name in a certificate, on one line.
func subjectOf(der []byte) string {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "(unreadable)"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, dn.Show(cert.RawSubject))
}
