package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/spf13/cobra"
)

func (a *app) escrowListCommand() *cobra.Command {
	var q escrow.Query
	var since, until string
	var below bool
	cmd := &cobra.Command{
		Use: "list", Short: "List archived keys, newest first", Args: exactArgs(),
		Long: "List shows the archived keys that are all that the flags say, newest first. Where there are more than --limit, the next\n" +
			"page is what follows --after the last number of this one.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if q.Since, err = parseDay("since", since); err != nil {
				return err
			}
			if q.Until, err = parseDay("until", until); err != nil {
				return err
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				list, err := g.Escrow.Search(ctx, q)
				if below {
					list, err = g.Escrow.BelowQuorum(ctx, q.Limit)
				}
				if err != nil {
					return err
				}
				if list == nil {
					list = []escrow.Entry{}
				}
				return a.print(list, func(w *tabwriter.Writer) { showEntries(w, list, q.Limit) })
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Owner, "owner", "", "only keys of this account: alice, alice@CORP.EXAMPLE, or all that begin so: ali*")
	f.StringVar(&q.Subject, "subject", "", "only keys whose subject has these words")
	f.StringVar(&q.Serial, "serial", "", "only the key of the certificate with this serial number, hexadecimal")
	f.StringVar(&q.Policy, "policy", "", "only keys under this recovery policy")
	f.StringVar(&since, "since", "", "only keys archived on this day or later: 2026-11-25, or 2026-11-25T15:00:00Z")
	f.StringVar(&until, "until", "", "only keys archived before this day or time")
	f.IntVar(&q.Limit, "limit", 100, "at most this many")
	f.BoolVar(&below, "below-quorum", false, "those that fewer agents can open than it takes, of everybody")
	f.Int64Var(&q.After, "after", 0, "only what follows the key with this number in the list")
	return cmd
}

// parseDay reads a day, in this machine's time zone, or a time; "" is none.
func parseDay(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, time.Local); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usage("--%s: %q is neither a day (2026-11-25) nor a time (2026-11-25T15:00:00Z)", flag, s)
	}
	return t, nil
}

func showEntries(w *tabwriter.Writer, list []escrow.Entry, limit int) {
	row(w, "ID", "ARCHIVED", "OWNER", "KEY", "SOURCE", "REQUEST", "SERIAL NUMBER", "AGENTS", "POLICY", "PROVEN", "SUBJECT", "")
	for _, e := range list {
		request, state := "-", ""
		if e.RequestID != 0 {
			request = fmt.Sprintf("%d %s", e.RequestID, e.State)
		}
		switch {
		case e.Destroyed != nil:
			state = "destroyed " + day(e.Destroyed.Time)
		case e.Held != nil:
			state = "on hold"
		}
		row(w, e.ID, day(e.Created), e.Owner, fmt.Sprintf("%s %d", e.Algorithm, e.Bits), e.Source, request, e.Serial,
			fmt.Sprintf("%d of %d", e.Required, len(e.Recipients)), e.Policy, day(e.Proven), e.Subject, state)
	}
	if len(list) == limit && limit > 0 {
		row(w, fmt.Sprintf("there may be more: --after %d", list[limit-1].ID))
	}
}
