package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
)

// pollInterval is how often enroll --wait asks about a pending request.
const pollInterval = time.Second

// enrollFlags are the flags of enroll.
type enrollFlags struct {
	gatewayFlags
	template, subject, out, resume             string
	sans                                       []string
	bits                                       int
	force                                      bool
	renew, renewKey, agent, agentKey, onBehalf string
	askPassword, byCertificate                 bool
	wait                                       time.Duration
	password                                   passwordFlags
}

func (a *app) enrollCommand() *cobra.Command {
	f := &enrollFlags{}
	cmd := &cobra.Command{
		Use: "enroll --template T", Short: "Enroll as a Windows client does, including key archival", Args: exactArgs(),
		Long: "Enroll asks for the policy, makes a key, encloses it where the template archives keys, submits the request and writes\n" +
			"OUT.pem (certificate and chain), OUT.key and OUT.p12. It uses the Kerberos ticket of kinit, or --principal with --keytab or\n" +
			"--logon-password-file; without Kerberos --user-password, or --renew with --client-certificate. A request that a manager has to approve is kept in OUT.pending: run enroll --resume OUT.pending later.\n" +
			"Exit code 3 means refused, 4 pending.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.enroll(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.template, "template", "t", "", "name of the template")
	f.gatewayFlags.add(cmd)
	flags.StringVar(&f.subject, "subject", "", "subject, CN=www.corp.example,O=Corp, for templates in which the enrollee names it")
	flags.StringSliceVar(&f.sans, "san", nil, "alternative name, dns:…, email:… or upn:…, for such templates")
	flags.StringVar(&f.out, "out", "", "name of the files to write, without ending (default: the template's name)")
	flags.StringVar(&f.renew, "renew", "", "PEM file of a certificate to renew; its key signs the request")
	flags.BoolVar(&f.byCertificate, "client-certificate", false, "with --renew: the certificate, not Kerberos, proves who asks; --url is the address for client certificates")
	flags.StringVar(&f.renewKey, "renew-key", "", "PEM file of its key (default: the certificate's name with .key)")
	flags.StringVar(&f.onBehalf, "on-behalf-of", "", "account to enroll, CORP\\bob, as an enrollment agent")
	flags.StringVar(&f.agent, "agent", "", "PEM file of the enrollment agent's certificate, or of a registration authority's")
	flags.StringVar(&f.agentKey, "agent-key", "", "PEM file of its key (default: the certificate's name with .key)")
	flags.BoolVar(&f.askPassword, "user-password", false, "send user name (--principal) and password (--logon-password-file) instead of a Kerberos ticket")
	flags.IntVar(&f.bits, "bits", 0, "RSA key size (default: the template's minimum)")
	flags.BoolVar(&f.force, "force-request", false, "ask even if the policy does not offer the template, to be told why")
	flags.DurationVar(&f.wait, "wait", 0, "how long to poll for a pending request")
	flags.StringVar(&f.resume, "resume", "", "ask what became of the pending request in this file")
	f.password.add(cmd, "password", "password of the PKCS#12 file")
	return cmd
}

func (a *app) enroll(ctx context.Context, f *enrollFlags) error {
	if f.template == "" && f.resume == "" {
		return usage("name the template with --template")
	}
	if f.out == "" {
		f.out = f.template
		if f.resume != "" {
			f.out = strings.TrimSuffix(f.resume, ".pending")
		}
	}
	o, done, err := a.clientOptions(f)
	if err != nil {
		return err
	}
	defer done()
	var r *client.Result
	if f.resume != "" {
		r, err = resume(ctx, o, f.resume)
	} else {
		r, err = client.Enroll(ctx, o)
	}
	if refusal, ok := errors.AsType[*hresult.Error](err); ok {
		text := refusal.Text
		if e, ok := errors.AsType[*soap.RequestError](err); ok && e.RequestID != "" {
			text = fmt.Sprintf("request %s: %s", e.RequestID, text)
		}
		return &exitError{exitRefused, fmt.Errorf("%s (%s)", text, refusal.Code)}
	}
	if err != nil {
		return err
	}
	return a.finishEnroll(f, r)
}

// clientOptions prepares the request, and the HTTP client with what proves who asks.
func (a *app) clientOptions(f *enrollFlags) (o client.Options, done func(), err error) {
	done = func() {}
	base, err := a.gatewayURL(f.url)
	if err != nil {
		return o, done, err
	}
	o = client.Options{Template: f.template, KeyBits: f.bits, Subject: f.subject, SANs: f.sans, Force: f.force, OnBehalfOf: f.onBehalf}
	if f.wait > 0 {
		o.PollInterval, o.PollTimeout = pollInterval, f.wait
	}
	if a.output == "table" {
		o.Progress = func(step, detail string) { fmt.Fprintf(os.Stderr, "%-12s %s\n", step, detail) }
	}
	if f.agent != "" {
		signer, err := loadSigner(f.agent, f.agentKey)
		if err != nil {
			return o, done, err
		}
		o.Signers = append(o.Signers, *signer)
	}
	if f.renew != "" {
		if o.Renews, err = loadSigner(f.renew, f.renewKey); err != nil {
			return o, done, err
		}
	}
	transport, err := f.transport()
	if err != nil {
		return o, done, err
	}
	o.HTTP = &http.Client{Transport: transport, Timeout: 60 * time.Second}
	return f.logOn(base, o, transport)
}

// logOn chooses how the caller proves who it is: the password in the message, the renewed certificate where it is the only
// thing given, else Kerberos.
func (f *enrollFlags) logOn(base string, o client.Options, transport *http.Transport) (client.Options, func(), error) {
	none := func() {}
	k, err := f.kerberos()
	if err != nil {
		return o, none, err
	}
	switch {
	case f.askPassword && k.Password == "":
		return o, none, usage("--user-password needs --principal and its password")
	case f.askPassword:
		o.PolicyURL, o.Authentication = base+soap.Password.CEPPath, soap.AuthPassword
		o.Credentials = &soap.UsernameToken{User: f.principal, Password: k.Password}
		return o, none, nil
	case o.Renews != nil && f.byCertificate:
		o.PolicyURL, o.Authentication = base+soap.Certificate.CEPPath, soap.AuthCertificate
		transport.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{o.Renews.Certificate.Raw}, PrivateKey: o.Renews.Key}}
		return o, none, nil
	}
	krb, err := kerberos.NewClient(k)
	if err != nil {
		return o, none, err
	}
	o.PolicyURL = base + soap.Kerberos.CEPPath
	o.HTTP.Transport = krb.Transport(transport)
	return o, krb.Close, nil
}

// loadSigner reads a certificate and its key, in PEM form.
func loadSigner(certFile, keyFile string) (*wcce.RequestSigner, error) {
	if keyFile == "" {
		keyFile = strings.TrimSuffix(certFile, ".pem") + ".key"
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T cannot sign", keyFile, pair.PrivateKey)
	}
	return &wcce.RequestSigner{Certificate: pair.Leaf, Key: key}, nil
}

func resume(ctx context.Context, o client.Options, path string) (*client.Result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer wcce.Wipe(text)
	p, err := client.LoadPending(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return client.Poll(ctx, o, p)
}

// finishEnroll writes what came back.
func (a *app) finishEnroll(f *enrollFlags, r *client.Result) error {
	if r.Pending {
		if f.resume == "" {
			state, err := client.MarshalPending(r)
			if err != nil {
				return err
			}
			defer wcce.Wipe(state)
			if err := writeSecret(f.out+".pending", state); err != nil {
				return err
			}
		}
		if err := a.print(map[string]any{"state": "pending", "request_id": r.RequestID, "file": f.out + ".pending"}, func(w *tabwriter.Writer) {
			row(w, fmt.Sprintf("request %s is pending; when it is approved, run: enrollgate enroll --resume %s.pending", r.RequestID, f.out))
		}); err != nil {
			return err
		}
		return &exitError{code: exitPending}
	}
	if err := f.write(r); err != nil {
		return err
	}
	if f.resume != "" {
		if err := os.Remove(f.resume); err != nil {
			return err
		}
	}
	cert := r.Certificate
	return a.print(map[string]any{"state": "issued", "request_id": r.RequestID, "serial": cert.SerialNumber.Text(16), "subject": dn.Show(cert.RawSubject),
		"not_after": cert.NotAfter.UTC(), "archived_confirmed": r.ArchivedConfirmed, "certificate": f.out + ".pem", "key": f.out + ".key", "pkcs12": f.p12()},
		func(w *tabwriter.Writer) {
			row(w, "Subject", dn.Show(cert.RawSubject))
			row(w, "Serial number", cert.SerialNumber.Text(16))
			row(w, "Valid until", day(cert.NotAfter))
			row(w, "Key archived", yesNo(r.ArchivedConfirmed))
			row(w, "Files", strings.TrimSpace(f.out+".pem "+f.out+".key "+f.p12()))
		})
}

// p12 is the name of the PKCS#12 file; none is written where no password was named.
func (f *enrollFlags) p12() string {
	if !f.password.set() {
		return ""
	}
	return f.out + ".p12"
}

func (f *enrollFlags) write(r *client.Result) error {
	key, err := r.KeyPEM()
	if err != nil {
		return err
	}
	defer wcce.Wipe(key)
	if err := writeNew(f.out+".pem", r.PEM(), 0o644); err != nil {
		return err
	}
	if err := writeSecret(f.out+".key", key); err != nil {
		return err
	}
	if !f.password.set() {
		return nil
	}
	password, err := f.password.read("password for " + f.out + ".p12")
	if err != nil {
		return err
	}
	p12, err := r.PKCS12(password)
	if err != nil {
		return err
	}
	defer wcce.Wipe(p12)
	return writeSecret(f.out+".p12", p12)
}
