package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
	"software.sslmate.com/src/go-pkcs12"
)

func (a *app) escrowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "escrow", Short: "Look at archived keys, recover, import and destroy them, designate recovery agents"}
	cmd.AddCommand(a.escrowListCommand(), a.escrowRecoverCommand(), a.escrowImportCommand(), a.agentsCommand(), a.exchangeCommand(),
		a.escrowDestroyCommand(), a.escrowHoldCommand(), a.escrowReleaseCommand(), a.escrowRetentionCommand())
	return cmd
}

func (a *app) escrowRecoverCommand() *cobra.Command {
	var agentFile, out, reason, serial string
	var agentPassword, outPassword passwordFlags
	cmd := &cobra.Command{
		Use: "recover [ID]", Short: "Recover an archived key as PKCS#12 with a recovery agent's key",
		Long: "Recover opens an archived key with the key of a recovery agent and writes it, with its certificate, as PKCS#12.\n" +
			"Name the key by its number, by --serial, or leave both out where --owner has only one. Every recovery and every\n" +
			"refused attempt is in the audit log. Exit code 3 means refused. A key that takes several agents: enrollgate recovery open.",
		Args: cobra.MaximumNArgs(1),
	}
	owner := cmd.Flags().String("owner", "", "account whose newest key to recover, alice or alice@CORP.EXAMPLE")
	cmd.Flags().StringVar(&agentFile, "key", "", "PKCS#12 file of the recovery agent")
	cmd.Flags().StringVar(&out, "out", "user.p12", "file to write")
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept in the audit log")
	cmd.Flags().StringVar(&serial, "serial", "", "serial number of the certificate, hexadecimal")
	agentPassword.add(cmd, "key-password", "password of the agent's file")
	outPassword.add(cmd, "out-password", "password to protect the recovered key with")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if agentFile == "" || reason == "" {
			return usage("--key (the agent's PKCS#12 file) and --reason are needed")
		}
		return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
			entry, err := findEntry(ctx, g, args, serial, *owner)
			if err != nil {
				return err
			}
			key, cert, _, err := readPKCS12(agentFile, &agentPassword)
			if err != nil {
				return err
			}
			r, err := g.Escrow.Recover(ctx, entry, key, cert, actor(), reason)
			if errors.Is(err, escrow.ErrRefused) {
				return &exitError{exitRefused, err}
			}
			if err != nil {
				return err
			}
			password, err := outPassword.read("password for " + out)
			if err != nil {
				return err
			}
			p12, err := pkcs12.Modern.Encode(r.Key, r.Certificate, g.ChainOf(r.CA), password)
			if err != nil {
				return fmt.Errorf("write PKCS#12: %w", err)
			}
			if err := writeSecret(out, p12); err != nil {
				return err
			}
			result := map[string]any{"record": entry.ID, "owner": entry.Owner, "serial": r.Certificate.SerialNumber.Text(16), "file": out, "agent": dn.Show(cert.RawSubject)}
			return a.print(result, func(w *tabwriter.Writer) {
				row(w, fmt.Sprintf("recovered key %d of %s with the key of %s", entry.ID, entry.Owner, dn.Show(cert.RawSubject)))
				row(w, "written to "+out)
			})
		})
	}
	return cmd
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
		list, err := g.Escrow.List(ctx, owner, 1)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("no key of %s is archived", owner)
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

func (a *app) agentsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "agents", Short: "Look at and designate key recovery agents"}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the agents that new keys are sealed to", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error { return a.listAgents(ctx, g) })
		},
	}, &cobra.Command{
		Use: "add CERTIFICATE", Short: "Designate an agent by a certificate in PEM form", Args: exactArgs("CERTIFICATE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			certs, err := local.LoadCertificates(args[0])
			if err != nil {
				return err
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if err := g.Escrow.AddAgent(ctx, certs[0], actor()); err != nil {
					return err
				}
				return a.listAgents(ctx, g)
			})
		},
	}, &cobra.Command{
		Use: "remove FINGERPRINT", Short: "End an agent's designation", Args: exactArgs("FINGERPRINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if err := g.Escrow.RemoveAgent(ctx, strings.ToLower(args[0]), actor()); err != nil {
					return err
				}
				return a.listAgents(ctx, g)
			})
		},
	})
	return cmd
}

type agentRow struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	Added       time.Time `json:"added"`
	AddedBy     string    `json:"added_by"`
	Status      string    `json:"status"`
}

func (a *app) listAgents(ctx context.Context, g *gateway.Gateway) error {
	agents, err := g.Escrow.Agents(ctx)
	if err != nil {
		return err
	}
	rows := []agentRow{}
	for _, n := range agents {
		rows = append(rows, agentRow{dn.Show(n.Certificate.RawSubject), n.Fingerprint, n.Certificate.NotAfter.UTC(), n.Added, n.AddedBy, n.Status(time.Now())})
	}
	return a.print(rows, func(w *tabwriter.Writer) {
		row(w, "AGENT", "VALID UNTIL", "STATUS", "ADDED BY", "FINGERPRINT")
		for _, r := range rows {
			row(w, r.Subject, day(r.NotAfter), r.Status, r.AddedBy, r.Fingerprint)
		}
	})
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
	if name == "" && len(g.CAs) == 1 {
		return g.CAs[0].Name, nil
	}
	if ca := g.CA(name); ca != nil {
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
