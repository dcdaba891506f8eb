package soap

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// RequestError is an error about a request that has a number, or with a CMC response that says more. It wraps the
// error with the HRESULT.
type RequestError struct {
	Err       error
	RequestID string
	Response  []byte // CMC full response with the failure; may be empty
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("request %s: %v", e.RequestID, e.Err)
}

// Unwrap returns the error with the HRESULT.
func (e *RequestError) Unwrap() error { return e.Err }

// encodeFault is the one place where an error becomes a SOAP fault ([MS-WSTEP] 3.1.4.1.3.7), and says the HTTP status
// to send it with. The status is 500, or the reason is lost: clients read no body of any other error.
func encodeFault(err error, r reply) (int, []byte) {
	e := hresult.From(err)
	code, subcode, space := "Receiver", "InternalServiceFault", nsDispatcher
	if f, ok := errors.AsType[*soapFault](err); ok {
		code, subcode, space = f.code, f.subcode, nsAddressing
	}
	var about RequestError
	if q, ok := errors.AsType[*RequestError](err); ok {
		about = *q
	}
	status := http.StatusInternalServerError
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		status = http.StatusRequestEntityTooLarge
	}
	return status, r.message(actionFault, func(w *writer) {
		w.WriteString(`<s:Fault><s:Code><s:Value>s:` + code + `</s:Value>`)
		if subcode != "" {
			w.WriteString(`<s:Subcode><s:Value xmlns:e="` + space + `">e:` + subcode + `</s:Value></s:Subcode>`)
		}
		w.WriteString(`</s:Code><s:Reason><s:Text xml:lang="en-US">`)
		w.escape(e.ClientText())
		w.WriteString(`</s:Text></s:Reason><s:Detail><CertificateEnrollmentWSDetail xmlns="` + nsEnrollment + `" xmlns:xsi="` + nsInstance + `">`)
		if len(about.Response) > 0 {
			w.octets("BinaryResponse", about.Response)
		} else {
			w.null("BinaryResponse")
		}
		w.text("ErrorCode", strconv.FormatInt(int64(e.Code.Int32()), 10))
		w.bool("InvalidRequest", !transient(e.Code))
		w.textOrNil("RequestID", about.RequestID)
		w.WriteString(`</CertificateEnrollmentWSDetail></s:Detail></s:Fault>`)
	})
}

// transient tells whether the same request may succeed later, so that it is not the request that is invalid.
func transient(c hresult.Code) bool {
	return c == hresult.ServerTooBusy || c == hresult.ServerUnavailable || c == hresult.Unexpected
}

// decodeFault turns a Fault element into the error that it carries.
func decodeFault(fault *element) error {
	r := &reader{e: fault, space: nsSOAP}
	e := &hresult.Error{Code: hresult.Unexpected, Text: r.maybe("Reason").text("Text")}
	if e.Text == "" {
		e.Text = "the server reported a fault without a reason"
	}
	detail := r.maybe("Detail")
	detail.space = nsEnrollment
	detail = detail.maybe("CertificateEnrollmentWSDetail")
	if v := detail.text("ErrorCode"); v != "" {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return fmt.Errorf("SOAP fault %q: ErrorCode %q: %w", e.Text, v, err)
		}
		e.Code = hresult.Code(uint32(int32(n)))
	}
	about := &RequestError{Err: e, RequestID: detail.text("RequestID"), Response: detail.octets("BinaryResponse")}
	if err := errors.Join(r.err, detail.err); err != nil {
		return fmt.Errorf("SOAP fault %q: %w", e.Text, err)
	}
	if about.RequestID == "" && len(about.Response) == 0 {
		return e
	}
	return about
}
