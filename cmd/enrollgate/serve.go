package main

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/spf13/cobra"
)

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Serve enrollment until interrupted", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(a.path())
			if err != nil {
				return err
			}
			log, err := gateway.NewLogger(cfg.Log)
			if err != nil {
				return err
			}
			if err := memory.Lock(); err != nil {
				log.WithError(err).Warn("private keys could get into swap")
			}
			if !memory.Erases {
				log.Warn("parts of private keys may stay in the process's memory: build with GOEXPERIMENT=runtimesecret, as make does")
			}
			g, err := gateway.New(cmd.Context(), cfg, log)
			if err != nil {
				return err
			}
			err = g.Run(cmd.Context(), func() { log.WithField("version", version()).Info("ready") })
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			return errors.Join(err, g.Close())
		},
	}
}

// healthCommand is for container health checks, where there is no other program.
func (a *app) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "Ask the gateway on this machine whether it can decide; exit code 0 means yes", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(a.path())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			if err := gateway.CheckHealth(ctx, cfg); err != nil {
				return err
			}
			return a.print(map[string]bool{"healthy": true}, func(w *tabwriter.Writer) { row(w, "healthy") })
		},
	}
}

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use: "check", Short: "Check the configuration file and the files it names", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(_ context.Context, g *gateway.Gateway) error {
				notes := g.Advice()
				return a.print(map[string]any{"file": a.path(), "ok": true, "advice": notes}, func(w *tabwriter.Writer) {
					row(w, a.path()+" is good")
					for _, n := range notes {
						row(w, "could be better: "+n)
					}
				})
			})
		},
	})
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return a.print(v, func(w *tabwriter.Writer) { row(w, "enrollgate "+v["version"]+" ("+v["go"]+", "+v["platform"]+")") })
		},
	}
}

// version is what the Go toolchain recorded: the module version, else the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "development"
}
