package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) path() string {
	switch {
	case a.configPath != "":
		return a.configPath
	case os.Getenv("ENROLLGATE_CONFIG") != "":
		return os.Getenv("ENROLLGATE_CONFIG")
	}
	return config.DefaultPath
}

// open loads the configuration and builds the gateway, without serving. Logs of one-off commands are warnings only.
func (a *app) open(ctx context.Context) (*gateway.Gateway, error) {
	cfg, err := config.Load(a.path())
	if err != nil {
		return nil, err
	}
	cfg.Log.Level, cfg.Log.Format = "warning", "text"
	log, err := gateway.NewLogger(cfg.Log)
	if err != nil {
		return nil, err
	}
	return gateway.New(ctx, cfg, log)
}

// withGateway runs do with an open gateway.
func (a *app) withGateway(cmd *cobra.Command, do func(ctx context.Context, g *gateway.Gateway) error) error {
	g, err := a.open(cmd.Context())
	if err != nil {
		return err
	}
	return errors.Join(do(cmd.Context(), g), g.Close())
}

// withDirectory also reads the directory first.
func (a *app) withDirectory(cmd *cobra.Command, do func(ctx context.Context, g *gateway.Gateway) error) error {
	return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
		if err := g.Forest.Refresh(ctx); err != nil {
			return err
		}
		return do(ctx, g)
	})
}

// print shows a value as JSON, or lets table draw it.
func (a *app) print(value any, table func(w *tabwriter.Writer)) error {
	if a.output == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(value)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	table(w)
	return w.Flush()
}

func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// actor is who runs a command, for the audit log: the operating system's account, and who became it.
func actor() string {
	name := fmt.Sprintf("uid %d", os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" && sudo != name {
		name += " (sudo by " + sudo + ")"
	}
	return "local account " + name
}

// passwordFlags read a secret from a file, a variable or the terminal: never from the command line itself, which other
// users can see.
type passwordFlags struct {
	name      string
	file, env string
}

func (p *passwordFlags) add(cmd *cobra.Command, name, what string) {
	p.name = name
	cmd.Flags().StringVar(&p.file, name+"-file", "", "file with the "+what)
	cmd.Flags().StringVar(&p.env, name+"-env", "", "environment variable with the "+what)
}

func (p *passwordFlags) set() bool { return p.file != "" || p.env != "" }

func (p *passwordFlags) read(prompt string) (string, error) {
	if p.env != "" {
		if v, ok := os.LookupEnv(p.env); ok {
			return v, nil
		}
		return "", fmt.Errorf("the environment variable %s is not set", p.env)
	}
	if p.file != "" {
		b, err := os.ReadFile(p.file)
		if err != nil {
			return "", err
		}
		return strings.TrimRight(string(b), "\r\n"), nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", usage("name the password with --%s-file or --%s-env", p.name, p.name)
	}
	fmt.Fprint(os.Stderr, prompt+": ")
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	return string(b), err
}

// writeSecret writes a new file that only its owner can read; an existing one is not overwritten.
func writeSecret(path string, content []byte) error { return writeNew(path, content, 0o600) }

func writeNew(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already: choose another name or remove it", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// p12Flags choose how a PKCS#12 file is encrypted.
type p12Flags struct{ legacy bool }

func (f *p12Flags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.legacy, "legacy-pkcs12", false, "encrypt with 3DES and SHA-1, for Windows before 10 1809, and GnuPG before 2.4; default: AES-256 and SHA-256")
}
