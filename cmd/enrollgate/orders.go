package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/spf13/cobra"
)

// retryCommand asks a CA at once.
func (a *app) retryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "retry ID", Short: "Ask the CA about a waiting request now, not when it is due", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := requestID(args[0])
			if err != nil {
				return err
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if err := g.Ledger.Hurry(ctx, id); err != nil {
					return err
				}
				return a.print(map[string]any{"request": id}, func(w *tabwriter.Writer) {
					row(w, fmt.Sprintf("request %d is due now; the running gateway asks the CA within a second", id))
				})
			})
		},
	}
}

// settleCommand ends the doubt about an order.
func (a *app) settleCommand() *cobra.Command {
	var certificate, reason string
	var resend, deny bool
	cmd := &cobra.Command{
		Use: "settle ID --certificate FILE | --resend | --deny --reason TEXT", Short: "Say what a CA has done with an order in doubt", Args: exactArgs("ID"),
		Long: "An order is in doubt where its answer was lost and the CA has no way to ask for it again. Look for a certificate of the request's\n" +
			"public key at the CA. If there is one, give it with --certificate: it is compared with the decision like any other. If there is\n" +
			"none, either send the order again, or deny the request. Sending again while the CA has issued makes a second certificate.",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := requestID(args[0])
			if err != nil {
				return err
			}
			ways := 0
			for _, way := range []bool{certificate != "", resend, deny} {
				if way {
					ways++
				}
			}
			if ways != 1 || reason == "" {
				return usage("give one of --certificate, --resend and --deny, and with --reason how you know")
			}
			var cert *x509.Certificate
			if certificate != "" {
				certs, err := local.LoadCertificates(certificate)
				if err != nil {
					return err
				}
				cert = certs[0]
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				r, err := g.Settle(ctx, id, cert, resend, actor(), reason)
				if err != nil {
					return err
				}
				return a.print(r, func(w *tabwriter.Writer) { row(w, fmt.Sprintf("request %d is %s: %s", r.ID, r.State, r.Message)) })
			})
		},
	}
	cmd.Flags().StringVar(&certificate, "certificate", "", "the certificate that the CA has issued, PEM or DER")
	cmd.Flags().BoolVar(&resend, "resend", false, "the CA has issued nothing: the order goes to it again")
	cmd.Flags().BoolVar(&deny, "deny", false, "the CA has issued nothing, and shall not: the client is told the reason")
	cmd.Flags().StringVar(&reason, "reason", "", "how this is known; kept in the audit log")
	return cmd
}

// revokeCommand revokes the certificate of a request at the CA that signed it.
func (a *app) revokeCommand() *cobra.Command {
	var reason int
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "Revoke the certificate of a request, whichever CA has signed it", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := requestID(args[0])
			if err != nil {
				return err
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				r, err := g.Ledger.Get(ctx, id)
				if err != nil {
					return err
				}
				if len(r.Certificate) == 0 {
					return fmt.Errorf("request %d is %s: it has no certificate", id, r.State)
				}
				if err := g.Revoke(ctx, r, actor(), reason); err != nil {
					return err
				}
				return a.print(map[string]any{"request": id, "ca": r.Issuer, "serial": r.Serial, "reason": reason}, func(w *tabwriter.Writer) {
					row(w, fmt.Sprintf("revoked %s of CA %s, for %s", r.Serial, r.Issuer, r.Caller))
				})
			})
		},
	}
	cmd.Flags().IntVar(&reason, "reason", 0, reasonHelp)
	return cmd
}
