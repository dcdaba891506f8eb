// Package soap speaks the two SOAP protocols of Windows certificate enrollment over the web, on both ends:
// [MS-XCEP], by which a client asks which certificates it may have, and [MS-WSTEP], by which it gets one.
//
// A server implements Backend and serves NewHandler, behind kerberos.Acceptor.Middleware. A client uses Client. Both
// share the model types: Policies, GetPoliciesRequest, TokenRequest, TokenReply. What is inside the tokens (PKCS#10,
// CMC, certificates) is not this package's concern.
package soap

import (
	"context"
	"time"

	"github.com/enrollgate/enrollgate/templates"
)

// Namespaces. Elements are recognised by these, never by their prefix.
const (
	nsSOAP       = "http://www.w3.org/2003/05/soap-envelope"
	nsAddressing = "http://www.w3.org/2005/08/addressing"
	nsInstance   = "http://www.w3.org/2001/XMLSchema-instance"
	nsPolicy     = "http://schemas.microsoft.com/windows/pki/2009/01/enrollmentpolicy"
	nsEnrollment = "http://schemas.microsoft.com/windows/pki/2009/01/enrollment"
	nsTrust      = "http://docs.oasis-open.org/ws-sx/ws-trust/200512"
	nsSecext     = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
	nsUtility    = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
	nsContext    = "http://schemas.xmlsoap.org/ws/2006/12/authorization"
	nsActivity   = "http://schemas.microsoft.com/2004/09/ServiceModel/Diagnostics"
	nsDispatcher = "http://schemas.microsoft.com/net/2005/12/windowscommunicationfoundation/dispatcher"
)

// WS-Addressing actions ([MS-XCEP] 3.1.4.1, [MS-WSTEP] 3.1.4.1 and 3.1.4.2).
const (
	actionGetPolicies      = nsPolicy + "/IPolicy/GetPolicies"
	actionGetPoliciesReply = nsPolicy + "/IPolicy/GetPoliciesResponse"
	actionToken            = nsEnrollment + "/RST/wstep"
	actionTokenReply       = nsEnrollment + "/RSTRC/wstep"
	actionKeyExchange      = nsTrust + "/RST/KET"
	actionKeyExchangeReply = nsTrust + "/RSTR/KETFinal"
	actionFault            = nsDispatcher + "/fault"
)

// RequestType values ([MS-WSTEP] 3.1.4.1.2.5).
const (
	requestIssue       = nsTrust + "/Issue"
	requestKeyExchange = nsTrust + "/KET"
	requestStatus      = nsEnrollment + "/QueryTokenStatus"
)

// Types and encodings of tokens.
const (
	tokenTypeX509  = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509v3"
	valueTypePKCS7 = nsSecext + "#PKCS7"
	encodingBase64 = nsSecext + "#base64binary"
	anonymousReply = nsAddressing + "/anonymous"
)

// Values of CAURI.ClientAuthentication ([MS-XCEP] 3.1.4.1.3.3).
const (
	AuthAnonymous   = 1 // renewal only
	AuthKerberos    = 2
	AuthPassword    = 4
	AuthCertificate = 8
)

// GetPoliciesRequest asks for the policies that concern the caller ([MS-XCEP] 3.1.4.1.1.1).
type GetPoliciesRequest struct {
	LastUpdate        time.Time // when the client last got the policies; zero: never
	PreferredLanguage string
	PolicyOIDs        []string // only these; empty: all
	ClientVersion     int      // only templates up to this version; 0: no filter
	ServerVersion     int

	MessageID string
	Action    string
}

// Kind tells what a TokenRequest asks for.
type Kind int

// The kinds of TokenRequest.
const (
	Issue            Kind = iota // a certificate for the request in Token
	QueryTokenStatus             // what became of the request with RequestID
	KeyExchange                  // the exchange certificate, for key archival
)

func (k Kind) String() string {
	switch k {
	case Issue:
		return "Issue"
	case QueryTokenStatus:
		return "QueryTokenStatus"
	}
	return "KeyExchange"
}

// ContextItem is one item of AdditionalContext: a request attribute beside the request ([MS-WSTEP] 3.1.4.1.3.3).
type ContextItem struct{ Name, Value string }

// TokenRequest is an RST message ([MS-WSTEP] 3.1.4.1.1.1).
type TokenRequest struct {
	Kind      Kind
	CA        string // from the path of the endpoint
	Token     []byte // DER: PKCS#10, CMC or PKCS#7; look inside, the message does not reliably say which
	RequestID string // for QueryTokenStatus
	Context   []ContextItem

	MessageID string
	Action    string
}

// TokenReply answers Issue and QueryTokenStatus.
type TokenReply struct {
	Pending     bool
	RequestID   string
	Message     string // disposition text for a person; "Issued" or "Taken Under Submission" if empty
	Language    string // of Message; "en-US" if empty
	PKCS7       []byte // CMC full response; may be empty
	Certificate []byte // DER of the issued certificate; nil while pending
	// Reference is where to ask again while pending; the handler fills in its own address.
	Reference string
	// RetryAfter is when asking again is worth it, while pending; 0 where nobody knows. It travels as the HTTP header of that name
	// (RFC 9110 10.2.3), for the protocol has no place for it.
	RetryAfter time.Duration
}

// Backend does what the messages ask for. Errors should be *hresult.Error, or wrap one; a RequestError adds the
// request's number. Any other error reaches the client as E_UNEXPECTED with a text that gives nothing away.
type Backend interface {
	// Policies returns what the caller may enroll for. The handler encodes a *Policies once and keeps the result in
	// it, so that a cached one is cheap to serve; it must not be changed after it was returned.
	Policies(ctx context.Context, caller templates.Caller, req GetPoliciesRequest) (*Policies, error)
	// Enroll handles Issue.
	Enroll(ctx context.Context, caller templates.Caller, req TokenRequest) (*TokenReply, error)
	// Poll handles QueryTokenStatus.
	Poll(ctx context.Context, caller templates.Caller, req TokenRequest) (*TokenReply, error)
	// ExchangeCertificate returns the DER of the certificate that keys to be archived are encrypted to, for the CA
	// named in the path.
	ExchangeCertificate(ctx context.Context, caller templates.Caller, ca string) ([]byte, error)
}
