package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/cases"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// approveFlags are the flags of recovery approve.
type approveFlags struct {
	gatewayFlags
	key, code, out, approval string
	password                 passwordFlags
}

func (a *app) recoveryApproveCommand() *cobra.Command {
	f := &approveFlags{}
	cmd := &cobra.Command{
		Use: "approve CASE|FILE", Short: "Approve a case with a recovery agent's key", Args: exactArgs("CASE|FILE"),
		Long: "Approve opens the agent's share here, on this machine, and seals it to who has opened the case. The code comes from that\n" +
			"person, by phone or in person, never from the gateway. Without a network: recovery show CASE --out case.json on one\n" +
			"machine, recovery approve case.json --key agent.p12 --out approval.json on the other, then recovery approve CASE\n" +
			"--approval approval.json.",
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "the agent's key: a PKCS#12 file, or encrypted PKCS#8 in PEM form")
	flags.StringVar(&f.code, "code", "", "code of the case, as who opened it has told it")
	flags.StringVar(&f.out, "out", "", "write the approval to this file instead of sending it")
	flags.StringVar(&f.approval, "approval", "", "send the approval in this file")
	f.password.add(cmd, "key-password", "password of the agent's key")
	f.gatewayFlags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (f.key == "") == (f.approval == "") {
			return usage("name the agent's key with --key, or an approval that was made before with --approval")
		}
		id, err := strconv.ParseInt(args[0], 10, 64)
		switch {
		case err == nil && f.approval != "":
			return a.sendApproval(cmd, f, id)
		case err == nil:
			return a.withCases(cmd, &f.gatewayFlags, func(ctx context.Context, c *cases.Client) error {
				k, file, err := c.Show(ctx, id)
				if err != nil {
					return err
				}
				if file == nil || file.Case != id {
					return &exitError{exitRefused, fmt.Errorf("case %d is %s, or you are no approver of its policy", id, k.State)}
				}
				approval, err := a.approve(file, f)
				if err != nil || f.out != "" {
					return err
				}
				done, err := c.Approve(ctx, approval)
				if err != nil {
					return err
				}
				return a.printStep(done)
			})
		case f.out == "":
			return usage("say with --out where to write the approval; send it with recovery approve CASE --approval FILE")
		}
		file := &recovery.File{}
		if err := readJSON(args[0], file); err != nil {
			return err
		}
		_, err = a.approve(file, f)
		return err
	}
	return cmd
}

func (a *app) sendApproval(cmd *cobra.Command, f *approveFlags, id int64) error {
	approval := &recovery.Approval{}
	if err := readJSON(f.approval, approval); err != nil {
		return err
	}
	if approval.Case != id {
		return usage("%s is an approval of case %d", f.approval, approval.Case)
	}
	return a.withCases(cmd, &f.gatewayFlags, func(ctx context.Context, c *cases.Client) error {
		done, err := c.Approve(ctx, approval)
		if err != nil {
			return err
		}
		return a.printStep(done)
	})
}

// approve shows what is asked for, asks for the code, and opens the share. With --out it writes the approval.
func (a *app) approve(file *recovery.File, f *approveFlags) (*recovery.Approval, error) {
	s := &file.Statement
	if err := s.Check(); err != nil { // before it is shown: it may come from a gateway that is not to be trusted
		return nil, fmt.Errorf("case %d: %w", file.Case, err)
	}
	w := tabwriter.NewWriter(os.Stderr, 0, 4, 2, ' ', 0)
	row(w, "Case", fmt.Sprintf("%d, opened by %s on %s", file.Case, s.Manager, day(file.Created)))
	row(w, "Key of", s.Owner+", "+subjectOf(file.Certificate))
	row(w, "For", s.Recipient)
	row(w, "Reason", s.Reason)
	row(w, "Takes", fmt.Sprintf("%d agents (policy %q), until %s", file.Required, file.Policy, day(file.Expires)))
	if err := w.Flush(); err != nil {
		return nil, err
	}
	code, err := f.readCode(s.Manager)
	if err != nil {
		return nil, err
	}
	key, _, err := agentKey(f.key, &f.password, file.Agents)
	if err != nil {
		return nil, err
	}
	cert, err := recovery.CertificateOf(file.Agents, key.Public())
	if err != nil {
		return nil, err
	}
	approval, err := recovery.Approve(file, code, cert, key, time.Now())
	if errors.Is(err, recovery.ErrCode) || errors.Is(err, recovery.ErrExpired) {
		return nil, &exitError{exitRefused, err}
	}
	if err != nil || f.out == "" {
		return approval, err
	}
	text, err := json.MarshalIndent(approval, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := writeNew(f.out, text, 0o644); err != nil {
		return nil, err
	}
	return approval, a.print(map[string]any{"case": file.Case, "file": f.out}, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("approval of case %d written to %s; send it with recovery approve %d --approval %s", file.Case, f.out, file.Case, f.out))
	})
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

// agentKey reads an agent's key and finds its certificate. What recovery needs of a key is a crypto.Decrypter, so that one in a
// smart card (PKCS#11) is one more case here.
func agentKey(path string, password *passwordFlags, agents [][]byte) (crypto.Decrypter, *x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	isPEM := bytes.Contains(text, []byte("-----BEGIN"))
	clear(text)
	if !isPEM {
		key, cert, _, err := readPKCS12(path, password)
		if err != nil {
			return nil, nil, err
		}
		if d, ok := key.(crypto.Decrypter); ok {
			return d, cert, nil
		}
		return nil, nil, fmt.Errorf("%s: a key of type %T cannot decrypt", path, key)
	}
	secret, err := password.read("password of " + path)
	if err != nil {
		return nil, nil, err
	}
	key, err := local.LoadKey(path, []byte(secret))
	if err != nil {
		return nil, nil, err
	}
	d, ok := key.(crypto.Decrypter)
	if !ok {
		return nil, nil, fmt.Errorf("%s: a key of type %T cannot decrypt", path, key)
	}
	for _, der := range agents {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, err
		}
		if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(d.Public()) {
			return d, cert, nil
		}
	}
	return nil, nil, fmt.Errorf("%s is the key of no agent that this archived key is sealed to", path)
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
