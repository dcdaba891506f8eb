package main

import (
	"context"
	"crypto"
	"fmt"
	"os"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/batch"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/spf13/cobra"
)

func (a *app) batchConsentCommand() *cobra.Command {
	f := &agentFlags{}
	var parts string
	cmd := &cobra.Command{Use: "consent BATCH|FILE --key FILE", Short: "Consent to a batch with an agent's key", Args: exactArgs("BATCH|FILE"),
		Long: "Consent opens the agent's shares of all the batch's records here, on this machine, and seals them to the worker. The code comes from\n" +
			"the worker, by phone or in person, never from the gateway. It goes on where it was when it is started again. Without a network: batch\n" +
			"show BATCH --out batch.json on one machine, batch consent batch.json --key agent.p12 --out parts.json on the other, then\n" +
			"batch consent BATCH --parts parts.json."}
	f.addTo(cmd, "code of the batch, as the worker has told it")
	cmd.Flags().StringVar(&f.out, "out", "", "write the agent's parts to this file instead of sending them")
	cmd.Flags().StringVar(&parts, "parts", "", "send the parts in this file")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.set() == (parts != "") {
			return usage("name the agent's key with --key, or parts that were made before with --parts")
		}
		if _, err := strconv.ParseInt(args[0], 10, 64); err != nil && parts == "" {
			if f.out == "" {
				return usage("say with --out where to write the parts; send them with batch consent BATCH --parts FILE")
			}
			return refusal(a.consentCarried(f, args[0]))
		}
		id, err := batchID(args[0])
		if err != nil {
			return err
		}
		return a.withBatches(cmd, &f.gatewayFlags, func(ctx context.Context, c *batch.Client) error {
			if parts != "" {
				return a.sendCarried(ctx, c, id, parts)
			}
			return f.with(ctx, c, id, func(info *recovery.BatchInfo, key crypto.Decrypter) error {
				consent, err := f.begin(info, key)
				if err != nil {
					return err
				}
				return a.consentAll(ctx, c, info, consent)
			})
		})
	}
	return cmd
}

// begin asks for the code.
func (f *agentFlags) begin(info *recovery.BatchInfo, key crypto.Decrypter) (*recovery.Consent, error) {
	code, err := f.readCode(info.Statement.Order.Worker)
	if err != nil {
		return nil, err
	}
	return recovery.NewConsent(info, code, key, time.Now())
}

// consentAll consents page by page, without those that were sent already.
func (a *app) consentAll(ctx context.Context, c *batch.Client, info *recovery.BatchInfo, consent *recovery.Consent) error {
	bar := newBar(len(info.Statement.Order.Pages), "pages")
	var done *batch.Finished
	for n := range info.Statement.Order.Pages {
		page, err := c.Page(ctx, info.Batch, n)
		if err != nil {
			return err
		}
		if !slices.Contains(page.Consented, consent.Agent()) {
			parts, err := consentPage(consent, page)
			if err != nil {
				return err
			}
			if parts != nil {
				if done, err = c.Consent(ctx, parts); err != nil {
					return err
				}
			}
		}
		bar.at(n + 1)
	}
	if done == nil {
		return a.print(map[string]any{"batch": info.Batch}, func(w *tabwriter.Writer) {
			row(w, fmt.Sprintf("batch %d needs nothing more of you", info.Batch))
		})
	}
	return a.printBatch(done, nil)
}

// consentPage names the records of which nothing is given.
func consentPage(consent *recovery.Consent, page *recovery.Page) (*recovery.Parts, error) {
	parts, skipped, err := consent.Page(page)
	for _, why := range skipped {
		fmt.Fprintf(os.Stderr, "enrollgate: %v\n", why)
	}
	return parts, err
}

// carried is what is carried to a machine without a network.
type carried struct {
	Info  *recovery.BatchInfo `json:"info"`
	Pages []*recovery.Page    `json:"pages"`
}

// maxCarried is the size up to which such a file is read, in octets.
const maxCarried = 1 << 30

// writeCarried writes all pages of a batch.
func writeCarried(ctx context.Context, c *batch.Client, s *batch.Shown, out string) error {
	if s.Info == nil || s.Batch.State != batch.Open {
		return fmt.Errorf("batch %d is %s, or you are no approver of its policy: there is nothing to consent to", s.Batch.ID, s.Batch.State)
	}
	file := carried{Info: s.Info}
	for n := range s.Info.Statement.Order.Pages {
		page, err := c.Page(ctx, s.Batch.ID, n)
		if err != nil {
			return err
		}
		page.Parts = nil
		file.Pages = append(file.Pages, page)
	}
	return writeJSON(out, file)
}

// consentCarried makes the parts from a file.
func (a *app) consentCarried(f *agentFlags, path string) error {
	file := &carried{}
	if err := readJSONUpTo(path, maxCarried, file); err != nil {
		return err
	}
	if file.Info == nil {
		return usage("%s is not what batch show --out has written", path)
	}
	key, err := f.open(file.Info)
	if err != nil {
		return err
	}
	consent, err := f.begin(file.Info, key)
	if err != nil {
		return err
	}
	parts := []*recovery.Parts{}
	for _, page := range file.Pages {
		if page == nil {
			continue
		}
		p, err := consentPage(consent, page)
		if err != nil {
			return err
		}
		if p != nil {
			parts = append(parts, p)
		}
	}
	if err := writeJSON(f.out, parts); err != nil {
		return err
	}
	return a.print(map[string]any{"batch": file.Info.Batch, "file": f.out}, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("consent to batch %d written to %s; send it with batch consent %d --parts %s", file.Info.Batch, f.out, file.Info.Batch, f.out))
	})
}

// sendCarried sends parts that were made elsewhere.
func (a *app) sendCarried(ctx context.Context, c *batch.Client, id int64, path string) error {
	var parts []*recovery.Parts
	if err := readJSONUpTo(path, maxCarried, &parts); err != nil {
		return err
	}
	if len(parts) == 0 || slices.ContainsFunc(parts, func(p *recovery.Parts) bool { return p == nil || p.Batch != id }) {
		return usage("%s is no consent to batch %d", path, id)
	}
	var done *batch.Finished
	for _, p := range parts {
		var err error
		if done, err = c.Consent(ctx, p); err != nil {
			return err
		}
	}
	return a.printBatch(done, nil)
}
