package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/spf13/cobra"
)

// fetchFlags are the flags of recovery fetch.
type fetchFlags struct {
	gatewayFlags
	p12Flags
	caseKey, out string
	separate     bool
}

func (a *app) recoveryFetchCommand() *cobra.Command {
	f := &fetchFlags{}
	cmd := &cobra.Command{
		Use: "fetch CASE... --case-key FILE", Short: "Fetch the keys of approved cases, once, as PKCS#12", Args: cobra.MinimumNArgs(1),
		Long: "Fetch takes the shares from the gateway, which ends the case, puts the key together here, and writes it with its\n" +
			"certificate under a password that is made for it. Give the person the file and the password on separate ways.\n" +
			"The keys of several cases come in one file, or with --separate in one each.",
	}
	cmd.Flags().StringVar(&f.caseKey, "case-key", "", "file that recovery open has written")
	cmd.Flags().StringVar(&f.out, "out", "user.p12", "file to write")
	cmd.Flags().BoolVar(&f.separate, "separate", false, "one file for each key: user-CASE.p12")
	f.p12Flags.add(cmd)
	f.gatewayFlags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ids, err := caseIDs(args)
		if err != nil {
			return err
		}
		if f.caseKey == "" {
			return usage("name the file that recovery open has written with --case-key")
		}
		for _, path := range f.files(ids) {
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s exists already: choose another name or remove it", path)
			}
		}
		files := &recovery.CaseFiles{}
		if err := readJSON(f.caseKey, files); err != nil {
			return err
		}
		defer files.Wipe()
		var all []fetched
		defer func() {
			for _, k := range all {
				wcce.Wipe(k.pkcs8)
			}
		}()
		for _, id := range ids {
			k, err := a.fetchOne(cmd, f, id, files)
			if err != nil {
				return err // what was fetched before is kept, closed, for the next attempt
			}
			all = append(all, *k)
		}
		return a.finishFetch(all, f, len(ids) == len(files.Cases))
	}
	return cmd
}

// files are those that are written.
func (f *fetchFlags) files(ids []int64) []string {
	if !f.separate {
		return []string{f.out}
	}
	var all []string
	for _, id := range ids {
		ext := filepath.Ext(f.out)
		all = append(all, fmt.Sprintf("%s-%d%s", strings.TrimSuffix(f.out, ext), id, ext))
	}
	return all
}

// delivery is where a delivery is kept until its key is written.
func (f *fetchFlags) delivery(id int64) string { return fmt.Sprintf("%s.delivery-%d", f.caseKey, id) }

// fetched is a key that was put together.
type fetched struct {
	delivery  *cases.Delivery
	statement *recovery.Statement
	pkcs8     []byte
	recovery.Recovered
}

// fetchOne takes one case from the gateway and puts its key together.
func (a *app) fetchOne(cmd *cobra.Command, f *fetchFlags, id int64, files *recovery.CaseFiles) (*fetched, error) {
	d, err := a.fetch(cmd, f, id, files)
	if err != nil {
		return nil, err
	}
	file, err := caseFileOf(&d.Case.Statement, id, files)
	if err != nil {
		return nil, err
	}
	key, err := file.Key()
	if err != nil {
		return nil, err
	}
	pkcs8, cert, bad, err := recovery.Combine(&file.Statement, &d.Archived, d.Approvals, key)
	if len(bad) > 0 {
		a.reportBad(cmd, &f.gatewayFlags, id, bad)
	}
	if err != nil {
		return nil, fmt.Errorf("case %d: %w", id, err)
	}
	k := &fetched{delivery: d, statement: &file.Statement, pkcs8: pkcs8, Recovered: recovery.Recovered{Certificate: cert}}
	if k.Key, err = x509.ParsePKCS8PrivateKey(pkcs8); err != nil {
		return nil, fmt.Errorf("case %d: %w", id, err)
	}
	for _, der := range d.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("case %d: chain: %w", id, err)
		}
		k.Chain = append(k.Chain, c)
	}
	return k, nil
}

// caseFileOf finds the case key of a case.
func caseFileOf(s *recovery.Statement, id int64, files *recovery.CaseFiles) (*recovery.CaseFile, error) {
	for i := range files.Cases {
		if files.Cases[i].Statement.Code() == s.Code() {
			return &files.Cases[i], nil
		}
	}
	return nil, usage("the case key is of another case, %s, than case %d, %s", files.Code(), id, s.Code())
}

// reportBad tells the person and the audit log whose shares could not be used.
func (a *app) reportBad(cmd *cobra.Command, f *gatewayFlags, id int64, bad []recovery.BadShare) {
	var report []cases.Bad
	for _, b := range bad {
		fmt.Fprintln(os.Stderr, "enrollgate: "+b.Error())
		report = append(report, cases.Bad{Agent: b.Agent, Cause: b.Err.Error()})
	}
	err := a.withCases(cmd, f, func(ctx context.Context, c *cases.Client) error { return c.Report(ctx, id, report) })
	if err != nil {
		fmt.Fprintf(os.Stderr, "enrollgate: the bad shares could not be reported to the gateway: %v\n", err)
	}
}

// fetch gets the delivery and keeps it, still closed, until the key is written: the gateway gives it out once. One that an
// earlier attempt has left is taken first.
func (a *app) fetch(cmd *cobra.Command, f *fetchFlags, id int64, files *recovery.CaseFiles) (*cases.Delivery, error) {
	d := &cases.Delivery{}
	if err := readJSON(f.delivery(id), d); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	err := a.withCases(cmd, &f.gatewayFlags, func(ctx context.Context, c *cases.Client) error {
		k, _, err := c.Show(ctx, id)
		if err != nil {
			return err
		}
		if _, err := caseFileOf(&k.Statement, id, files); err != nil {
			return err
		}
		if d, err = c.Fetch(ctx, id); err != nil {
			return err
		}
		text, err := json.Marshal(d)
		if err != nil {
			return err
		}
		return writeSecret(f.delivery(id), text)
	})
	return d, err
}

// finishFetch writes the keys. When all cases are done, the case key is of no use any more, and is removed.
func (a *app) finishFetch(all []fetched, f *fetchFlags, last bool) error {
	var ids []int64
	var keys []recovery.Recovered
	for _, k := range all {
		ids, keys = append(ids, k.delivery.Case.ID), append(keys, k.Recovered)
	}
	password, files := freshPassword(), f.files(ids)
	for i, path := range files {
		of := keys
		if f.separate {
			of = keys[i : i+1]
		}
		p12, err := recovery.PKCS12(of, password, f.legacy)
		if err != nil {
			return err
		}
		if err := writeSecret(path, p12); err != nil {
			return err
		}
	}
	var err error
	for _, id := range ids {
		err = errors.Join(err, os.Remove(f.delivery(id)))
	}
	if last {
		err = errors.Join(err, os.Remove(f.caseKey))
	}
	if err != nil {
		return err
	}
	s, receipt := all[0].statement, all[len(all)-1].delivery.Receipt
	result := map[string]any{"case": ids[0], "cases": ids, "owner": s.Owner, "recipient": s.Recipient, "file": files[0], "files": files, "password": password, "receipt": receipt}
	return a.print(result, func(w *tabwriter.Writer) {
		for _, k := range all {
			row(w, fmt.Sprintf("case %d is closed; the key of %s is for %s", k.delivery.Case.ID, k.statement.Owner, k.statement.Recipient))
		}
		row(w, "File", strings.Join(files, ", "))
		row(w, "Password", password+" (tell it on another way than the file takes)")
		row(w, "Receipt", receiptText(receipt))
	})
}

// freshPassword has 125 random bits, in characters that are hard to mistake.
func freshPassword() string {
	const alphabet = "23456789abcdefghijkmnpqrstuvwxyz"
	random := make([]byte, 25)
	rand.Read(random)
	defer clear(random)
	var b strings.Builder
	for i, r := range random {
		if i > 0 && i%5 == 0 {
			b.WriteByte('-')
		}
		b.WriteByte(alphabet[int(r)%len(alphabet)])
	}
	return b.String()
}
