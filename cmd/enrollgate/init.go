package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates/native"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// initFlags say what is to be published, and what becomes of the plan.
type initFlags struct {
	gitops
	native, apply, remove, trust, yes bool
	noNTAuth, noCDP, noWSTEP          bool
	ca, print, certificate, host      string
	templates, enroll                 []string
}

const initHelp = `Init --native compares the objects by which Windows finds CAs (its own "Active Directory Enrollment Policy") with the
configuration: the enrollment service, trusted roots, AIA, NTAuthCertificates, and the embedded CA's revocation list. It prints
what is in place and what is missing. Nothing is written without --apply, and nothing is taken away without --remove.

A second run changes nothing. The revocation list is written again when half of its life is over: run this from a timer if
anything reads it there (certificates name the gateway's own address for it).

Exit code 0: nothing to change, or applied, or printed; 5: changes; 1: an error.`

func (a *app) initCommand() *cobra.Command {
	f := &initFlags{gitops: gitops{app: a}}
	cmd := &cobra.Command{Use: "init --native", Short: "Publish the CAs in the forest, so that Windows finds them by itself", Long: initHelp, Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) }}
	flags := cmd.Flags()
	flags.BoolVar(&f.native, "native", false, "publish for Windows' own enrollment policy; the only kind there is")
	flags.StringVar(&f.ca, "ca", "", "one CA, with those that may sign for it (default: all that are published)")
	flags.StringSliceVar(&f.templates, "templates", nil, "templates that the CA is to offer, beside those that it offers already")
	flags.StringSliceVar(&f.enroll, "enroll", []string{`NT AUTHORITY\Authenticated Users`}, "who may use the CA at all; templates have permissions of their own")
	flags.StringVar(&f.print, "print", "", "write the changes as ldif, or as certutil commands with PowerShell around them, instead of a diff")
	flags.BoolVar(&f.apply, "apply", false, "write the changes to the directory")
	flags.BoolVar(&f.yes, "yes", false, "with --apply: do not ask")
	flags.BoolVar(&f.remove, "remove", false, "take the enrollment service, its revocation list and its right to issue for logon away")
	flags.BoolVar(&f.trust, "with-trust", false, "with --remove: also its roots and intermediate certificates; nothing that it issued can be verified any more")
	flags.BoolVar(&f.noNTAuth, "no-ntauth", false, "leave NTAuthCertificates alone: certificates of the CA are not for logon")
	flags.BoolVar(&f.noCDP, "no-cdp", false, "leave revocation lists out of the directory")
	flags.BoolVar(&f.noWSTEP, "no-https", false, "leave out the addresses of the enrollment service over HTTPS (msPKI-Enrollment-Servers)")
	flags.StringVar(&f.certificate, "certificate", "", "PEM file with the CA's certificate and those above it, with --ca and --host, where there is no configuration")
	flags.StringVar(&f.host, "host", "", "the gateway's name, with --certificate")
	f.addConnection(cmd)
	return cmd
}

func (f *initFlags) run(cmd *cobra.Command) error {
	interactive := f.app.output != "json" && term.IsTerminal(int(os.Stdin.Fd()))
	switch {
	case !f.native:
		return usage("say what to publish for: enrollgate init --native")
	case f.print != "" && f.print != "ldif" && f.print != "certutil":
		return usage("--print must be ldif or certutil, not %q", f.print)
	case f.print != "" && f.apply:
		return usage("--print writes nothing to the directory: leave --apply away")
	case f.trust && !f.remove:
		return usage("--with-trust is a part of --remove")
	case f.certificate != "" && (f.ca == "" || f.host == ""):
		return usage("with --certificate, name the CA with --ca and the gateway's host with --host")
	case f.apply && !f.yes && !interactive:
		return usage("nobody is there to be asked: look at the plan, then apply with --yes")
	}
	cas, err := f.wanted(cmd)
	if err != nil {
		return err
	}
	return f.with(func(d *ldapsync.Directory) error { return f.publish(cmd.Context(), d, cas) })
}

// wanted are the CAs as they are to be.
func (f *initFlags) wanted(cmd *cobra.Command) (cas []native.CA, err error) {
	if f.certificate != "" {
		certs, err := local.LoadCertificates(f.certificate)
		if err != nil {
			return nil, err
		}
		above, err := local.SortChain(certs[0], certs[1:])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.certificate, err)
		}
		cas = []native.CA{gateway.NativeFromCertificates(f.ca, f.host, append(certs[:1:1], above...))}
		cas[0].Servers = []string{gateway.EnrollmentServer(f.host, f.ca, soap.Kerberos)}
	} else {
		err = f.app.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) (err error) {
			cas, err = g.NativeCAs(ctx, f.ca)
			return err
		})
	}
	for i := range cas {
		ca := &cas[i]
		ca.Templates = f.templates
		if f.noNTAuth {
			ca.Logon = nil
		}
		if f.noCDP && !f.remove {
			ca.CRL = nil
		}
		if f.noWSTEP {
			ca.Servers = nil
		}
	}
	return cas, err
}

// plan compares with the directory as it is now.
func (f *initFlags) plan(ctx context.Context, d *ldapsync.Directory, cas []native.CA) (*native.Plan, error) {
	var enroll []security.SID
	for _, name := range f.enroll {
		sid, err := d.SIDOf(ctx, name)
		if err != nil {
			return nil, err
		}
		enroll = append(enroll, sid)
	}
	for i := range cas {
		cas[i].Enroll = enroll
	}
	forest, err := d.NativeForest(ctx, enroll)
	if err != nil {
		return nil, err
	}
	source := cmp.Or(f.certificate, f.app.path())
	if f.remove {
		return native.Removal(forest, cas, f.trust, source), nil
	}
	return native.NewPlan(forest, cas, source, time.Now())
}

func (f *initFlags) publish(ctx context.Context, d *ldapsync.Directory, cas []native.CA) error {
	p, err := f.plan(ctx, d, cas)
	if err != nil {
		return err
	}
	if f.print != "" {
		return f.printPlan(p)
	}
	if err := f.showPlan(p); err != nil || len(p.Differences) == 0 {
		return err
	}
	if !f.apply {
		return &exitError{code: exitChanges}
	}
	if !f.yes && !confirmed(ctx) {
		return errors.New("nothing was changed")
	}
	done, err := d.Apply(ctx, &p.Plan)
	f.report(&p.Plan, done)
	if err != nil {
		return err
	}
	if p, err = f.plan(ctx, d, cas); err != nil {
		return fmt.Errorf("everything was written, but reading it again failed: %w", err)
	}
	if len(p.Differences) > 0 {
		return fmt.Errorf("everything was written, but the directory still differs; the controller, or somebody else, has changed it:\n%s", p.Unified())
	}
	fmt.Fprintln(os.Stderr, "a second plan has no changes")
	return nil
}

func (f *initFlags) printPlan(p *native.Plan) error {
	for _, w := range p.Warnings {
		fmt.Fprintln(os.Stderr, "warning: "+w)
	}
	text := native.LDIF(p)
	if f.print == "certutil" {
		text = native.Script(p)
	}
	_, err := os.Stdout.WriteString(text)
	return err
}

// showPlan prints what is in place, and then as templates plan does.
func (f *initFlags) showPlan(p *native.Plan) error {
	if f.app.output == "json" {
		return f.app.print(p, nil)
	}
	err := f.app.print(nil, func(w *tabwriter.Writer) {
		if len(p.Objects) > 0 {
			row(w, "STATE", "KIND", "OBJECT")
		}
		for _, o := range p.Objects {
			row(w, o.State, o.Kind, o.Object)
		}
	})
	if err != nil {
		return err
	}
	return f.show(&p.Plan)
}
