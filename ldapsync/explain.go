package ldapsync

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/go-ldap/ldap/v3"
)

// ConnectError says why no session with a controller came about, and what would help.
type ConnectError struct {
	Server string // URL
	Reason string // in plain words
	Fix    string // what to do; empty where nobody knows
	Cause  error
}

// Error has the server, the reason, the cause and the fix.
func (e *ConnectError) Error() string {
	s := "directory server " + e.Server + ": " + e.Reason
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	if e.Fix != "" {
		s += " — " + e.Fix
	}
	return s
}

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Cause }

// connectError finds words for what went wrong.
func (c Config) connectError(t target, err error) *ConnectError {
	e := &ConnectError{Server: t.url, Reason: "cannot connect", Cause: err}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &unknown):
		e.Reason = "its TLS certificate is not from a CA that is trusted here"
		e.Fix = "put the root certificate of the domain controllers into the file that ca_file names"
	case errors.As(err, &name):
		e.Reason = "its TLS certificate is for another name"
		e.Fix = "use the controller's host name as the certificate has it"
	case errors.As(err, &invalid):
		e.Reason = "its TLS certificate is not valid"
		e.Fix = "renew the domain controller's certificate; check both clocks"
	case errors.As(err, &dns):
		e.Reason = "its name does not resolve"
		e.Fix = "check the name, and that this machine asks the domain's DNS servers"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Reason = "nothing listens at " + t.address
		e.Fix = "check name and port, and that the controller runs; ldaps needs a certificate there"
	case errors.As(err, &network) && network.Timeout() || errors.Is(err, context.DeadlineExceeded):
		e.Reason = fmt.Sprintf("no answer within %v", c.Timeout)
		e.Fix = "check the network and firewalls on the way to " + t.address
	case ldap.IsErrorWithCode(err, ldap.LDAPResultStrongAuthRequired):
		c.explainStrongAuth(e, t)
	case ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials):
		e.Reason, e.Fix = invalidCredentials(c.Auth, err)
	case strings.Contains(err.Error(), "kerberos:"):
		e.Reason, e.Fix = "Kerberos authentication failed", kerberosFix(err.Error(), t)
	case strings.Contains(err.Error(), "starttls:"):
		e.Reason, e.Fix = "it does not start TLS", "give the controller a certificate, or use gssapi on ldap:// without starttls"
	}
	return e
}

// explainStrongAuth is about strongAuthRequired (8), which means different things depending on what was tried
// ([MS-ADTS] 5.1.1.1, LDAPServerIntegrity; Samba: "ldap server require strong auth").
func (c Config) explainStrongAuth(e *ConnectError, t target) {
	switch {
	case c.Auth.Method == GSSAPI && t.encrypted():
		e.Reason = "strong auth required: it refuses Kerberos without its own signing, even inside TLS"
		e.Fix = fmt.Sprintf("use ldap://%s without starttls (Kerberos then encrypts the connection), or a simple bind inside TLS", t.host)
	default:
		e.Reason = "strong auth required: it refuses connections that are not signed or encrypted"
		e.Fix = "use ldaps:// or starttls, or gssapi on ldap://"
	}
}

// invalidCredentials reads the "data" code that Active Directory puts in the text ([MS-ERREF] 2.2, in hexadecimal).
func invalidCredentials(a Auth, err error) (reason, fix string) {
	who := a.User
	if a.Method == GSSAPI {
		who = a.Principal
	}
	text := err.Error()
	for code, found := range map[string][2]string{
		"data 525,":      {"there is no account %q", "check the name"},
		"data 532,":      {"the password of %q has expired", "set a new one"},
		"data 533,":      {"the account %q is disabled", "enable it"},
		"data 701,":      {"the account %q has expired", "extend it"},
		"data 773,":      {"the password of %q must be changed", "set a new one"},
		"data 775,":      {"the account %q is locked", "unlock it"},
		"data 80090346,": {"the channel binding of %q does not match", "something between here and the controller opens TLS: connect directly"},
	} {
		if strings.Contains(text, code) {
			return fmt.Sprintf(found[0], who), found[1]
		}
	}
	return fmt.Sprintf("it does not accept the name %q with this password or key", who),
		"check both; a new password makes old keytabs useless"
}

// kerberosFix reads the error names of RFC 4120 7.5.9, which the Kerberos library only gives as text.
func kerberosFix(text string, t target) string {
	for _, k := range []struct{ name, fix string }{
		{"KDC_ERR_PREAUTH_FAILED", "the password or keytab is not the account's current one: export the keytab again"},
		{"KDC_ERR_C_PRINCIPAL_UNKNOWN", "there is no such account: check principal and realm"},
		{"KDC_ERR_CLIENT_REVOKED", "the account is disabled, expired or locked"},
		{"KDC_ERR_KEY_EXPIRED", "the account's password has expired"},
		{"KDC_ERR_S_PRINCIPAL_UNKNOWN", "use the controller's own host name: no account has the service principal name ldap/" + t.host},
		{"KRB_AP_ERR_SKEW", "the clocks differ by more than five minutes: synchronize them"},
		{"KDC_ERR_ETYPE_NOSUPP", "allow AES for the account (msDS-SupportedEncryptionTypes 24)"},
		{"matching key not found in keytab", "the keytab has no AES key of this principal: export it again"},
		{"no such file", "check the path"},
	} {
		if strings.Contains(text, k.name) {
			return k.fix
		}
	}
	return ""
}
