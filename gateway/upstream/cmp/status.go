package cmp

import (
	"fmt"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/upstream"
)

// PKIStatus (RFC 9810 5.2.3).
const (
	statusAccepted     = 0
	statusGranted      = 1 // with changes, which the gateway compares
	statusRejection    = 2
	statusWaiting      = 3
	statusWarning      = 4 // revocation is imminent
	statusNotification = 5 // revocation has happened
)

// failures are the bits of PKIFailureInfo (RFC 9810 5.2.3).
var failures = []string{
	"badAlg", "badMessageCheck", "badRequest", "badTime", "badCertId", "badDataFormat", "wrongAuthority", "incorrectData", "missingTimeStamp", "badPOP", "certRevoked",
	"certConfirmed", "wrongIntegrity", "badRecipientNonce", "timeNotAvailable", "unacceptedPolicy", "unacceptedExtension", "addInfoNotAvailable", "badSenderNonce",
	"badCertTemplate", "signerNotTrusted", "transactionIdInUse", "unsupportedVersion", "notAuthorized", "systemUnavail", "systemFailure", "duplicateCertReq",
}

const (
	failRevoked   = 1 << 10
	failConfirmed = 1 << 11
	// inDoubt are failures after which the CA may have issued: now, or when it saw the order before.
	inDoubt = failRevoked | failConfirmed | 1<<13 | 1<<18 | 1<<21 | 1<<25 | 1<<26
	// ours are failures that say nothing about the order, but about who asks, and about the CA's own state.
	ours = 1<<1 | 1<<3 | 1<<6 | 1<<12 | 1<<14 | 1<<20 | 1<<22 | 1<<23 | 1<<24
	// final are failures that say something about the order, also where they come as an error message.
	final = 1<<4 | 1<<7 | 1<<9 | 1<<15 | 1<<16 | 1<<17 | 1<<19
)

// statusError is a CA that did not do what it was asked to.
type statusError struct {
	info statusInfo
	kind int // of the message
}

func (e *statusError) Error() string {
	var names []string
	for i, name := range failures {
		if e.info.fail&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	text := fmt.Sprintf("the CA answered %s with status %d", bodyNames[e.kind], e.info.status)
	if len(names) > 0 {
		text += " (" + strings.Join(names, ", ") + ")"
	}
	if e.info.text != "" {
		text += ": " + e.info.text
	}
	return text
}

// outcome tells what a negative answer to the request for a certificate means. proven is whether it is known to come from the CA:
// what anybody on the path could have made up proves nothing.
func outcome(e *statusError, proven bool) (upstream.Result, error) {
	fail := e.info.fail
	switch {
	case !proven:
		return upstream.Result{}, fmt.Errorf("%w; but this answer is not protected, and proves nothing", e)
	case e.info.status != statusRejection || fail&inDoubt != 0:
		return upstream.Result{}, e
	case fail&final != 0 && fail&ours == 0, e.kind == bodyCP && fail&ours == 0:
		return upstream.Result{State: upstream.Refused, Reason: e.Error()}, nil
	}
	return upstream.Result{}, upstream.NotIssued(e) // the message was not taken at all
}
