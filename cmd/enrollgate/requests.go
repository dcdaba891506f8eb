package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/spf13/cobra"
)

func (a *app) requestsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "requests", Short: "Look at certificate requests; approve or deny pending ones"}
	var state string
	var limit int
	var inDoubt bool
	list := &cobra.Command{
		Use: "list", Short: "List requests, newest first", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				rows, err := g.Ledger.List(ctx, ledger.State(state), limit)
				if inDoubt {
					rows, err = g.Ledger.InDoubt(ctx, limit)
				}
				if err != nil {
					return err
				}
				if rows == nil {
					rows = []*ledger.Row{}
				}
				return a.print(rows, func(w *tabwriter.Writer) {
					row(w, "ID", "STATE", "CREATED", "CALLER", "TEMPLATE", "SIGNED BY", "KEY ARCHIVED", "MESSAGE")
					for _, r := range rows {
						row(w, r.ID, r.State, day(r.Created), r.Caller, r.Template, r.Issuer, yesNo(r.Archived), cmp.Or(r.Doubt, r.Trouble, r.Message))
					}
				})
			})
		},
	}
	list.Flags().StringVar(&state, "state", "", "only requests in this state: open, pending, approved, waiting, issued, denied, failed")
	list.Flags().BoolVar(&inDoubt, "in-doubt", false, "only those of which nobody can tell whether the CA has issued")
	list.Flags().IntVar(&limit, "limit", 100, "at most this many")
	show := &cobra.Command{
		Use: "show ID", Short: "Show one request with every check of the decision", Args: exactArgs("ID"),
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
				return a.print(r, func(w *tabwriter.Writer) { showRequest(w, r) })
			})
		},
	}
	cmd.AddCommand(list, show, a.decideCommand("approve", "Approve a pending request; its certificate is issued within a second", true),
		a.decideCommand("deny", "Deny a pending request", false), a.retryCommand(), a.settleCommand(), a.revokeCommand())
	return cmd
}

func requestID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id < 1 {
		return 0, usage("%q is not the number of a request", s)
	}
	return id, nil
}

func showRequest(w *tabwriter.Writer, r *ledger.Row) {
	row(w, "Request", r.ID)
	row(w, "State", r.State)
	row(w, "Message", r.Message)
	if r.HResult != 0 {
		row(w, "HRESULT", r.HResult)
	}
	row(w, "Created", r.Created.Format(time.RFC3339))
	row(w, "Updated", r.Updated.Format(time.RFC3339))
	row(w, "Caller", fmt.Sprintf("%s (%s)", r.Caller, r.CallerSID))
	row(w, "Template", r.Template)
	row(w, "CA", r.CA)
	row(w, "Signed by", r.Issuer)
	if len(r.Route) > 1 {
		row(w, "Route", strings.Join(r.Route, ", else "))
	}
	if r.State == ledger.Waiting || r.State == ledger.Open {
		if !r.Sent.IsZero() {
			row(w, "Sent", r.Sent.Format(time.RFC3339))
		}
		if !r.Due.IsZero() {
			row(w, "Asked again", r.Due.Format(time.RFC3339))
		}
	}
	if r.Trouble != "" {
		row(w, "Trouble", fmt.Sprintf("%s (%d times)", r.Trouble, r.Attempts))
	}
	if r.Doubt != "" {
		row(w, "In doubt", r.Doubt)
	}
	row(w, "Key archived", yesNo(r.Archived))
	if r.Profile.SubjectText != "" || len(r.Profile.SANs) > 0 {
		row(w, "Subject", r.Profile.SubjectText)
		row(w, "Alternative names", r.Profile.SANs)
	}
	if r.Serial != "" {
		row(w, "Serial number", r.Serial)
		row(w, "Valid until", r.NotAfter.Format(time.RFC3339))
	}
	if r.DecidedBy != "" {
		row(w, "Decided by", r.DecidedBy)
	}
	row(w)
	printChecks(w, r.Checks)
}

func (a *app) decideCommand(verb, short string, approve bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: verb + " ID", Short: short, Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := requestID(args[0])
			if err != nil {
				return err
			}
			if !approve && reason == "" {
				return usage("say why with --reason: the client is shown it")
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				if err := g.Ledger.Decide(ctx, id, actor(), approve, reason); err != nil {
					return err
				}
				r, err := g.Ledger.Get(ctx, id)
				if err != nil {
					return err
				}
				return a.print(r, func(w *tabwriter.Writer) {
					row(w, fmt.Sprintf("request %d of %s for %s is %s", r.ID, r.Caller, r.Template, r.State))
				})
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept with the request")
	return cmd
}
