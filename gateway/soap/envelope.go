package soap

import (
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// envelope is a SOAP 1.2 message, opened.
type envelope struct {
	action    string
	messageID string
	relatesTo string
	body      *element // first child of Body
	// credentials are those of the message; nil where it has none.
	credentials *UsernameToken
	retryAfter  time.Duration // of the HTTP answer that it came in
}

// soapFault is an error about the message itself, which has its own fault code (SOAP 1.2 part 1, 5.4.6).
type soapFault struct {
	code    string // local name of a SOAP fault code
	subcode string // local name in the addressing namespace; may be empty
	err     *hresult.Error
}

func (f *soapFault) Error() string { return f.err.Error() }
func (f *soapFault) Unwrap() error { return f.err }

func senderFault(subcode, format string, args ...any) error {
	return &soapFault{code: "Sender", subcode: subcode, err: hresult.New(hresult.InvalidMessageFormat, format, args...)}
}

// malformed wraps what a parser said about the message.
func malformed(err error) error {
	return senderFault("", "the message is malformed: %v", err)
}

// maxHeaderText bounds the header values that are logged and echoed.
const maxHeaderText = 1024

// parseEnvelope opens a message. Where only a header is wrong, the envelope is returned with the error, so that the
// fault can say which message it is about.
func parseEnvelope(b []byte, lim limits) (*envelope, error) {
	root, err := parseDocument(b, lim)
	if err != nil {
		return nil, malformed(err)
	}
	if root.name.Local == "Envelope" && root.name.Space != nsSOAP {
		return nil, &soapFault{code: "VersionMismatch", err: hresult.New(hresult.InvalidMessageFormat,
			"the envelope is of %q, need SOAP 1.2", root.name.Space)}
	}
	if !root.is(nsSOAP, "Envelope") {
		return nil, malformed(fmt.Errorf("the root element is %s, not a SOAP envelope", root.name.Local))
	}
	env := &envelope{}
	header, err := root.child(nsSOAP, "Header")
	if err != nil {
		return nil, malformed(err)
	}
	if header != nil {
		if err := env.readHeader(header); err != nil {
			return env, err
		}
	}
	body, err := root.need(nsSOAP, "Body")
	if err != nil {
		return env, malformed(err)
	}
	if len(body.children) != 1 {
		return env, malformed(fmt.Errorf("the body has %d elements, need one", len(body.children)))
	}
	env.body = body.children[0]
	return env, nil
}

// readHeader reads the addressing headers and refuses blocks that must be understood and are not.
func (env *envelope) readHeader(header *element) error {
	for _, f := range []struct {
		name  string
		value *string
	}{{"MessageID", &env.messageID}, {"RelatesTo", &env.relatesTo}, {"Action", &env.action}} {
		e, err := header.child(nsAddressing, f.name)
		if err != nil {
			return senderFault("InvalidAddressingHeader", "the message is malformed: %v", err)
		}
		if e == nil {
			continue
		}
		if *f.value, err = e.leaf(); err != nil || len(*f.value) > maxHeaderText {
			*f.value = ""
			return senderFault("InvalidAddressingHeader", "the header %s is malformed", f.name)
		}
	}
	for _, block := range header.children {
		if err := env.checkBlock(block); err != nil {
			return err
		}
	}
	return nil
}

func (env *envelope) checkBlock(block *element) error {
	must := block.attr(nsSOAP, "mustUnderstand")
	switch {
	case block.is(nsAddressing, "ReplyTo") || block.is(nsAddressing, "FaultTo"):
		// The answer goes back on the same connection, nowhere else.
		address, err := block.need(nsAddressing, "Address")
		if err != nil {
			return senderFault("InvalidAddressingHeader", "the message is malformed: %v", err)
		}
		if to := strings.TrimSpace(address.text); to != anonymousReply {
			return senderFault("InvalidAddressingHeader", "%s must be anonymous, not %q", block.name.Local, to)
		}
		return nil
	case block.name.Space == nsAddressing, block.is(nsActivity, "ActivityId"):
		return nil
	case block.is(nsSecext, "Security") && onlyKnown(block):
		token, err := readUsernameToken(block)
		if err != nil || env.credentials != nil && token != nil {
			return senderFault("", "the credentials of the message are malformed")
		}
		if token != nil {
			env.credentials = token
		}
		return nil
	case must == "1" || must == "true":
		e := hresult.New(hresult.NotSupported, "the header %s must be understood, but is not", block.name.Local)
		if block.is(nsSecext, "Security") {
			e = hresult.New(hresult.NotSupported, "the message carries credentials (WS-Security) of a kind that is not understood").
				WithFix("enter the policy server with Windows integrated authentication")
		}
		return &soapFault{code: "MustUnderstand", err: e}
	}
	return nil
}

// onlyKnown tells whether a Security header holds nothing but a user name token and a timestamp: TLS gives the freshness
// that a timestamp is for.
func onlyKnown(security *element) bool {
	for _, c := range security.children {
		if !c.is(nsUtility, "Timestamp") && !c.is(nsSecext, "UsernameToken") {
			return false
		}
	}
	return true
}

// startEnvelope writes a message up to the opening of its body.
func startEnvelope(w *writer, action string, headers func()) {
	w.WriteString(`<?xml version="1.0" encoding="utf-8"?>` + "\n")
	w.WriteString(`<s:Envelope xmlns:s="` + nsSOAP + `" xmlns:a="` + nsAddressing + `"><s:Header><a:Action s:mustUnderstand="1">`)
	w.escape(action)
	w.WriteString(`</a:Action>`)
	headers()
	w.WriteString(`</s:Header><s:Body>`)
}

func endEnvelope(w *writer) { w.WriteString(`</s:Body></s:Envelope>`) }

// reply says which request a message answers.
type reply struct {
	relatesTo  string
	activityID string // optional: what the log calls this exchange
}

// message builds a whole reply.
func (r reply) message(action string, body func(*writer)) []byte {
	w := &writer{}
	startEnvelope(w, action, func() {
		if r.relatesTo != "" {
			w.text("a:RelatesTo", r.relatesTo)
		}
		if r.activityID != "" {
			w.WriteString(`<ActivityId xmlns="` + nsActivity + `">`)
			w.escape(r.activityID)
			w.close("ActivityId")
		}
	})
	body(w)
	endEnvelope(w)
	return w.Bytes()
}

// request builds a whole request to url.
func request(action, messageID, url string, credentials *UsernameToken, body func(*writer)) []byte {
	w := &writer{}
	startEnvelope(w, action, func() {
		w.text("a:MessageID", messageID)
		w.WriteString(`<a:ReplyTo><a:Address>` + anonymousReply + `</a:Address></a:ReplyTo><a:To s:mustUnderstand="1">`)
		w.escape(url)
		w.close("a:To")
		if credentials != nil {
			credentials.encode(w)
		}
	})
	body(w)
	endEnvelope(w)
	return w.Bytes()
}
