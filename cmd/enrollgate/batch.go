package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/spf13/cobra"
)

// batchHelp is how people work together on many archived keys.
const batchHelp = "A manager orders a batch and tells the worker, an agent, its code. The worker's machine takes the order (escrow batch work), and the\n" +
	"worker tells the other agents another code, with which they consent (escrow batch consent), each on the own machine. Then the\n" +
	"worker's machine opens record after record (escrow batch work again). The gateway sees no key."

// withBatches runs do with a client of the gateway's batches.
func (a *app) withBatches(cmd *cobra.Command, f *gatewayFlags, do func(ctx context.Context, c *batch.Client) error) error {
	return a.withPeople(cmd, f, func(ctx context.Context, c people.Client) error { return do(ctx, &batch.Client{Client: c}) })
}

func (a *app) rewrapCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "rewrap", Short: "Seal archived keys to other agents, without having them in the clear outside the quorum",
		Long: batchHelp + "\n\nWhat a record was before is kept until another agent than the worker has proven that the new one opens (rewrap verify)."}
	cmd.AddCommand(a.rewrapOpenCommand(), a.rewrapVerifyCommand(), a.rewrapRestoreCommand())
	return cmd
}

// orderFlags are those of every order.
type orderFlags struct {
	gatewayFlags
	worker, reason string
}

func (f *orderFlags) addTo(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.worker, "worker", "", "account of the agent on whose machine the keys are opened, kate@CORP.EXAMPLE")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why; agents read it, and the audit log keeps it")
	f.gatewayFlags.add(cmd)
}

func (f *orderFlags) check() error {
	if f.worker == "" || f.reason == "" {
		return usage("--worker and --reason are needed: who does the work, and why")
	}
	return nil
}

func (a *app) rewrapOpenCommand() *cobra.Command {
	var f orderFlags
	var toFile string
	var to []string
	s := batch.Selection{Purpose: recovery.Rewrap}
	cmd := &cobra.Command{Use: "open --policy NAME --to FINGERPRINT,… --worker ACCOUNT --reason TEXT", Short: "Order that records are sealed to a changed set of agents", Args: exactArgs(),
		Long: "Name the agents by their fingerprints, as they tell you, or by a file with their certificates that you have from them: do not\n" +
			"take them from the gateway. Records that are sealed to just these agents already are left out; so are records that fewer agents can open\n" +
			"than it takes, which are listed by name: exit code 6.",
	}
	flags := cmd.Flags()
	flags.StringVar(&s.Policy, "policy", "", "recovery policy of the records")
	flags.StringSliceVar(&to, "to", nil, "fingerprints of all agents that the records are to be sealed to")
	flags.StringVar(&toFile, "to-file", "", "file with the certificates of all these agents in PEM form")
	flags.StringVar(&s.Owner, "owner", "", "only keys of this account, alice@CORP.EXAMPLE")
	flags.StringVar(&s.SealedTo, "sealed-to", "", "only keys that are sealed to this agent: fingerprint")
	flags.BoolVar(&s.Again, "again", false, "also keys that are sealed to just these agents already: they have hybrid keys now, or the keys are in an old form")
	flags.Int64SliceVar(&s.Records, "record", nil, "only these archived keys: numbers")
	f.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		if s.Policy == "" || (len(to) == 0) == (toFile == "") {
			return usage("--policy is needed, and the agents to seal to: --to with their fingerprints, or --to-file with their certificates; enrollgate escrow batch agents lists what the gateway knows")
		}
		var err error
		if s.Targets, err = fingerprints(to, toFile); err != nil {
			return err
		}
		s.SealedTo = strings.ToLower(s.SealedTo)
		return a.withBatches(cmd, &f.gatewayFlags, func(ctx context.Context, c *batch.Client) error { return a.order(ctx, c, &f, s) })
	}
	return cmd
}

// fingerprints are those on the command line, or of the certificates in a file.
func fingerprints(to []string, file string) ([]string, error) {
	var out []string
	for _, f := range to {
		out = append(out, strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(f)))
	}
	if file != "" {
		certs, err := local.LoadCertificates(file)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			out = append(out, escrow.Fingerprint(cert))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// orderedBatch is what an order prints.
type orderedBatch struct {
	*batch.Finished
	Code string       `json:"code"`
	More int          `json:"more"`
	Left []batch.Left `json:"left"`
}

// place lets the gateway choose records and orders what is to be done to them.
func place(ctx context.Context, c *batch.Client, f *orderFlags, s batch.Selection) (*orderedBatch, error) {
	d, err := c.Draft(ctx, s)
	if err != nil {
		return nil, err
	}
	o := d.Order(s, c.Principal, f.worker, f.reason)
	if err := o.Check(); err != nil {
		return nil, err
	}
	done, err := c.Order(ctx, d.Batch, o)
	if err != nil {
		return nil, err
	}
	return &orderedBatch{done, o.Code(), d.More, d.Left}, nil
}

// order orders one batch and shows it.
func (a *app) order(ctx context.Context, c *batch.Client, f *orderFlags, s batch.Selection) error {
	placed, err := place(ctx, c, f, s)
	if err != nil {
		return err
	}
	if err := a.print(placed, func(w *tabwriter.Writer) { showOrdered(w, placed) }); err != nil {
		return err
	}
	if len(placed.Left) > 0 {
		return &exitError{exitAttention, nil}
	}
	return nil
}

func showOrdered(w io.Writer, o *orderedBatch) {
	k := o.Batch
	row(w, fmt.Sprintf("batch %d is ordered: %s of %d records of policy %q; it takes %d agents, until %s", k.ID, k.Purpose, k.Records["open"], k.Policy, k.Required, day(k.Expires)))
	row(w, "Code", fmt.Sprintf("%s (tell %s, by phone or in person)", o.Code, k.Worker))
	if o.More > 0 {
		row(w, "More", fmt.Sprintf("%d records are left for further batches", o.More))
	}
	for _, l := range o.Left {
		row(w, "Left out", fmt.Sprintf("archived key %d of %s: %s", l.Record, l.Owner, l.Why))
	}
	row(w, "Receipt", receiptText(o.Receipt))
}

func (a *app) rewrapVerifyCommand() *cobra.Command {
	var f orderFlags
	cmd := &cobra.Command{Use: "verify BATCH --worker ACCOUNT --reason TEXT", Short: "Order a drill of what a rewrap has sealed, by another agent; it deletes what was before", Args: exactArgs("BATCH")}
	f.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := batchID(args[0])
		if err != nil {
			return err
		}
		if err := f.check(); err != nil {
			return err
		}
		return a.withBatches(cmd, &f.gatewayFlags, func(ctx context.Context, c *batch.Client) error {
			rewrap, err := c.Show(ctx, id)
			if err != nil {
				return err
			}
			return a.order(ctx, c, &f, batch.Selection{Purpose: recovery.Drill, Policy: rewrap.Batch.Policy, Verifies: id})
		})
	}
	return cmd
}

func (a *app) rewrapRestoreCommand() *cobra.Command {
	var f gatewayFlags
	var reason string
	cmd := &cobra.Command{Use: "restore RECORD --reason TEXT", Short: "Put back what a rewrap has replaced, while it is not proven", Args: exactArgs("RECORD")}
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept in the audit log")
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		record, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || reason == "" {
			return usage("the number of an archived key and --reason are needed")
		}
		return a.withBatches(cmd, &f, func(ctx context.Context, c *batch.Client) error {
			if err := c.Restore(ctx, record, reason); err != nil {
				return err
			}
			return a.print(map[string]any{"record": record}, func(w *tabwriter.Writer) { row(w, fmt.Sprintf("archived key %d is as it was before", record)) })
		})
	}
	return cmd
}

func (a *app) drillCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "drill", Short: "Prove that archived keys can be opened", Long: batchHelp + "\n\n" +
		"In a drill each key signs a challenge of the gateway's and is wiped: that it was opened is proven by the signature."}
	var f orderFlags
	var policies []string
	s := batch.Selection{Purpose: recovery.Drill}
	open := &cobra.Command{Use: "open --worker ACCOUNT --reason TEXT", Short: "Order that a random sample is opened, a batch for each recovery policy", Args: exactArgs(),
		Long: "The gateway chooses by random numbers of its operating system. --size is shared among the policies by their number of records, at\n" +
			"least one of each; --percent is of each.",
	}
	open.Flags().StringSliceVar(&policies, "policy", nil, "recovery policies (default: all that you manage and that have records)")
	open.Flags().IntVar(&s.Size, "size", 20, "size of the sample")
	open.Flags().Float64Var(&s.Percent, "percent", 0, "size of the sample in percent, instead of --size")
	f.addTo(open)
	open.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		return a.withBatches(cmd, &f.gatewayFlags, func(ctx context.Context, c *batch.Client) error { return a.orderDrills(ctx, c, &f, policies, s) })
	}
	cmd.AddCommand(open)
	return cmd
}

// orderDrills orders a drill for each policy. One that cannot be ordered does not keep the others from it.
func (a *app) orderDrills(ctx context.Context, c *batch.Client, f *orderFlags, names []string, s batch.Selection) error {
	all, err := c.Policies(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(p batch.PolicyInfo) bool {
		return p.Records == 0 || len(names) > 0 && !slices.Contains(names, p.Policy)
	})
	var total int64
	for _, p := range all {
		total += p.Records
	}
	placed, size := []*orderedBatch{}, s.Size
	var failed error
	for _, p := range all {
		if s.Policy = p.Policy; s.Percent == 0 {
			s.Size = max(1, int(math.Round(float64(size)*float64(p.Records)/float64(total))))
		}
		o, err := place(ctx, c, f, s)
		if err != nil {
			fmt.Fprintf(os.Stderr, "enrollgate: no drill of the recovery policy %q: %v\n", p.Policy, err)
			failed = err
			continue
		}
		placed = append(placed, o)
	}
	if len(placed) == 0 && failed == nil {
		return fmt.Errorf("there are no records to open; enrollgate escrow batch agents lists your recovery policies")
	}
	if len(placed) == 0 {
		return failed
	}
	if err := a.print(placed, func(w *tabwriter.Writer) {
		for _, o := range placed {
			showOrdered(w, o)
		}
	}); err != nil {
		return err
	}
	if failed != nil || slices.ContainsFunc(placed, func(o *orderedBatch) bool { return len(o.Left) > 0 }) {
		return &exitError{exitAttention, nil}
	}
	return nil
}

func batchID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 {
		return 0, usage("%q is not the number of a batch; see enrollgate escrow batch list", text)
	}
	return id, nil
}
