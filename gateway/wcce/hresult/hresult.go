// Package hresult has the error values that Windows enrollment clients understand, and the one error type of the
// gateway: an HRESULT and a text for the client, a fix for the administrator, a cause for the log.
//
// Values and names are those of [MS-ERREF] 2.1.1; when each is used is in [MS-WCCE] 3.2.1.4 and 3.2.2.6.2.
package hresult

import (
	"errors"
	"fmt"
)

// Code is an HRESULT ([MS-ERREF] 2.1). Failures have the top bit set.
type Code uint32

// The HRESULTs of certificate enrollment.
const (
	OK                       Code = 0
	AccessDenied             Code = 0x80070005 // E_ACCESSDENIED
	InvalidArg               Code = 0x80070057 // E_INVALIDARG
	InvalidData              Code = 0x8007000D // ERROR_INVALID_DATA
	Unexpected               Code = 0x8000FFFF // E_UNEXPECTED
	ServerTooBusy            Code = 0x800706BB // RPC_S_SERVER_TOO_BUSY
	ServerUnavailable        Code = 0x800706BA // RPC_S_SERVER_UNAVAILABLE
	NotSupported             Code = 0x80070032 // ERROR_NOT_SUPPORTED
	InvalidMsgType           Code = 0x80091004 // CRYPT_E_INVALID_MSG_TYPE
	NoSigner                 Code = 0x8009200E // CRYPT_E_NO_SIGNER
	BadSignature             Code = 0x80090006 // NTE_BAD_SIGNATURE
	BadRequestSubject        Code = 0x80094001 // CERTSRV_E_BAD_REQUESTSUBJECT
	NoRequest                Code = 0x80094002 // CERTSRV_E_NO_REQUEST
	BadRequestStatus         Code = 0x80094003 // CERTSRV_E_BAD_REQUESTSTATUS
	PropertyEmpty            Code = 0x80094004 // CERTSRV_E_PROPERTY_EMPTY
	RestrictedOfficer        Code = 0x80094009 // CERTSRV_E_RESTRICTEDOFFICER
	KeyArchivalNotConfigured Code = 0x8009400A // CERTSRV_E_KEY_ARCHIVAL_NOT_CONFIGURED
	NoValidKRA               Code = 0x8009400B // CERTSRV_E_NO_VALID_KRA
	BadRequestKeyArchival    Code = 0x8009400C // CERTSRV_E_BAD_REQUEST_KEY_ARCHIVAL
	BadRenewalCertAttribute  Code = 0x8009400E // CERTSRV_E_BAD_RENEWAL_CERT_ATTRIBUTE
	EnrollDenied             Code = 0x80094011 // CERTSRV_E_ENROLL_DENIED
	TemplateDenied           Code = 0x80094012 // CERTSRV_E_TEMPLATE_DENIED
	AdminDeniedRequest       Code = 0x80094014 // CERTSRV_E_ADMIN_DENIED_REQUEST
	NoPolicyServer           Code = 0x80094015 // CERTSRV_E_NO_POLICY_SERVER
	UnsupportedCertType      Code = 0x80094800 // CERTSRV_E_UNSUPPORTED_CERT_TYPE
	NoCertType               Code = 0x80094801 // CERTSRV_E_NO_CERT_TYPE
	TemplateConflict         Code = 0x80094802 // CERTSRV_E_TEMPLATE_CONFLICT
	SubjectAltNameRequired   Code = 0x80094803 // CERTSRV_E_SUBJECT_ALT_NAME_REQUIRED
	ArchivedKeyRequired      Code = 0x80094804 // CERTSRV_E_ARCHIVED_KEY_REQUIRED
	SMIMERequired            Code = 0x80094805 // CERTSRV_E_SMIME_REQUIRED
	BadRenewalSubject        Code = 0x80094806 // CERTSRV_E_BAD_RENEWAL_SUBJECT
	BadTemplateVersion       Code = 0x80094807 // CERTSRV_E_BAD_TEMPLATE_VERSION
	TemplatePolicyRequired   Code = 0x80094808 // CERTSRV_E_TEMPLATE_POLICY_REQUIRED
	SignaturePolicyRequired  Code = 0x80094809 // CERTSRV_E_SIGNATURE_POLICY_REQUIRED
	SignatureCount           Code = 0x8009480A // CERTSRV_E_SIGNATURE_COUNT
	SignatureRejected        Code = 0x8009480B // CERTSRV_E_SIGNATURE_REJECTED
	IssuancePolicyRequired   Code = 0x8009480C // CERTSRV_E_ISSUANCE_POLICY_REQUIRED
	SubjectUPNRequired       Code = 0x8009480D // CERTSRV_E_SUBJECT_UPN_REQUIRED
	SubjectDirectoryGUID     Code = 0x8009480E // CERTSRV_E_SUBJECT_DIRECTORY_GUID_REQUIRED
	SubjectDNSRequired       Code = 0x8009480F // CERTSRV_E_SUBJECT_DNS_REQUIRED
	ArchivedKeyUnexpected    Code = 0x80094810 // CERTSRV_E_ARCHIVED_KEY_UNEXPECTED
	KeyLength                Code = 0x80094811 // CERTSRV_E_KEY_LENGTH
	SubjectEmailRequired     Code = 0x80094812 // CERTSRV_E_SUBJECT_EMAIL_REQUIRED
	UnknownCertType          Code = 0x80094813 // CERTSRV_E_UNKNOWN_CERT_TYPE
	TooManySignatures        Code = 0x80094815 // CERTSRV_E_TOO_MANY_SIGNATURES
	RenewalBadPublicKey      Code = 0x80094816 // CERTSRV_E_RENEWAL_BAD_PUBLIC_KEY
	InvalidEK                Code = 0x80094817 // CERTSRV_E_INVALID_EK
	KeyAttestation           Code = 0x8009481A // CERTSRV_E_KEY_ATTESTATION
	NoSuchUser               Code = 0x80070525 // ERROR_NO_SUCH_USER
	LogonFailure             Code = 0x8007052E // ERROR_LOGON_FAILURE
	AccountDisabled          Code = 0x80070533 // ERROR_ACCOUNT_DISABLED
	InvalidMessageFormat     Code = 0x803D0000 // WS_E_INVALID_FORMAT
	FileNotFound             Code = 0x80070002 // ERROR_FILE_NOT_FOUND
	InvalidHandle            Code = 0x80070006 // ERROR_INVALID_HANDLE
	Overflow                 Code = 0x80070216 // ERROR_ARITHMETIC_OVERFLOW
	NotImplemented           Code = 0x80004001 // E_NOTIMPL
	CertExpired              Code = 0x800B0101 // CERT_E_EXPIRED
	CertRevoked              Code = 0x800B010C // CERT_E_REVOKED
)

var names = map[Code]string{
	OK: "S_OK", AccessDenied: "E_ACCESSDENIED", InvalidArg: "E_INVALIDARG", InvalidData: "ERROR_INVALID_DATA",
	Unexpected: "E_UNEXPECTED", ServerTooBusy: "RPC_S_SERVER_TOO_BUSY", ServerUnavailable: "RPC_S_SERVER_UNAVAILABLE",
	NotSupported: "ERROR_NOT_SUPPORTED", InvalidMsgType: "CRYPT_E_INVALID_MSG_TYPE", NoSigner: "CRYPT_E_NO_SIGNER",
	BadSignature: "NTE_BAD_SIGNATURE", BadRequestSubject: "CERTSRV_E_BAD_REQUESTSUBJECT",
	NoRequest: "CERTSRV_E_NO_REQUEST", BadRequestStatus: "CERTSRV_E_BAD_REQUESTSTATUS",
	PropertyEmpty: "CERTSRV_E_PROPERTY_EMPTY", RestrictedOfficer: "CERTSRV_E_RESTRICTEDOFFICER",
	KeyArchivalNotConfigured: "CERTSRV_E_KEY_ARCHIVAL_NOT_CONFIGURED", NoValidKRA: "CERTSRV_E_NO_VALID_KRA",
	BadRequestKeyArchival: "CERTSRV_E_BAD_REQUEST_KEY_ARCHIVAL", BadRenewalCertAttribute: "CERTSRV_E_BAD_RENEWAL_CERT_ATTRIBUTE",
	EnrollDenied: "CERTSRV_E_ENROLL_DENIED", TemplateDenied: "CERTSRV_E_TEMPLATE_DENIED",
	AdminDeniedRequest: "CERTSRV_E_ADMIN_DENIED_REQUEST", NoPolicyServer: "CERTSRV_E_NO_POLICY_SERVER",
	UnsupportedCertType: "CERTSRV_E_UNSUPPORTED_CERT_TYPE", NoCertType: "CERTSRV_E_NO_CERT_TYPE",
	TemplateConflict: "CERTSRV_E_TEMPLATE_CONFLICT", SubjectAltNameRequired: "CERTSRV_E_SUBJECT_ALT_NAME_REQUIRED",
	ArchivedKeyRequired: "CERTSRV_E_ARCHIVED_KEY_REQUIRED", SMIMERequired: "CERTSRV_E_SMIME_REQUIRED",
	BadRenewalSubject: "CERTSRV_E_BAD_RENEWAL_SUBJECT", BadTemplateVersion: "CERTSRV_E_BAD_TEMPLATE_VERSION",
	TemplatePolicyRequired: "CERTSRV_E_TEMPLATE_POLICY_REQUIRED", SignaturePolicyRequired: "CERTSRV_E_SIGNATURE_POLICY_REQUIRED",
	SignatureCount: "CERTSRV_E_SIGNATURE_COUNT", SignatureRejected: "CERTSRV_E_SIGNATURE_REJECTED",
	IssuancePolicyRequired: "CERTSRV_E_ISSUANCE_POLICY_REQUIRED", SubjectUPNRequired: "CERTSRV_E_SUBJECT_UPN_REQUIRED",
	SubjectDirectoryGUID: "CERTSRV_E_SUBJECT_DIRECTORY_GUID_REQUIRED", SubjectDNSRequired: "CERTSRV_E_SUBJECT_DNS_REQUIRED",
	ArchivedKeyUnexpected: "CERTSRV_E_ARCHIVED_KEY_UNEXPECTED", KeyLength: "CERTSRV_E_KEY_LENGTH",
	SubjectEmailRequired: "CERTSRV_E_SUBJECT_EMAIL_REQUIRED", UnknownCertType: "CERTSRV_E_UNKNOWN_CERT_TYPE",
	TooManySignatures: "CERTSRV_E_TOO_MANY_SIGNATURES", RenewalBadPublicKey: "CERTSRV_E_RENEWAL_BAD_PUBLIC_KEY",
	InvalidEK: "CERTSRV_E_INVALID_EK", KeyAttestation: "CERTSRV_E_KEY_ATTESTATION",
	LogonFailure: "ERROR_LOGON_FAILURE", FileNotFound: "ERROR_FILE_NOT_FOUND", InvalidHandle: "ERROR_INVALID_HANDLE",
	Overflow: "ERROR_ARITHMETIC_OVERFLOW", NotImplemented: "E_NOTIMPL", CertExpired: "CERT_E_EXPIRED", CertRevoked: "CERT_E_REVOKED",
	NoSuchUser: "ERROR_NO_SUCH_USER", AccountDisabled: "ERROR_ACCOUNT_DISABLED", InvalidMessageFormat: "WS_E_INVALID_FORMAT",
}

// String returns the hexadecimal value and, where known, the symbolic name: "0x80094012 CERTSRV_E_TEMPLATE_DENIED".
func (c Code) String() string {
	if name, ok := names[c]; ok {
		return fmt.Sprintf("0x%08X %s", uint32(c), name)
	}
	return fmt.Sprintf("0x%08X", uint32(c))
}

// Name returns the symbolic name, or the hexadecimal value where none is known.
func (c Code) Name() string {
	if name, ok := names[c]; ok {
		return name
	}
	return c.String()
}

// Int32 is the value as SOAP and RPC carry it: a signed 32-bit integer.
func (c Code) Int32() int32 { return int32(c) }

// Error is a refusal or failure that a client is told about.
type Error struct {
	Code  Code
	Text  string // for the client and the administrator: names the thing and the reason; no secrets
	Fix   string // what would make it work; empty when there is nothing to do
	Cause error  // for the log only; never sent to a client
}

// Error has everything that the log needs.
func (e *Error) Error() string {
	s := e.Text
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s + " (" + e.Code.String() + ")"
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// ClientText is what a person in front of the client reads: the text, and the fix if there is one.
func (e *Error) ClientText() string {
	if e.Fix == "" {
		return e.Text
	}
	return e.Text + " — " + e.Fix
}

// New returns an error with a formatted text. A %w operand becomes the cause's text too, so use Wrap for causes that
// the client must not see.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Wrap returns an error whose cause goes to the log but not to the client.
func Wrap(code Code, cause error, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Cause: cause}
}

// WithFix adds what would make it work.
func (e *Error) WithFix(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// From finds the Error in err's chain. Any other error becomes E_UNEXPECTED with a text that gives nothing away.
func From(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Wrap(Unexpected, err, "internal error; the gateway's log has the details")
}
