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
	"strings"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/spf13/cobra"
	"software.sslmate.com/src/go-pkcs12"
)

func (a *app) recoveryFetchCommand() *cobra.Command {
	var f gatewayFlags
	var caseKey, out string
	cmd := &cobra.Command{
		Use: "fetch CASE --case-key FILE", Short: "Fetch the key of an approved case, once, as PKCS#12", Args: exactArgs("CASE"),
		Long: "Fetch takes the shares from the gateway, which ends the case, puts the key together here, and writes it with its\n" +
			"certificate under a password that is made for it. Give the person the file and the password on separate ways.",
	}
	cmd.Flags().StringVar(&caseKey, "case-key", "", "file that recovery open has written")
	cmd.Flags().StringVar(&out, "out", "user.p12", "file to write")
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := caseID(args[0])
		if err != nil {
			return err
		}
		if caseKey == "" {
			return usage("name the file that recovery open has written with --case-key")
		}
		if _, err := os.Lstat(out); err == nil {
			return fmt.Errorf("%s exists already: choose another name or remove it", out)
		}
		file := &recovery.CaseFile{}
		if err := readJSON(caseKey, file); err != nil {
			return err
		}
		defer file.Wipe()
		d, err := a.fetch(cmd, &f, id, file, caseKey+".delivery")
		if err != nil {
			return err
		}
		key, err := file.Key()
		if err != nil {
			return err
		}
		pkcs8, cert, bad, err := recovery.Combine(&file.Statement, &d.Archived, d.Approvals, key)
		defer wcce.Wipe(pkcs8)
		if len(bad) > 0 {
			a.reportBad(cmd, &f, id, bad)
		}
		if err != nil {
			return err
		}
		return a.finishFetch(d, &file.Statement, pkcs8, cert, out, caseKey)
	}
	return cmd
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
func (a *app) fetch(cmd *cobra.Command, f *gatewayFlags, id int64, file *recovery.CaseFile, keep string) (*cases.Delivery, error) {
	d := &cases.Delivery{}
	if err := readJSON(keep, d); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	err := a.withCases(cmd, f, func(ctx context.Context, c *cases.Client) error {
		k, _, err := c.Show(ctx, id)
		if err != nil {
			return err
		}
		if k.Statement.Code() != file.Statement.Code() {
			return usage("the case key is of another case, %s, than case %d, %s", file.Statement.Code(), id, k.Statement.Code())
		}
		if d, err = c.Fetch(ctx, id); err != nil {
			return err
		}
		text, err := json.Marshal(d)
		if err != nil {
			return err
		}
		return writeSecret(keep, text)
	})
	return d, err
}

// finishFetch writes the key. After that the case key is of no use any more, and is removed.
func (a *app) finishFetch(d *cases.Delivery, s *recovery.Statement, pkcs8 []byte, cert *x509.Certificate, out, caseKey string) error {
	private, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, der := range d.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("chain: %w", err)
		}
		chain = append(chain, c)
	}
	password := freshPassword()
	p12, err := pkcs12.Modern.Encode(private, cert, chain, password)
	if err != nil {
		return fmt.Errorf("write PKCS#12: %w", err)
	}
	if err := writeSecret(out, p12); err != nil {
		return err
	}
	if err := errors.Join(os.Remove(caseKey), os.Remove(caseKey+".delivery")); err != nil {
		return err
	}
	result := map[string]any{"case": d.Case.ID, "owner": s.Owner, "recipient": s.Recipient, "file": out, "password": password, "receipt": d.Receipt}
	return a.print(result, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("case %d is closed; the key of %s is for %s", d.Case.ID, s.Owner, s.Recipient))
		row(w, "File", out)
		row(w, "Password", password+" (tell it on another way than the file takes)")
		row(w, "Receipt", receiptText(d.Receipt))
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
