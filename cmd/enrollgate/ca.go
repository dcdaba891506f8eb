package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"text/tabwriter"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/spf13/cobra"
)

const reasonHelp = "CRLReason of RFC 5280 5.3.1: 1 key compromise, 3 affiliation changed, 4 superseded, 5 cessation of operation"

func (a *app) caCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ca", Short: "Look at the CAs; make an embedded one; revoke certificates"}
	cmd.AddCommand(a.caListCommand(), a.caTestCommand(), a.caImportCommand(), a.caShadowCommand(), a.caCreateCommand(), a.caRevokeCommand(), a.caCRLCommand())
	return cmd
}

func (a *app) caListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the CAs: whether they answer, what waits for them, until when certificates and revocation lists are good", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				list, err := g.CAStatus(ctx)
				if err != nil {
					return err
				}
				return a.print(list, func(w *tabwriter.Writer) { showCAs(w, list) })
			})
		},
	}
}

func showCAs(w *tabwriter.Writer, list []gateway.CAStatus) {
	row(w, "NAME", "DRIVER", "PUBLISHED", "STATE", "WAITING", "IN DOUBT", "VALID UNTIL", "CRL UNTIL", "OCSP", "SUBJECT")
	for _, s := range list {
		crl, ocsp := "-", "-"
		if s.CRL != nil {
			if crl = day(s.CRL.NextUpdate); s.CRL.Error != "" {
				crl = "none"
			}
		}
		if s.OCSP != nil {
			if ocsp = s.OCSP.Status; s.OCSP.Error != "" {
				ocsp = "none"
			}
		}
		row(w, s.Name, s.Driver, yesNo(s.Published), s.State, s.Waiting, s.InDoubt, day(s.NotAfter), crl, ocsp, s.Subject)
	}
	for _, s := range list {
		if s.Error != "" {
			row(w, s.Name+": "+s.Error)
		}
		for _, text := range s.Advice {
			row(w, s.Name+": "+text)
		}
	}
}

func (a *app) caTestCommand() *cobra.Command {
	var template, principal string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "test NAME --template T --principal P", Short: "Let a CA sign a throw-away key, compare the certificate with the decision, revoke it", Args: exactArgs("NAME"),
		Long: "Test decides for an account and a template as enrolling would, makes a key that is thrown away, and orders the certificate at the CA.\n" +
			"It shows line by line what was decided and what came back. What differs is not handed out to clients; extensions in which the CA\n" +
			"may follow its own profile are under tolerate in the CA's configuration. Exit code 6: something differs.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if template == "" || principal == "" {
				return usage("name the template with --template and an account that may enroll with --principal")
			}
			return a.withDirectory(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				t, err := g.TestCA(ctx, args[0], template, principal, actor(), wait)
				if err != nil {
					return err
				}
				if err := a.print(t, func(w *tabwriter.Writer) { showCATest(w, t) }); err != nil {
					return err
				}
				if t.State != ledger.Issued {
					return &exitError{exitAttention, nil}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&template, "template", "t", "", "name of the template")
	cmd.Flags().StringVar(&principal, "principal", "", "the account whose names the certificate has")
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "for how long the CA may let the order wait")
	return cmd
}

func showCATest(w *tabwriter.Writer, t *gateway.CATest) {
	row(w, "CA", t.CA)
	row(w, "Request", t.Request)
	row(w, "State", t.State)
	if t.Message != "" {
		row(w, "Message", t.Message)
	}
	row(w, "Names", t.Names)
	if t.Serial == "" {
		return
	}
	row(w, "Serial number", t.Serial)
	row(w, "Revoked", yesNo(t.Revoked))
	row(w)
	row(w, "FIELD", "DECIDED", "RETURNED", "")
	for _, l := range t.Lines {
		row(w, l.Field, l.Decided, l.Returned, l.Verdict)
	}
}

func (a *app) caCreateCommand() *cobra.Command {
	var name, certOut, keyOut string
	var years int
	var passphrase passwordFlags
	cmd := &cobra.Command{
		Use: "create --name NAME", Short: "Make a key and a self-signed certificate for an embedded CA", Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			if name == "" {
				return usage("name the CA with --name; the directory will publish it under this name")
			}
			key, err := newCAKey(keyOut, &passphrase)
			if err != nil {
				return err
			}
			der, err := local.SelfSigned(name, key, time.Now(), years)
			if err != nil {
				return err
			}
			if err := writeNew(certOut, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
				return err
			}
			return a.print(map[string]string{"name": name, "certificate": certOut, "key": keyOut}, func(w *tabwriter.Writer) {
				row(w, "certificate: "+certOut)
				row(w, "key:         "+keyOut)
				row(w, "next: publish it in the forest with certutil -dspublish -f "+certOut+" RootCA, and the same with NTAuthCA")
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "common name of the CA")
	cmd.Flags().StringVar(&certOut, "certificate", "ca.pem", "file for the certificate")
	cmd.Flags().StringVar(&keyOut, "key", "ca.key", "file for the encrypted key, or a PKCS#11 URI (RFC 7512): the token's key of that name, made where there is none")
	cmd.Flags().IntVar(&years, "years", 10, "validity in years")
	passphrase.add(cmd, "passphrase", "passphrase that encrypts the key, or PIN of the token")
	return cmd
}

const caBits = 3072

// newCAKey makes a key in a file or in a token.
func newCAKey(where string, passphrase *passwordFlags) (crypto.Signer, error) {
	if pkcs11.IsURI(where) {
		pin := ""
		if !pkcs11.HasPIN(where) {
			var err error
			if pin, err = passphrase.read("PIN of the token"); err != nil {
				return nil, err
			}
		}
		return pkcs11.OpenOrCreateKey(where, pin, caBits)
	}
	text, err := passphrase.read("passphrase for the CA key")
	if err != nil {
		return nil, err
	}
	if len(text) < 12 {
		return nil, usage("the passphrase must have at least 12 characters")
	}
	key, err := rsa.GenerateKey(rand.Reader, caBits)
	if err != nil {
		return nil, err
	}
	keyPEM, err := local.EncryptKey(key, []byte(text))
	if err != nil {
		return nil, err
	}
	return key, writeSecret(where, keyPEM)
}

func (a *app) caRevokeCommand() *cobra.Command {
	var ca string
	var reason int
	cmd := &cobra.Command{
		Use: "revoke SERIAL", Short: "Revoke a certificate; the next revocation list has it", Args: exactArgs("SERIAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			serial, ok := new(big.Int).SetString(args[0], 16)
			if !ok {
				return usage("%q is not a hexadecimal serial number", args[0])
			}
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				name, err := caName(g, ca)
				if err != nil {
					return err
				}
				issued, err := g.Ledger.BySerial(ctx, name, serial.Text(16))
				if err != nil {
					return err
				}
				if err := g.Revoke(ctx, issued, actor(), reason); err != nil {
					return err
				}
				return a.print(map[string]any{"ca": name, "serial": serial.Text(16), "reason": reason}, func(w *tabwriter.Writer) {
					row(w, "revoked "+serial.Text(16))
				})
			})
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "name of the CA (default: the only one)")
	cmd.Flags().IntVar(&reason, "reason", 0, reasonHelp)
	return cmd
}

func (a *app) caCRLCommand() *cobra.Command {
	var ca, out string
	cmd := &cobra.Command{
		Use: "crl", Short: "Write the current certificate revocation list", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(ctx context.Context, g *gateway.Gateway) error {
				name, err := caName(g, ca)
				if err != nil {
					return err
				}
				if g.CA(name).Local == nil {
					return errors.New("only the embedded CA makes its own revocation lists")
				}
				crl, err := g.CA(name).Local.CRL(ctx)
				if err != nil {
					return err
				}
				if out == "-" {
					_, err := os.Stdout.Write(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}))
					return err
				}
				return os.WriteFile(out, crl, 0o644)
			})
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "name of the CA (default: the only one)")
	cmd.Flags().StringVar(&out, "out", "-", "file for the DER form; - prints PEM")
	return cmd
}
