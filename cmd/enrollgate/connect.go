package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/spf13/cobra"
)

// gatewayFlags say where the gateway is, for commands that run on any machine, and as whom to ask it.
type gatewayFlags struct {
	url, caFile, principal, keytab string
	logon                          passwordFlags
}

func (f *gatewayFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "address of the gateway, https://enroll.corp.example (default: the configuration's public_name)")
	flags.StringVar(&f.caFile, "ca-file", "", "roots for the gateway's TLS certificate (default: the system's)")
	flags.StringVar(&f.principal, "principal", "", "Kerberos principal, alice@CORP.EXAMPLE, instead of kinit's ticket")
	flags.StringVar(&f.keytab, "keytab", "", "keytab of the principal")
	f.logon.add(cmd, "logon-password", "Kerberos password of the principal")
}

// transport trusts the roots that the flags name.
func (f *gatewayFlags) transport() (*http.Transport, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{}
	if f.caFile == "" {
		return transport, nil
	}
	text, err := os.ReadFile(f.caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", f.caFile)
	}
	transport.TLSClientConfig.RootCAs = roots
	return transport, nil
}

// kerberos says as whom to log on.
func (f *gatewayFlags) kerberos() (k kerberos.ClientOptions, err error) {
	k = kerberos.ClientOptions{Principal: f.principal, KeytabFile: f.keytab, ConfigFile: os.Getenv("KRB5_CONFIG")}
	if f.principal != "" && f.keytab == "" {
		k.Password, err = f.logon.read("password of " + f.principal)
	}
	return k, err
}

// connect logs on and returns a client whose every request has a ticket. The caller closes krb.
func (f *gatewayFlags) connect() (client *http.Client, krb *kerberos.Client, err error) {
	transport, err := f.transport()
	if err != nil {
		return nil, nil, err
	}
	k, err := f.kerberos()
	if err != nil {
		return nil, nil, err
	}
	if krb, err = kerberos.NewClient(k); err != nil {
		return nil, nil, err
	}
	return &http.Client{Transport: krb.Transport(transport), Timeout: requestTimeout}, krb, nil
}

const requestTimeout = time.Minute

// gatewayURL is the address that the flag names, or that of the configuration on the gateway itself.
func (a *app) gatewayURL(flag string) (string, error) {
	if flag == "" {
		cfg, err := config.Load(a.path())
		if err != nil {
			return "", usage("name the gateway with --url, such as --url https://enroll.corp.example")
		}
		flag = "https://" + cfg.PublicName
	}
	u, err := url.Parse(flag)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", usage("%q is not an https address", flag)
	}
	return "https://" + u.Host, nil
}
