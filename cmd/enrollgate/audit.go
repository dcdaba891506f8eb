package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/spf13/cobra"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read, sign, prove and verify the audit log"}
	cmd.AddCommand(a.auditVerifyCommand(), a.auditExportCommand(), a.auditCheckpointCommand(), a.auditProveCommand(), a.auditCheckCommand(), a.auditWitnessCommand())
	return cmd
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var checkpoints, receipts []string
	var ask bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that no line of the audit log was changed or removed", Args: exactArgs(),
		Long: "Verify recomputes the log and compares it with its signed checkpoints. With --checkpoint it also compares it with one that\n" +
			"was kept elsewhere, which shows a log that was put back to an earlier state or written anew as a whole; so do the receipts\n" +
			"that recovery commands have printed.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			kept, err := readTexts(checkpoints)
			if err != nil {
				return err
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				n, witnessed, err := verifyLog(ctx, g, kept, receipts, ask)
				if err != nil {
					return err
				}
				return a.print(map[string]any{"lines": n, "intact": true, "witnessed": witnessed}, func(w *tabwriter.Writer) {
					row(w, fmt.Sprintf("%d lines, intact", n))
					for _, by := range witnessed {
						row(w, fmt.Sprintf("%d lines witnessed by %s, %s", by.Lines, by.Witness, dayOrNever(by.Time)))
					}
				})
			})
		},
	}
	cmd.Flags().BoolVar(&ask, "ask-witnesses", false, "ask the witnesses now: they know how long the log was")
	cmd.Flags().StringSliceVar(&receipts, "receipt", nil, "LINE:HASH that the log must have, as recovery commands print it")
	cmd.Flags().StringSliceVar(&checkpoints, "checkpoint", nil, "file with a checkpoint that was kept elsewhere")
	return cmd
}

// verifyLog compares the log with what was kept elsewhere, and with what witnesses know.
func verifyLog(ctx context.Context, g *gateway.Gateway, checkpoints, receipts []string, ask bool) (lines int64, witnessed []gateway.Witnessed, err error) {
	v, err := g.LogVerifier()
	if err != nil {
		return 0, nil, err
	}
	for _, text := range receipts {
		r, err := parseReceipt(text)
		if err != nil {
			return 0, nil, err
		}
		if err := r.Holds(ctx, g.DB.SQL); err != nil {
			return 0, nil, err
		}
	}
	if lines, err = audit.VerifySigned(ctx, g.DB.SQL, v, checkpoints...); err != nil {
		return 0, nil, err
	}
	if ask {
		if _, err := g.Cosign(ctx); err != nil {
			return 0, nil, err
		}
	}
	witnessed, err = g.Witnessed(ctx)
	return lines, witnessed, err
}

func readTexts(paths []string) (out []string, err error) {
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		out = append(out, string(text))
	}
	return out, nil
}

func (a *app) auditExportCommand() *cobra.Command {
	var format string
	var after int64
	cmd := &cobra.Command{
		Use: "export", Short: "Print the audit log, for people or for a SIEM", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format == "" {
				format = map[string]string{"json": "json", "table": "table"}[a.output]
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				w := bufio.NewWriter(os.Stdout)
				print, end, err := lineWriter(w, format, g.Config.PublicName)
				if err != nil {
					return err
				}
				if err := audit.Each(ctx, g.DB.SQL, after, print); err != nil {
					return err
				}
				end()
				return w.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "table, json (one list), jsonl (a line each) or syslog (RFC 5424); default: as --output says")
	cmd.Flags().Int64Var(&after, "after", 0, "only lines after the one with this number")
	return cmd
}

// lineWriter prints lines one by one: a log need not fit into memory.
func lineWriter(w *bufio.Writer, format, host string) (print func(audit.Line) error, end func(), err error) {
	end = func() {}
	switch format {
	case "table":
		fmt.Fprintf(w, "%-8s %-20s %-22s %-30s %s\n", "SEQ", "TIME", "EVENT", "ACTOR", "DETAIL")
		return func(l audit.Line) error {
			_, err := fmt.Fprintf(w, "%-8d %-20s %-22s %-30s %s\n", l.Seq, l.Time.Format(time.RFC3339), l.Event, l.Actor, l.Detail)
			return err
		}, end, nil
	case "syslog":
		return func(l audit.Line) error {
			text, err := l.Syslog(host)
			if err == nil {
				_, err = fmt.Fprintln(w, text)
			}
			return err
		}, end, nil
	case "json", "jsonl":
		separator, first := "\n", true
		if format == "json" {
			fmt.Fprint(w, "[")
			separator, end = ",\n", func() { fmt.Fprintln(w, "]") }
		} else {
			end = func() { fmt.Fprintln(w) }
		}
		return func(l audit.Line) error {
			text, err := l.JSON()
			if err != nil {
				return err
			}
			if !first {
				fmt.Fprint(w, separator)
			}
			first = false
			_, err = w.Write(text)
			return err
		}, end, nil
	}
	return nil, nil, usage("format %q is unknown; there are: table, json, jsonl, syslog", format)
}

func (a *app) auditCheckpointCommand() *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint", Short: "Sign the audit log as it is; keep the output elsewhere", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				c, err := g.Checkpoint(ctx)
				if err != nil {
					return err
				}
				s, err := g.AuditSigner()
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.print(map[string]any{"size": c.Size, "checkpoint": c.Note, "log_key": s.VerifierKey()}, nil)
				}
				fmt.Fprintf(os.Stderr, "log key: %s\n", s.VerifierKey())
				fmt.Print(c.Note)
				return nil
			})
		},
	}
}

func (a *app) auditProveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "prove SEQ", Short: "Print the proof that a line is in the audit log", Args: exactArgs("SEQ"),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usage("%q is not the number of a line", args[0])
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				p, err := g.ProveLine(ctx, seq)
				if err != nil {
					return err
				}
				e := json.NewEncoder(os.Stdout)
				e.SetEscapeHTML(false)
				return e.Encode(p)
			})
		},
	}
}

func (a *app) auditCheckCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "check-proof FILE --log-key KEY", Short: "Check a proof, anywhere, with nothing but the log's public key", Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			if key == "" {
				return usage("name the log's public key with --log-key; audit checkpoint prints it")
			}
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			var p audit.Proof
			if err := json.Unmarshal(text, &p); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			l, err := p.Check(strings.TrimSpace(key))
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.print(map[string]any{"line": l, "proven": true}, func(w *tabwriter.Writer) {
				row(w, fmt.Sprintf("line %d is in the log: %s, %s by %s", l.Seq, l.Time.Format(time.RFC3339), l.Event, l.Actor))
			})
		},
	}
	cmd.Flags().StringVar(&key, "log-key", "", "public key of the log")
	return cmd
}

func (a *app) auditWitnessCommand() *cobra.Command {
	return &cobra.Command{
		Use: "witness", Short: "Show the key that this gateway cosigns other instances' logs with, and what it has seen of them", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				own, err := g.Witness()
				if err != nil {
					return err
				}
				states, err := own.States(ctx)
				if err != nil {
					return err
				}
				return a.print(map[string]any{"key": own.Key(), "logs": states}, func(w *tabwriter.Writer) {
					row(w, "key: "+own.Key())
					for _, s := range states {
						row(w, fmt.Sprintf("%s: %d lines, %s", s.Log, s.Size, day(s.Seen)))
					}
				})
			})
		},
	}
}

func dayOrNever(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return day(*t)
}
