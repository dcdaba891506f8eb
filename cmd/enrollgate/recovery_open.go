package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/spf13/cobra"
)

// openFlags are the flags of recovery open.
type openFlags struct {
	gatewayFlags
	owner, recipient, reason, out string
	keys                          []int64
	all                           bool
}

func (a *app) recoveryOpenCommand() *cobra.Command {
	f := &openFlags{}
	cmd := &cobra.Command{Use: "open --owner ACCOUNT --for ACCOUNT --reason TEXT", Short: "Open a case for an archived key, or for all keys of a person", Args: exactArgs(),
		Long: "Open makes a key pair for the case, whose private half stays in the file that is written here and is needed to fetch the\n" +
			"key. Tell the agents the code that is printed, by phone or in person: it is how they know that nobody has changed the case.\n" +
			"With --all there is one case for each key that the person ever had, and one code and one file for all of them: a new\n" +
			"machine reads old mail again.",
	}
	flags := cmd.Flags()
	flags.StringVar(&f.owner, "owner", "", "account whose key it is, alice or alice@CORP.EXAMPLE")
	flags.Int64SliceVar(&f.keys, "key", nil, "number of the archived key, as recovery keys shows it; several may be named (default: the newest)")
	flags.BoolVar(&f.all, "all", false, "all archived keys of the person")
	flags.StringVar(&f.recipient, "for", "", "account of the person who is given the key")
	flags.StringVar(&f.reason, "reason", "", "why; agents read it, and the audit log keeps it")
	flags.StringVar(&f.out, "out", "", "file for the case key (default: case-CODE.key)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.owner == "" || f.recipient == "" || f.reason == "" {
			return usage("--owner, --for and --reason are needed: whose key, for whom, and why")
		}
		if f.all && len(f.keys) > 0 {
			return usage("--all and --key exclude each other")
		}
		return a.withCases(cmd, &f.gatewayFlags, func(ctx context.Context, c *cases.Client) error {
			keys, err := f.choose(ctx, c)
			if err != nil {
				return err
			}
			return a.openCases(ctx, c, keys, f)
		})
	}
	f.add(cmd)
	return cmd
}

// choose finds the archived keys that are asked for, newest first.
func (f *openFlags) choose(ctx context.Context, c *cases.Client) ([]cases.Key, error) {
	keys, err := c.Keys(ctx, f.owner)
	if err != nil {
		return nil, err
	}
	switch {
	case len(keys) == 0:
		return nil, fmt.Errorf("no key of %s is archived that you may recover", f.owner)
	case f.all:
		return keys, nil
	case len(f.keys) == 0:
		return keys[:1], nil
	}
	var chosen []cases.Key
	for _, number := range f.keys {
		i := slices.IndexFunc(keys, func(k cases.Key) bool { return k.Record == number })
		if i < 0 {
			return nil, fmt.Errorf("%s has no archived key %d; see enrollgate recovery keys %s", f.owner, number, f.owner)
		}
		chosen = append(chosen, keys[i])
	}
	return chosen, nil
}

// openCases writes the case keys, and then opens the cases: an answer may be lost, a case key must not.
func (a *app) openCases(ctx context.Context, c *cases.Client, keys []cases.Key, f *openFlags) error {
	files := &recovery.CaseFiles{}
	defer files.Wipe()
	for _, key := range keys {
		file, err := recovery.NewCaseFile(recovery.Statement{Record: key.Record, KeyID: key.KeyID, Owner: key.Owner, Manager: c.Principal, Recipient: f.recipient, Reason: f.reason})
		if err != nil {
			return err
		}
		files.Cases = append(files.Cases, *file)
	}
	code := files.Code()
	if f.out == "" {
		f.out = "case-" + code + ".key"
	}
	text, err := json.Marshal(files)
	if err != nil {
		return err
	}
	defer wcce.Wipe(text)
	if err := writeSecret(f.out, text); err != nil {
		return err
	}
	var all []*cases.Done
	for i := range files.Cases {
		done, err := c.Open(ctx, files.Cases[i].Statement)
		if _, refused := errors.AsType[*hresult.Error](err); refused && len(all) == 0 {
			return errors.Join(err, os.Remove(f.out))
		}
		if err != nil { // the answer may be lost, not the case
			return fmt.Errorf("%w; if recovery list shows the case all the same, %s is its key", err, f.out)
		}
		all = append(all, done)
	}
	return a.printOpened(all, keys, code, f.out)
}

func (a *app) printOpened(all []*cases.Done, keys []cases.Key, code, file string) error {
	var ids []int64
	for _, d := range all {
		ids = append(ids, d.Case.ID)
	}
	first := all[0].Case
	result := map[string]any{"case": ids[0], "cases": ids, "code": code, "file": file, "expires": first.Expires, "required": first.Required, "receipt": all[len(all)-1].Receipt}
	return a.print(result, func(w *tabwriter.Writer) {
		for i, d := range all {
			row(w, fmt.Sprintf("case %d is open until %s; it takes %d agents", d.Case.ID, day(d.Case.Expires), d.Case.Required))
			row(w, "Key of", keys[i].Owner+", "+keys[i].Subject)
		}
		row(w, "Code", code+" (tell the agents, by phone or in person)")
		row(w, "Case key", file+" (keep it on this machine)")
		row(w, "Receipt", receiptText(all[len(all)-1].Receipt))
	})
}
