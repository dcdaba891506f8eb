package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// approveFlags are the flags of recovery approve.
type approveFlags struct {
	gatewayFlags
	agentKeyFlags
	code, out, approval string
}

func (a *app) recoveryApproveCommand() *cobra.Command {
	f := &approveFlags{}
	cmd := &cobra.Command{
		Use: "approve CASE...|FILE", Short: "Approve cases with a recovery agent's key", Args: cobra.MinimumNArgs(1),
		Long: "Approve opens the agent's share here, on this machine, and seals it to who has opened the case. The code comes from that\n" +
			"person, by phone or in person, never from the gateway; cases that were opened together have one code. Without a network:\n" +
			"recovery show CASE --out case.json on one machine, recovery approve case.json --key agent.p12 --out approval.json on the\n" +
			"other, then recovery approve CASE --approval approval.json.",
	}
	flags := cmd.Flags()
	flags.StringVar(&f.code, "code", "", "code of the case, as who opened it has told it")
	flags.StringVar(&f.out, "out", "", "write the approval to this file instead of sending it")
	flags.StringVar(&f.approval, "approval", "", "send the approval in this file")
	f.agentKeyFlags.add(cmd)
	f.gatewayFlags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.agentKeyFlags.set() == (f.approval != "") {
			return usage("name the agent's key with --key, or an approval that was made before with --approval")
		}
		if _, err := strconv.ParseInt(args[0], 10, 64); err != nil && len(args) == 1 && f.approval == "" {
			return a.approveFile(args[0], f)
		}
		ids, err := caseIDs(args)
		if err != nil {
			return err
		}
		return a.withCases(cmd, &f.gatewayFlags, func(ctx context.Context, c *cases.Client) error { return a.approveCases(ctx, c, ids, f) })
	}
	return cmd
}

// approveFile makes an approval without a network.
func (a *app) approveFile(path string, f *approveFlags) error {
	if f.out == "" {
		return usage("say with --out where to write the approval; send it with recovery approve CASE --approval FILE")
	}
	files := &recovery.Files{}
	if err := readJSON(path, files); err != nil {
		return err
	}
	_, err := a.approve(files, f)
	return err
}

// approveCases makes approvals, or reads them, and sends them.
func (a *app) approveCases(ctx context.Context, c *cases.Client, ids []int64, f *approveFlags) error {
	approvals := &recovery.Approvals{}
	if f.approval != "" {
		if err := readJSON(f.approval, approvals); err != nil {
			return err
		}
		for _, p := range approvals.Approvals {
			if !slices.Contains(ids, p.Case) {
				return usage("%s has an approval of case %d, which is not named", f.approval, p.Case)
			}
		}
	} else {
		_, files, err := showCases(ctx, c, ids, true)
		if err != nil {
			return err
		}
		if approvals, err = a.approve(files, f); err != nil || f.out != "" {
			return err
		}
	}
	var all []*cases.Done
	for i := range approvals.Approvals {
		done, err := c.Approve(ctx, &approvals.Approvals[i])
		if err != nil {
			return err
		}
		all = append(all, done)
	}
	return a.printSteps(all...)
}

// approve shows what is asked for, asks for the code, and opens the shares. With --out it writes the approvals.
func (a *app) approve(files *recovery.Files, f *approveFlags) (*recovery.Approvals, error) {
	if err := showCasesToApprove(files); err != nil {
		return nil, err
	}
	code, err := f.readCode(files.Cases[0].Statement.Manager)
	if err != nil {
		return nil, err
	}
	key, err := f.open(files.Certificates())
	if err != nil {
		return nil, err
	}
	approvals, without, err := files.Approve(code, key, time.Now())
	if errors.Is(err, recovery.ErrCode) || errors.Is(err, recovery.ErrExpired) {
		return nil, &exitError{exitRefused, err}
	}
	if err != nil {
		return nil, err
	}
	for _, id := range without {
		fmt.Fprintf(os.Stderr, "enrollgate: the key of case %d is not sealed to this agent: others have to approve it\n", id)
	}
	if f.out == "" {
		return approvals, nil
	}
	if err := writeJSON(f.out, approvals); err != nil {
		return nil, err
	}
	return approvals, a.print(map[string]any{"case": files.Cases[0].Case, "file": f.out}, func(w *tabwriter.Writer) {
		for _, p := range approvals.Approvals {
			row(w, fmt.Sprintf("approval of case %d written to %s; send it with recovery approve %d --approval %s", p.Case, f.out, p.Case, f.out))
		}
	})
}

// showCasesToApprove tells the agent what is asked for.
func showCasesToApprove(files *recovery.Files) error {
	if len(files.Cases) == 0 {
		return usage("there is no case in the file")
	}
	w := tabwriter.NewWriter(os.Stderr, 0, 4, 2, ' ', 0)
	for i := range files.Cases {
		file := &files.Cases[i]
		s := &file.Statement
		if err := s.Check(); err != nil { // before it is shown: it may come from a gateway that is not to be trusted
			return fmt.Errorf("case %d: %w", file.Case, err)
		}
		row(w, "Case", fmt.Sprintf("%d, opened by %s on %s", file.Case, s.Manager, day(file.Created)))
		row(w, "Key of", s.Owner+", "+subjectOf(file.Certificate))
		row(w, "For", s.Recipient)
		row(w, "Reason", s.Reason)
		row(w, "Takes", fmt.Sprintf("%d agents (policy %q), until %s", file.Required, file.Policy, day(file.Expires)))
	}
	return w.Flush()
}

func (f *approveFlags) readCode(opener string) (string, error) {
	if f.code != "" {
		return f.code, nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", usage("give the code that %s has told you with --code", opener)
	}
	fmt.Fprintf(os.Stderr, "code, as %s has told it: ", opener)
	line, err := bufio.NewReader(io.LimitReader(os.Stdin, 100)).ReadString('\n')
	return strings.TrimSpace(line), err
}

// receiptText is what audit verify --receipt takes.
func receiptText(r audit.Receipt) string { return fmt.Sprintf("%d:%s", r.Seq, r.Hash) }

func parseReceipt(text string) (r audit.Receipt, err error) {
	number, hash, ok := strings.Cut(text, ":")
	if r.Seq, err = strconv.ParseInt(number, 10, 64); err != nil || !ok || len(hash) != 64 {
		return r, usage("%q is no receipt: LINE:HASH, as recovery commands print it", text)
	}
	r.Hash = strings.ToLower(hash)
	return r, nil
}
