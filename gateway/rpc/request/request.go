// Package request is what ICertPassage ([MS-ICPR]), ICertRequestD and ICertRequestD2 ([MS-WCCE]) have in common: their methods to request
// a certificate take the same parameters and mean the same ([MS-WCCE] 3.2.1.4.2.1, 3.2.1.4.3.1).
//
// Do turns the parameters into a call of the gateway's pipeline, and what that says into dispositions and HRESULTs. Interfaces only move
// the values between the wire and Args and Answer. Whether the caller came by packet privacy is theirs to check.
package request

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Args are the parameters that come in.
type Args struct {
	Flags      uint32
	Authority  string // name of the CA, or its sanitized short name
	RequestID  uint32 // of the request that is asked about; 0 for a new one
	Serial     string // of the certificate that is asked about, in hexadecimal (ICertRequestD2::Request2 only)
	Attributes string // as ParseAttributes takes them
	Request    []byte // empty where only the state of RequestID is asked
}

// Answer has what goes out.
type Answer struct {
	RequestID   uint32
	Disposition uint32
	Chain       []byte // certs-only CMS, or CMC full response where Flags asks for one
	Certificate []byte // DER
	Message     string
	Result      hresult.Code // of the method itself
}

// Dispositions ([MS-WCCE] 3.2.1.4.2.1). Other values are HRESULTs of the refusal.
const (
	Denied          = 2
	Issued          = 3
	UnderSubmission = 5
	Revoked         = 6
)

// Backend is the gateway.
type Backend interface {
	// CA finds a CA by the name that clients call it; "" where there is none.
	CA(authority string) string
	Enroll(ctx context.Context, caller templates.Caller, ca string, attributes []wcce.NameValue, request []byte) (*Reply, error)
	// Poll tells what became of a request of the caller's own.
	Poll(ctx context.Context, caller templates.Caller, requestID string) (*Reply, error)
	// PollSerial is Poll by the serial number of the certificate.
	PollSerial(ctx context.Context, caller templates.Caller, ca, serial string) (*Reply, error)
}

// Reply is what became of a request that was not refused.
type Reply struct {
	RequestID   int64
	CA          string // that a request which is asked about was sent to
	Pending     bool
	Revoked     bool // issued, and revoked since
	Message     string
	Certificate []byte // DER; nil while pending
	CertsOnly   []byte // CMS; nil while pending
	Full        []byte // CMC full response
	// CRLs are the revocation lists at hand for the certificates of the reply; nil where there are none.
	CRLs func() [][]byte
}

// Refusal is the error of a request that was refused and has a number.
type Refusal struct {
	RequestID int64
	CA        string // as in Reply
	Err       *hresult.Error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the error for the client.
func (r *Refusal) Unwrap() error { return r.Err }

// Flags ([MS-WCCE] 3.2.1.4.3.1.1). Others are without meaning on the wire, such as those that certcli keeps for itself.
const (
	typeMask      = 0xff00
	typeDetect    = 0x0000
	typePKCS10    = 0x0100
	typeKeygen    = 0x0200
	typeCMS       = 0x0300
	typeCMC       = 0x0400
	typeChallenge = 0x0500 // response to an attestation challenge
	typeSCT       = 0x0600 // list of signed certificate timestamps

	flagFullResponse = 0x00040000
	flagCRLs         = 0x00080000 // "X": the answer has CRLs
	flagPrecert      = 0x04000000 // Certificate Transparency
	flagPresign      = 0x08000000
)

// Do handles one call. The error is for the log: Answer has told the client already.
func Do(ctx context.Context, b Backend, caller templates.Caller, in Args) (Answer, error) {
	reply, err := do(ctx, b, caller, in)
	if err != nil {
		return refusal(in, err), err
	}
	out := Answer{Disposition: Issued, Message: reply.Message, Certificate: reply.Certificate, Chain: reply.CertsOnly, RequestID: wireID(reply.RequestID)}
	switch {
	case reply.Revoked: // of a certificate that is to be used no more there is nothing but the state
		out.Disposition, out.Certificate, out.Chain, out.Message = Revoked, nil, nil, "Revoked"
		return out, nil
	case reply.Pending:
		out.Disposition = UnderSubmission
	}
	if in.Flags&flagFullResponse != 0 {
		out.Chain = reply.Full
	}
	if in.Flags&flagCRLs != 0 && reply.CRLs != nil && len(out.Chain) > 0 {
		with, err := wcce.AddCRLs(out.Chain, reply.CRLs())
		if err != nil {
			return out, err
		}
		out.Chain = with
	}
	return out, nil
}

// wireID is a request's number as 32 bits; 0 where it does not fit, so that nobody asks for another one.
func wireID(id int64) uint32 {
	if id < 0 || id > 1<<32-1 {
		return 0
	}
	return uint32(id)
}

func do(ctx context.Context, b Backend, caller templates.Caller, in Args) (*Reply, error) {
	ca := b.CA(in.Authority)
	if ca == "" {
		return nil, hresult.New(hresult.InvalidArg, "there is no CA %q here", in.Authority)
	}
	if len(in.Request) == 0 {
		switch serial := strings.TrimLeft(in.Serial, "0"); { // [MS-WCCE] 3.2.1.4.3.1.2
		case in.RequestID == 0 && in.Serial == "":
			return nil, hresult.New(hresult.InvalidArg, "neither a request nor the number of one was sent")
		case in.RequestID != 0 && in.Serial != "":
			return nil, hresult.New(hresult.InvalidArg, "the number of a request and the serial number of a certificate were sent; one of them is enough")
		case in.RequestID == 0:
			if len(serial) == 0 || len(serial) > maxSerial || strings.Trim(serial, "0123456789abcdefABCDEF") != "" {
				return nil, hresult.New(hresult.InvalidArg, "%q is no serial number in hexadecimal", in.Serial)
			}
			return b.PollSerial(ctx, caller, ca, strings.ToLower(serial))
		}
		reply, err := b.Poll(ctx, caller, strconv.FormatUint(uint64(in.RequestID), 10))
		of := ""
		if r, ok := errors.AsType[*Refusal](err); ok {
			of = r.CA
		} else if err == nil {
			of = reply.CA
		}
		if of != "" && of != ca { // each CA has its own requests
			return nil, hresult.New(hresult.PropertyEmpty, "the CA %q has no request %d of yours", ca, in.RequestID)
		}
		return reply, err
	}
	if err := checkFlags(in.Flags, in.Request); err != nil {
		return nil, err
	}
	return b.Enroll(ctx, caller, ca, ParseAttributes(in.Attributes), in.Request)
}

// maxSerial is the range of pwszSerialNumber ([MS-WCCE] 3.2.1.4.3.1) without the final zero.
const maxSerial = 63

// checkFlags refuses what is not served, and a request of another type than the flags say. Which of the types it is, of those of one
// container, the request itself says: renewals and requests on behalf of others are PKCS #7 or CMC.
func checkFlags(flags uint32, der []byte) error {
	want := ""
	switch flags & typeMask {
	case typeDetect:
	case typePKCS10:
		want = "PKCS #10"
	case typeCMS, typeCMC:
		want = "CMS"
	case typeKeygen:
		return hresult.New(hresult.NotSupported, "requests of Netscape's KEYGEN are not accepted")
	case typeChallenge:
		return hresult.New(hresult.NotSupported, "answers to attestation challenges are not accepted: the gateway sends none")
	case typeSCT:
		return hresult.New(hresult.NotSupported, "lists of signed certificate timestamps are not accepted")
	default:
		return hresult.New(hresult.InvalidArg, "the flags 0x%08x name an unknown type of request", flags)
	}
	if flags&(flagPrecert|flagPresign) != 0 {
		return hresult.New(hresult.NotSupported, "precertificates (Certificate Transparency) are not made")
	}
	if is := container(der); want != "" && is != want {
		return hresult.New(hresult.InvalidData, "the flags say that the request is %s, but it is %s", want, is)
	}
	return nil
}

// container tells CMS, which begins with an OID, from PKCS #10, which begins with a sequence.
func container(der []byte) string {
	if wcce.LooksLikeCMS(der) {
		return "CMS"
	}
	return "PKCS #10"
}

// refusal tells the client why. What was refused about a certificate is a disposition with a message, as AD CS has it, and the method
// has done its work; wrong parameters, and a gateway that cannot work, are the result of the method.
func refusal(in Args, err error) Answer {
	e := hresult.From(err)
	out := Answer{Disposition: uint32(e.Code), Message: e.ClientText(), RequestID: in.RequestID}
	if r, ok := errors.AsType[*Refusal](err); ok {
		out.RequestID = wireID(r.RequestID)
		if e.Code == hresult.AdminDeniedRequest {
			out.Disposition = Denied
		}
		return out
	}
	switch e.Code {
	case hresult.InvalidArg, hresult.AccessDenied, hresult.Unexpected, hresult.ServerTooBusy, hresult.ServerUnavailable, hresult.PropertyEmpty, hresult.NotSupported:
		out.Result = e.Code
	}
	return out
}

// Limits of parameters ([MS-WCCE] 3.2.1.4.2.1, 3.2.1.4.3.1). Clients send longer attributes than the range says.
const (
	MaxAuthority  = 1536     // UTF-16 units of pwszAuthority, with the final zero
	MaxAttributes = 64 << 10 // octets
	MaxStub       = wcce.MaxMessage + MaxAttributes + 8<<10

	maxPairs = 256 // attributes
)

// ParseAttributes reads request attributes ([MS-WCCE] 2.2.2.7.10): lines of name and value with a colon between. A line without one is
// skipped; blanks and minus signs in names do not count.
func ParseAttributes(text string) (out []wcce.NameValue) {
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' || r == 0 }) {
		name, value, ok := strings.Cut(line, ":")
		name = strings.Map(func(r rune) rune {
			if r == ' ' || r == '\t' || r == '-' {
				return -1
			}
			return r
		}, name)
		if ok && name != "" && len(out) < maxPairs {
			out = append(out, wcce.NameValue{Name: name, Value: strings.TrimSpace(value)})
		}
	}
	return out
}

// DecodeText reads UTF-16 with a final zero, as ICertPassage carries attributes; nothing at all is the empty text.
func DecodeText(b []byte) (string, error) {
	if len(b) == 0 {
		return "", nil
	}
	if len(b)%2 != 0 || len(b) > MaxAttributes || b[len(b)-1] != 0 || b[len(b)-2] != 0 {
		return "", hresult.New(hresult.InvalidArg, "the attributes are no text in UTF-16 with a final zero, or have more than %d octets", MaxAttributes)
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00"), nil
}

// EncodeText writes UTF-16 with a final zero, as disposition messages are.
func EncodeText(text string) []byte {
	units := utf16.Encode([]rune(text + "\x00"))
	out := make([]byte, 0, 2*len(units))
	for _, u := range units {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}
