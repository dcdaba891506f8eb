package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) batchCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "batch", Short: "Look at, consent to and do rewraps and drills", Long: batchHelp + "\n\nExit codes: 0 done, 3 refused, 4 consents are missing, 6 some records were left out or failed."}
	cmd.AddCommand(a.batchListCommand(), a.batchShowCommand(), a.batchAgentsCommand(), a.batchConsentCommand(), a.batchWorkCommand(), a.batchCancelCommand())
	return cmd
}

func (a *app) batchListCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{Use: "list", Short: "List batches, newest first", Args: exactArgs()}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withBatches(cmd, &f, func(ctx context.Context, c *batch.Client) error {
			list, err := c.List(ctx)
			if err != nil {
				return err
			}
			return a.print(list, func(w *tabwriter.Writer) {
				row(w, "BATCH", "PURPOSE", "STATE", "POLICY", "CONSENTS", "RECORDS", "ORDERED", "BY", "WORKER", "EXPIRES", "REASON")
				for _, k := range list {
					row(w, k.ID, k.Purpose, k.State, k.Policy, fmt.Sprintf("%d of %d", len(k.Consents), k.Required-1), counts(k), day(k.Created), k.OpenedBy, k.Worker, day(k.Expires), k.Reason)
				}
			})
		})
	}
	f.add(cmd)
	return cmd
}

// counts says how many records are in which state.
func counts(k *batch.Batch) string {
	var out []string
	for _, state := range slices.Sorted(maps.Keys(k.Records)) {
		out = append(out, fmt.Sprintf("%d %s", k.Records[state], state))
	}
	return strings.Join(out, ", ")
}

func (a *app) batchShowCommand() *cobra.Command {
	var f gatewayFlags
	var out string
	cmd := &cobra.Command{Use: "show BATCH", Short: "Show one batch; write what an agent needs to consent on a machine without a network", Args: exactArgs("BATCH")}
	cmd.Flags().StringVar(&out, "out", "", "file to write for escrow batch consent FILE")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := batchID(args[0])
		if err != nil {
			return err
		}
		return a.withBatches(cmd, &f, func(ctx context.Context, c *batch.Client) error {
			s, err := c.Show(ctx, id)
			if err != nil {
				return err
			}
			if out != "" {
				if err := writeCarried(ctx, c, s, out); err != nil {
					return err
				}
			}
			return a.print(map[string]any{"batch": s.Batch, "left": s.Left}, func(w *tabwriter.Writer) {
				k := s.Batch
				row(w, "Batch", fmt.Sprintf("%d, a %s of policy %q, %s", k.ID, k.Purpose, k.Policy, k.State))
				row(w, "Ordered by", k.OpenedBy+", "+day(k.Created)+", from "+k.Worker)
				row(w, "Reason", k.Reason)
				row(w, "Records", counts(k))
				row(w, "Takes", fmt.Sprintf("%d agents, the worker among them", k.Required))
				for _, n := range k.Consents {
					row(w, "Consent", fmt.Sprintf("%s, %s, with %s", n.Approver, day(n.Created), n.Agent))
				}
				for _, l := range s.Left {
					row(w, "Record "+l.State, fmt.Sprintf("archived key %d of %s: %s", l.Record, l.Owner, l.Why))
				}
			})
		})
	}
	f.add(cmd)
	return cmd
}

func (a *app) batchAgentsCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{Use: "agents", Short: "List your recovery policies and the agents that the gateway would seal to: compare fingerprints with them", Args: exactArgs()}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withBatches(cmd, &f, func(ctx context.Context, c *batch.Client) error {
			list, err := c.Policies(ctx)
			if err != nil {
				return err
			}
			return a.print(list, func(w *tabwriter.Writer) {
				row(w, "POLICY", "RECORDS", "AGENTS NEEDED", "AGENT", "VALID UNTIL", "FINGERPRINT")
				for _, p := range list {
					for _, n := range p.Agents {
						row(w, p.Policy, p.Records, p.Required, n.Subject, day(n.NotAfter), n.Fingerprint)
					}
				}
			})
		})
	}
	f.add(cmd)
	return cmd
}

func (a *app) batchCancelCommand() *cobra.Command {
	var f gatewayFlags
	var reason string
	cmd := &cobra.Command{Use: "cancel BATCH --reason TEXT", Short: "End a batch as a manager; what was done stays done", Args: exactArgs("BATCH")}
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept in the audit log")
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := batchID(args[0])
		if err != nil {
			return err
		}
		if reason == "" {
			return usage("--reason is needed")
		}
		return a.withBatches(cmd, &f, func(ctx context.Context, c *batch.Client) error {
			done, err := c.Cancel(ctx, id, reason)
			if err != nil {
				return err
			}
			return a.printBatch(done, nil)
		})
	}
	return cmd
}

func (a *app) printBatch(done *batch.Finished, more map[string]any) error {
	k := done.Batch
	result := map[string]any{"batch": k.ID, "state": k.State, "records": k.Records, "receipt": done.Receipt}
	maps.Copy(result, more)
	return a.print(result, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("batch %d is %s: %s", k.ID, k.State, counts(k)))
		row(w, "Receipt", receiptText(done.Receipt))
	})
}

// agentFlags are those of an agent on the own machine.
type agentFlags struct {
	approveFlags
	file string
}

func (f *agentFlags) addTo(cmd *cobra.Command, code string) {
	cmd.Flags().StringVar(&f.code, "code", "", code)
	f.agentKeyFlags.add(cmd)
	f.gatewayFlags.add(cmd)
}

// with shows what is asked for and runs do with the agent's key.
func (f *agentFlags) with(ctx context.Context, c *batch.Client, id int64, do func(info *recovery.BatchInfo, key crypto.Decrypter) error) error {
	s, err := c.Show(ctx, id)
	if err != nil {
		return err
	}
	if s.Info == nil || s.Info.Batch != id {
		return &exitError{exitRefused, fmt.Errorf("batch %d is %s, or you are no approver of its policy", id, s.Batch.State)}
	}
	key, err := f.open(s.Info)
	if err != nil {
		return err
	}
	return refusal(do(s.Info, key))
}

// open shows what is asked for and opens the agent's key.
func (f *agentFlags) open(info *recovery.BatchInfo) (crypto.Decrypter, error) {
	o := &info.Statement.Order
	if err := o.Check(); err != nil { // before it is shown: it may come from a gateway that is not to be trusted
		return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
	}
	w := tabwriter.NewWriter(os.Stderr, 0, 4, 2, ' ', 0)
	row(w, "Batch", fmt.Sprintf("%d, a %s of %d records of policy %q", info.Batch, o.Purpose, o.Records, o.Policy))
	row(w, "Ordered by", o.Manager+", from "+o.Worker)
	row(w, "Reason", o.Reason)
	row(w, "Takes", fmt.Sprintf("%d agents, until %s", o.Required, day(info.Expires)))
	for _, t := range o.Targets {
		name := "(the gateway has not sent the certificate)"
		for _, der := range info.Targets {
			if sum := sha256.Sum256(der); hex.EncodeToString(sum[:]) == t {
				name = subjectOf(der)
			}
		}
		row(w, "Seal to", t+"  "+name)
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return f.agentKeyFlags.open(info.Agents)
}

// refusal gives what an agent's own machine refuses its exit code.
func refusal(err error) error {
	if errors.Is(err, recovery.ErrCode) || errors.Is(err, recovery.ErrExpired) {
		return &exitError{exitRefused, err}
	}
	return err
}

func (a *app) batchWorkCommand() *cobra.Command {
	f := &agentFlags{}
	cmd := &cobra.Command{Use: "work BATCH --key FILE", Short: "Take an ordered batch, or do what agents have consented to", Args: exactArgs("BATCH"),
		Long: "Work takes the order first: give the code that the manager has told you, and tell the agents the code that is printed. When they have\n" +
			"consented, run it again: it opens record after record on this machine. It can be stopped at any moment, and goes on where it was."}
	f.addTo(cmd, "code of the order, as the manager has told it; only the first time")
	cmd.Flags().StringVar(&f.file, "batch-key", "", "file for the batch key (default: batch-NUMBER.key)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := batchID(args[0])
		if err != nil || !f.set() {
			return errors.Join(err, usage("name the batch, and the agent's key with --key"))
		}
		if f.file == "" {
			f.file = fmt.Sprintf("batch-%d.key", id)
		}
		return a.withBatches(cmd, &f.gatewayFlags, func(ctx context.Context, c *batch.Client) error {
			return f.with(ctx, c, id, func(info *recovery.BatchInfo, key crypto.Decrypter) error {
				file, done, err := f.take(ctx, c, info, key)
				if err != nil {
					return err
				}
				defer file.Wipe()
				info.Statement = file.Statement
				return a.work(ctx, c, f, info, file, key, done)
			})
		})
	}
	return cmd
}

// take makes the batch the worker's, or finds that it is so already. The batch key is on disk before the gateway hears of it.
func (f *agentFlags) take(ctx context.Context, c *batch.Client, info *recovery.BatchInfo, key crypto.Decrypter) (*recovery.BatchFile, *batch.Finished, error) {
	file := &recovery.BatchFile{}
	err := readJSON(f.file, file)
	if errors.Is(err, fs.ErrNotExist) {
		code, err := f.readCode(info.Statement.Order.Manager)
		if err != nil {
			return nil, nil, err
		}
		if file, err = recovery.NewBatchFile(info, code, key); err != nil {
			return nil, nil, err
		}
		text, err := json.Marshal(file)
		if err != nil {
			return nil, nil, err
		}
		defer wcce.Wipe(text)
		if err := writeSecret(f.file, text); err != nil {
			return nil, nil, err
		}
	} else if err != nil {
		return nil, nil, err
	}
	if file.Batch != info.Batch {
		return nil, nil, usage("%s is the key of batch %d", f.file, file.Batch)
	}
	done, err := c.Take(ctx, info.Batch, &file.Statement)
	return file, done, err
}

// work does what can be done, and says what is missing.
func (a *app) work(ctx context.Context, c *batch.Client, f *agentFlags, info *recovery.BatchInfo, file *recovery.BatchFile, key crypto.Decrypter, done *batch.Finished) error {
	w, err := recovery.NewWorker(info, file, key, time.Now())
	if err != nil {
		return err
	}
	total := info.Statement.Order.Records
	bar, waiting := newBar(total, "records"), 0
	for n := range info.Statement.Order.Pages {
		page, err := c.Page(ctx, info.Batch, n)
		if err != nil {
			return err
		}
		last, waits, err := workPage(ctx, c, w, info.Batch, page)
		if err != nil {
			return err
		}
		if waiting += waits; last != nil {
			done = last
		}
		if bar.at(min((n+1)*recovery.PageSize, total)); done.Batch.State != batch.Open { // it has ended with the last record
			break
		}
	}
	code := file.Statement.Code()
	if err := a.printBatch(done, map[string]any{"code": code, "waiting": waiting}); err != nil {
		return err
	}
	if waiting > 0 {
		return &exitError{exitPending, fmt.Errorf("%d records wait for consents: tell the agents the code %s, by phone or in person, and run this again when they have consented", waiting, code)}
	}
	if err := os.Remove(f.file); err != nil {
		return err
	}
	if done.Batch.Records["failed"] > 0 || done.Batch.Records["left"] > 0 {
		return &exitError{exitAttention, fmt.Errorf("enrollgate escrow batch show %d lists the records that were left out or failed", info.Batch)}
	}
	return nil
}

// workPage does the records of one page, some in each message. waits are those without enough consents.
func workPage(ctx context.Context, c *batch.Client, w *recovery.Worker, id int64, page *recovery.Page) (done *batch.Finished, waits int, err error) {
	opened, err := w.Open(page)
	if err != nil {
		return nil, 0, err
	}
	defer opened.Wipe()
	report := batch.Report{}
	named := map[string]bool{}
	blame := func(list []recovery.BadShare) {
		for _, b := range list {
			if fmt.Fprintln(os.Stderr, "enrollgate: "+b.Error()); !named[b.Agent] {
				named[b.Agent] = true
				report.Bad = append(report.Bad, batch.Bad{Agent: b.Agent, Cause: b.Err.Error()})
			}
		}
	}
	send := func() (err error) {
		if len(report.Results) > 0 || len(report.Bad) > 0 {
			done, err = c.Results(ctx, id, &report)
			report = batch.Report{}
		}
		return err
	}
	blame(opened.Bad)
	for i := range page.Items {
		if page.Items[i].State != recovery.ItemOpen {
			continue
		}
		result, bad, err := w.Do(opened, &page.Items[i])
		if blame(bad); errors.Is(err, recovery.ErrWaits) {
			waits++
			continue
		}
		if err != nil {
			return done, waits, err
		}
		if report.Results = append(report.Results, *result); len(report.Results) == recovery.MaxResults {
			if err := send(); err != nil {
				return done, waits, err
			}
		}
	}
	return done, waits, send()
}

// bar shows progress on stderr: on a terminal in one line, else now and then.
type bar struct {
	total    int
	what     string
	terminal bool
	shown    time.Time
}

func newBar(total int, what string) *bar {
	return &bar{total: total, what: what, terminal: term.IsTerminal(int(os.Stderr.Fd()))}
}

func (b *bar) at(n int) {
	end := "\n"
	if b.terminal && n < b.total {
		end = "\r"
	} else if !b.terminal && n < b.total && time.Since(b.shown) < 10*time.Second {
		return
	}
	b.shown = time.Now()
	fmt.Fprintf(os.Stderr, "%d of %d %s%s", n, b.total, b.what, end)
}
