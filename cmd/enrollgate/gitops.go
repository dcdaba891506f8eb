package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/inspect"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates/manifest"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// gitopsCommands are export, plan and apply: certificate templates as YAML in a repository.
func (a *app) gitopsCommands() []*cobra.Command {
	g := &gitops{app: a}
	var dir string
	export := &cobra.Command{
		Use: "export [NAME…]", Short: "Write templates as YAML, all or those named", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return g.export(cmd.Context(), args, dir) },
	}
	export.Flags().StringVarP(&dir, "dir", "d", "", "folder for one file per template (default: standard output)")
	plan := &cobra.Command{
		Use: "plan FILE…|DIR", Short: "Show what apply would change in the directory", Args: someFiles,
		Long: "Plan compares YAML files, or the *.yaml and *.yml files of a folder, with the directory, and prints a diff. It changes nothing.\n" +
			"Exit code 0: no changes; 5: changes; 1: an error.",
		RunE: func(cmd *cobra.Command, args []string) error { return g.plan(cmd.Context(), args) },
	}
	var yes bool
	apply := &cobra.Command{
		Use: "apply FILE…|DIR", Short: "Make the directory's templates what the YAML files say", Args: someFiles,
		Long: "Apply prints the diff that plan prints, asks, and writes it to the directory: OIDs, templates with their access control lists,\n" +
			"and which CAs offer them. Keys that a file does not have, and templates that no file has, stay as they are.",
		RunE: func(cmd *cobra.Command, args []string) error { return g.apply(cmd.Context(), args, yes) },
	}
	apply.Flags().BoolVar(&yes, "yes", false, "do not ask")
	for _, cmd := range []*cobra.Command{export, plan, apply} {
		g.addConnection(cmd)
	}
	return []*cobra.Command{export, plan, apply}
}

// addConnection adds the flags that say where the directory is, and as whom to connect.
func (g *gitops) addConnection(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&g.servers, "server", nil, "domain controller, such as ldap://dc1.corp.example; instead of the configuration file")
	cmd.Flags().StringVar(&g.caFile, "ca-file", "", "roots of the domain controllers' TLS certificates, with --server ldaps://…")
	cmd.Flags().StringVar(&g.principal, "bind-principal", "", "account to use instead of the gateway's own, such as admin@CORP.EXAMPLE")
	cmd.Flags().StringVar(&g.keytab, "keytab", "", "keytab of that account (default: its password)")
	g.password.add(cmd, "password", "account's password")
}

func someFiles(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage("usage: %s", cmd.UseLine())
	}
	return nil
}

// gitops has the flags that say where and as whom.
type gitops struct {
	app               *app
	servers           []string
	caFile            string
	principal, keytab string
	password          passwordFlags
}

// directory says how to connect: as the configuration file does, or without one, on an administrator's own machine.
func (g *gitops) directory() (ldapsync.Config, error) {
	if len(g.servers) > 0 {
		if g.principal == "" {
			return ldapsync.Config{}, usage("say with --bind-principal as whom to connect to %s", g.servers[0])
		}
		return ldapsync.Config{Servers: g.servers, CAFile: g.caFile, Auth: ldapsync.Auth{Method: ldapsync.GSSAPI}}, nil
	}
	cfg, err := config.Load(g.app.path())
	if err != nil {
		return ldapsync.Config{}, err
	}
	return gateway.DirectoryConfig(cfg)
}

// with connects to the directory: as the gateway, or as the account named.
func (g *gitops) with(do func(d *ldapsync.Directory) error) error {
	c, err := g.directory()
	if err != nil {
		return err
	}
	c.StateFile = ""
	if c.Auth, err = g.auth(c.Auth); err != nil {
		return err
	}
	log, err := gateway.NewLogger(config.Log{Level: "warning", Format: "text"})
	if err != nil {
		return err
	}
	d, err := ldapsync.New(c, log)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(d)
}

// auth is the account to bind as. A password goes to where the gateway's own does: to the KDC, or inside TLS.
func (g *gitops) auth(own ldapsync.Auth) (ldapsync.Auth, error) {
	if g.principal == "" {
		if g.keytab != "" || g.password.set() {
			return own, usage("say whose keytab or password it is with --bind-principal")
		}
		return own, nil
	}
	auth := ldapsync.Auth{Method: ldapsync.GSSAPI, Principal: g.principal, Keytab: g.keytab, Krb5Conf: own.Krb5Conf}
	if g.keytab != "" {
		return auth, nil
	}
	var err error
	if auth.Password, err = g.password.read("password of " + g.principal); err != nil {
		return own, err
	}
	if own.Method == ldapsync.Simple {
		auth = ldapsync.Auth{Method: ldapsync.Simple, User: g.principal, Password: auth.Password}
	}
	return auth, nil
}

// exported is what export tells about each template.
type exported struct {
	Name string `json:"name"`
	File string `json:"file,omitempty"`
	YAML string `json:"yaml,omitempty"`
}

func (g *gitops) export(ctx context.Context, names []string, dir string) error {
	return g.with(func(d *ldapsync.Directory) error {
		f, err := d.ManifestForest(ctx)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			for i := range f.Templates {
				names = append(names, f.Templates[i].Name())
			}
		}
		var out []exported
		var errs error // one template that cannot be written does not keep the others back
		for _, name := range names {
			e, err := exportOne(f, name, dir)
			if err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			out = append(out, e)
		}
		return errors.Join(g.printExport(out), errs)
	})
}

func exportOne(f *manifest.Forest, name, dir string) (exported, error) {
	t := f.Template(name)
	if t == nil {
		return exported{}, fmt.Errorf("the forest has no template %q", name)
	}
	text, err := manifest.Export(f, t, func(oid string) string { return cmp.Or(inspect.OIDName(oid), f.OIDName(oid)) })
	if err != nil || dir == "" {
		return exported{Name: t.Name(), YAML: string(text)}, err
	}
	path := filepath.Join(dir, url.PathEscape(t.Name())+".yaml")
	return exported{Name: t.Name(), File: path}, writeChanged(path, text)
}

func (g *gitops) printExport(out []exported) error {
	if g.app.output == "json" {
		return g.app.print(out, nil)
	}
	for i, e := range out {
		switch {
		case e.File != "":
			fmt.Println(e.File)
		case i > 0:
			fmt.Printf("---\n%s", e.YAML)
		default:
			fmt.Print(e.YAML)
		}
	}
	return nil
}

// writeChanged leaves a file alone that has the content already.
func writeChanged(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return os.WriteFile(path, content, 0o644)
}

// files lists the YAML files of folders.
func files(args []string) ([]string, error) {
	var out []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			out = append(out, arg)
			continue
		}
		entries, err := os.ReadDir(arg)
		if err != nil {
			return nil, err
		}
		before := len(out)
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
				out = append(out, filepath.Join(arg, e.Name()))
			}
		}
		if len(out) == before {
			return nil, fmt.Errorf("%s: no *.yaml or *.yml file in it", arg)
		}
	}
	return out, nil
}

// read makes the plan.
func (g *gitops) read(ctx context.Context, d *ldapsync.Directory, args []string) (*manifest.Plan, error) {
	paths, err := files(args)
	if err != nil {
		return nil, err
	}
	f, err := d.ManifestForest(ctx)
	if err != nil {
		return nil, err
	}
	var all []*manifest.Manifest
	var errs error
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		parsed, err := manifest.Parse(path, content, func(name string) (security.SID, error) { return g.sidOf(ctx, d, f, name) })
		all, errs = append(all, parsed...), errors.Join(errs, err)
	}
	if errs != nil {
		return nil, errs
	}
	return manifest.NewPlan(f, all, ldapsync.FreshOID)
}

// sidOf remembers names for the diff.
func (g *gitops) sidOf(ctx context.Context, d *ldapsync.Directory, f *manifest.Forest, name string) (security.SID, error) {
	for sid, known := range f.Names {
		if strings.EqualFold(known, name) {
			return sid, nil
		}
	}
	sid, err := d.SIDOf(ctx, name)
	if err == nil && f.Names[sid] == "" {
		for sid, name := range d.NamesOf(ctx, []security.SID{sid}) {
			f.Names[sid] = name
		}
	}
	return sid, err
}

// show prints the diff and the warnings.
func (g *gitops) show(p *manifest.Plan) error {
	if g.app.output == "json" {
		return g.app.print(p, nil)
	}
	for _, w := range p.Warnings {
		fmt.Fprintln(os.Stderr, "warning: "+w)
	}
	if len(p.Differences) == 0 {
		fmt.Println("no changes")
		return nil
	}
	fmt.Print(p.Unified())
	return nil
}

func (g *gitops) plan(ctx context.Context, args []string) error {
	return g.with(func(d *ldapsync.Directory) error {
		p, err := g.read(ctx, d, args)
		if err == nil {
			err = g.show(p)
		}
		if err == nil && len(p.Differences) > 0 {
			err = &exitError{code: exitChanges}
		}
		return err
	})
}

func (g *gitops) apply(ctx context.Context, args []string, yes bool) error {
	if !yes && (g.app.output == "json" || !term.IsTerminal(int(os.Stdin.Fd()))) {
		return usage("nobody is there to be asked: look at the plan, then apply with --yes")
	}
	return g.with(func(d *ldapsync.Directory) error {
		p, err := g.read(ctx, d, args)
		if err != nil {
			return err
		}
		if err := g.show(p); err != nil || len(p.Differences) == 0 {
			return err
		}
		if !yes && !confirmed(ctx) {
			return errors.New("nothing was changed")
		}
		done, err := d.Apply(ctx, p)
		g.report(p, done)
		if err != nil {
			return err
		}
		return g.prove(ctx, d, args)
	})
}

// confirmed asks. An interrupt is an answer, too.
func confirmed(ctx context.Context) bool {
	fmt.Fprint(os.Stderr, `write this to the directory? "yes" does it: `)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case text := <-answer:
		return text == "yes"
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr)
		return false
	}
}

// report says what was done and what not.
func (g *gitops) report(p *manifest.Plan, done int) {
	for i, d := range p.Differences {
		what := "done"
		switch {
		case i == done:
			what = "FAILED"
		case i > done:
			what = "not done"
		}
		fmt.Fprintf(os.Stderr, "%s: %s %s\n", what, d.Kind, d.Object)
	}
}

// prove reads everything again: a second plan has to be empty.
func (g *gitops) prove(ctx context.Context, d *ldapsync.Directory, args []string) error {
	p, err := g.read(ctx, d, args)
	if err != nil {
		return fmt.Errorf("everything was written, but reading it again failed: %w", err)
	}
	if len(p.Differences) > 0 {
		objects := []string{}
		for _, d := range p.Differences {
			objects = append(objects, d.Object)
		}
		slices.Sort(objects)
		return fmt.Errorf("everything was written, but the directory still differs; the controller, or somebody else, has changed %s:\n%s",
			strings.Join(slices.Compact(objects), "; "), p.Unified())
	}
	fmt.Fprintln(os.Stderr, "a second plan has no changes")
	return nil
}
