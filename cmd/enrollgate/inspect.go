package main

import (
	"crypto"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway/inspect"
	"github.com/spf13/cobra"
)

// maxInspect bounds what inspect reads.
const maxInspect = 16 << 20

func (a *app) inspectCommand() *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use: "inspect FILE", Short: "Print any request, response or key blob; - reads standard input", Args: exactArgs("FILE"),
		Long: "Inspect decodes PKCS#10, CMC and PKCS#7 requests, CMC responses, certs-only replies, archived keys, recovery blobs, key\n" +
			"blobs and certificates, in DER, PEM or base64, with every attribute, and verifies every signature. With the private key\n" +
			"of the exchange certificate (--exchange-key) it also opens the enclosed key and compares it with the request's.",
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := readInput(args[0])
			if err != nil {
				return err
			}
			var key crypto.Decrypter
			if keyFile != "" {
				if key, err = readRSAKey(keyFile); err != nil {
					return err
				}
			}
			report, err := inspect.Describe(data, key)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.print(report, func(w *tabwriter.Writer) { report.Text(w) })
		},
	}
	cmd.Flags().StringVar(&keyFile, "exchange-key", "", "private key that the enclosed key is encrypted to, PEM or DER")
	return cmd
}

func readInput(path string) ([]byte, error) {
	in := os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxInspect+1))
	if err == nil && len(data) > maxInspect {
		err = fmt.Errorf("%s has more than %d octets", path, maxInspect)
	}
	return data, err
}
