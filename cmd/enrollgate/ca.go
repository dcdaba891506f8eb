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
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
)

func (a *app) caCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ca", Short: "Look at the CAs; make an embedded one; revoke certificates"}
	cmd.AddCommand(a.caListCommand(), a.caCreateCommand(), a.caRevokeCommand(), a.caCRLCommand())
	return cmd
}

func (a *app) caListCommand() *cobra.Command {
	type caRow struct {
		Name     string    `json:"name"`
		Driver   string    `json:"driver"`
		Subject  string    `json:"subject"`
		NotAfter time.Time `json:"not_after"`
	}
	return &cobra.Command{
		Use: "list", Short: "List the configured CAs", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withGateway(cmd, func(_ context.Context, g *gateway.Gateway) error {
				rows := []caRow{}
				for _, ca := range g.CAs {
					cert := ca.Identity.Certificate()
					rows = append(rows, caRow{ca.Name, "local", dn.Show(cert.RawSubject), cert.NotAfter.UTC()})
				}
				return a.print(rows, func(w *tabwriter.Writer) {
					row(w, "NAME", "DRIVER", "VALID UNTIL", "SUBJECT")
					for _, r := range rows {
						row(w, r.Name, r.Driver, day(r.NotAfter), r.Subject)
					}
				})
			})
		},
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
	cmd.Flags().IntVar(&reason, "reason", 0, "CRLReason of RFC 5280 5.3.1: 1 key compromise, 3 affiliation changed, 4 superseded, 5 cessation of operation")
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
