package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
	"software.sslmate.com/src/go-pkcs12"
)

func (a *app) escrowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "escrow", Short: "Look at archived keys, recover, import and destroy them, designate recovery agents"}
	cmd.AddCommand(a.escrowListCommand(), a.escrowRecoverCommand(), a.escrowImportCommand(), a.escrowImportBlobCommand(), a.escrowExportCommand(),
		a.coverageCommand(), a.verifyCommand(), a.agentsCommand(), a.rewrapCommand(), a.drillCommand(), a.batchCommand(), a.exchangeCommand(),
		a.escrowDestroyCommand(), a.escrowHoldCommand(), a.escrowReleaseCommand(), a.escrowRetentionCommand())
	return cmd
}

// recoverFlags are the flags of escrow recover.
type recoverFlags struct {
	agentKeyFlags
	p12Flags
	owner, serial, out, reason string
	all                        bool
	outPassword                passwordFlags
}

func (a *app) escrowRecoverCommand() *cobra.Command {
	f := &recoverFlags{}
	cmd := &cobra.Command{
		Use: "recover [ID]", Short: "Recover an archived key as PKCS#12 with a recovery agent's key",
		Long: "Recover opens an archived key with the key of a recovery agent and writes it, with its certificate, as PKCS#12.\n" +
			"Name the key by its number, by --serial, or by --owner, which means the newest, or with --all every key that the\n" +
			"person ever had. Every recovery and every refused attempt is in the audit log. Exit code 3 means refused. A key that\n" +
			"takes several agents: enrollgate recovery open.",
		Args: cobra.MaximumNArgs(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.owner, "owner", "", "account whose newest key to recover, alice or alice@CORP.EXAMPLE")
	flags.BoolVar(&f.all, "all", false, "all keys of the owner, in one file")
	flags.StringVar(&f.out, "out", "user.p12", "file to write")
	flags.StringVar(&f.reason, "reason", "", "why; kept in the audit log")
	flags.StringVar(&f.serial, "serial", "", "serial number of the certificate, hexadecimal")
	f.agentKeyFlags.add(cmd)
	f.p12Flags.add(cmd)
	f.outPassword.add(cmd, "out-password", "password to protect the recovered key with")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !f.set() || f.reason == "" {
			return usage("--key (the agent's key) and --reason are needed")
		}
		if f.all && f.owner == "" {
			return usage("--all needs --owner: whose keys")
		}
		return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
			entries, err := f.entries(ctx, g, args)
			if err != nil {
				return err
			}
			return a.recover(ctx, g, entries, f)
		})
	}
	return cmd
}

// entries are the archived keys that the command line names.
func (f *recoverFlags) entries(ctx context.Context, g *gateway.Gateway, args []string) ([]escrow.Entry, error) {
	if !f.all {
		entry, err := findEntry(ctx, g, args, f.serial, f.owner)
		if err != nil {
			return nil, err
		}
		return []escrow.Entry{*entry}, nil
	}
	return issued(ctx, g, f.owner)
}

// issued are a person's archived keys that have a certificate, newest first, and at least one.
func issued(ctx context.Context, g *gateway.Gateway, owner string) ([]escrow.Entry, error) {
	list, err := g.Escrow.List(ctx, owner, maxHistory)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(e escrow.Entry) bool { _, err := e.Certificate(); return err != nil })
	if len(list) == 0 {
		return nil, fmt.Errorf("no key of %s is archived", owner)
	}
	return list, nil
}

// maxHistory is how many keys of one person are recovered together.
const maxHistory = 1000

// recover opens keys and writes them. A key that the agent has no part in, or that takes several agents, is named.
func (a *app) recover(ctx context.Context, g *gateway.Gateway, entries []escrow.Entry, f *recoverFlags) error {
	var agents [][]byte
	for i := range entries {
		recipients, err := g.Escrow.RecipientsOf(ctx, &entries[i])
		if err != nil {
			return err
		}
		for _, r := range recipients {
			agents = append(agents, r.Certificate.Raw)
		}
	}
	key, cert, err := f.openWithCertificate(agents)
	if err != nil {
		return err
	}
	var keys []recovery.Recovered
	var done []int64
	var failed error
	for i := range entries {
		r, err := g.Escrow.Recover(ctx, &entries[i], key, cert, actor(), f.reason)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		keys, done = append(keys, recovery.Recovered{Key: r.Key, Certificate: r.Certificate, Chain: g.ChainOf(r.CA)}), append(done, entries[i].ID)
	}
	if len(keys) > 0 {
		if err := f.write(keys); err != nil {
			return err
		}
		first := keys[0].Certificate
		result := map[string]any{"record": done[0], "records": done, "owner": entries[0].Owner, "serial": first.SerialNumber.Text(16), "file": f.out, "agent": dn.Show(cert.RawSubject)}
		if err := a.print(result, func(w *tabwriter.Writer) {
			for _, id := range done {
				row(w, fmt.Sprintf("recovered key %d of %s with the key of %s", id, entries[0].Owner, dn.Show(cert.RawSubject)))
			}
			row(w, "written to "+f.out)
		}); err != nil {
			return err
		}
	}
	if errors.Is(failed, escrow.ErrRefused) {
		return &exitError{exitRefused, failed}
	}
	return failed
}

func (f *recoverFlags) write(keys []recovery.Recovered) error {
	password, err := f.outPassword.read("password for " + f.out)
	if err != nil {
		return err
	}
	p12, err := recovery.PKCS12(keys, password, f.legacy)
	if err != nil {
		return err
	}
	return writeSecret(f.out, p12)
}

// findEntry finds the archived key that the command line names.
func findEntry(ctx context.Context, g *gateway.Gateway, args []string, serial, owner string) (*escrow.Entry, error) {
	switch {
	case len(args) == 1:
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return nil, usage("%q is not the number of an archived key; see enrollgate escrow list", args[0])
		}
		return g.Escrow.Get(ctx, id)
	case serial != "":
		return g.Escrow.BySerial(ctx, serial)
	case owner != "":
		list, err := issued(ctx, g, owner)
		if err != nil {
			return nil, err
		}
		return &list[0], nil
	}
	return nil, usage("name the archived key: its number, --serial or --owner")
}

// readPKCS12 opens a PKCS#12 file.
func readPKCS12(path string, password *passwordFlags) (key any, cert *x509.Certificate, chain []*x509.Certificate, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, nil, err
	}
	text, err := password.read("password of " + path)
	if err != nil {
		return nil, nil, nil, err
	}
	key, cert, chain, err = pkcs12.DecodeChain(data, text)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s cannot be opened: %w", path, err)
	}
	return key, cert, chain, nil
}

func (a *app) exchangeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "exchange", Short: "Look at the CA exchange certificate; take one over from another CA server"}
	var ca string
	show := &cobra.Command{
		Use: "show", Short: "Print the current exchange certificate in PEM form", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				name, err := caName(g, ca)
				if err != nil {
					return err
				}
				der, err := g.ExchangeCertificate(ctx, name)
				if err != nil {
					return err
				}
				text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
				return a.print(map[string]string{"ca": name, "certificate": text}, func(w *tabwriter.Writer) { fmt.Fprint(w, text) })
			})
		},
	}
	var until time.Duration
	take := &cobra.Command{
		Use: "import CERTIFICATE KEY", Short: "Install an exchange key pair of the CA server that this gateway replaces", Args: exactArgs("CERTIFICATE", "KEY"),
		Long: "Clients may hold an exchange certificate of the old CA server for up to a week. With its key installed the gateway\nopens what they send, until the given time has passed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			certs, err := local.LoadCertificates(args[0])
			if err != nil {
				return err
			}
			key, err := readRSAKey(args[1])
			if err != nil {
				return err
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				name, err := caName(g, ca)
				if err != nil {
					return err
				}
				end := time.Now().Add(until)
				if err := g.Escrow.ImportExchange(ctx, name, certs[0], key, end, actor()); err != nil {
					return err
				}
				return a.print(map[string]any{"ca": name, "usable_until": end.UTC()}, func(w *tabwriter.Writer) {
					row(w, fmt.Sprintf("exchange key of %q installed for CA %q, usable until %s", dn.Show(certs[0].RawSubject), name, day(end)))
				})
			})
		},
	}
	take.Flags().DurationVar(&until, "for", 14*24*time.Hour, "how long requests to this key are accepted")
	for _, c := range []*cobra.Command{show, take} {
		c.Flags().StringVar(&ca, "ca", "", "name of the CA (default: the only one)")
	}
	cmd.AddCommand(show, take)
	return cmd
}

// caName is the named CA, or the only one.
func caName(g *gateway.Gateway, name string) (string, error) {
	if name == "" && len(g.Signers()) == 1 {
		return g.CAs[0].Name, nil
	}
	if ca := g.Signer(name); ca != nil {
		return ca.Name, nil
	}
	return "", usage("name one of the configured CAs with --ca, not %q", name)
}

func readRSAKey(path string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	der := text
	if block, _ := pem.Decode(text); block != nil {
		der = block.Bytes
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s is not a PKCS#1 or PKCS#8 key: %w", path, err)
	}
	if k, ok := key.(*rsa.PrivateKey); ok {
		return k, nil
	}
	return nil, fmt.Errorf("%s holds no RSA key", path)
}
