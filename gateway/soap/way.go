package soap

import (
	"context"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Way is how callers prove who they are, and the addresses of the services for it, which are those of Windows' own.
type Way struct {
	Authentication int    // AuthKerberos and its like
	CEPPath        string // path of the policy service; compared without regard to case, as IIS does
	CESSuffix      string // what follows /<CA name> in the path of the enrollment service
}

// The ways in. samba-gpupdate insists on the paths of Kerberos.
var (
	Kerberos    = Way{AuthKerberos, "/ADPolicyProvider_CEP_Kerberos/service.svc/CEP", "_CES_Kerberos/service.svc/CES"}
	Certificate = Way{AuthCertificate, "/ADPolicyProvider_CEP_Certificate/service.svc/CEP", "_CES_Certificate/service.svc/CES"}
	Password    = Way{AuthPassword, "/ADPolicyProvider_CEP_UsernamePassword/service.svc/CEP", "_CES_UsernamePassword/service.svc/CES"}
)

// CESPath is the path of the enrollment service of a CA, unescaped.
func (w Way) CESPath(ca string) string { return "/" + ca + w.CESSuffix }

// Has tells whether a path is one of this way's.
func (w Way) Has(path string) bool {
	_, ok := w.ca(path)
	return ok || strings.EqualFold(path, w.CEPPath)
}

// ca takes the CA's name out of the path of its enrollment service.
func (w Way) ca(path string) (string, bool) {
	n := len(path) - len(w.CESSuffix)
	if n < 2 || path[0] != '/' || !strings.EqualFold(path[n:], w.CESSuffix) || strings.Contains(path[1:n], "/") {
		return "", false
	}
	return path[1:n], true
}

// Login proves a user name and a password, and returns whose they are. remote is the address they came from.
type Login func(ctx context.Context, remote, user, password string) (templates.Caller, error)

// UsernameToken is a user name and a password in a message (WS-Security UsernameToken profile 1.1, PasswordText).
type UsernameToken struct{ User, Password string }

const passwordText = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordText"

// maxCredential bounds names and passwords, in octets; Active Directory's passwords end at 256 characters.
const maxCredential = 1024

// readUsernameToken reads the credentials of a Security header; nil where there are none.
func readUsernameToken(security *element) (*UsernameToken, error) {
	token, err := security.child(nsSecext, "UsernameToken")
	if err != nil || token == nil {
		return nil, err
	}
	user, err := token.need(nsSecext, "Username")
	if err != nil {
		return nil, err
	}
	password, err := token.need(nsSecext, "Password")
	if err != nil {
		return nil, err
	}
	switch kind := password.attr("", "Type"); {
	case kind != "" && kind != passwordText:
		return nil, hresult.New(hresult.NotSupported, "the password has to be sent as text, inside TLS, not as %q", kind)
	case len(user.children) > 0 || len(password.children) > 0 || len(user.text) > maxCredential || len(password.text) > maxCredential:
		return nil, hresult.New(hresult.InvalidMessageFormat, "user name or password is malformed")
	}
	return &UsernameToken{strings.TrimSpace(user.text), password.text}, nil
}

// encode writes the Security header.
func (t *UsernameToken) encode(w *writer) {
	w.WriteString(`<o:Security s:mustUnderstand="1" xmlns:o="` + nsSecext + `"><o:UsernameToken><o:Username>`)
	w.escape(t.User)
	w.WriteString(`</o:Username><o:Password Type="` + passwordText + `">`)
	w.escape(t.Password)
	w.WriteString(`</o:Password></o:UsernameToken></o:Security>`)
}
