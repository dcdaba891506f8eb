package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/spf13/cobra"
)

func (a *app) agentsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "agents", Short: "Look at and designate key recovery agents"}
	cmd.AddCommand(a.agentsListCommand(), a.agentsHealthCommand(), a.agentsAddCommand(), a.agentHybridKeyCommand(), &cobra.Command{
		Use: "remove FINGERPRINT", Short: "End an agent's designation", Args: exactArgs("FINGERPRINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if err := g.Escrow.RemoveAgent(ctx, strings.ToLower(args[0]), actor()); err != nil {
					return err
				}
				return a.listAgents(ctx, g, false, []gateway.Candidate{})
			})
		},
	})
	return cmd
}

const crlUsage = "also ask the revocation lists of CAs that are not this gateway's, over HTTP"

func (a *app) agentsListCommand() *cobra.Command {
	var crl bool
	cmd := &cobra.Command{Use: "list", Short: "List agents, what they can open and how long they are valid, and candidates in the directory", Args: exactArgs(),
		Long: "ALONE and TOGETHER are the records that an agent opens alone and with others; NEEDED are those that nobody could open any\n" +
			"more without it. Candidates are certificates in AD's KRA container, whoever wrote them there: seal nothing to them before you\n" +
			"have asked the person for the fingerprint.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				return a.listAgents(ctx, g, crl, candidates(ctx, g))
			})
		},
	}
	cmd.Flags().BoolVar(&crl, "crl", false, crlUsage)
	return cmd
}

// healthOf asks for the health, with --crl of other CAs too. What could not be asked is said on stderr.
func healthOf(ctx context.Context, g *gateway.Gateway, crl bool) (*escrow.Health, error) {
	var revoked map[string]bool
	if crl {
		var unknown map[string]error
		var err error
		if revoked, unknown, err = g.RevokedElsewhere(ctx); err != nil {
			return nil, err
		}
		for fingerprint, cause := range unknown {
			fmt.Fprintf(os.Stderr, "enrollgate: agent %s: it is not known whether the certificate is revoked: %v\n", fingerprint, cause)
		}
	}
	return g.Health(ctx, revoked)
}

// directoryTime is how long a list waits for the directory.
const directoryTime = 10 * time.Second

// candidates are those in the directory; without an answer there are none, which is said on stderr.
func candidates(ctx context.Context, g *gateway.Gateway) []gateway.Candidate {
	ctx, cancel := context.WithTimeout(ctx, directoryTime)
	defer cancel()
	list, err := g.Candidates(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "enrollgate: candidates are not shown: %v\n", err)
		return []gateway.Candidate{}
	}
	return list
}

func (a *app) listAgents(ctx context.Context, g *gateway.Gateway, crl bool, list []gateway.Candidate) error {
	h, err := healthOf(ctx, g, crl)
	if err != nil {
		return err
	}
	return a.print(map[string]any{"agents": h.Agents, "candidates": list}, func(w *tabwriter.Writer) {
		row(w, "AGENT", "STATE", "DAYS LEFT", "VALID UNTIL", "SEALED TO", "POLICIES", "ALONE", "TOGETHER", "NEEDED", "ADDED BY", "FINGERPRINT")
		for _, n := range h.Agents {
			row(w, n.Subject, n.Status, n.Days, day(n.NotAfter), n.Key, strings.Join(n.Policies, ", "), n.Alone, n.Together, n.Needed, n.AddedBy, n.Fingerprint)
		}
		if len(list) == 0 {
			return
		}
		row(w)
		row(w, "CANDIDATE", "VALID UNTIL", "OBJECTS", "REMARK", "FINGERPRINT")
		for _, c := range list {
			row(w, c.Subject, day(c.NotAfter), strings.Join(c.Objects, ", "), c.Not, c.Fingerprint)
		}
	})
}

func (a *app) agentsHealthCommand() *cobra.Command {
	var crl bool
	cmd := &cobra.Command{Use: "health", Short: "Say what is, or soon will be, wrong with recovery agents", Args: exactArgs(),
		Long: "Health looks at agents and recovery policies: certificates that end within escrow.agents.warn_before, policies that have or will\n" +
			"have too few agents, records that too few agents can open. Exit codes: 0 nothing, 6 something, 1 it cannot be told.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				h, err := healthOf(ctx, g, crl)
				if err != nil {
					return err
				}
				if err := a.print(h, func(w *tabwriter.Writer) {
					row(w, "POLICY", "LEVEL", "VALID AGENTS", "MINIMUM", "RECORDS", "BELOW QUORUM")
					for _, p := range h.Policies {
						row(w, p.Name, p.Level, p.Valid, p.Minimum, p.Records, p.BelowQuorum)
					}
					for _, n := range h.Warnings {
						row(w, strings.ToUpper(n.Level)+": "+n.Text)
						row(w, "  "+n.Fix)
					}
				}); err != nil {
					return err
				}
				if h.Level != escrow.Healthy {
					return &exitError{exitAttention, nil}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&crl, "crl", false, crlUsage)
	return cmd
}

func (a *app) agentsAddCommand() *cobra.Command {
	var serial, fromDirectory, hybrid string
	cmd := &cobra.Command{
		Use: "add [CERTIFICATE]", Short: "Designate an agent: by a certificate in PEM form, by a request, or from the directory", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := len(args)
			for _, text := range []string{serial, fromDirectory, hybrid} {
				if text != "" {
					given++
				}
			}
			if given != 1 {
				return usage("name one of: a file with the certificate, --serial, --from-directory, --hybrid")
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if hybrid != "" {
					if err := addHybridAgent(ctx, g, hybrid); err != nil {
						return err
					}
					return a.listAgents(ctx, g, false, []gateway.Candidate{})
				}
				certs, err := chosenAgents(ctx, g, args, serial, fromDirectory)
				if err != nil {
					return err
				}
				for _, cert := range certs {
					if err := g.Escrow.AddAgent(ctx, cert, actor()); err != nil {
						return err
					}
				}
				return a.listAgents(ctx, g, false, []gateway.Candidate{})
			})
		},
	}
	cmd.Flags().StringVar(&serial, "serial", "", "serial number (hexadecimal) of a certificate that was issued here, or the number of its request")
	cmd.Flags().StringVar(&fromDirectory, "from-directory", "", "fingerprint of a candidate in AD's KRA container, or all")
	cmd.Flags().StringVar(&hybrid, "hybrid", "", "public half of the agent's hybrid key, as escrow agents hybrid-key has written it; it has the certificate in it")
	return cmd
}

func addHybridAgent(ctx context.Context, g *gateway.Gateway, file string) error {
	key := &quorum.HybridKey{}
	if err := readJSON(file, key); err != nil {
		return err
	}
	return g.Escrow.AddHybridAgent(ctx, key, actor())
}

// chosenAgents are the certificates that the command line names.
func chosenAgents(ctx context.Context, g *gateway.Gateway, args []string, serial, fromDirectory string) ([]*x509.Certificate, error) {
	if len(args) == 1 {
		certs, err := local.LoadCertificates(args[0])
		if err != nil {
			return nil, err
		}
		return certs[:1], nil
	}
	if serial != "" {
		cert, err := g.AgentOf(ctx, strings.ToLower(serial))
		return []*x509.Certificate{cert}, err
	}
	list, err := g.Candidates(ctx)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, c := range list {
		all := strings.EqualFold(fromDirectory, "all")
		switch {
		case !all && !strings.EqualFold(fromDirectory, c.Fingerprint):
		case c.Refused == "":
			out = append(out, c.Certificate)
		case !all:
			return nil, fmt.Errorf("%s cannot be a key recovery agent: %s", c.Subject, c.Refused)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the KRA container has no such candidate; see enrollgate escrow agents list")
	}
	return out, nil
}
