package main

import (
	"bytes"
	"crypto"
	"crypto/hpke"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/spf13/cobra"
)

// agentKeyFlags name a recovery agent's keys: that of the certificate, and the hybrid one where the agent has one.
type agentKeyFlags struct {
	key, hybrid              string
	password, hybridPassword passwordFlags
}

func (f *agentKeyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.key, "key", "", "the agent's key: a PKCS#12 file, encrypted PKCS#8 in PEM form, or a PKCS#11 URI (RFC 7512)")
	cmd.Flags().StringVar(&f.hybrid, "hybrid-key", "", "the agent's hybrid key, from escrow agents hybrid-key")
	f.password.add(cmd, "key-password", "password of the agent's key, or PIN of its token")
	f.hybridPassword.add(cmd, "hybrid-password", "password of the agent's hybrid key")
}

func (f *agentKeyFlags) set() bool { return f.key != "" || f.hybrid != "" }

// open reads the keys. agents (DER) are those that records are sealed to; a key that comes without a certificate is one of
// theirs.
func (f *agentKeyFlags) open(agents [][]byte) (crypto.Decrypter, error) {
	key, _, err := f.openWithCertificate(agents)
	return key, err
}

// openWithCertificate also returns the agent's certificate: among agents, or that which comes with the key.
func (f *agentKeyFlags) openWithCertificate(agents [][]byte) (key crypto.Decrypter, cert *x509.Certificate, err error) {
	var private crypto.PrivateKey
	if f.key != "" {
		if private, cert, err = f.openKey(agents); err != nil {
			return nil, nil, err
		}
	}
	key, ok := private.(crypto.Decrypter)
	if f.hybrid == "" {
		if !ok {
			return nil, nil, fmt.Errorf("%s: a key of type %T cannot decrypt", f.key, private)
		}
		return key, cert, nil
	}
	hybrid, of, err := f.openHybrid()
	if err != nil {
		return nil, nil, err
	}
	if cert == nil {
		cert = of
	}
	// A renewed certificate has the same key.
	if !bytes.Equal(cert.RawSubjectPublicKeyInfo, of.RawSubjectPublicKeyInfo) {
		return nil, nil, fmt.Errorf("%s is the hybrid key of %s, and %s the key of %s", f.hybrid, dn.Show(of.RawSubject), f.key, dn.Show(cert.RawSubject))
	}
	return quorum.NewAgentKey(of, key, hybrid), cert, nil
}

func (f *agentKeyFlags) openHybrid() (hpke.PrivateKey, *x509.Certificate, error) {
	text, err := os.ReadFile(f.hybrid)
	if err != nil {
		return nil, nil, err
	}
	password, err := f.hybridPassword.read("password of " + f.hybrid)
	if err != nil {
		return nil, nil, err
	}
	file, err := recovery.OpenHybridFile(text, password)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.hybrid, err)
	}
	defer file.Wipe()
	return file.Key()
}

// openKey reads the key of the agent's certificate.
func (f *agentKeyFlags) openKey(agents [][]byte) (crypto.PrivateKey, *x509.Certificate, error) {
	if pkcs11.IsURI(f.key) {
		return f.openToken(agents)
	}
	text, err := os.ReadFile(f.key)
	if err != nil {
		return nil, nil, err
	}
	isPEM := bytes.Contains(text, []byte("-----BEGIN"))
	clear(text)
	if !isPEM {
		key, cert, _, err := readPKCS12(f.key, &f.password)
		return key, cert, err
	}
	secret, err := f.password.read("password of " + f.key)
	if err != nil {
		return nil, nil, err
	}
	key, err := local.LoadKey(f.key, []byte(secret))
	if err != nil {
		return nil, nil, err
	}
	cert, err := certificateOf(key, agents)
	return key, cert, err
}

// openToken finds a key in a PKCS#11 token, with its certificate if that is there too.
func (f *agentKeyFlags) openToken(agents [][]byte) (crypto.PrivateKey, *x509.Certificate, error) {
	pin := ""
	if !pkcs11.HasPIN(f.key) {
		var err error
		if pin, err = f.password.read("PIN of the token"); err != nil {
			return nil, nil, err
		}
	}
	token, err := pkcs11.Open(f.key, pin)
	if err != nil {
		return nil, nil, err
	}
	key, err := token.Key()
	if err != nil {
		return nil, nil, errors.Join(err, token.Close())
	}
	if cert, err := token.Certificate(); err == nil && cert != nil {
		agents = append(agents, cert.Raw)
	}
	cert, err := certificateOf(key, agents)
	return key, cert, err
}

// certificateOf finds the certificate of a key.
func certificateOf(key crypto.Signer, certs [][]byte) (*x509.Certificate, error) {
	for _, der := range certs {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(key.Public()) {
			return cert, nil
		}
	}
	return nil, errors.New("the key is that of no agent that this archived key is sealed to")
}

func (a *app) agentHybridKeyCommand() *cobra.Command {
	var f agentKeyFlags
	var certificate, out, public string
	var only bool
	cmd := &cobra.Command{
		Use: "hybrid-key", Short: "Make a hybrid (post-quantum) key for an agent", Args: exactArgs(),
		Long: "Makes a key for ML-KEM-768 with X25519, on the agent's machine. The private half is written encrypted, the public half is\n" +
			"signed with the key of the agent's certificate and goes to the gateway: enrollgate escrow agents add --hybrid FILE.\n" +
			"Keys archived from then on are sealed to both keys of the agent, with --only to the hybrid key alone.",
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "the agent's key: a PKCS#12 file, encrypted PKCS#8 in PEM form, or a PKCS#11 URI (RFC 7512)")
	flags.StringVar(&certificate, "certificate", "", "the agent's certificate in PEM form, where the key comes without")
	flags.StringVar(&out, "out", "agent.hybrid", "file for the private half, encrypted (age)")
	flags.StringVar(&public, "public", "agent.hybrid.json", "file for the public half")
	flags.BoolVar(&only, "only", false, "seal to the hybrid key instead of the certificate's key, not beside it")
	f.password.add(cmd, "key-password", "password of the agent's key, or PIN of its token")
	f.hybridPassword.add(cmd, "hybrid-password", "password to protect the hybrid key with")
	cmd.RunE = func(*cobra.Command, []string) error {
		if f.key == "" {
			return usage("name the agent's key with --key")
		}
		var agents [][]byte
		if certificate != "" {
			certs, err := local.LoadCertificates(certificate)
			if err != nil {
				return err
			}
			agents = append(agents, certs[0].Raw)
		}
		private, cert, err := f.openKey(agents)
		if err != nil {
			return err
		}
		signer, ok := private.(crypto.Signer)
		if !ok {
			return fmt.Errorf("%s: a key of type %T cannot sign", f.key, private)
		}
		return a.writeHybridKey(cert, signer, only, out, public, &f.hybridPassword)
	}
	return cmd
}

func (a *app) writeHybridKey(cert *x509.Certificate, key crypto.Signer, only bool, out, public string, password *passwordFlags) error {
	statement, private, err := quorum.NewHybridKey(cert, key, only)
	if err != nil {
		return err
	}
	file, err := recovery.NewHybridFile(cert, private)
	if err != nil {
		return err
	}
	defer file.Wipe()
	text, err := password.read("password for " + out)
	if err != nil {
		return err
	}
	if len(text) < 12 {
		return usage("the password must have at least 12 characters")
	}
	encrypted, err := file.Encrypt(text)
	if err != nil {
		return err
	}
	if err := writeSecret(out, encrypted); err != nil {
		return err
	}
	if err := writeJSON(public, statement); err != nil {
		return err
	}
	return a.print(map[string]any{"agent": dn.Show(cert.RawSubject), "only": only, "private": out, "public": public}, func(w *tabwriter.Writer) {
		row(w, "private half: "+out+" (encrypted): keep it with the agent's other key, and a copy elsewhere")
		row(w, "public half:  "+public+": enrollgate escrow agents add --hybrid "+public)
	})
}
